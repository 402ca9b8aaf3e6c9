from .calibration import CalibrationCurve as CalibrationCurve
from .calibration import EntropyBins as EntropyBins
from .domain import DomainProfile as DomainProfile
from .profile import HumanProfile as HumanProfile
from .profile import Quantiles as Quantiles
