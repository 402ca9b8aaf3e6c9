"""Sizes that a config promises, held against the weights that are there, before a library builds what it says.

A damaged number would have a library build layers for hours, or fill the memory with random weights.
"""

from collections.abc import Mapping
from typing import Any

from ugap.errors import InputError

# Of transformers' configs. Each of the second row has weights of this size times the hidden size.
LAYERS, HIDDEN = "num_hidden_layers", "hidden_size"
WIDTHS = ("vocab_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
_LAYERS_PER_TENSOR, _WEIGHTS_PER_BYTE = 4, 16  # layers may share weights, and weights of two bits are four in a byte


def check_sizes(name: str, sizes: Mapping[str, Any], *, n_tensors: int, n_bytes: int) -> None:
    """Refuse sizes that are far beyond the weights; the library judges values that are no whole numbers.

    Args:
        name (`str`): How the error names the model.
        sizes (`Mapping[str, Any]`): Sizes by their names in transformers' configs.
        n_tensors (`int`): Tensors that the weights consist of.
        n_bytes (`int`): Size of their files in bytes.

    Raises:
        InputError: The sizes do not belong to the weights.

    Example:
        >>> check_sizes("tiny", {"num_hidden_layers": 10**9}, n_tensors=20, n_bytes=4096)
        Traceback (most recent call last):
            ...
        ugap.errors.InputError: tiny: its config says num_hidden_layers 1000000000, far more than its weights have
    """
    whole = {key: size for key, size in sizes.items() if type(size) is int}
    hidden = max(whole.get(HIDDEN, 1), 1)
    for key, size in whole.items():
        most = n_tensors * _LAYERS_PER_TENSOR if key == LAYERS else n_bytes * _WEIGHTS_PER_BYTE
        if (size if key in (LAYERS, HIDDEN) else size * hidden) > most:
            said = size if size.bit_length() < 256 else "a number of many digits"
            raise InputError(f"{name}: its config says {key} {said}, far more than its weights have")
