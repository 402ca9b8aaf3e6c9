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
