"""Paired estimates of the gap with cluster-bootstrap intervals, contrasts between gaps, and Holm's correction."""

from ugap.statistics.contrast import Contrast, contrast_independent, contrast_paired
from ugap.statistics.gap import GapEstimate, paired_gap
from ugap.statistics.significance import holm

__all__ = ["Contrast", "GapEstimate", "contrast_independent", "contrast_paired", "holm", "paired_gap"]
