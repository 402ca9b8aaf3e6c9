"""Text in, rows out: text sets from files, the Hub or the embedded demo, and the parts of long jobs."""

from ugap.lazy import names_of_stub

# The names of `__init__.pyi`; each loads its module at first use.
__getattr__, __dir__, __all__ = names_of_stub(__name__, __file__)
