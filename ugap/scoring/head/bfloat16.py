"""bfloat16 on CPUs: those that multiply it in hardware (AVX512-BF16 or AMX), and those that do not.

A CPU without such units emulates the products, several times slower than it multiplies float32. A bfloat16 number is a
float32 number too, so there the products of a bfloat16 model are computed in float32 and rounded to bfloat16: what the
units do as well, since they sum in float32.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_ROWS = 8192  # of a matrix that are looked at at once


@functools.cache
def has_bfloat16_units() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX512-BF16 or AMX)."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@contextmanager
def bfloat16_units() -> Iterator[None]:
    """Run float32 products on the CPU's bfloat16 units: exact for operands that are bfloat16 numbers."""
    mkldnn: Any = torch.backends.mkldnn
    before = mkldnn.matmul.fp32_precision
    mkldnn.matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        mkldnn.matmul.fp32_precision = before


class FloatProducts(TorchFunctionMode):
    """A context in which linear layers and attention of bfloat16 tensors on CPU are computed in float32, then rounded.

    Example:
        >>> x = torch.ones(1, 3, dtype=torch.bfloat16)
        >>> with FloatProducts():
        ...     torch.nn.functional.linear(x, x)
        tensor([[3.]], dtype=torch.bfloat16)
    """

    _PRODUCTS = (
        torch.nn.functional.linear,
        torch.nn.functional.scaled_dot_product_attention,
        torch.matmul,
        torch.addmm,
        torch.bmm,
    )

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run `func`, as torch asks."""
        kwargs = kwargs or {}
        if func not in self._PRODUCTS or not _is_half(args[0]):
            return func(*args, **kwargs)
        kwargs = {name: _upcast(value) for name, value in kwargs.items()}
        return func(*map(_upcast, args), **kwargs).to(torch.bfloat16)


def _is_half(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 and value.device.type == "cpu"


def _upcast(value: Any) -> Any:
    return value.float() if _is_half(value) else value


def split_bfloat16(values: torch.Tensor) -> list[torch.Tensor]:
    """Two float32 tensors of bfloat16 numbers whose sum is `values` to 16 bits of mantissa."""
    high = values.to(torch.bfloat16).to(values.dtype)
    return [high, (values - high).to(torch.bfloat16).to(values.dtype)]


def is_bfloat16_exact(weight: torch.Tensor) -> bool:
    """Whether every value of `weight` is a bfloat16 number."""
    return all(torch.equal(part, part.to(torch.bfloat16).to(part.dtype)) for part in weight.split(_ROWS))
