"""bfloat16 on CPU: the split of float32 numbers, and products in float32 where the CPU has no units for them."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ugap.scoring import Scorer
from ugap.scoring import scorer as scorer_module
from ugap.scoring.head.bfloat16 import FloatProducts, is_bfloat16_exact, split_bfloat16


def test_split_sums_to_sixteen_bits():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 10
    high, low = split_bfloat16(values)
    assert is_bfloat16_exact(high)
    assert is_bfloat16_exact(low)
    assert ((high + low - values).abs() <= 2.0**-16 * values.abs()).all()
    assert not is_bfloat16_exact(values)


def products(dtype: torch.dtype) -> list[torch.Tensor]:
    """A linear layer with bias, grouped and causal attention, and a matrix product, of the same numbers in `dtype`."""
    generator = torch.Generator().manual_seed(0)

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).bfloat16().to(dtype)

    x, weight, bias = made(2, 7, 64), made(32, 64), made(32)
    query, key, value = made(2, 4, 7, 16), made(2, 2, 7, 16), made(2, 2, 7, 16)
    return [
        F.linear(x, weight, bias),
        F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True),
        torch.matmul(x, weight.T),
    ]


def test_products_are_the_float64_ones_rounded_once():
    with FloatProducts():
        rounded = products(torch.bfloat16)
    for got, exact in zip(rounded, products(torch.float64), strict=True):
        assert got.dtype == torch.bfloat16
        error = (got.double() - exact).abs()
        assert (error <= 2.0**-8 * exact.abs() + 1e-5).all()  # half a step of 8 bits, and float32's own rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_types_are_left_alone(dtype):
    expected = products(dtype)
    with FloatProducts():
        assert all(torch.equal(a, b) for a, b in zip(products(dtype), expected, strict=True))


@pytest.mark.parametrize("arch", ["llama", "gemma3", "gpt2"])
def test_a_scorer_without_units_is_as_close_to_float64_as_one_with_them(make_model, tokenizer, arch, monkeypatch):
    text = "Once upon a time there was a tailor who had three sons."
    (exact,) = Scorer(make_model(arch).bfloat16().double(), tokenizer).score([text], ["The old man said: "])
    errors, looked = [], []
    real = FloatProducts.__torch_function__

    def watched(self, func, types, args=(), kwargs=None):
        looked.append(func)
        return real(self, func, types, args, kwargs)

    monkeypatch.setattr(FloatProducts, "__torch_function__", watched)
    for units in (True, False):
        monkeypatch.setattr(scorer_module, "has_bfloat16_units", lambda units=units: units)
        scorer = Scorer(make_model(arch).bfloat16(), tokenizer)
        (scores,) = scorer.score([text], ["The old man said: "])
        errors.append(np.abs(scores.surprisal - exact.surprisal).mean())
        assert bool(looked) != units
    assert errors[1] < 1.5 * errors[0] + 1e-4
    assert errors[1] < 0.02
