"""The fused head: surprisal, entropy, varentropy and rank of target tokens from hidden states, without logits.

The vocabulary projection is folded tile by tile with an online logsumexp, so `[tokens, vocabulary]` is never built. On
CUDA the kernels of `ugap.scoring.triton_head` fold; elsewhere torch does, eagerly or compiled, one tile of
`ugap.scoring.projection` at a time.

Design choices:
- Entropy and varentropy come from three sums, `e`, `e z` and `e z²`, with `z` the logit below the running maximum; when
  the maximum moves, the sums are shifted along. `z` is clamped at -80, where `exp` is zero to float32: `-inf` logits
  then give no NaN and no denormals.
- The rank counts logits above the target's. The target's logit is known before its tile is reached only up to rounding,
  so tokens with any other logit inside that rounding are counted again, exactly, from one full row of logits (less than
  one in a hundred of human text, 64 rows at a time).
- On CPU the fold of a tile is compiled when there is enough work and a C++ compiler; otherwise it runs eagerly.
"""

import math
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch

from ugap.scoring import projection
from ugap.scoring.implementation import Impl, choose, compiled, untraced, with_kernels
from ugap.scoring.projection import FLOOR, Precision, Projection, check_arguments, check_precision

Fold = Callable[..., tuple[torch.Tensor, ...]]

RECOUNT_ROWS = 64
# Two float32 evaluations of one logit differ by less than this, relative to the logits' scale; where they do not, the
# target is counted again as well.
TIE_TOLERANCE = 3e-7


class HeadStatistics(NamedTuple):
    """Statistics of `N` target tokens; float32 (float64 for float64 inputs), NaN where the target is -100.

    Args:
        surprisal (`torch.Tensor` of shape `(N,)`): `-log p(target)` in nats.
        entropy (`torch.Tensor` of shape `(N,)`): Entropy of the distribution in nats.
        varentropy (`torch.Tensor` of shape `(N,)`): Variance of the surprisal under the distribution in nats².
        rank (`torch.Tensor` of shape `(N,)`): 1 + number of tokens with a higher logit; ties go to the lower id.
    """

    surprisal: torch.Tensor
    entropy: torch.Tensor
    varentropy: torch.Tensor
    rank: torch.Tensor


class Sums(NamedTuple):
    """Sums over the vocabulary for `n` tokens, each `(n,)` float32.

    Args:
        maximum (`torch.Tensor`): Largest logit.
        s0 (`torch.Tensor`): Sum of `exp(z)`, with `z` the logit less the maximum.
        s1 (`torch.Tensor`): Sum of `z exp(z)`.
        s2 (`torch.Tensor`): Sum of `z² exp(z)`.
        above (`torch.Tensor`): Number of logits above the window.
        within (`torch.Tensor`): Number of logits in the window.
        own (`torch.Tensor`): Logit of the target.
    """

    maximum: torch.Tensor
    s0: torch.Tensor
    s1: torch.Tensor
    s2: torch.Tensor
    above: torch.Tensor
    within: torch.Tensor
    own: torch.Tensor


@untraced
@torch.no_grad()
def head_statistics(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    *,
    impl: Impl = "auto",
    precision: Precision = "exact",
) -> HeadStatistics:
    """Surprisal, entropy, varentropy and rank of `targets`, for logits `softcap(scale * (hidden @ weight.T + bias))`.

    Args:
        hidden (`torch.Tensor` of shape `(N, H)`): Final hidden states, floating point.
        weight (`torch.Tensor` of shape `(V, H)`): Weight of the output projection, of the dtype of `hidden`.
        targets (`torch.Tensor` of shape `(N,)`, int64): Token ids in `[0, V)`; -100 is skipped and gives NaN.
        bias (`torch.Tensor` of shape `(V,)`, *optional*): Bias of the output projection.
        softcap (`float`, *optional*): Final-logit soft-capping `c * tanh(z / c)`, as in Gemma 2.
        logit_scale (`float`, *optional*, defaults to `1.0`): Factor on the logits, before the cap.
        impl (`str`, *optional*, defaults to `"auto"`): `"torch"` folds eagerly, `"compiled"` compiles the fold,
            `"triton"` runs the kernels for CUDA (bfloat16, float16 and float32); where these cannot be compiled, the
            fold runs eagerly after one warning. `"auto"` is what the environment variable `UGAP_HEAD` says, and without
            it the kernels on CUDA, and on CPU a compiled fold where there is enough work.
        precision (`str`, *optional*, defaults to `"exact"`): `"split"` runs float32 hidden states as a sum of two
            bfloat16 parts through the CPU's bfloat16 units, within 1e-4 nats of `"exact"`. It needs weights whose
            values are bfloat16 numbers, and is `"exact"` on a CPU without such units.

    Returns:
        [`HeadStatistics`]

    Raises:
        ValueError: If shapes, dtypes or devices do not fit together, a target is out of range, `"triton"` is asked for
            where the kernels cannot be tried, or `"split"` with weights that bfloat16 cannot hold.

    Example:
        >>> hidden, weight = torch.eye(3), torch.zeros(5, 3)
        >>> stats = head_statistics(hidden, weight, torch.tensor([0, 4, -100]))
        >>> [round(x, 4) for x in stats.entropy.tolist()]
        [1.6094, 1.6094, nan]
        >>> stats.rank.tolist()
        [1.0, 5.0, nan]
    """
    check_arguments(hidden, weight, targets, bias, softcap, logit_scale)
    check_precision(precision, weight)
    keep = (targets != -100).nonzero().squeeze(1)
    chosen = choose(impl, weight, len(keep) * len(weight))
    project = Projection(weight, bias, softcap, logit_scale, precision)
    out = HeadStatistics(*(torch.full_like(targets, math.nan, dtype=project.accumulate) for _ in range(4)))
    if not len(keep):
        return out
    if len(keep) < len(targets):  # nothing is copied where nothing is skipped
        hidden, targets = hidden[keep], targets[keep]
    with torch.autocast(weight.device.type, enabled=False):
        if chosen == "triton":
            found = with_kernels(
                weight,
                lambda kernels: _by_kernels(kernels, project, hidden, targets),
                lambda: _by_torch(_fold, project, hidden, targets),
            )
        else:
            fold = _compiled_fold() if chosen == "compiled" else _fold
            found = _by_torch(fold, project, hidden, targets)
    for whole, part in zip(out, found, strict=True):
        whole[keep] = part
    return out


def _by_kernels(
    kernels: ModuleType, project: Projection, hidden: torch.Tensor, targets: torch.Tensor
) -> HeadStatistics:
    hidden, targets = hidden.contiguous(), targets.contiguous()
    window = _window(project, hidden, kernels.own_logits(project, hidden, targets))
    sums = kernels.fold(project, hidden, targets, window)
    return _finished(project, hidden, targets, window, kernels.exact_rank, sums)


def _by_torch(fold: Fold, project: Projection, hidden: torch.Tensor, targets: torch.Tensor) -> HeadStatistics:
    own = project.own(hidden, targets)
    high, low = _window(project, hidden, own)
    # By their first token, for each block: running maximum, sums of e, e z and e z², counts above and in the window.
    states: dict[int, tuple[torch.Tensor, ...]] = {}
    for tile in project.tiles(hidden):
        tokens = tile.tokens
        logits = project.logits(tile)
        local = targets[tokens] - tile.words.start
        here = ((local >= 0) & (local < logits.shape[1])).nonzero().squeeze(1)
        own[tokens][here] = logits[here, local[here]]
        if tokens.start not in states:
            zeros = torch.zeros_like(own[tokens])
            states[tokens.start] = (torch.full_like(zeros, -math.inf), *(zeros.clone() for _ in range(5)))
        states[tokens.start] = fold(logits, *states[tokens.start], high[tokens], low[tokens])
    maximum, s0, s1, s2, above, within = (torch.cat(column) for column in zip(*states.values(), strict=True))
    sums = Sums(maximum, s0, s1, s2, above, within, own)
    return _finished(project, hidden, targets, (high, low), _exact_rank, sums)


def _window(project: Projection, hidden: torch.Tensor, own: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Upper and lower end `(N,)` of where a target's logit can lie, known as it is up to rounding."""
    slack = TIE_TOLERANCE * (project.size(hidden) + own.abs())
    return own + slack, own - slack


def _finished(
    project: Projection,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    window: tuple[torch.Tensor, torch.Tensor],
    exact_rank: Callable[..., torch.Tensor],
    sums: Sums,
) -> HeadStatistics:
    maximum, s0, s1, s2, above, within, own = sums
    rank = 1 + above
    alone = (within == 1) & (own <= window[0]) & (own >= window[1])
    unsure = (~alone).nonzero().squeeze(1)
    if len(unsure):
        rank[unsure] = exact_rank(project, hidden, targets, unsure)
    log_s0, mean = s0.log(), s1 / s0
    return HeadStatistics(
        surprisal=(maximum + log_s0 - own).clamp(min=0),
        entropy=(log_s0 - mean).clamp(min=0, max=math.log(len(project.weight))),
        varentropy=(s2 / s0 - mean * mean).clamp(min=0),
        rank=rank,
    )


def _fold(
    logits: torch.Tensor,
    maximum: torch.Tensor,
    s0: torch.Tensor,
    s1: torch.Tensor,
    s2: torch.Tensor,
    above: torch.Tensor,
    within: torch.Tensor,
    high: torch.Tensor,
    low: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """Fold one tile of logits `(n, t)` into the running sums `(n,)`."""
    new = torch.maximum(maximum, logits.amax(-1))
    z = (logits - new.clamp(min=torch.finfo(new.dtype).min).unsqueeze(1)).clamp(min=FLOOR)
    e = z.exp()
    ez = e * z
    # The old sums in terms of the new maximum: z moves by `shift`.
    shift = (maximum - new).clamp(min=FLOOR).nan_to_num(nan=FLOOR)
    decay = shift.exp()
    over = logits > high.unsqueeze(1)
    return (
        new,
        decay * s0 + e.sum(-1),
        decay * (s1 + shift * s0) + ez.sum(-1),
        decay * (s2 + 2 * shift * s1 + shift * shift * s0) + (ez * z).sum(-1),
        above + over.to(s0.dtype).sum(-1),
        within + ((logits >= low.unsqueeze(1)) & ~over).to(s0.dtype).sum(-1),
    )


def _exact_rank(project: Projection, hidden: torch.Tensor, targets: torch.Tensor, unsure: torch.Tensor) -> torch.Tensor:
    """Ranks of the targets at `unsure` `(n,)`, which hang on rounding or on a tie, from whole rows of logits."""
    vocabulary = len(project.weight)
    words = torch.arange(vocabulary, device=targets.device)
    ranks = []
    for chunk in unsure.split(RECOUNT_ROWS):
        logits = torch.empty(len(chunk), vocabulary, dtype=project.accumulate, device=targets.device)
        for tile in project.tiles(hidden[chunk]):
            logits[tile.tokens, tile.words] = project.logits(tile)
        target = targets[chunk].unsqueeze(1)
        own = logits.gather(1, target)
        ranks.append(1 + ((logits > own) | ((logits == own) & (words < target))).sum(-1))
    return torch.cat(ranks).to(project.accumulate)


def _compiled_fold() -> Fold:
    # Inductor makes other code for narrow tiles than for wide ones.
    return compiled(_fold, (8, projection.VOCAB_TILE), *[(8,)] * 8)
