"""The solver of temperatures against float64, and the choice of candidates against a sort."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from ugap.sampling.portable.temperature import (
    _TIES,
    FAR,
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    _all_at_once,
    candidates,
    distribution,
    solve_temperature,
)

TOKENS = 700
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def made_up_scores(kind: str, tokens: int = TOKENS) -> torch.Tensor:
    """Rows of scores in float32."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(6, tokens, generator=generator)
    match kind:
        case "random":
            return noise * torch.tensor([0.1, 0.5, 1.0, 2.0, 4.0, 8.0]).unsqueeze(1)
        case "peaked":  # nearly all of the probability is one token's
            noise[:, 5] += torch.tensor([8.0, 12.0, 16.0, 20.0, 25.0, 30.0])
            return noise
        case "two tokens":
            out = torch.full((6, tokens), -torch.inf)
            out[:, 7], out[:, tokens - 1] = torch.tensor([0.0, 0.5, 1.0, 2.0, 4.0, 8.0]), 0.0
            return out
        case "ruled out":
            return noise.masked_fill(noise > 0.5, -torch.inf)
    raise ValueError(kind)


KINDS = ("random", "peaked", "two tokens", "ruled out")


def surprisals(row: torch.Tensor) -> np.ndarray:
    """`-log p` in float64 of the tokens of one row that are not ruled out."""
    values = -torch.log_softmax(row.double(), -1)
    return values[values.isfinite()].numpy()


def expected_surprisal(surprisal: np.ndarray, temperature: float) -> float:
    weights = np.exp(-(surprisal - surprisal.min()) / temperature)
    return float((weights * surprisal).sum() / weights.sum())


def root(surprisal: np.ndarray, target: float) -> float:
    """The temperature in float64, by bisection."""
    if expected_surprisal(surprisal, MIN_TEMPERATURE) >= target:
        return MIN_TEMPERATURE
    if expected_surprisal(surprisal, MAX_TEMPERATURE) <= target:
        return MAX_TEMPERATURE
    return brentq(lambda t: expected_surprisal(surprisal, t) - target, MIN_TEMPERATURE, MAX_TEMPERATURE, xtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_root_is_that_of_float64(kind, dtype):
    """The reference reads the same rounded scores, so that half precision is judged by its own numbers."""
    scores = made_up_scores(kind).to(dtype)
    log_partition, _ = distribution(scores)
    kept = candidates(scores, log_partition)
    references = [surprisals(row) for row in scores]
    for share in (0.0, 0.1, 0.5, 0.9, 1.0, 1.1):
        # From the least that can be reached to more than the highest temperature gives.
        ends = [(expected_surprisal(c, MIN_TEMPERATURE), expected_surprisal(c, MAX_TEMPERATURE)) for c in references]
        target = torch.tensor([low + share * (high - low) for low, high in ends], dtype=torch.float64).float()
        found = solve_temperature(kept.surprisal, target)
        assert found.dtype == torch.float32
        for surprisal, (low, high), goal, temperature in zip(
            references, ends, target.tolist(), found.tolist(), strict=True
        ):
            assert MIN_TEMPERATURE * 0.999999 <= temperature <= MAX_TEMPERATURE * 1.000001
            if share in (0.0, 1.0, 1.1):  # at the ends a hair of the target is a wide range of temperatures
                goal = expected_surprisal(surprisal, root(surprisal, goal))
            assert expected_surprisal(surprisal, temperature) == pytest.approx(goal, rel=5e-5, abs=1e-5)
            if share in (0.1, 0.5, 0.9) and high - low > 0.05:
                assert temperature == pytest.approx(root(surprisal, goal), rel=2e-3)


def test_targets_out_of_reach():
    kept = torch.tensor([[0.5, 1.5, 2.5]]).expand(4, 3)
    found = solve_temperature(kept, torch.tensor([-1.0, 0.4, 0.5, 1.6]))
    assert found.tolist() == pytest.approx([MIN_TEMPERATURE] * 3 + [MAX_TEMPERATURE])
    # The limits themselves are the caller's.
    assert solve_temperature(kept[:1], torch.tensor([0.1]), low=0.5, high=4.0).tolist() == [0.5]
    assert solve_temperature(kept[:1], torch.tensor([9.0]), low=0.5, high=4.0).tolist() == [4.0]


def test_nothing_to_choose():
    """One token, and tokens that are all alike: every temperature gives the same, and none gives NaN."""
    for surprisal in (torch.zeros(3, 1), torch.full((3, 50), math.log(50)), torch.tensor([[0.0, FAR, torch.inf]] * 3)):
        least = float(surprisal.min())
        found = solve_temperature(surprisal, torch.tensor([0.5 * least, least, least + 1.0]))
        assert found.isfinite().all()
        assert ((found >= MIN_TEMPERATURE * 0.999999) & (found <= MAX_TEMPERATURE * 1.000001)).all()


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 1.0), (2.0, 1.0), (0.1, 11.0)])
def test_no_range_of_temperatures(low, high):
    with pytest.raises(ValueError, match="temperatures: expected 0 < low < high <= 10"):
        solve_temperature(torch.tensor([[0.7, 0.7]]), torch.tensor([0.5]), low=low, high=high)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=40),
    st.floats(0, 20, width=32),
    st.floats(0.0625, 4, width=32),
)
def test_more_surprise_needs_no_less_heat(scores, target, more):
    row = torch.tensor([scores])
    kept = candidates(row, distribution(row).log_partition)
    rows = kept.surprisal.expand(2, -1)
    lower, higher = solve_temperature(rows, torch.tensor([target, target + more])).tolist()
    assert MIN_TEMPERATURE * 0.999999 <= lower <= higher <= MAX_TEMPERATURE * 1.000001


def test_what_is_ruled_out_is_not_there():
    """`-inf` and `FAR` change neither the temperature nor anything else, and nothing becomes NaN."""
    plain = torch.tensor([[0.3, 1.9, 3.1, 4.0]])
    filled = torch.cat([plain, torch.tensor([[FAR, torch.inf, FAR]])], 1)
    for target in (0.1, 0.5, 1.0, 2.0, 50.0):
        goal = torch.tensor([target])
        assert solve_temperature(filled, goal).item() == pytest.approx(solve_temperature(plain, goal).item(), rel=1e-5)
    scores = torch.tensor([[1.0, 2.0, -1.0, 0.5]])
    holes = torch.cat([torch.full((1, 30), -torch.inf), scores, torch.full((1, 3), -torch.inf)], 1)
    for one, other in zip(distribution(scores), distribution(holes), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_entropy_and_partition_against_float64(kind, dtype):
    scores = made_up_scores(kind, 5000).to(dtype)
    log_partition, entropy = distribution(scores)
    assert log_partition.dtype == entropy.dtype == torch.float32
    expected = torch.logsumexp(scores.double(), -1)
    logs = torch.log_softmax(scores.double(), -1)
    exact = -(logs.exp() * logs.masked_fill(~logs.isfinite(), 0.0)).sum(-1)
    torch.testing.assert_close(log_partition.double(), expected, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(entropy.double(), exact, rtol=1e-5, atol=1e-5)
    assert (entropy >= 0).all()


def test_the_entropy_of_what_is_known_exactly():
    scores = torch.stack([torch.zeros(400), torch.full((400,), -torch.inf).index_fill(0, torch.tensor(9), 3.0)])
    log_partition, entropy = distribution(scores)
    assert entropy.tolist() == pytest.approx([math.log(400), 0.0], abs=1e-6)
    assert log_partition.tolist() == pytest.approx([math.log(400), 3.0])


def test_scores_without_a_distribution_are_not_finite():
    bad = torch.zeros(3, 20)
    bad[0, 4], bad[1] = torch.nan, -torch.inf
    log_partition, entropy = distribution(bad)
    assert (log_partition.isfinite() & entropy.isfinite()).tolist() == [False, False, True]


def head(row: torch.Tensor, most: int) -> set[int]:
    """The tokens of a row that are not ruled out and no lower than its `most`-th highest, by sorting."""
    last = row.sort(descending=True).values[min(most, len(row)) - 1]
    return set(((row >= last) & (row > -torch.inf)).nonzero().squeeze(1).tolist())


def kept_ids(scores: torch.Tensor, limit: list[int] | None) -> list[set[int]]:
    """The candidates by row, without what rows are filled up with; surprisals are checked on the way."""
    log_partition = distribution(scores).log_partition
    kept = candidates(scores, log_partition, None if limit is None else torch.tensor(limit))
    assert kept.ids.shape == kept.surprisal.shape
    assert kept.ids.dtype == torch.long
    out = []
    for row, ids, surprisal in zip(scores, *kept, strict=True):
        inside = surprisal < FAR
        assert (surprisal[~inside] == FAR).all()
        assert (ids[~inside] == 0).all()
        expected = -torch.log_softmax(row.double(), -1)[ids[inside]]
        torch.testing.assert_close(surprisal[inside].double(), expected, rtol=1e-5, atol=1e-5)
        assert len(set(ids[inside].tolist())) == inside.sum()
        out.append(set(ids[inside].tolist()))
    return out


def kept_at_once(scores: torch.Tensor, limit: list[int] | None) -> list[set[int]]:
    """What is chosen where a loop over rows would not pay."""
    log_partition = distribution(scores).log_partition
    ids, surprisal = _all_at_once(scores, log_partition, None if limit is None else torch.tensor(limit))
    expected = -torch.log_softmax(scores.double(), -1).gather(1, ids)
    torch.testing.assert_close(surprisal.double(), expected.where(surprisal < FAR, FAR), rtol=1e-5, atol=1e-5)
    return [set(own[s < FAR].tolist()) for own, s in zip(ids, surprisal, strict=True)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 2, 5, 15, 16, 17, 48, 50, 400, 1000, 5003])
def test_candidates_are_those_of_a_sort(size, dtype):
    """From too few to sample from to enough, with as many ties as half precision makes."""
    scores = torch.randn(3, size, generator=torch.Generator().manual_seed(size)).to(dtype)
    limits = {1, 2, 3, 15, 16, size // 16, size // 16 + 1, size // 2, size - 1, size, size + 5} - {0}
    for most in sorted(limits):
        assert kept_ids(scores, [most] * 3) == [head(row, most) for row in scores]
        for own, at_once in zip(kept_ids(scores, [most] * 3), kept_at_once(scores, [most] * 3), strict=True):
            assert at_once <= own
            assert len(at_once) >= min(len(own), most + _TIES)


def test_without_a_limit_everything_stays_that_is_not_ruled_out():
    scores = made_up_scores("ruled out")
    assert kept_ids(scores, None) == [head(row, TOKENS) for row in scores]
    assert kept_at_once(scores, None) == kept_ids(scores, None)


def test_every_row_has_a_limit_of_its_own():
    scores = torch.randn(5, 333, generator=torch.Generator().manual_seed(0))
    limits = [1, 333, 7, 40, 1000]
    assert kept_ids(scores, limits) == [head(row, most) for row, most in zip(scores, limits, strict=True)]
    assert [len(ids) for ids in kept_ids(scores, limits)] == [1, 333, 7, 40, 333]
    assert kept_at_once(scores, limits) == kept_ids(scores, limits)


@pytest.mark.parametrize("sign", [1, -1])
def test_where_a_sample_tells_the_wrong_floor(sign):
    """Every 16th score is what is sampled: here they are all the highest, or all the lowest."""
    scores = torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))
    scores[:, ::16] += sign * 100
    assert kept_ids(scores, [300, 3000]) == [head(row, most) for row, most in zip(scores, [300, 3000], strict=True)]


def test_ties_at_the_border_all_stay():
    scores = torch.tensor([5.0, 1.0] * 30 + [1.0, 0.0, 3.0, -torch.inf]).expand(2, -1)
    assert [len(ids) for ids in kept_ids(scores, [1, 30])] == [30, 30]
    assert [len(ids) for ids in kept_ids(scores, [31, 32])] == [31, 62]
    assert [len(ids) for ids in kept_ids(torch.zeros(2, 100), [1, 3])] == [100, 100]


def test_a_limit_beyond_what_is_not_ruled_out():
    scores = torch.full((2, 200), -torch.inf)
    scores[:, [0, 3, 100, 199]] = torch.tensor([1.0, 4.0, 2.0, 3.0])
    assert kept_ids(scores, [2, 50]) == [{3, 199}, {0, 3, 100, 199}]


def test_rows_do_not_depend_on_each_other():
    """Entropies and candidates of a row are the same numbers alone; its temperature is to the solver's tolerance."""
    scores = made_up_scores("random")
    limit = torch.tensor([700, 3, 50, 120, 8, 1])
    together = distribution(scores)
    kept = candidates(scores, together.log_partition, limit)
    temperatures = solve_temperature(kept.surprisal, 0.8 * together.entropy)
    for i in range(len(scores)):
        own = slice(i, i + 1)
        alone = distribution(scores[own])
        assert torch.equal(alone.entropy, together.entropy[own])
        assert torch.equal(alone.log_partition, together.log_partition[own])
        ids, surprisal = candidates(scores[own], alone.log_partition, limit[own])
        count = ids.shape[1]
        assert torch.equal(ids[0], kept.ids[i, :count])
        assert torch.equal(surprisal[0], kept.surprisal[i, :count])
        temperature = solve_temperature(surprisal, 0.8 * alone.entropy)
        torch.testing.assert_close(temperature, temperatures[own], rtol=1e-3, atol=0)
