"""Paired gaps with cluster-bootstrap intervals, contrasts, correlations, proportions, variety, corrections of p."""

from ugap.lazy import names_of_stub

# The names of `__init__.pyi`; each loads its module at first use.
__getattr__, __dir__, __all__ = names_of_stub(__name__, __file__)
