"""Draw a token exactly and fast: invert the cumulative distribution in two levels.

`torch.multinomial` makes a random number for every token of the vocabulary. Here one uniform number per row picks
a block by the cumulative sums of the blocks, and then a token by the cumulative sum within that block. Sums over blocks
are float64, so the inverse is as exact as the weights. This module needs torch alone.
"""

import torch
from torch import Tensor

_BLOCK = 512  # about the square root of a large vocabulary, so both levels are short


def draw(weights: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw one index per row, with probability proportional to the weights.

    Args:
        weights (`Tensor` of shape `(B, N)`): Finite and not negative; each row has a positive sum of any size.
        generator (`torch.Generator`, *optional*): Source of randomness; by default torch's own of the device.

    Returns:
        `Tensor` of shape `(B,)`, int64: Indices, never one of weight 0.

    Example:
        >>> draw(torch.tensor([[0.0, 2.0, 0.0]]))
        tensor([1])
    """
    rows, size = weights.shape
    width = min(_BLOCK, size)
    whole = size - size % width
    blocks = weights[:, :whole].view(rows, -1, width)
    sums = blocks.sum(-1, dtype=torch.float64)
    if whole < size:
        sums = torch.cat([sums, weights[:, whole:].sum(-1, keepdim=True, dtype=torch.float64)], -1)
    cumulative = sums.cumsum(-1)
    point = torch.rand(rows, 1, dtype=torch.float64, device=weights.device, generator=generator)
    point = point * cumulative[:, -1:]
    block = _above(cumulative, point)
    before = torch.where(block > 0, cumulative.gather(1, (block - 1).clamp(min=0)), 0.0)
    # The last block may be short: indices beyond its end have weight 0.
    index = block * width + torch.arange(width, device=weights.device)
    inner = weights.gather(1, index.clamp(max=size - 1)).double().masked_fill(index >= size, 0.0)
    return (block * width + _above(inner.cumsum(-1), point - before)).squeeze(1)


def _above(cumulative: Tensor, point: Tensor) -> Tensor:
    """First index whose cumulative weight exceeds the point."""
    index = torch.searchsorted(cumulative, point, right=True)
    # Rounding can put the point at the total, where no index exceeds it: the last one of positive weight is taken.
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    return torch.minimum(index, last)


def only(tokens: Tensor, like: Tensor) -> Tensor:
    """Scores that leave one token of each row: 0 for it and `-inf` for the others, in the shape and type of `like`."""
    return torch.empty_like(like).fill_(-torch.inf).scatter_(1, tokens.unsqueeze(1), 0.0)


def weights(scores: Tensor) -> Tensor:
    """Unnormalised probabilities `exp(scores - max)` of each row, float32."""
    scores = scores.float()
    return (scores - scores.amax(-1, keepdim=True)).exp_()
