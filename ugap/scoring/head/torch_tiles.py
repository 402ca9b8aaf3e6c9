"""The scoring head in plain torch: a tile of logits at a time, on any device and in float64 too."""

import torch
from torch import Tensor

from ugap.scoring.head.tiles import FLOOR, Count, Factors, Projection, Sums, Tile, Window, empty_sums, merged_sums

# Tiles of logits in memory, in both passes. On a CPU a tile of 4 MB stays in a large second cache while its words are
# folded; on a GPU every operation on a tile is a kernel, which 64 MB keep busy for longer than its launch takes.
TILES = {"cpu": (512, 2048), "cuda": (2048, 8192)}
# Two float32 evaluations of one logit differ by less than this, relative to the logits' scale; where they do not, the
# target is counted again as well.
TIE_TOLERANCE = 3e-7


def tiles_for(weight: Tensor) -> tuple[int, int]:
    """Tokens and words of a tile on the device of the weight."""
    return TILES.get(weight.device.type, TILES["cuda"])


gradient_tiles = tiles_for


def window(project: Projection, hidden: Tensor, targets: Tensor, target_logit: Tensor | None = None) -> Window:
    """Upper and lower end `(n,)` of the logits of the targets; `target_logit` holds these logits up to rounding."""
    weight, accumulate = project.weight, project.accumulate
    if target_logit is None:
        target_logit = (hidden.to(accumulate) * weight[targets].to(accumulate)).sum(-1)
        if project.bias is not None:
            target_logit = target_logit + project.bias[targets].to(accumulate)
        target_logit = target_logit * project.scale
        if project.softcap is not None:
            target_logit = project.softcap * torch.tanh(target_logit / project.softcap)
    # Rounding errors grow with the norms of the factors; 4,096 words are enough to know the largest norm.
    sample = weight[:: max(1, len(weight) // 4096)]
    word_norm = torch.linalg.vector_norm(sample, dim=-1, dtype=accumulate).amax()
    norms = torch.linalg.vector_norm(hidden, dim=-1, dtype=accumulate) * (word_norm * abs(project.scale))
    slack = TIE_TOLERANCE * (norms + target_logit.abs())
    return target_logit + slack, target_logit - slack


def fold(
    project: Projection, hidden: Tensor, targets: Tensor, window: Window | None = None, count: Count = "window"
) -> Sums:
    """Fold the logits of `n` tokens over the whole vocabulary.

    Args:
        project (`Projection`): The head.
        hidden (`Tensor` of shape `(n, H)`): Hidden states of the dtype of the head's weight.
        targets (`Tensor` of shape `(n,)`, int64): Their targets.
        window (`Window`, *optional*): Of each target's logit, for the rank; without it nothing is counted.
        count (`str`, *optional*, defaults to `"window"`): Words of the window that are counted.
    """
    n, device = len(hidden), hidden.device
    total = part = empty_sums(1, n, project.accumulate, device)[0]
    for tile in project.tiles(hidden, *tiles_for(project.weight)):
        words, tokens = tile.words, tile.tokens
        if tokens.start == 0:
            part = empty_sums(1, n, project.accumulate, device)[0]
        logits = project.logits(tile)
        here, column = target_columns(tile, targets)
        top, s0, s1, s2, above, within, target_logit = part[:, tokens]
        target_logit.copy_(torch.where(here, logits.gather(1, column).squeeze(1), 0))
        if window is not None:
            high, low = (edge[tokens].unsqueeze(1) for edge in window)
            over = logits > high
            inside = (logits >= low) & ~over
            if count == "earlier":
                inside &= torch.arange(words.start, words.stop, device=device) < targets[tokens].unsqueeze(1)
            above.copy_(over.sum(-1))
            within.copy_(inside.sum(-1))
        top.copy_(logits.amax(-1))
        z = below(logits, top)
        e = z.exp()
        s0.copy_(e.sum(-1))
        s1.copy_(e.mul_(z).sum(-1))
        s2.copy_(e.mul_(z).sum(-1))
        if tokens.stop == n:
            total = torch.stack(merged_sums(torch.stack([total, part])))
    return Sums(*total)


def product_gradient(project: Projection, tile: Tile, targets: Tensor, maximum: Tensor, factors: Factors) -> Tensor:
    """Gradient `(n, t)` of a tile of `hidden @ weight.T`, in the dtype in which it is to be multiplied.

    With `z` the logit less the maximum, the gradient of a logit is `e^z (constant + per_z z)`, and less `by_surprisal`
    for the target.

    Args:
        project (`Projection`): The head.
        tile (`Tile`): The tokens, the words and their product.
        targets (`Tensor` of shape `(N,)`, int64): Targets of all tokens.
        maximum (`Tensor` of shape `(N,)`): Their largest logits.
        factors (`Factors`): `constant`, `per_z` and `by_surprisal`, each `(N,)`.
    """
    constant, per_z, by_surprisal = (factor[tile.tokens] for factor in factors)
    logits = project.logits(tile)
    kept = None if project.softcap is None else logits.clone()
    z = below(logits, maximum[tile.tokens])
    gradient = z.exp().mul_(torch.addcmul(constant.unsqueeze(1), z, per_z.unsqueeze(1)))
    here, column = target_columns(tile, targets)
    gradient.scatter_add_(1, column, torch.where(here, -by_surprisal, 0).unsqueeze(1))
    return project.gradient(kept, gradient).to(project.gradient_dtype)


def below(logits: Tensor, maximum: Tensor) -> Tensor:
    """Logits `(n, t)` less the maximum `(n,)` of their row, which may be `-inf`; they overwrite the logits."""
    return logits.sub_(maximum.clamp(min=torch.finfo(maximum.dtype).min).unsqueeze(1)).clamp_(min=FLOOR)


def target_columns(tile: Tile, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Which targets `(n,)` are among the words of the tile, and their columns `(n, 1)` there (0 for the others)."""
    column = targets[tile.tokens] - tile.words.start
    here = (column >= 0) & (column < tile.words.stop - tile.words.start)
    return here, torch.where(here, column, 0).unsqueeze(1)
