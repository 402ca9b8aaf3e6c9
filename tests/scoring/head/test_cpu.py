"""The kernel for CPUs on more words and tokens than its blocks hold; smaller cases are those of `test_head`."""

from typing import Any

import pytest
import torch

from ugap.scoring.head import cpu, dispatch, tiles
from ugap.scoring.head.autograd import surprisal_entropy
from ugap.scoring.head.bfloat16 import has_bfloat16_units
from ugap.scoring.head.dispatch import KERNEL_DTYPES, Impl
from ugap.scoring.head.lm_head import LMHead
from ugap.scoring.head.statistics import head_statistics

# More than a block, a tile and a superblock hold.
TOKENS, VOCABULARY = 600, 5000
SPECIAL = [0, 127, 128, 2047, 2048, VOCABULARY - 1]


@pytest.fixture(autouse=True)
def only_the_kernel(monkeypatch):
    monkeypatch.setattr(dispatch, "_given_up", {})
    yield
    assert not dispatch._given_up


@pytest.fixture(params=[True, False], ids=["multiplied_by_the_kernel", "multiplied_by_torch"])
def units(request, monkeypatch):
    if request.param and not has_bfloat16_units():
        pytest.skip("this CPU has no bfloat16 units")
    monkeypatch.setattr(tiles, "has_bfloat16_units", lambda: request.param)
    return request.param


def inputs(dtype, hidden=16, n=TOKENS, vocabulary=VOCABULARY):
    generator = torch.Generator().manual_seed(0)
    states, weight = (torch.randn(size, hidden, generator=generator).to(dtype) for size in (n, vocabulary))
    targets = torch.randint(vocabulary, (n,), generator=generator)
    targets[: len(SPECIAL)] = torch.tensor(SPECIAL) % vocabulary
    return states, weight, targets


RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "all": {"bias": torch.linspace(-3, 3, VOCABULARY), "softcap": 15.0, "logit_scale": 1.3},
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
@pytest.mark.parametrize("dtype", KERNEL_DTYPES)
def test_agrees_with_float64(recipe, dtype, units, monkeypatch):
    hidden, weight, targets = inputs(dtype)
    expected = head_statistics(hidden.double(), weight.double(), targets, **recipe, impl="torch")
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        got = head_statistics(hidden, weight, targets, **recipe, impl="compiled")
        for name, mine, theirs in zip(got._fields, got, expected, strict=True):
            # Words whose logits are equal in float32, and not in float64, may change places.
            tolerance = {"rank": 3.0, "varentropy": 1e-3}.get(name, 1e-4)
            torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=tolerance, msg=name)
        assert (got.rank == expected.rank).float().mean() > 0.98


def test_ties_in_one_block_and_across_blocks(units):
    """Whole numbers are multiplied exactly: ranks are those of float64 to the last one."""
    for dtype in KERNEL_DTYPES:
        hidden, weight, targets = (x.round() if x.is_floating_point() else x for x in inputs(dtype, 3))
        weight[SPECIAL] = weight[127].clone()
        expected = head_statistics(hidden.double(), weight.double(), targets, impl="torch")
        got = head_statistics(hidden, weight, targets, impl="compiled")
        assert torch.equal(got.rank.double(), expected.rank)
        assert len(set(got.rank[: len(SPECIAL)].tolist())) == len(SPECIAL)


@pytest.mark.parametrize("size", [1, 15])
@pytest.mark.parametrize("dtype", KERNEL_DTYPES)
def test_an_odd_hidden_size(size, dtype):
    hidden, weight, targets = inputs(dtype, size, 40, 300)
    got = head_statistics(hidden, weight, targets, impl="compiled")
    expected = head_statistics(hidden.double(), weight.double(), targets, impl="torch")
    assert all((a.double() - b).abs().max() < 1e-3 for a, b in zip(got[:3], expected[:3], strict=True))


def test_strided_arguments(units):
    hidden, weight, targets = inputs(torch.bfloat16, n=100, vocabulary=300)
    expected = head_statistics(hidden, weight, targets, impl="compiled")
    wide = torch.stack([weight, weight + 1], dim=1)[:, 0]
    rows = torch.stack([hidden, hidden + 1], dim=1)[:, 0]
    got = head_statistics(rows, wide, torch.stack([targets, targets * 0], dim=1)[:, 0], impl="compiled")
    assert not wide.is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_no_target_is_counted_again(monkeypatch):
    """A target's logit has the same bits beforehand: on some CPU that may not hold, and would cost a second pass."""
    again = []
    real = cpu.fold

    def watched(project, hidden, targets, window=None, count="window"):
        if count == "earlier":
            again.append(len(hidden))
        return real(project, hidden, targets, window, count)

    monkeypatch.setattr(cpu, "fold", watched)
    for dtype in KERNEL_DTYPES:
        hidden, weight, targets = inputs(dtype, 64)
        head_statistics(hidden, weight, targets, RECIPES["all"]["bias"], 15.0, impl="compiled")
    assert sum(again) <= 0.02 * 3 * TOKENS


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
@pytest.mark.parametrize("dtype", KERNEL_DTYPES)
def test_gradients_agree_with_float64(recipe, dtype, units):
    hidden, weight, targets = inputs(dtype)
    targets[::7] = -100
    slopes = torch.linspace(-1, 1, TOKENS)
    found = []
    ways: list[tuple[torch.dtype, Impl]] = [(dtype, "compiled"), (torch.float64, "torch")]
    for kind, impl in ways:
        x, w = (one.to(kind, copy=True).requires_grad_() for one in (hidden, weight))
        b = recipe["bias"].to(dtype).to(kind, copy=True).requires_grad_() if "bias" in recipe else None
        head = LMHead(w, b, recipe.get("softcap"), recipe.get("logit_scale", 1.0))
        surprisal, entropy = surprisal_entropy(x, targets, head, temperature=0.8, impl=impl)
        (surprisal * slopes + entropy * (1 - slopes)).sum().backward()
        found.append([surprisal.detach(), entropy.detach(), x.grad, w.grad, *([] if b is None else [b.grad])])
    for mine, theirs in zip(*found, strict=True):
        rounding = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 2e-2}[mine.dtype]
        assert mine.isfinite().all()
        assert (mine.double() - theirs).norm() <= rounding * theirs.norm()
