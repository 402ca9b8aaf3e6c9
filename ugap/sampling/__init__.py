"""Decoding at human uncertainty: the logits processor, the three modes, and adapters for serving engines."""

import lazy_loader

# The names of `__init__.pyi`; each loads its module at first use.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
