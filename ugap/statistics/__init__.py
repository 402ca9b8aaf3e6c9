"""Paired gaps with cluster-bootstrap intervals, contrasts, correlations, proportions, variety, Holm's correction."""

import lazy_loader

# The names of `__init__.pyi`; each loads its module at first use.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
