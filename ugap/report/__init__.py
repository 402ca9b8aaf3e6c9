"""What a study found, for people: findings in words, tables and plots."""

from ugap.report.plots import plot_calibration, plot_distributions, plot_gap
from ugap.report.tables import console_table, markdown
from ugap.report.words import findings
from ugap.report.write import write_report

__all__ = [
    "console_table",
    "findings",
    "markdown",
    "plot_calibration",
    "plot_distributions",
    "plot_gap",
    "write_report",
]
