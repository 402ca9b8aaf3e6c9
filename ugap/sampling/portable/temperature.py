"""The temperature at which the expected surprisal meets a target, solved for a batch of distributions at once.

Let `p` be the model's distribution at temperature 1, `c = -log p` the surprisal of each token and `p_b` proportional to
`exp(-b c)` the distribution at temperature `1 / b`. The expected surprisal `f(b) = E_{p_b}[c]` falls in `b` with
slope `-Var_{p_b}[c]`, from the plain mean of `c` at `b = 0` to the smallest `c`: an exponential family, so Newton's
step is known in closed form and a bracket makes it safe.

Design choices:

- Only tokens that may be drawn enter the solution: with the human tail cut, a few thousand of a vocabulary of hundreds
  of thousands. The whole vocabulary is read twice: once to normalise, once to find these tokens.
- A CPU reads one row after another, so that each fits its cache. A GPU reads all rows at once.
- Tokens that are ruled out (`-inf`) get a finite surprisal, large enough for a weight of zero at every temperature in
  use. An infinite one would make `0 * inf`.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MIN_TEMPERATURE = 0.05
MAX_TEMPERATURE = 2.0
# Surprisal in nats of a token that cannot be drawn: its weight underflows to zero at every temperature in use.
FAR = 1e4
# exp(-80) adds nothing to a sum of 10^6 terms whose largest is 1. Smaller results are denormal, which is slow.
UNDERFLOW = -80.0
# Tolerances of the expected surprisal, absolute (nats) and relative: float32 sums resolve no less.
_ABSOLUTE, _RELATIVE = 1e-6, 2e-5
_ITERATIONS = 60  # bisection alone needs about 30; Newton rarely more than 6
_STRIDE = 16  # every 16th score estimates the floor of the candidates
_TIES = 64  # ties at the last rank that stay off a CPU


class Distribution(NamedTuple):
    """Log-partition and entropy of each row's distribution `p = softmax(scores)`.

    Args:
        log_partition (`Tensor` of shape `(B,)`, float32): Logarithm of the sum of the exponentials.
        entropy (`Tensor` of shape `(B,)`, float32): Entropy of `p` in nats.
    """

    log_partition: Tensor
    entropy: Tensor


class Candidates(NamedTuple):
    """The tokens of each row that may be drawn, at most `N`; shorter rows are padded.

    Args:
        ids (`Tensor` of shape `(B, N)`, int64): Token ids, in no order; 0 is padding.
        surprisal (`Tensor` of shape `(B, N)`, float32): `-log p` of each in nats; `FAR` for padding.
    """

    ids: Tensor
    surprisal: Tensor


def distribution(scores: Tensor) -> Distribution:
    """Log-partition and entropy of each row, accumulated in float32.

    Args:
        scores (`Tensor` of shape `(B, V)`): Logits of any floating type; `-inf` rules a token out.

    Example:
        >>> distribution(torch.tensor([[0.0, 0.0, -torch.inf]])).entropy
        tensor([0.6931])
    """
    together = 1 if scores.device.type == "cpu" else len(scores)
    scratch = torch.empty(2, together, scores.shape[-1], device=scores.device)
    log_partition, entropy = scores.new_empty((2, len(scores)), dtype=torch.float32)
    for start in range(0, len(scores), together):
        rows = scores[start : start + together].float()
        shifted, weights = scratch[:, : len(rows)]
        top = rows.amax(-1, keepdim=True)
        torch.sub(rows, top, out=shifted).clamp_(min=UNDERFLOW)
        total = torch.exp(shifted, out=weights).sum(-1)
        mean = torch.linalg.vecdot(weights, shifted) / total
        log_partition[start : start + together] = total.log() + top.squeeze(-1)
        entropy[start : start + together] = (total.log() - mean).clamp_(min=0.0)
    return Distribution(log_partition, entropy)


def candidates(scores: Tensor, log_partition: Tensor, limit: Tensor | None = None) -> Candidates:
    """The tokens of each row up to a rank; ties at the last rank stay (off a CPU: at the deepest one, a few of them).

    Args:
        scores (`Tensor` of shape `(B, V)`): Logits of any floating type; `-inf` rules a token out.
        log_partition (`Tensor` of shape `(B,)`): Of `distribution`.
        limit (`Tensor` of shape `(B,)`, integers, *optional*): Last rank that stays, at least 1; by default all that
            is not ruled out.

    Example:
        >>> scores = torch.tensor([[3.0, 1.0, 2.0, -torch.inf]])
        >>> candidates(scores, distribution(scores).log_partition, torch.tensor([2])).ids
        tensor([[0, 2]])
    """
    if scores.device.type != "cpu":
        return _all_at_once(scores, log_partition, limit)
    limits = [scores.shape[-1]] * len(scores) if limit is None else limit.tolist()
    heads = [_head(row, most) for row, most in zip(scores.detach(), limits, strict=True)]
    width = max(len(ids) for ids, _ in heads)
    ids = scores.new_zeros((len(scores), width), dtype=torch.long)
    surprisal = torch.full((len(scores), width), torch.inf, device=scores.device)
    for row, (kept, values) in enumerate(heads):
        ids[row, : len(kept)] = kept
        torch.sub(log_partition[row], values, out=surprisal[row, : len(kept)])
    surprisal.clamp_(0.0, FAR)
    return Candidates(ids, surprisal)


def solve_temperature(
    surprisal: Tensor, target: Tensor, *, low: float = MIN_TEMPERATURE, high: float = MAX_TEMPERATURE
) -> Tensor:
    """The temperature of each row at which the expected surprisal is the target.

    Args:
        surprisal (`Tensor` of shape `(B, N)`): `-log p` in nats of the tokens that may be drawn; `FAR` or `inf` for
            those that may not.
        target (`Tensor` of shape `(B,)`): Expected surprisal to reach, in nats.
        low (`float`, *optional*): Lowest temperature: the answer for a target too low to reach.
        high (`float`, *optional*): Highest temperature: the answer for a target too high to reach.

    Returns:
        `Tensor` of shape `(B,)`, float32: Temperatures in `[low, high]`.

    Raises:
        ValueError: If the range of temperatures is empty or reaches above 10.

    Example:
        The target is the entropy, so the temperature is 1:

        >>> p = torch.tensor([[0.5, 0.25, 0.25]])
        >>> solve_temperature(-p.log(), -(p * p.log()).sum(-1))
        tensor([1.])
    """
    if not 0 < low < high <= 10:
        raise ValueError(f"temperatures: expected 0 < low < high <= 10, got {low} and {high}")
    surprisal = surprisal.float().clamp(max=FAR)
    least = surprisal.amin(-1, keepdim=True)
    excess, goal = surprisal - least, target.float() - least.squeeze(-1)
    square = excess.square()
    # A bracket of b, the inverse temperature: f(left) >= goal >= f(right) once these ends were tried.
    left, right = torch.full_like(goal, 1 / high), torch.full_like(goal, 1 / low)
    left_tried, right_tried = torch.zeros_like(goal, dtype=torch.bool), torch.zeros_like(goal, dtype=torch.bool)
    tolerance = _ABSOLUTE + _RELATIVE * goal.abs()
    b = torch.where(goal > 0, torch.ones_like(goal).clamp(left, right), right)
    for _ in range(_ITERATIONS):
        weights = (excess * -b.unsqueeze(-1)).clamp_(min=UNDERFLOW).exp_()
        total = weights.sum(-1)
        mean = torch.linalg.vecdot(weights, excess) / total
        variance = torch.linalg.vecdot(weights, square) / total - mean.square()
        above, below = mean >= goal, mean <= goal
        left, right = torch.where(above, b, left), torch.where(below, b, right)
        left_tried, right_tried = left_tried | above, right_tried | below
        unsolved = ((mean - goal).abs() > tolerance) & (left < right)
        if not unsolved.any():
            break
        step = b + (mean - goal) / variance.clamp(min=1e-12)
        # A Newton step out of the bracket goes to its end, if that was never tried, or else to the geometric middle.
        middle = (left * right).sqrt()
        step = torch.where(step <= left, torch.where(left_tried, middle, left), step)
        step = torch.where(step >= right, torch.where(right_tried, middle, right), step)
        # A solved row stays, so that its result does not depend on the other rows of the batch.
        b = torch.where(unsolved, step, b)
    return 1 / b


def _all_at_once(scores: Tensor, log_partition: Tensor, limit: Tensor | None) -> Candidates:
    """The candidates by one selection over all rows: on a GPU, a loop over rows would wait for each."""
    size = scores.shape[-1]
    limit = torch.full_like(log_partition, size, dtype=torch.long) if limit is None else limit.clamp(max=size)
    # A few more than the largest limit, so that ties at it stay.
    values, ids = scores.detach().float().topk(min(int(limit.max()) + _TIES, size))
    last = values.gather(1, limit.unsqueeze(1) - 1)
    surprisal = (log_partition.unsqueeze(1) - values).clamp_(0.0, FAR)
    return Candidates(ids, surprisal.masked_fill_((values < last) | (values == -torch.inf), FAR))


def _head(row: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Ids and float32 values of the finite scores of a row that are no less than its `most`-th highest."""
    values = row.float().numpy()
    # An exact selection over the vocabulary is slow. A floor from every 16th score leaves few to select from; where it
    # lies too high by chance, the selection is over all.
    floor = _floor(values[::_STRIDE], most / _STRIDE)
    ids = np.flatnonzero(values >= floor) if floor > -np.inf else np.empty(0, dtype=np.intp)
    if len(ids) < most:
        ids = np.flatnonzero(values > -np.inf)
    kept = values[ids]
    if len(ids) > most:
        enough = kept >= _highest(kept, most)
        ids, kept = ids[enough], kept[enough]
    return torch.from_numpy(ids), torch.from_numpy(kept)


def _floor(sample: NDArray[np.float32], expected: float) -> float:
    """A score that more than `expected` of a sample almost surely reach: four standard deviations of a count below."""
    rank = math.ceil(expected + 4 * math.sqrt(expected)) + 4
    return _highest(sample, rank) if rank <= len(sample) else -math.inf


def _highest(values: NDArray[np.float32], rank: int) -> float:
    """The `rank`-th highest of some values; NumPy is several times faster here than torch."""
    return float(np.partition(values, len(values) - rank)[len(values) - rank])
