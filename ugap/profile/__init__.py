"""The human profile: what human text of one domain looks like to one scorer."""

from ugap.profile.calibration import CalibrationCurve, EntropyBins
from ugap.profile.domain import DomainProfile
from ugap.profile.profile import HumanProfile, Quantiles

__all__ = ["CalibrationCurve", "DomainProfile", "EntropyBins", "HumanProfile", "Quantiles"]
