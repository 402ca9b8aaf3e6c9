"""One step of decoding at human uncertainty: the sampler itself, whatever engine runs the model.

Where the model's entropy is `h`, people are `g(h)` surprising on average (the calibration curve). A step aims at

    `w * g(h') * (1 + correction)`

and takes the temperature at which the expected surprisal is that. With `h' = h` and no correction a continuation drifts
away from the human level: in its own text a model becomes more uncertain, step by step, than it is in people's
(Braverman et al., 2020, arXiv 1906.05664). So both are held to people's text:

- *Place.* Let `u = F(h)` be the share of people's steps that are less uncertain than `h`. In people's text `u` is
  uniform; in the model's own it leans to one side. Its distribution there is taken to be `u^a`, with `a` from the mean
  of `u` in the sequence so far (1/2 at first, with the weight of `PRIOR_TOKENS` tokens), and `h' = F^-1(u^a)` is the
  entropy at the same place among people's steps. So the aims of a sequence are distributed as people's surprisals are,
  and have their mean, while certain steps stay certain. No draw is needed to know it: it adds no noise.
- *Correction.* What the sequence should have been surprising so far, `w * level` for each token, less what was really
  drawn, paid back over `PAYBACK_TOKENS` tokens, by at most `MOST_CORRECTION` of a step's aim.

Both trust the sequence by `w^2`: what was so far counts in full at weight 1 and a quarter at 0.5. Else the last token
of a short answer is drawn hotter the more certain its first ones are, to make up for them, whatever the weight.

This module needs torch and NumPy alone: it is what every engine's adapter runs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .drawing import draw
from .temperature import (
    FAR,
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    UNDERFLOW,
    Candidates,
    candidates,
    distribution,
    solve_temperature,
)

MODES = {"creative": 1.0, "balanced": 0.5, "precise": 0.0}
PRIOR_TOKENS = 8
PAYBACK_TOKENS = 16
MOST_CORRECTION = 0.3


class State(NamedTuple):
    """What is remembered of each sequence.

    Args:
        tokens (`Tensor` of shape `(B,)`, float32): Tokens drawn.
        places (`Tensor` of shape `(B,)`, float32): Sum of the places `u` of their steps.
        drawn (`Tensor` of shape `(B,)`, float32): Sum of the surprisals drawn, in nats.
    """

    tokens: Tensor
    places: Tensor
    drawn: Tensor

    @classmethod
    def start(cls, rows: int, device: torch.device | str = "cpu") -> "State":
        """The state of `rows` sequences of which nothing is drawn yet."""
        return cls(*torch.zeros(3, rows, device=device))


class Step(NamedTuple):
    """What one step may draw, and how.

    Args:
        candidates (`Candidates`): Tokens that may be drawn, with their surprisal under the model.
        temperature (`Tensor` of shape `(B,)`): Solved temperature; 1 where there is one candidate, the most probable.
        entropy (`Tensor` of shape `(B,)`): Entropy of the model's distribution, nats.
        place (`Tensor` of shape `(B,)`): Share of people's steps that are less uncertain.
    """

    candidates: Candidates
    temperature: Tensor
    entropy: Tensor
    place: Tensor

    def draw(self, generator: torch.Generator | None = None) -> "Drawn":
        """Draw one token per row."""
        ids, surprisal = self.candidates
        scores = -(surprisal - surprisal.amin(-1, keepdim=True)) / self.temperature.unsqueeze(-1)
        weights = scores.clamp(min=UNDERFLOW).exp_().masked_fill_(surprisal >= FAR, 0.0)
        index = draw(weights, generator).unsqueeze(1)
        log_probability = scores.gather(1, index).squeeze(1) - weights.sum(-1).log()
        return Drawn(
            ids.gather(1, index).squeeze(1), surprisal.gather(1, index).squeeze(1), self.entropy, log_probability
        )


class Drawn(NamedTuple):
    """One draw per row.

    Args:
        tokens (`Tensor` of shape `(B,)`, int64): Token ids.
        surprisal (`Tensor` of shape `(B,)`): Their surprisal `-log p` under the model, nats.
        entropy (`Tensor` of shape `(B,)`): Entropy of the model's distribution, nats.
        log_probability (`Tensor` of shape `(B,)`): `log q` under the distribution `q` that was drawn from.
    """

    tokens: Tensor
    surprisal: Tensor
    entropy: Tensor
    log_probability: Tensor


@dataclass(frozen=True, eq=False)
class HumanSampler:
    """The figures of a human profile that a sampler needs, and its settings.

    Args:
        h (`Tensor` of shape `(K,)`): Knots of the calibration curve: entropy, nats.
        g (`Tensor` of shape `(K,)`): Human surprisal there, nats.
        entropies (`Tensor` of shape `(Q,)`): Quantiles of the entropy of people's steps, nats; the first is 0.
        places (`Tensor` of shape `(Q,)`): The share of steps below each, from 0 to 1.
        edges (`Tensor` of shape `(N - 1,)`): Inner edges of the entropy bins, nats.
        ranks (`Tensor` of shape `(N,)`, int64): Last rank that may be drawn, by entropy bin; empty for no limit.
        level (`float`): Mean human surprisal, nats per token.
        weight (`float`): 1 is human, 0 greedy.
        suppress_tokens (`Tensor` of shape `(M,)`, bool): True for tokens that are drawn only where nothing else is
            left. Ids from `M` on are false. With a weight of 0 the most probable token is taken all the same.
    """

    h: Tensor
    g: Tensor
    entropies: Tensor
    places: Tensor
    edges: Tensor
    ranks: Tensor
    level: float
    weight: float
    suppress_tokens: Tensor

    @classmethod
    def of(
        cls,
        params: Mapping[str, Any],
        weight: float,
        *,
        suppress_tokens: Sequence[int] = (),
        device: torch.device | str = "cpu",
    ) -> "HumanSampler":
        """The sampler of plain lists: `h`, `g`, `entropies`, `places`, `edges`, `ranks` and `level`.

        Raises:
            ValueError: If the weight is not in [0, 1].
        """
        h, g, entropies, places, edges = (
            _tensor(params[name], device) for name in ("h", "g", "entropies", "places", "edges")
        )
        if h[0] > 0:  # a certain model is never surprised
            zero = h.new_zeros(1)
            h, g = torch.cat([zero, h]), torch.cat([zero, g])
        ranks = torch.tensor(params["ranks"], dtype=torch.long, device=device)
        out = torch.zeros(max(suppress_tokens, default=-1) + 1, dtype=torch.bool)
        out[list(suppress_tokens)] = True
        level = float(params["level"])
        return cls(h, g, entropies, places, edges, ranks, level, checked_weight(weight), out.to(device))

    def curve(self, entropy: Tensor) -> Tensor:
        """The calibration curve `g(h)`: linear between knots, with slope 1 above the last."""
        return _interpolated(entropy, self.h, self.g) + (entropy - self.h[-1]).clamp(min=0)

    def among_people(self, entropy: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """The place `u` of each step among people's, and the entropy `h'` there after the sequence's lean is undone."""
        place = _interpolated(entropy, self.entropies, self.places)
        trust = self.weight**2
        mean = (PRIOR_TOKENS * 0.5 + trust * (state.places + place)) / (PRIOR_TOKENS + trust * (state.tokens + 1))
        there = _interpolated(place ** (mean / (1 - mean)), self.places, self.entropies)
        return place, there + (entropy - self.entropies[-1]).clamp(min=0)

    def step(self, scores: Tensor, state: State) -> Step:
        """What the next token of each row is to be drawn from.

        Args:
            scores (`Tensor` of shape `(B, V)`): Logits of any floating type; `-inf` is a token that is ruled out.
            state (`State`): Of the `B` sequences.

        Raises:
            ValueError: If the scores of a row are NaN, infinite or all ruled out.
        """
        log_partition, entropy = distribution(scores)
        if not (log_partition.isfinite() & entropy.isfinite()).all():
            bad = (~(log_partition.isfinite() & entropy.isfinite())).nonzero().squeeze(1).tolist()
            raise ValueError(f"the scores of row {bad[0]} are not finite: there is nothing to sample from")
        place, there = self.among_people(entropy, state)
        if self.weight == 0:
            best = scores.argmax(-1, keepdim=True)
            surprisal = log_partition.unsqueeze(1) - scores.gather(1, best).float()
            return Step(Candidates(best, surprisal), torch.ones_like(entropy), entropy, place)
        aim = self.weight * self.level
        owed = self.weight**2 * (aim * state.tokens - state.drawn) / (PAYBACK_TOKENS * aim)
        target = self.weight * self.curve(there) * (1 + owed.clamp(-MOST_CORRECTION, MOST_CORRECTION))
        limit = self.ranks[torch.searchsorted(self.edges, entropy, right=True)] if len(self.ranks) else None
        kept = self._without_never(candidates(scores, log_partition, limit), scores, log_partition)
        temperature = solve_temperature(kept.surprisal, target, low=MIN_TEMPERATURE, high=MAX_TEMPERATURE)
        return Step(kept, temperature, entropy, place)

    def _without_never(self, kept: Candidates, scores: Tensor, log_partition: Tensor) -> Candidates:
        size = len(self.suppress_tokens)
        if not size:
            return kept
        barred = self.suppress_tokens[kept.ids.clamp(max=size - 1)] & (kept.ids < size)
        ids, surprisal = kept.ids, kept.surprisal.masked_fill(barred, FAR)
        # Where people's ranks hold nothing else, the likeliest of the other tokens is drawn, if there is one.
        for row in (surprisal >= FAR).all(-1).nonzero().squeeze(1).tolist():
            others = scores[row].clone()
            others[:size].masked_fill_(self.suppress_tokens[: len(others)], -torch.inf)
            best = others.argmax()
            if others[best] == -torch.inf:
                surprisal[row] = kept.surprisal[row]
            else:
                ids[row, 0], surprisal[row, 0] = best, (log_partition[row] - others[best]).clamp(0.0, FAR - 1)
        return Candidates(ids, surprisal)

    def observe(self, state: State, step: Step, surprisal: Tensor) -> State:
        """The state after tokens of the given surprisals `(B,)` were drawn; a row whose surprisal is NaN stays."""
        seen = surprisal.isfinite()
        return State(
            state.tokens + seen,
            state.places + torch.where(seen, step.place, 0.0),
            state.drawn + torch.where(seen, surprisal, 0.0),
        )


def checked_weight(weight: float) -> float:
    """`weight` as a float; ValueError if it is no number in [0, 1]."""
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise ValueError(f"weight: expected a number in [0, 1], got {weight!r}")
    if not 0 <= weight <= 1:
        raise ValueError(f"weight: expected a number in [0, 1], got {weight!r}")
    return float(weight)


def _interpolated(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Linear between the knots `x`, which do not fall, and flat beyond them."""
    if len(x) == 1:
        return y.expand_as(at)
    right = torch.searchsorted(x, at).clamp(1, len(x) - 1)
    x0, x1, y0, y1 = x[right - 1], x[right], y[right - 1], y[right]
    return y0 + (y1 - y0) * ((at - x0) / (x1 - x0).clamp(min=1e-6)).clamp(0, 1)


def _tensor(values: Sequence[float], device: torch.device | str) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)
