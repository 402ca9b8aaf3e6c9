"""The scoring module: a model and texts to surprisal, entropy, varentropy and rank per token."""

import lazy_loader

# The names of `__init__.pyi`; each loads its module at first use.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
