"""One step of decoding at human uncertainty: the sampler itself, whatever engine runs the model.

Where the model's entropy is `h`, people are `g(h)` surprising on average (the calibration curve). A step aims at

    `w * g(h) * (level / mean of g) * (1 + correction)`

and takes the temperature at which the expected surprisal is that. The two factors keep a whole continuation at the
human level. Aiming at `g(h)` alone drifts: in its own text a model becomes more uncertain, step by step, than it is in
people's (Braverman et al., 2020, arXiv 1906.05664).

- *Level.* `g` is scaled so that its mean over the continuation is the human level, the mean surprisal of the profile's
  texts. The mean starts at the level itself, with the weight of `PRIOR_TOKENS` tokens. No draw is needed to know it, so
  it adds no noise; it is a factor, so that steps of low entropy stay low.
- *Correction.* What the sequence should have been surprising so far, `w * level` for each token, less what was really
  drawn, paid back over `PAYBACK_TOKENS` tokens, by at most `MOST_CORRECTION` of a step's aim.

This module needs torch and NumPy alone: it is what every engine's adapter runs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .draw import draw
from .temperature import FAR, MAX_TEMPERATURE, MIN_TEMPERATURE, Candidates, candidates, distribution, solve_temperature

MODES = {"creative": 1.0, "balanced": 0.5, "precise": 0.0}
PRIOR_TOKENS = 16
PAYBACK_TOKENS = 32
MOST_CORRECTION = 0.3
_LEAST_SCALE, _MOST_SCALE = 0.5, 2.0


class State(NamedTuple):
    """What is remembered of each sequence.

    Args:
        tokens (`Tensor` of shape `(B,)`, float32): Tokens drawn.
        curve (`Tensor` of shape `(B,)`, float32): Sum of `g(h)` over their steps, in nats.
        drawn (`Tensor` of shape `(B,)`, float32): Sum of the surprisals drawn, in nats.
    """

    tokens: Tensor
    curve: Tensor
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
        curve (`Tensor` of shape `(B,)`): `g(h)`, nats.
    """

    candidates: Candidates
    temperature: Tensor
    entropy: Tensor
    curve: Tensor

    def draw(self, generator: torch.Generator | None = None) -> "Drawn":
        """Draw one token per row."""
        ids, surprisal = self.candidates
        scores = -(surprisal - surprisal.amin(-1, keepdim=True)) / self.temperature.unsqueeze(-1)
        weights = scores.exp()
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
        edges (`Tensor` of shape `(N - 1,)`): Inner edges of the entropy bins, nats.
        ranks (`Tensor` of shape `(N,)`, int64): Last rank that may be drawn, by entropy bin; empty for no limit.
        level (`float`): Mean human surprisal, nats per token.
        weight (`float`): 1 is human, 0 greedy.
        never (`Tensor` of shape `(M,)`, int64): Tokens that are not drawn, unless nothing else is left; with a weight
            of 0 the most probable token is taken all the same.
    """

    h: Tensor
    g: Tensor
    edges: Tensor
    ranks: Tensor
    level: float
    weight: float
    never: Tensor

    @classmethod
    def of(
        cls,
        figures: Mapping[str, Any],
        weight: float,
        *,
        never: Sequence[int] = (),
        device: torch.device | str = "cpu",
    ) -> "HumanSampler":
        """The sampler of plain lists: `h`, `g`, `edges`, `ranks` and `level`.

        Raises:
            ValueError: If the weight is not in [0, 1].
        """
        h, g, edges = (_tensor(figures[name], device) for name in ("h", "g", "edges"))
        if h[0] > 0:  # a certain model is never surprised
            zero = h.new_zeros(1)
            h, g = torch.cat([zero, h]), torch.cat([zero, g])
        ranks = torch.tensor(figures["ranks"], dtype=torch.long, device=device)
        out = torch.tensor(never, dtype=torch.long, device=device)
        return cls(h, g, edges, ranks, float(figures["level"]), checked_weight(weight), out)

    def curve(self, entropy: Tensor) -> Tensor:
        """The calibration curve `g(h)`: linear between knots, with slope 1 above the last."""
        right = torch.searchsorted(self.h, entropy).clamp(1, max(len(self.h) - 1, 1))
        if len(self.h) == 1:
            return self.g + entropy
        h0, h1, g0, g1 = self.h[right - 1], self.h[right], self.g[right - 1], self.g[right]
        inside = g0 + (g1 - g0) * ((entropy - h0) / (h1 - h0).clamp(min=1e-6)).clamp(0, 1)
        return inside + (entropy - self.h[-1]).clamp(min=0)

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
        curve = self.curve(entropy)
        if self.weight == 0:
            best = scores.argmax(-1, keepdim=True)
            surprisal = log_partition.unsqueeze(1) - scores.gather(1, best).float()
            return Step(Candidates(best, surprisal), torch.ones_like(entropy), entropy, curve)
        mean = (PRIOR_TOKENS * self.level + state.curve + curve) / (PRIOR_TOKENS + state.tokens + 1)
        scale = (self.level / mean).clamp(_LEAST_SCALE, _MOST_SCALE)
        aim = self.weight * self.level
        owed = (aim * state.tokens - state.drawn) / (PAYBACK_TOKENS * aim)
        target = self.weight * curve * scale * (1 + owed.clamp(-MOST_CORRECTION, MOST_CORRECTION))
        limit = self.ranks[torch.searchsorted(self.edges, entropy, right=True)] if len(self.ranks) else None
        kept = self._without_never(candidates(scores, log_partition, limit))
        temperature = solve_temperature(kept.surprisal, target, low=MIN_TEMPERATURE, high=MAX_TEMPERATURE)
        return Step(kept, temperature, entropy, curve)

    def _without_never(self, kept: Candidates) -> Candidates:
        if not len(self.never):
            return kept
        surprisal = kept.surprisal.masked_fill(torch.isin(kept.ids, self.never), FAR)
        nothing = (surprisal >= FAR).all(-1, keepdim=True)
        return Candidates(kept.ids, torch.where(nothing, kept.surprisal, surprisal))

    def observe(self, state: State, step: Step, surprisal: Tensor) -> State:
        """The state after tokens of the given surprisals `(B,)` were drawn; a row whose surprisal is NaN stays."""
        seen = surprisal.isfinite()
        return State(
            state.tokens + seen,
            state.curve + torch.where(seen, step.curve, 0.0),
            state.drawn + torch.where(seen, surprisal, 0.0),
        )


def checked_weight(weight: float) -> float:
    """`weight` as a float; ValueError if it is no number in [0, 1]."""
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise ValueError(f"weight: expected a number in [0, 1], got {weight!r}")
    if not 0 <= weight <= 1:
        raise ValueError(f"weight: expected a number in [0, 1], got {weight!r}")
    return float(weight)


def _tensor(values: Sequence[float], device: torch.device | str) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)
