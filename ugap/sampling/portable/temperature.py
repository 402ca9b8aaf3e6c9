"""The temperature at which a step is as surprising as it should be, solved for a batch of distributions at once.

Let `p` be the model's distribution at temperature 1, `c = -log p` the surprisal of each token and `p_b` proportional to
`exp(-b c)` the distribution at temperature `1 / b`. The expected surprisal `f(b) = E_{p_b}[c]` falls in `b` with
slope `-Var_{p_b}[c]`, from the plain mean of `c` at `b = 0` to the smallest `c`: an exponential family, so Newton's
step is known in closed form and a bracket makes it safe.

Design choices:

- Only tokens that may be drawn take part in the solution. With the human tail cut these are a few thousand of a
  vocabulary of hundreds of thousands, and the whole vocabulary is read twice: once to normalise, once to find them.
- Whole rows pass through the cache one after another on a CPU, and all at once on a GPU.
- Tokens that are ruled out (`-inf`) get a surprisal that is finite and so large that their weight is zero at every
  temperature in use: `0 * inf` never happens.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MIN_TEMPERATURE = 0.05
MAX_TEMPERATURE = 2.0
# Surprisal in nats of what cannot be drawn: its weight underflows to zero at every temperature up to the highest.
FAR = 1e4
# Below this an exponential adds nothing to a sum of 10^6 terms whose largest is 1; one that underflows is slow.
UNDERFLOW = -80.0
# Of the expected surprisal, absolute (nats) and relative: what float32 sums can tell.
_ABSOLUTE, _RELATIVE = 1e-6, 2e-5
_ITERATIONS = 60
_STRIDE = 16
_TIES = 64


class Distribution(NamedTuple):
    """What is known of each row's distribution `p = softmax(scores)`.

    Args:
        log_partition (`Tensor` of shape `(B,)`, float32): Logarithm of the sum of the exponentials.
        entropy (`Tensor` of shape `(B,)`, float32): Entropy of `p` in nats.
    """

    log_partition: Tensor
    entropy: Tensor


class Candidates(NamedTuple):
    """The tokens of each row that may be drawn, `N` at most; a row with fewer is filled up.

    Args:
        ids (`Tensor` of shape `(B, N)`, int64): Token ids, in no order; 0 where filled up.
        surprisal (`Tensor` of shape `(B, N)`, float32): `-log p` of each in nats; `FAR` where filled up.
    """

    ids: Tensor
    surprisal: Tensor


def distribution(scores: Tensor) -> Distribution:
    """Log-partition and entropy of each row, accumulated in float32.

    Args:
        scores (`Tensor` of shape `(B, V)`): Logits of any floating type; `-inf` is a token that is ruled out.

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
        scores (`Tensor` of shape `(B, V)`): Logits of any floating type; `-inf` is a token that is ruled out.
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
    found = [_head(row, most) for row, most in zip(scores.detach(), limits, strict=True)]
    width = max(len(ids) for ids, _ in found)
    ids = scores.new_zeros((len(scores), width), dtype=torch.long)
    surprisal = torch.full((len(scores), width), torch.inf, device=scores.device)
    for row, (kept, values) in enumerate(found):
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
        low (`float`, *optional*): Lowest temperature: the answer where the target is less than can be reached.
        high (`float`, *optional*): Highest temperature: the answer where the target is more than that gives.

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
    # In b, the inverse temperature: f is above the goal at `left` and below it at `right`, where these are known.
    left, right = torch.full_like(goal, 1 / high), torch.full_like(goal, 1 / low)
    left_known, right_known = torch.zeros_like(goal, dtype=torch.bool), torch.zeros_like(goal, dtype=torch.bool)
    tolerance = _ABSOLUTE + _RELATIVE * goal.abs()
    b = torch.where(goal > 0, torch.ones_like(goal).clamp(left, right), right)
    for _ in range(_ITERATIONS):
        weights = (excess * -b.unsqueeze(-1)).clamp_(min=UNDERFLOW).exp_()
        total = weights.sum(-1)
        mean = torch.linalg.vecdot(weights, excess) / total
        variance = torch.linalg.vecdot(weights, square) / total - mean.square()
        above, below = mean >= goal, mean <= goal
        left, right = torch.where(above, b, left), torch.where(below, b, right)
        left_known, right_known = left_known | above, right_known | below
        going_on = ((mean - goal).abs() > tolerance) & (left < right)
        if not going_on.any():
            break
        step = b + (mean - goal) / variance.clamp(min=1e-12)
        # Where Newton leaves the bracket: to its end, if that was never tried, or else to the middle (of the ratio).
        middle = (left * right).sqrt()
        step = torch.where(step <= left, torch.where(left_known, middle, left), step)
        step = torch.where(step >= right, torch.where(right_known, middle, right), step)
        # A row that is done stays: the rows beside it are nothing to it.
        b = torch.where(going_on, step, b)
    return 1 / b


def _all_at_once(scores: Tensor, log_partition: Tensor, limit: Tensor | None) -> Candidates:
    """The candidates by one selection over all rows, for devices on which a loop over rows would wait for each."""
    size = scores.shape[-1]
    limit = torch.full_like(log_partition, size, dtype=torch.long) if limit is None else limit.clamp(max=size)
    # Beyond the largest limit, so that ties at it may stay.
    values, ids = scores.detach().float().topk(min(int(limit.max()) + _TIES, size))
    last = values.gather(1, limit.unsqueeze(1) - 1)
    surprisal = (log_partition.unsqueeze(1) - values).clamp_(0.0, FAR)
    return Candidates(ids, surprisal.masked_fill_((values < last) | (values == -torch.inf), FAR))


def _head(row: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Ids and float32 values of the finite scores of a row that are no less than its `most`-th highest."""
    values = row.float().numpy()
    # Few scores are left to select from exactly above a floor that every n-th score tells; where it lies too high by
    # chance, all of them are.
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
    """A score that more than `expected` of a sample reach, by four standard deviations of a count."""
    rank = math.ceil(expected + 4 * math.sqrt(expected)) + 4
    return _highest(sample, rank) if rank <= len(sample) else -math.inf


def _highest(values: NDArray[np.float32], rank: int) -> float:
    """The `rank`-th highest of some values; NumPy is several times faster here than torch."""
    return float(np.partition(values, len(values) - rank)[len(values) - rank])
