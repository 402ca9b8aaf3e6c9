"""One step of the sampler, and what its memory does over a long sequence of made-up distributions."""

import itertools

import numpy as np
import pytest
import torch

from ugap.profile import CalibrationCurve
from ugap.sampling.portable.human import MODES, MOST_CORRECTION, HumanSampler, State
from ugap.sampling.portable.temperature import FAR, MAX_TEMPERATURE, MIN_TEMPERATURE

TOKENS = 300
PEOPLE = {"entropy_quantiles": [0.0, 2.0, 3.0, 5.5], "cdf": [0.0, 0.3, 0.6, 1.0]}
BY_POSITION = {"bands": [], "entropy_scale": [1.0], "gain": [1.0]}
CURVE = {"h": [0.5, 1.5, 3.0, 5.0], "g": [0.4, 1.5, 2.9, 4.6]}


def params(mean_surprisal: float | list[float] = 2.5, ranks: tuple[int, ...] = (), **changes):
    edges = [1.0, 3.0][: max(len(ranks) - 1, 0)]
    return {
        **CURVE,
        **PEOPLE,
        "edges": edges,
        "ranks": list(ranks),
        **BY_POSITION,
        "mean_surprisal": mean_surprisal if isinstance(mean_surprisal, list) else [mean_surprisal],
        **changes,
    }


def sampler(weight: float = 1.0, **changes) -> HumanSampler:
    return HumanSampler.of(params(**changes), weight)


def made_up_scores(rows: int = 6, seed: int = 0) -> torch.Tensor:
    """Rows of all kinds of entropy, from a tenth of a nat to five nats."""
    noise = torch.randn(rows, TOKENS, generator=torch.Generator().manual_seed(seed))
    return noise * torch.linspace(7, 0.7, rows).unsqueeze(1)


def expected_surprisal(step) -> torch.Tensor:
    """`(B,)`, of the distribution that a step draws from, in float64."""
    surprisal = step.candidates.surprisal.double()
    weights = torch.softmax(-surprisal / step.temperature.double().unsqueeze(1), -1)
    return (weights * surprisal).sum(-1)


def state(rows: int = 1, *, tokens=40.0, cdf=20.0, drawn=0.0, aim=2.5) -> State:
    """Sequences of so many tokens, each of which should have had a surprisal of `aim`."""
    sums = (tokens, tokens, cdf, tokens * aim - drawn)
    return State(*(torch.full((rows,), float(value)) for value in sums))


class TestCurve:
    @pytest.mark.parametrize(
        ("h", "g"),
        [
            (CURVE["h"], CURVE["g"]),
            ([0.0, 1.0, 4.0], [0.0, 0.5, 4.0]),
            ([0.0, 2.0], [0.3, 1.0]),
            ([2.0], [1.5]),
            ([0.0], [0.2]),
            ([1.0, 1.0, 2.0], [0.5, 0.8, 2.5]),
            ([1.0, 2.0, 3.0], [0.7, 0.7, 0.7]),
        ],
    )
    def test_it_is_that_of_the_profile(self, h, g):
        """Below the first knot, on the knots, between them and above the last."""
        knots = [np.array(values, dtype=np.float64) for values in (h, g)]
        curve = CalibrationCurve(h=knots[0], g=knots[1], low=knots[1], high=knots[1])
        entropy = np.concatenate([np.linspace(0, 9, 181), h, knots[0] + 1e-3, np.maximum(knots[0] - 1e-3, 0)])
        # Where two knots share an entropy, which of them holds there is a matter of taste.
        entropy = entropy[[h.count(value) < 2 for value in entropy.tolist()]]
        found = HumanSampler.of(params(h=h, g=g), 1.0).curve(torch.from_numpy(entropy).float())
        np.testing.assert_allclose(found.double().numpy(), curve(entropy), rtol=1e-5, atol=1e-5)


class TestStep:
    def test_it_expects_what_people_are_at_that_place(self):
        """A sequence that leans nowhere and owes nothing aims at the curve; one that leans, at its unbent place."""
        scores, found = made_up_scores(), 0
        for weight in (1.0, 0.7, 0.5):
            one = sampler(weight)
            for mean in (0.5, 0.7, 0.35):
                for row in scores.unsqueeze(1):
                    due = 1e6 * weight * 2.5
                    step = one.step(row, state(tokens=1e6, cdf=mean * 1e6, drawn=due, aim=weight * 2.5))
                    if MIN_TEMPERATURE * 1.01 < step.temperature < MAX_TEMPERATURE * 0.99:
                        cdf = np.interp(step.entropy.item(), PEOPLE["entropy_quantiles"], PEOPLE["cdf"])
                        assert step.cdf.item() == pytest.approx(cdf, rel=1e-5)
                        there = np.interp(cdf ** (mean / (1 - mean)), PEOPLE["cdf"], PEOPLE["entropy_quantiles"])
                        goal = weight * float(one.curve(torch.tensor([there])))
                        assert expected_surprisal(step).item() == pytest.approx(goal, rel=1e-3)
                        found += 1
        assert found > 20

    def test_entropy_and_surprisal_are_those_of_the_scores(self):
        scores = made_up_scores()
        step = sampler().step(scores, State.start([0] * len(scores)))
        logs = torch.log_softmax(scores.double(), -1)
        entropy = -(logs.exp() * logs).sum(-1)
        torch.testing.assert_close(step.entropy.double(), entropy, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            step.candidates.surprisal.double(), -logs.gather(1, step.candidates.ids), rtol=1e-5, atol=1e-5
        )

    def test_less_weight_is_less_surprising(self):
        scores = made_up_scores()
        means = [
            expected_surprisal(sampler(weight).step(scores, State.start([0] * len(scores))))
            for weight in (0.0, 0.2, 0.5, 0.8, 1.0)
        ]
        for less, more in itertools.pairwise(means):
            assert (less <= more + 1e-5).all()
        assert means[0].sum() < means[2].sum() < means[4].sum()

    def test_no_weight_takes_the_most_probable_token(self):
        scores = made_up_scores()
        step = sampler(0.0).step(scores, State.start([0] * len(scores)))
        drawn = step.draw(torch.Generator().manual_seed(0))
        assert torch.equal(drawn.tokens, scores.argmax(-1))
        torch.testing.assert_close(drawn.surprisal, -torch.log_softmax(scores, -1).amax(-1), rtol=1e-5, atol=1e-5)
        assert torch.equal(drawn.log_probability, torch.zeros(len(scores)))

    def test_a_draw_is_told_by_what_the_model_and_the_sampler_say_of_it(self):
        scores = made_up_scores(40)
        step = sampler(0.8, ranks=(20, 90, 250)).step(scores, State.start([0] * 40))
        drawn = step.draw(torch.Generator().manual_seed(0))
        logs = torch.log_softmax(scores.double(), -1)
        index = drawn.tokens.unsqueeze(1)
        torch.testing.assert_close(drawn.surprisal.double(), -logs.gather(1, index)[:, 0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(drawn.entropy, step.entropy)
        ids, surprisal = step.candidates
        solved = torch.log_softmax(-surprisal.double() / step.temperature.double().unsqueeze(1), -1)
        own = torch.where((ids == index) & (surprisal < FAR), solved, -torch.inf).amax(-1)
        torch.testing.assert_close(drawn.log_probability.double(), own, rtol=1e-4, atol=1e-5)

    def test_the_limit_of_ranks_is_that_of_the_entropy(self):
        """An entropy on an edge belongs to the bin above it."""
        uniform = torch.full((4, TOKENS), -torch.inf)
        for row, tokens in enumerate((1, 2, 8, 60)):  # entropies 0, 0.69, 2.08 and 4.09
            uniform[row, :tokens] = torch.linspace(0, -1e-4, tokens)
        one = sampler(ranks=(1, 4, 30), edges=[float(np.log(2)) - 1e-4, 3.0])
        step = one.step(uniform, State.start([0] * 4))
        assert (step.candidates.surprisal < FAR).sum(-1).tolist() == [1, 2, 4, 30]
        assert (sampler().step(uniform, State.start([0] * 4)).candidates.surprisal < FAR).sum(-1).tolist() == [
            1,
            2,
            8,
            60,
        ]

    def test_a_sequence_more_uncertain_than_people_aims_lower(self):
        """And one that is less uncertain, higher."""
        scores = made_up_scores(1, seed=3)
        plain = sampler().step(scores, State.start([0] * 1))
        even = 40 * 2.5
        high, low = (sampler().step(scores, state(cdf=40 * mean, drawn=even)) for mean in (0.7, 0.3))
        assert expected_surprisal(high) < expected_surprisal(plain) < expected_surprisal(low)

    def test_what_was_drawn_too_little_is_paid_back(self):
        scores = made_up_scores(1, seed=3)
        due = 40 * 2.5
        even, owing, owed = (sampler().step(scores, state(drawn=drawn)) for drawn in (due, due - 5, due + 5))
        assert expected_surprisal(owing) > expected_surprisal(even) > expected_surprisal(owed)

    def test_the_less_weight_the_less_certain_tokens_lift_the_next(self):
        """At half the weight a quarter of the evidence: the end of this short answer gets no hotter than the model."""
        scores = made_up_scores()[3:4]
        lifts = []
        for weight in (1.0, 0.7, 0.5):
            one = sampler(weight)
            fresh = one.step(scores, State.start([0] * 1))
            after = one.step(scores, state(tokens=5, cdf=0.1, drawn=0.1, aim=2.5 * weight))
            lifts.append((expected_surprisal(after) / expected_surprisal(fresh)).item() - 1)
        assert 0 < lifts[2] < lifts[1] < lifts[0]
        assert lifts[2] < 0.4 * lifts[0]
        assert after.temperature < 1

    @pytest.mark.parametrize("weight", [1.0, 0.5])
    def test_the_correction_is_bounded(self, weight):
        """However much is owed, a step stays within a share of what it would be."""
        for row in made_up_scores(8, seed=1).unsqueeze(1):
            one = sampler(weight, mean_surprisal=2.0)
            even = expected_surprisal(one.step(row, state(drawn=40 * weight * 2.0, aim=weight * 2.0)))
            for drawn in (1e9, -1e9):
                step = one.step(row, state(drawn=drawn, aim=weight * 2.0))
                found = expected_surprisal(step)
                assert found <= even * (1 + MOST_CORRECTION) * 1.001
                bounded_below = step.temperature <= MIN_TEMPERATURE * 1.01
                assert found >= even * (1 - MOST_CORRECTION) * 0.999 or bounded_below

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    def test_scores_that_are_not_finite(self, bad):
        scores = made_up_scores()
        scores[2, 11] = bad
        for weight in (0.0, 1.0):
            with pytest.raises(ValueError, match=r"^the scores of row 2 are not finite"):
                sampler(weight).step(scores, State.start([0] * len(scores)))
        scores[2] = -torch.inf
        with pytest.raises(ValueError, match=r"^the scores of row 2 are not finite"):
            sampler().step(scores, State.start([0] * len(scores)))

    @pytest.mark.parametrize("weight", [1.0, 0.5, 0.0])
    def test_rows_do_not_depend_on_each_other(self, weight):
        scores = made_up_scores(9)
        one = sampler(weight, ranks=(20, 90, 250))
        history = State(*(torch.arange(9.0) * factor for factor in (1.0, 1.0, 0.6, 0.3)))
        together = one.step(scores, history)
        surprisal = torch.linspace(0, 6, 9)
        after = one.observe(history, together, surprisal)
        for i in range(9):
            own = slice(i, i + 1)
            mine = State(*(column[own] for column in history))
            alone = one.step(scores[own], mine)
            count = alone.candidates.ids.shape[1]
            assert torch.equal(alone.candidates.ids[0], together.candidates.ids[i, :count])
            torch.testing.assert_close(alone.temperature, together.temperature[own], rtol=1e-6, atol=0)
            for got, expected in zip(one.observe(mine, alone, surprisal[own]), after, strict=True):
                torch.testing.assert_close(got, expected[own])

    def test_a_row_of_parameters_for_each_sequence_is_as_each_alone(self):
        """Different curves, quantiles, ranks and positions in one batch."""
        scores = made_up_scores(4)
        rows = [
            params(ranks=(20, 90, 250), bands=[10, 50]),
            params(ranks=(9, 60, 99), bands=[10, 50], h=[1.0, 2.0, 3.0, 4.0], edges=[0.5, 2.0]),
            params(ranks=(20, 90, 250), bands=[10, 50], entropy_quantiles=[0.0, 1.0, 2.0, 3.0]),
            params(ranks=(20, 90, 250), bands=[10, 50]),
        ]
        for number, row in enumerate(rows):
            for name in ("entropy_scale", "gain", "mean_surprisal"):
                row[name] = [1.0 + 0.1 * number, 1.3, 0.8]
        sequences = State(*(torch.tensor(c) for c in ([0.0, 20.0, 60.0, 9.0], [3.0] * 4, [2.0] * 4, [1.0] * 4)))
        together = HumanSampler.of(rows, 0.9).step(scores, sequences)
        for i, row in enumerate(rows):
            alone = HumanSampler.of(row, 0.9).step(scores[i : i + 1], State(*(c[i : i + 1] for c in sequences)))
            torch.testing.assert_close(alone.temperature, together.temperature[i : i + 1], rtol=1e-6, atol=0)
            torch.testing.assert_close(alone.cdf, together.cdf[i : i + 1])
            assert (alone.candidates.surprisal < FAR).sum() == (together.candidates.surprisal[i] < FAR).sum()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_half_precision_is_read_as_it_is(self, dtype):
        scores = made_up_scores().to(dtype)
        half, exact = (sampler(ranks=(20, 90, 250)).step(s, State.start([0] * 6)) for s in (scores, scores.float()))
        torch.testing.assert_close(half.entropy, exact.entropy)
        torch.testing.assert_close(half.temperature, exact.temperature, rtol=1e-3, atol=0)
        assert half.entropy.dtype == half.temperature.dtype == half.candidates.surprisal.dtype == torch.float32


class TestObserve:
    def test_sums_grow_by_what_was_drawn(self):
        one = sampler()
        step = one.step(made_up_scores(3), State.start([0] * 3))
        before = state(3, tokens=2, cdf=5, drawn=3)
        after = one.observe(before, step, torch.tensor([0.5, 1.5, 0.0]))
        assert after.position.tolist() == after.n_tokens.tolist() == [3, 3, 3]
        torch.testing.assert_close(after.cdf_sum, 5 + step.cdf)
        assert (before.debt - after.debt).tolist() == [0.5 - 2.5, 1.5 - 2.5, 0.0 - 2.5]

    def test_a_row_whose_surprisal_is_unknown_stays(self):
        one = sampler()
        step = one.step(made_up_scores(4), State.start([0] * 4))
        before = state(4, tokens=2, cdf=5, drawn=3)
        after = one.observe(before, step, torch.tensor([torch.nan, torch.inf, 1.0, -torch.inf]))
        for old, new in zip(before, after, strict=True):
            assert torch.equal(old[[0, 1, 3]], new[[0, 1, 3]])
            assert new[2] > old[2] or torch.equal(new, after.debt)
        assert after.debt[2] - before.debt[2] == 2.5 - 1.0


def simulate(weight: float, *, memory: bool, rows: int = 8, tokens: int = 300, first: int = 40) -> tuple[float, float]:
    """Mean surprisal of sequences from their `first` token on, and the level times the weight.

    The distributions know nothing of people: their entropies lean far above people's.
    """
    generator = torch.Generator().manual_seed(11)
    mean_surprisal = 2.5
    one = sampler(weight, mean_surprisal=mean_surprisal)
    sequences, means = State.start([0] * rows), []
    for _ in range(tokens):
        spread = 0.7 + 3.5 * torch.rand(rows, 1, generator=generator)
        step = one.step(torch.randn(rows, TOKENS, generator=generator) * spread, sequences)
        surprisal = step.draw(generator).surprisal
        means.append(surprisal.mean().item())
        if memory:
            sequences = one.observe(sequences, step, surprisal)
    return float(np.mean(means[first:])), weight * mean_surprisal


class TestFeedback:
    @pytest.mark.parametrize("weight", [1.0, 0.8])
    def test_a_long_sequence_lands_on_the_level(self, weight):
        mean, goal = simulate(weight, memory=True)
        assert mean == pytest.approx(goal, rel=0.02)

    def test_a_level_that_falls_with_the_position_is_followed(self):
        """A fifth less surprising from position 200 on; the prompts have 50 tokens."""
        one = sampler(bands=[200], entropy_scale=[1.0, 0.9], gain=[1.0, 0.9], mean_surprisal=[2.5, 2.0])
        generator, sequences, means = torch.Generator().manual_seed(11), State.start([50] * 8), []
        for _ in range(450):
            scores = torch.randn(8, TOKENS, generator=generator) * (0.7 + 3.5 * torch.rand(8, 1, generator=generator))
            step = one.step(scores, sequences)
            surprisal = step.draw(generator).surprisal
            means.append(surprisal.mean().item())
            sequences = one.observe(sequences, step, surprisal)
        assert np.mean(means[40:150]) == pytest.approx(2.5, rel=0.04)
        assert np.mean(means[190:]) == pytest.approx(2.0, rel=0.03)

    def test_without_memory_it_does_not(self):
        mean, goal = simulate(1.0, memory=False, tokens=100)
        assert abs(mean / goal - 1) > 0.05

    def test_the_state_starts_at_nothing(self):
        start = State.start([4, 0, 9])
        assert start.position.tolist() == [4, 0, 9]
        assert all(torch.equal(column, torch.zeros(3)) for column in start[1:])


def test_the_modes():
    assert MODES == {"creative": 1.0, "balanced": 0.5, "precise": 0.0}


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan"), float("inf"), True, "1", None])
def test_a_weight_that_is_none(weight):
    with pytest.raises(ValueError, match=r"weight: expected a number in \[0, 1\]"):
        sampler(weight)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_on_a_gpu_is_that_on_a_cpu(dtype):
    scores = made_up_scores(9).to(dtype)
    on_cpu = sampler(ranks=(20, 90, 250)).step(scores, state(9, drawn=80))
    there = HumanSampler.of(params(ranks=(20, 90, 250)), 1.0, device="cuda")
    on_gpu = there.step(scores.cuda(), State(*(column.cuda() for column in state(9, drawn=80))))
    torch.testing.assert_close(on_gpu.entropy.cpu(), on_cpu.entropy, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(on_gpu.temperature.cpu(), on_cpu.temperature, rtol=1e-3, atol=0)
    drawn = on_gpu.draw(torch.Generator("cuda").manual_seed(0))
    assert (drawn.surprisal < FAR).all()
