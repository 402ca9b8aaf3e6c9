"""Draws from given weights: the right distribution, never a weight of zero, and reproducible."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import LogitsProcessorList

from ugap.sampling import DrawLogitsProcessor, draw
from ugap.sampling.portable.drawing import _BLOCK

SEED = 5
CHUNK = 2_000


def generator(seed: int = SEED) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def counts(weights: torch.Tensor, draws: int, seed: int = SEED) -> np.ndarray:
    """How often each index of one row of weights is drawn."""
    source = generator(seed)
    rows = weights.expand(CHUNK, -1)
    found = torch.cat([draw(rows, source) for _ in range(draws // CHUNK)])
    return np.bincount(found.numpy(), minlength=len(weights))


def p_value(observed: np.ndarray, weights: torch.Tensor) -> float:
    """Of the chi-squared test; what is expected less than 10 times is one class."""
    probability = weights.double().numpy() / weights.double().sum().item()
    expected = probability * observed.sum()
    rare = expected < 10
    assert observed[expected == 0].sum() == 0
    if rare.any() and expected[rare].sum() > 0:
        observed = np.append(observed[~rare], observed[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    else:
        observed, expected = observed[~rare], expected[~rare]
    return chisquare(observed, expected).pvalue


@pytest.mark.parametrize("size", [1, 2, 7, _BLOCK - 1, _BLOCK, _BLOCK + 1, 2 * _BLOCK, 2 * _BLOCK + 37])
def test_draws_follow_the_weights(size):
    weights = torch.rand(size, generator=generator(size)) ** 4 * 1e-3
    observed = counts(weights, 20_000)
    assert observed.sum() == 20_000
    if size > 1:
        assert p_value(observed, weights) > 1e-3


def test_many_draws_from_few_tokens():
    """An error of one part in a hundred would show."""
    weights = torch.tensor([0.5, 0.25, 0.125, 0.125, 0.0])
    observed = counts(weights, 200_000)
    assert p_value(observed, weights) > 1e-3
    assert p_value(observed, weights * torch.tensor([1.0, 1.0, 1.08, 1.0, 1.0])) < 1e-3


def test_a_weight_of_zero_is_never_drawn():
    """At both ends, for whole blocks in the middle and at the end, and for all but one."""
    size = 4 * _BLOCK + 11
    weights = torch.rand(size, generator=generator())
    weights[:3] = weights[-2:] = 0.0
    weights[_BLOCK : 3 * _BLOCK] = 0.0
    assert counts(weights, 10_000)[weights.numpy() == 0].sum() == 0
    weights[3 * _BLOCK :] = 0.0
    assert counts(weights, 10_000)[weights.numpy() == 0].sum() == 0
    for only in (0, _BLOCK - 1, _BLOCK, 4 * _BLOCK, size - 1):
        assert counts(torch.zeros(size).index_fill(0, torch.tensor(only), 1e-30), CHUNK)[only] == CHUNK


@pytest.mark.parametrize("point", [0.0, 1.0 - 2**-53])
def test_the_ends_of_the_interval_are_tokens_of_positive_weight(point, monkeypatch):
    """The least and the greatest number that `torch.rand` gives, where rounding could step over the border."""
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: torch.full(shape, point, dtype=torch.float64))
    for size in (5, _BLOCK, 3 * _BLOCK + 5):
        weights = torch.linspace(0.1, 0.7, size)
        weights[0] = weights[-1] = 0.0
        assert draw(weights.unsqueeze(0)).item() == (1 if point == 0.0 else size - 2)


def test_any_scale_and_a_huge_spread():
    weights = torch.tensor([1e-38, 1.0, 1e-20, 3.0])
    for scale in (1e-10, 1.0, 1e25):
        observed = counts(weights * scale, 20_000)
        assert observed[0] == observed[2] == 0
        assert p_value(observed, weights) > 1e-3


def test_rows_are_drawn_from_their_own_weights():
    weights = torch.zeros(4, 2 * _BLOCK + 3)
    for row, index in enumerate((0, _BLOCK, 2 * _BLOCK + 2, 17)):
        weights[row, index] = 10.0 ** (row - 2)
    assert draw(weights, generator()).tolist() == [0, _BLOCK, 2 * _BLOCK + 2, 17]


def test_the_seed_decides():
    weights = torch.rand(200, 900, generator=generator(1))
    assert torch.equal(draw(weights, generator(2)), draw(weights, generator(2)))
    assert not torch.equal(draw(weights, generator(2)), draw(weights, generator(3)))
    torch.manual_seed(4)
    own = draw(weights)
    torch.manual_seed(4)
    assert torch.equal(own, draw(weights))


def test_the_generator_of_others_is_left_alone():
    before = torch.get_rng_state()
    draw(torch.rand(20, 900, generator=generator()), generator())
    DrawLogitsProcessor(generator())(torch.zeros(20, 3, dtype=torch.long), torch.zeros(20, 900))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_processor_leaves_one_token(dtype):
    scores = torch.randn(30, 700, generator=generator()).to(dtype)
    scores[:, 100:] = -torch.inf
    kept = scores.clone()
    out = DrawLogitsProcessor(generator())(torch.zeros(30, 3, dtype=torch.long), scores)
    assert torch.equal(scores, kept)
    assert out.dtype == dtype
    assert out.shape == scores.shape
    assert (out.isfinite().sum(-1) == 1).all()
    assert (out.argmax(-1) < 100).all()
    # What is left is a distribution still: sampling from it takes the token.
    assert torch.equal(torch.softmax(out.float(), -1).amax(-1), torch.ones(30))


@pytest.mark.parametrize("do_sample", [False, True])
def test_generate_draws_from_the_softmax_of_its_scores(tiny_model, do_sample):
    """First tokens of a large batch of one prompt."""
    rows = 4_000
    ids = torch.tensor([[5, 300, 17]])
    logits = tiny_model(input_ids=ids).logits[0, -1] / 2.0
    processor = DrawLogitsProcessor(generator())
    out = tiny_model.generate(
        ids.expand(rows, -1),
        attention_mask=torch.ones(rows, 3, dtype=torch.long),
        logits_processor=LogitsProcessorList([lambda _, scores: scores / 2.0, processor]),
        do_sample=do_sample,
        max_new_tokens=1,
        pad_token_id=0,
        **({"top_k": 0, "top_p": 1.0, "temperature": 1.0} if do_sample else {}),
    )
    observed = np.bincount(out[:, -1].numpy(), minlength=len(logits))
    assert p_value(observed, torch.softmax(logits.double(), -1)) > 1e-3
