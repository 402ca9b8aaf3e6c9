"""Paired gaps with cluster-bootstrap intervals, contrasts, correlations, proportions, variety, Holm's correction."""

from ugap.statistics.contrast import Contrast, contrast_independent, contrast_paired
from ugap.statistics.correlation import Correlation, correlation
from ugap.statistics.diversity import distinct_n, repetition
from ugap.statistics.gap import GapEstimate, paired_gap
from ugap.statistics.inverted_u import InvertedU, inverted_u
from ugap.statistics.proportions import McNemar, mcnemar, wilson
from ugap.statistics.significance import holm

__all__ = [
    "Contrast",
    "Correlation",
    "GapEstimate",
    "InvertedU",
    "McNemar",
    "contrast_independent",
    "contrast_paired",
    "correlation",
    "distinct_n",
    "holm",
    "inverted_u",
    "mcnemar",
    "paired_gap",
    "repetition",
    "wilson",
]
