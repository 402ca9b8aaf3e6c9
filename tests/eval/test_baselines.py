"""The samplers of others, against their definitions."""

import math
from pathlib import Path

import pytest
import torch

from ugap.cli.eval import load_program
from ugap.cli.programs import programs_folder

baselines = load_program(Path(programs_folder("eval")) / "baselines.py")


def kept(scores):
    return (scores > -math.inf).tolist()


class TestMirostat:
    scores = torch.tensor([[0.5, 0.25, 0.125, 0.0625, 0.0625]]).log()

    def test_the_first_step_cuts_at_twice_the_surprisal(self):
        processor = baselines.MirostatLogitsProcessor(0.75 * math.log(2))  # mu is 1.5 bits
        assert kept(processor(torch.tensor([[9]]), self.scores)) == [[True, False, False, False, False]]
        processor = baselines.MirostatLogitsProcessor(1.6 * math.log(2))
        assert kept(processor(torch.tensor([[9]]), self.scores)) == [[True, True, True, False, False]]

    def test_mu_moves_by_what_was_missed(self):
        processor = baselines.MirostatLogitsProcessor(1.6 * math.log(2), rate=0.5)
        processor(torch.tensor([[9]]), self.scores)
        # 1 bit was drawn and 1.6 wanted: mu grows by 0.3 bits, to 3.5; then 3 bits: it shrinks by 0.7, to 2.8.
        assert kept(processor(torch.tensor([[9, 0]]), self.scores)) == [[True, True, True, False, False]]
        assert processor._mu.item() / math.log(2) == pytest.approx(3.5)
        assert kept(processor(torch.tensor([[9, 0, 2]]), self.scores)) == [[True, True, False, False, False]]
        assert processor._mu.item() / math.log(2) == pytest.approx(2.8)

    def test_one_token_always_stays_and_other_ids_start_anew(self):
        processor = baselines.MirostatLogitsProcessor(0.01)
        assert kept(processor(torch.tensor([[9]]), self.scores)) == [[True, False, False, False, False]]
        processor = baselines.MirostatLogitsProcessor(1.6 * math.log(2))
        processor(torch.tensor([[9]]), self.scores)
        processor(torch.tensor([[9, 0]]), self.scores)
        processor(torch.tensor([[9, 1]]), self.scores)
        assert processor._mu.item() / math.log(2) == pytest.approx(3.2)

    def test_it_holds_the_surprisal(self):
        """On one fixed distribution, drawn 2,000 times by 8 rows, the mean surprisal is the constant."""
        generator = torch.Generator().manual_seed(0)
        scores = (torch.randn(1, 500, generator=generator) * 2).repeat(8, 1)
        log_p = scores.log_softmax(-1)
        processor, ids, drawn = baselines.MirostatLogitsProcessor(2.5), torch.zeros(8, 1, dtype=torch.long), []
        for _ in range(2000):
            p = processor(ids, scores).softmax(-1)
            token = torch.multinomial(p, 1, generator=generator)
            drawn.append(-log_p.gather(1, token))
            ids = torch.cat([ids[:, -1:], token], 1) if ids.shape[1] == 1 else torch.cat([ids, token], 1)
        assert torch.cat(drawn).mean().item() == pytest.approx(2.5, abs=0.03)


class TestTopNSigma:
    def test_logits_within_n_deviations_of_the_highest(self):
        scores = torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0, -math.inf]])
        deviation = math.sqrt(2)  # of 0 to 4
        assert kept(baselines.TopNSigmaLogitsProcessor(1.0)(None, scores)) == [[True, True, False, False, False, False]]
        near = baselines.TopNSigmaLogitsProcessor(2.1 / deviation)(None, scores)
        assert kept(near) == [[True, True, True, False, False, False]]
        assert near[0, 0] == 4.0

    def test_temperature_changes_nothing(self):
        scores = torch.randn(4, 300, generator=torch.Generator().manual_seed(0))
        cut = baselines.TopNSigmaLogitsProcessor(1.5)
        assert kept(cut(None, scores)) == kept(cut(None, scores / 0.3))


class TestAdaptiveP:
    scores = torch.tensor([[0.5, 0.25, 0.125, 0.0625, 0.0625]]).log()

    def test_probabilities_near_the_target_are_preferred(self):
        p = baselines.AdaptivePLogitsProcessor(0.25)(torch.tensor([[9]]), self.scores).double().softmax(-1)
        distance = 5 * (self.scores.exp().double() - 0.25).abs()
        expected = (-10 * distance**2 / (1 + distance)).softmax(-1)
        torch.testing.assert_close(p, expected)
        assert p.argmax() == 1

    def test_the_target_makes_up_for_what_was_drawn(self):
        processor = baselines.AdaptivePLogitsProcessor(0.25, decay=0.5)
        processor(torch.tensor([[9]]), self.scores)
        # 0.5 was drawn: the mean is 0.375, so the next target is 0.125.
        assert processor(torch.tensor([[9, 0]]), self.scores).argmax() == 2
        # Other ids begin a new text.
        assert processor(torch.tensor([[8]]), self.scores).argmax() == 1

    def test_what_is_ruled_out_stays_so(self):
        scores = self.scores.index_fill(1, torch.tensor([1]), -math.inf)
        assert kept(baselines.AdaptivePLogitsProcessor(0.3)(torch.tensor([[9]]), scores))[0][1] is False

    def test_it_holds_the_probability(self):
        """On one fixed distribution, the mean probability of what is drawn is near the target."""
        generator = torch.Generator().manual_seed(0)
        scores = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
        processor, ids, drawn = baselines.AdaptivePLogitsProcessor(0.25), torch.zeros(1, 1, dtype=torch.long), []
        for _ in range(2000):
            token = torch.multinomial(processor(ids, scores).softmax(-1), 1, generator=generator)
            drawn.append(scores.exp().gather(1, token))
            ids = torch.cat([ids, token], 1)
        assert torch.cat(drawn).mean().item() == pytest.approx(0.25, abs=0.02)


class TestXTC:
    scores = torch.tensor([[0.5, 0.25, 0.15, 0.05, 0.05]]).log()

    def test_only_the_least_of_the_likely_tokens_stays(self):
        assert kept(baselines.XTCLogitsProcessor(1.0)(None, self.scores)) == [[False, False, True, True, True]]
        assert kept(baselines.XTCLogitsProcessor(0.0)(None, self.scores)) == [[True] * 5]
        one = torch.tensor([[0.95, 0.05]]).log()
        assert kept(baselines.XTCLogitsProcessor(1.0)(None, one)) == [[True, True]]

    def test_it_excludes_as_often_as_asked(self):
        rows = self.scores.repeat(4000, 1)
        excluded = [not row[0] for row in kept(baselines.XTCLogitsProcessor(0.3, seed=1)(None, rows))]
        assert sum(excluded) / 4000 == pytest.approx(0.3, abs=0.03)


def test_p_less_keeps_what_is_as_probable_as_a_repeated_draw():
    scores = torch.tensor([[0.5, 0.35, 0.1, 0.05], [0.25, 0.25, 0.25, 0.25]]).log()  # sum p^2: 0.385 and 0.25
    assert kept(baselines.PLessLogitsProcessor()(None, scores)) == [[True, False, False, False], [True] * 4]


def test_dynamic_temperature_follows_the_entropy():
    scores = torch.stack([torch.zeros(8), torch.tensor([3.0] + [0.0] * 7)])
    out = baselines.DynamicTemperatureLogitsProcessor(1.5)(None, scores)
    log_p = scores.double().log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1, keepdim=True)
    torch.testing.assert_close(out.double(), scores.double() / (1.5 * 0.8 ** (1 / entropy)))
    certain = torch.tensor([[0.0, -math.inf]])
    assert kept(baselines.DynamicTemperatureLogitsProcessor(1.5)(None, certain)) == [[True, False]]
