"""One step of decoding at human uncertainty: the sampler itself, whatever engine runs the model.

Where the model's entropy is `h`, people are `g(h)` surprising on average (the calibration curve). A step aims at

    `w * gain * g(h') * (1 + correction)`

and takes the temperature at which the expected surprisal meets that aim. With `h' = h` and no correction a continuation
drifts away from the human level: a model becomes more uncertain in its own text, step by step, than in human text
(Braverman et al., 2020, arXiv 1906.05664). Three terms hold the sequence to human text:

- *Quantile.* Let `F` be the CDF of the entropy in human text and `u = F(h)`. In human text `u` is uniform; in the
  model's own text it leans to one side. The sampler models `u` there as `u^a`, with `a` from the mean of `u` in the
  sequence so far (1/2 at first, with the weight of `PRIOR_TOKENS` tokens). `h' = F^-1(u^a)` is the human entropy at the
  same quantile. So the aims of a sequence are distributed as human surprisals are, and certain steps stay certain. `u`
  depends on no draw, so it adds no noise.
- *Position.* Human text is more surprising near its start. So the human entropy is scaled, and the curve has a gain, by
  the number of tokens before a step; `mean_surprisal` is that of the position too.
- *Correction.* The debt is `w * mean_surprisal` for each token less the surprisal drawn so far. It is paid back over
  `PAYBACK_TOKENS` tokens, by at most `MOST_CORRECTION` of a step's aim.

Both weigh the sequence by `w^2`: its past counts in full at weight 1 and a quarter at 0.5. Otherwise the last token of
a short answer would be drawn hotter the more certain its first tokens are, whatever the weight.

Every engine's adapter runs this module. It needs torch and NumPy alone.
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
    """The running sums of each sequence.

    Args:
        position (`Tensor` of shape `(B,)`, float32): Tokens before the next one, the prompt's included.
        n_tokens (`Tensor` of shape `(B,)`, float32): Tokens drawn.
        cdf_sum (`Tensor` of shape `(B,)`, float32): Sum of `u = F(h)` over their steps.
        debt (`Tensor` of shape `(B,)`, float32): Sum of the aims less the surprisals drawn, in nats.
    """

    position: Tensor
    n_tokens: Tensor
    cdf_sum: Tensor
    debt: Tensor

    @classmethod
    def start(cls, positions: Sequence[int], device: torch.device | str = "cpu") -> "State":
        """The state of sequences before their first token.

        Args:
            positions (`Sequence[int]`): Tokens of the prompt of each.
            device (`torch.device`, *optional*, defaults to `"cpu"`): Device of the scores.
        """
        zeros = torch.zeros(3, len(positions), device=device)
        return cls(torch.tensor(positions, dtype=torch.float32, device=device), *zeros)


class Step(NamedTuple):
    """The distribution that the next token of each row is drawn from.

    Args:
        candidates (`Candidates`): Tokens that may be drawn, with their surprisal under the model.
        temperature (`Tensor` of shape `(B,)`): Solved temperature; 1 where there is one candidate, the most probable.
        entropy (`Tensor` of shape `(B,)`): Entropy of the model's distribution, nats.
        cdf (`Tensor` of shape `(B,)`): `u = F(h)`: share of steps in human text with a lower entropy.
    """

    candidates: Candidates
    temperature: Tensor
    entropy: Tensor
    cdf: Tensor

    def draw(self, generator: torch.Generator | None = None) -> "Drawn":
        """Draw one token per row."""
        ids, surprisal = self.candidates
        scores = -(surprisal - surprisal.amin(-1, keepdim=True)) / self.temperature.unsqueeze(-1)
        # The clamp leaves exp(-80), so a token that may not be drawn gets an exact 0 behind it.
        weights = scores.clamp(min=UNDERFLOW).exp_().masked_fill_(surprisal >= FAR, 0.0)
        index = draw(weights, generator).unsqueeze(1)
        log_probability = scores.gather(1, index).squeeze(1) - weights.sum(-1).log()
        return Drawn(
            ids.gather(1, index).squeeze(1), surprisal.gather(1, index).squeeze(1), self.entropy, log_probability
        )

    def scores(self, like: Tensor) -> Tensor:
        """The distribution as scores over the vocabulary, for an engine that draws by itself.

        Args:
            like (`Tensor` of shape `(B, V)`): The scores that the step was solved for; left as they are.

        Returns:
            `Tensor` of shape `(B, V)`: `log p / temperature` for the tokens that may be drawn, `-inf` for the others,
                in the type of `like`.
        """
        ids, surprisal = self.candidates
        values = (-surprisal / self.temperature.unsqueeze(1)).masked_fill_(surprisal >= FAR, -torch.inf)
        out = torch.empty_like(like).fill_(-torch.inf)
        # Padding repeats an id that may be a candidate as well; the larger value is the candidate's.
        return out.scatter_reduce_(1, ids, values.to(like.dtype), "amax")

    def surprisal_of(self, tokens: Tensor) -> Tensor:
        """Surprisal `(B,)` in nats of the tokens `(B,)`; infinite for a token that could not be drawn."""
        ids, surprisal = self.candidates
        return torch.where((ids == tokens.unsqueeze(1)) & (surprisal < FAR), surprisal, torch.inf).amin(1)


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
    """The parameters that a sampler takes from a human profile, and its settings.

    The parameters are one row for all sequences (`R = 1`), or a row for each (`R = B`).

    Args:
        h (`Tensor` of shape `(R, K)`): Knots of the calibration curve: entropy, nats.
        g (`Tensor` of shape `(R, K)`): Human surprisal there, nats.
        entropy_quantiles (`Tensor` of shape `(R, Q)`): Quantiles of the entropy in human text, nats; the first is 0.
        cdf (`Tensor` of shape `(R, Q)`): The share of steps below each quantile, from 0 to 1.
        edges (`Tensor` of shape `(R, N - 1)`): Inner edges of the entropy bins, nats.
        ranks (`Tensor` of shape `(R, N)`, int64): Last rank that may be drawn, by entropy bin; `N` is 0 for no limit.
        bands (`Tensor` of shape `(P - 1,)`): Positions at which the second and every further band starts.
        entropy_scale (`Tensor` of shape `(R, P)`): Human entropy over `entropy_quantiles`, by band.
        gain (`Tensor` of shape `(R, P)`): Human surprisal over `g`, by band.
        mean_surprisal (`Tensor` of shape `(R, P)`): Mean human surprisal, nats per token, by band.
        weight (`float`): 1 is human, 0 greedy.
        suppressed (`Tensor` of shape `(M,)`, bool): True for tokens that are drawn only where nothing else is left. Ids
            from `M` on are false. With a weight of 0 the most probable token is taken all the same.
    """

    h: Tensor
    g: Tensor
    entropy_quantiles: Tensor
    cdf: Tensor
    edges: Tensor
    ranks: Tensor
    bands: Tensor
    entropy_scale: Tensor
    gain: Tensor
    mean_surprisal: Tensor
    weight: float
    suppressed: Tensor

    @classmethod
    def of(
        cls,
        params: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        weight: float,
        *,
        suppress_tokens: Sequence[int] = (),
        device: torch.device | str = "cpu",
    ) -> "HumanSampler":
        """The sampler from plain lists, as `human_params` returns them: of all sequences, or one for each.

        Raises:
            ValueError: If the weight is not in [0, 1].
        """
        rows = [params] if isinstance(params, Mapping) else list(params)

        def column(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor([row[name] for row in rows], dtype=dtype, device=device)

        h, g = column("h"), column("g")
        # A certain model is never surprised; a first knot at 0 already says what there is to say.
        zero = h.new_zeros(len(rows), 1)
        h, g = torch.cat([zero, h], 1), torch.cat([torch.where(h[:, :1] > 0, zero, g[:, :1]), g], 1)
        suppressed = torch.zeros(max(suppress_tokens, default=-1) + 1, dtype=torch.bool)
        suppressed[list(suppress_tokens)] = True
        return cls(
            h,
            g,
            column("entropy_quantiles"),
            column("cdf"),
            column("edges"),
            column("ranks", torch.long),
            # The bands of a profile are the same for all its kinds.
            torch.tensor(rows[0]["bands"], dtype=torch.float32, device=device),
            column("entropy_scale"),
            column("gain"),
            column("mean_surprisal"),
            checked_weight(weight),
            suppressed.to(device),
        )

    def curve(self, entropy: Tensor) -> Tensor:
        """The calibration curve `g(h)`: linear between knots, with slope 1 above the last."""
        return _interpolated(entropy, self.h, self.g) + (entropy - self.h[:, -1]).clamp(min=0)

    def at_position(self, values: Tensor, state: State) -> Tensor:
        """`values` `(R, P)` by band, at the positions of the next tokens: shape `(B,)`."""
        band = torch.searchsorted(self.bands, state.position, right=True).unsqueeze(1)
        return values.expand(len(band), -1).gather(1, band).squeeze(1)

    def human_entropy(self, entropy: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """`u = F(h)` of each step, and the human entropy `h'` after the lean of the sequence is undone."""
        scale = self.at_position(self.entropy_scale, state)
        scaled = entropy / scale
        cdf = _interpolated(scaled, self.entropy_quantiles, self.cdf)
        trust = self.weight**2
        mean = (PRIOR_TOKENS * 0.5 + trust * (state.cdf_sum + cdf)) / (PRIOR_TOKENS + trust * (state.n_tokens + 1))
        # If u^a is uniform, the mean of u is a / (1 + a): solved for a, at the observed mean.
        aligned = _interpolated(cdf ** (mean / (1 - mean)), self.cdf, self.entropy_quantiles)
        # Beyond the highest human entropy the CDF is flat, so the excess is added back.
        return cdf, scale * (aligned + (scaled - self.entropy_quantiles[:, -1]).clamp(min=0))

    def step(self, scores: Tensor, state: State) -> Step:
        """Solve the distribution that the next token of each row is drawn from.

        Args:
            scores (`Tensor` of shape `(B, V)`): Logits of any floating type; `-inf` rules a token out.
            state (`State`): Of the `B` sequences.

        Raises:
            ValueError: If the scores of a row are NaN, infinite or all ruled out.
        """
        log_partition, entropy = distribution(scores)
        finite = log_partition.isfinite() & entropy.isfinite()
        if not finite.all():
            bad_row = int((~finite).nonzero()[0])
            raise ValueError(f"the scores of row {bad_row} are not finite: there is nothing to sample from")
        if self.weight == 0:
            best = scores.argmax(-1, keepdim=True)
            surprisal = log_partition.unsqueeze(1) - scores.gather(1, best).float()
            # No aim is solved for at weight 0, so `u` is not needed.
            return Step(Candidates(best, surprisal), torch.ones_like(entropy), entropy, torch.zeros_like(entropy))
        limit = None
        if self.ranks.shape[1]:
            edges = self.edges.expand(len(entropy), -1).contiguous()
            bins = torch.searchsorted(edges, entropy.unsqueeze(1), right=True)
            limit = self.ranks.expand(len(entropy), -1).gather(1, bins).squeeze(1)
        kept = self._without_suppressed(candidates(scores, log_partition, limit), scores, log_partition)
        cdf, human_entropy = self.human_entropy(entropy, state)
        aim = self.weight * self.at_position(self.mean_surprisal, state)
        debt = (self.weight**2 * state.debt / (PAYBACK_TOKENS * aim)).clamp(-MOST_CORRECTION, MOST_CORRECTION)
        target = self.weight * self.at_position(self.gain, state) * self.curve(human_entropy) * (1 + debt)
        temperature = solve_temperature(kept.surprisal, target, low=MIN_TEMPERATURE, high=MAX_TEMPERATURE)
        return Step(kept, temperature, entropy, cdf)

    def _without_suppressed(self, kept: Candidates, scores: Tensor, log_partition: Tensor) -> Candidates:
        size = len(self.suppressed)
        if not size:
            return kept
        # A CPU selects from one dimension several times faster than it indexes.
        listed = self.suppressed.index_select(0, kept.ids.clamp(max=size - 1).flatten()).view_as(kept.ids)
        barred = listed & (kept.ids < size)
        ids, surprisal = kept.ids, kept.surprisal.masked_fill(barred, FAR)
        # Where the human ranks hold nothing else, the likeliest of the other tokens is drawn, if there is one.
        for row in (surprisal.amin(-1) >= FAR).nonzero().squeeze(1).tolist():
            others = scores[row].clone()
            others[:size].masked_fill_(self.suppressed[: len(others)], -torch.inf)
            best = others.argmax()
            if others[best] == -torch.inf:
                surprisal[row] = kept.surprisal[row]
            else:
                # Below FAR, or the token would count as one that cannot be drawn.
                ids[row, 0], surprisal[row, 0] = best, (log_partition[row] - others[best]).clamp(0.0, FAR - 1)
        return Candidates(ids, surprisal)

    def observe(self, state: State, step: Step, surprisal: Tensor) -> State:
        """The state after tokens of the given surprisals `(B,)` were drawn.

        A row whose surprisal is not finite keeps its state: it has ended, or its token was not drawn from the step.
        """
        drawn = surprisal.isfinite()
        aim = self.weight * self.at_position(self.mean_surprisal, state)
        return State(
            state.position + drawn,
            state.n_tokens + drawn,
            state.cdf_sum + torch.where(drawn, step.cdf, 0.0),
            state.debt + torch.where(drawn, aim - surprisal, 0.0),
        )


def checked_weight(weight: float) -> float:
    """`weight` as a float; ValueError if it is no number in [0, 1]."""
    # A bool is an int: `True` would pass as a weight of 1.
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise ValueError(f"weight: expected a number in [0, 1], got {weight!r}")
    if not 0 <= weight <= 1:
        raise ValueError(f"weight: expected a number in [0, 1], got {weight!r}")
    return float(weight)


def _interpolated(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Linear between the knots `x` `(R, K)`, which do not fall, and flat beyond them: shape `(B,)` as `at`."""
    x, y = x.expand(len(at), -1), y.expand(len(at), -1)
    if x.shape[1] == 1:
        return y[:, 0]
    # Equal knots make a step of width 0: the clamp keeps its slope finite.
    right = torch.searchsorted(x.contiguous(), at.unsqueeze(1)).clamp(1, x.shape[1] - 1)
    (x0, x1), (y0, y1) = ((knots.gather(1, right - 1), knots.gather(1, right)) for knots in (x, y))
    return (y0 + (y1 - y0) * ((at.unsqueeze(1) - x0) / (x1 - x0).clamp(min=1e-6)).clamp(0, 1)).squeeze(1)
