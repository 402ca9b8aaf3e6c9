"""Measure how much less uncertain language models write than people do, token by token, and close the gap.

The names below load their modules at first use (PEP 562): `import ugap` and `ugap --help` start without torch.

Example:
    >>> import ugap
    >>> sorted(ugap.__all__)
    ['HumanEntropyLogitsProcessor', 'HumanProfile', 'Scorer', 'TokenScores', 'generate', 'load_model']
"""

from ugap.lazy import names_of_stub

__version__ = "0.1.0"
# The names of `__init__.pyi`.
__getattr__, __dir__, __all__ = names_of_stub(__name__, __file__)
