"""What a number depends on besides its settings: versions of packages, the machine, the number of threads."""

import platform
from importlib.metadata import version

import torch

import ugap

_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "scipy")


def environment() -> dict[str, str | int]:
    """Versions and machine of this process, for the record beside its numbers.

    Example:
        >>> sorted(environment())  # doctest: +NORMALIZE_WHITESPACE
        ['machine', 'numpy', 'python', 'scipy', 'threads', 'tokenizers', 'torch', 'transformers', 'ugap']
    """
    return {
        "ugap": ugap.__version__,
        **{name: version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        # The GPU where there is one: float32 sums differ between devices, so the table of another card may differ too.
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
    }
