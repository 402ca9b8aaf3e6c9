from .plots import plot_calibration as plot_calibration
from .plots import plot_distributions as plot_distributions
from .plots import plot_gap as plot_gap
from .tables import console_table as console_table
from .tables import markdown as markdown
from .words import findings as findings
from .write import write_report as write_report
