"""The sums over the vocabulary behind all four statistics, which every implementation of the head fills in."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ugap.scoring.head.tiles import FLOOR

# Upper and lower end `(n,)` of where each target's logit lies.
Window = tuple[Tensor, Tensor]
# Words of the window that are counted: all of them, or those before the target.
Count = Literal["window", "earlier"]
# Of the gradient of a logit `(n,)`: a constant, what is multiplied with `z`, and what the target has less.
Factors = tuple[Tensor, Tensor, Tensor]


class Sums(NamedTuple):
    """Sums over the vocabulary for `n` tokens, each `(n,)` in the accumulation dtype.

    Args:
        maximum (`Tensor`): Largest logit.
        s0 (`Tensor`): Sum of `exp(z)`, with `z` the logit less the maximum.
        s1 (`Tensor`): Sum of `z exp(z)`.
        s2 (`Tensor`): Sum of `z² exp(z)`.
        above (`Tensor`): Number of logits above the window.
        within (`Tensor`): Number of logits in the window.
        own (`Tensor`): Logit of the target.
    """

    maximum: Tensor
    s0: Tensor
    s1: Tensor
    s2: Tensor
    above: Tensor
    within: Tensor
    own: Tensor


def empty(parts: int, n: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Tensor:
    """Sums `(parts, 7, n)` over no words, the fields of `Sums` in order."""
    sums = torch.zeros(parts, len(Sums._fields), n, dtype=dtype, device=device)
    sums[:, 0] = -math.inf
    return sums


def merged(parts: Tensor) -> Sums:
    """The sums over all words from those over parts of them.

    A part has a maximum of its own. Relative to the common maximum its `z` moves by `shift`, so that its sums become
    `d s0`, `d (s1 + shift s0)` and `d (s2 + 2 shift s1 + shift² s0)` with `d = exp(shift)`.

    Args:
        parts (`Tensor` of shape `(parts, 7, n)`): The fields of `Sums` in order, for each part; `own` is 0 in parts
            without the target.

    Example:
        >>> logits = torch.tensor([1.0, 2.0, 4.0])
        >>> each = [[x, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0] for x in logits.tolist()]  # a word is its own maximum
        >>> sums = merged(torch.tensor(each).unsqueeze(2))
        >>> bool(torch.isclose(sums.maximum + sums.s0.log(), logits.logsumexp(0)))
        True
    """
    maxima, s0, s1, s2, above, within, own = parts.unbind(1)
    maximum = maxima.amax(0)
    # Where all logits are -inf, the difference would be NaN.
    shift = (maxima - maximum.clamp(min=torch.finfo(maximum.dtype).min)).clamp(min=FLOOR)
    decay = shift.exp()
    return Sums(
        maximum,
        (decay * s0).sum(0),
        (decay * (s1 + shift * s0)).sum(0),
        (decay * (s2 + 2 * shift * s1 + shift.square() * s0)).sum(0),
        above.sum(0),
        within.sum(0),
        own.sum(0),
    )
