"""The human profile: what human text of one domain looks like to one scorer."""

from ugap.lazy import names_of_stub

# The names of `__init__.pyi`; each loads its module at first use.
__getattr__, __dir__, __all__ = names_of_stub(__name__, __file__)
