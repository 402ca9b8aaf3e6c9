"""The fused head: surprisal, entropy, varentropy and rank of target tokens from hidden states, without logits.

The vocabulary projection is folded tile by tile, so `[tokens, vocabulary]` is never built. Plain torch does it on any
device (`torch_tiles`), a compiled kernel on CPUs (`cpu`), Triton kernels on CUDA (`triton_kernels`).

Design choices:
- Entropy and varentropy come from three sums, `e`, `e z` and `e z²`, with `z` the logit less the maximum of its tile;
  when tiles are merged, the sums are shifted along. `z` is clamped at -80, where `exp` is zero to float32: `-inf`
  logits then give no NaN and no denormals.
- The rank counts logits above the target's. Before its tile is reached, the target's logit is known up to rounding or,
  on a CPU, by the same routine. Targets that share that window with another word are counted again, exactly.
"""

import math
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from ugap.scoring.head.dispatch import Impl, choose, no_compile, run
from ugap.scoring.head.tiles import Precision, Projection, check_arguments


class HeadStatistics(NamedTuple):
    """Statistics of `N` target tokens; float32 (float64 for float64 inputs), NaN where the target is -100.

    Args:
        surprisal (`Tensor` of shape `(N,)`): `-log p(target)` in nats.
        entropy (`Tensor` of shape `(N,)`): Entropy of the distribution in nats.
        varentropy (`Tensor` of shape `(N,)`): Variance of the surprisal under the distribution in nats².
        rank (`Tensor` of shape `(N,)`): 1 + number of tokens with a higher logit; ties go to the lower id.
    """

    surprisal: Tensor
    entropy: Tensor
    varentropy: Tensor
    rank: Tensor


@no_compile
@torch.no_grad()
def head_statistics(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    *,
    impl: Impl = "auto",
    precision: Precision = "exact",
) -> HeadStatistics:
    """Surprisal, entropy, varentropy and rank of `targets`, for logits `softcap(scale * (hidden @ weight.T + bias))`.

    Args:
        hidden (`Tensor` of shape `(N, H)`): Final hidden states, floating point.
        weight (`Tensor` of shape `(V, H)`): Weight of the output projection, of the dtype of `hidden`.
        targets (`Tensor` of shape `(N,)`, int64): Token ids in `[0, V)`; -100 is skipped and gives NaN.
        bias (`Tensor` of shape `(V,)`, *optional*): Bias of the output projection.
        softcap (`float`, *optional*): Final-logit soft-capping `c * tanh(z / c)`, as in Gemma 2.
        logit_scale (`float`, *optional*, defaults to `1.0`): Factor on the logits, before the cap.
        impl (`str`, *optional*, defaults to `"auto"`): `"torch"` is plain torch, `"compiled"` the kernel for CPUs and
            `"triton"` the kernels for CUDA (both: bfloat16, float16 and float32). Kernels that cannot be compiled are
            replaced by torch, after one warning. `"auto"` is what the environment variable `UGAP_HEAD` says. Without
            it, it is the kernel on a CPU where there is enough work, and else torch. No GPU has timed the Triton
            kernels yet: they run only when asked for.
        precision (`str`, *optional*, defaults to `"exact"`): `"split"` runs float32 hidden states as a sum of two
            bfloat16 parts through the CPU's bfloat16 units, within 1e-4 nats of `"exact"`. It needs weights whose
            values are bfloat16 numbers, and is `"exact"` on a CPU without such units.

    Returns:
        [`HeadStatistics`][]

    Raises:
        ValueError: If shapes, dtypes or devices do not fit together, a target is out of range, kernels are
            asked for on another device or dtype than theirs, or `"split"` with weights that bfloat16 cannot hold.

    Example:
        >>> hidden, weight = torch.eye(3), torch.zeros(5, 3)
        >>> stats = head_statistics(hidden, weight, torch.tensor([0, 4, -100]))
        >>> [round(x, 4) for x in stats.entropy.tolist()]
        [1.6094, 1.6094, nan]
        >>> stats.rank.tolist()
        [1.0, 5.0, nan]
    """
    check_arguments(hidden, weight, targets, bias, softcap, logit_scale, precision)
    keep = (targets != -100).nonzero().squeeze(1)
    project = Projection(weight, bias, softcap, logit_scale, precision)
    chosen = choose(impl, weight, len(keep) * len(weight))
    out = hidden.new_full((4, len(targets)), math.nan, dtype=project.accumulate)
    if len(keep):
        if len(keep) < len(targets):  # nothing is copied where nothing is skipped
            hidden, targets = hidden[keep], targets[keep]
        with torch.autocast(weight.device.type, enabled=False):  # it would round the sums to half precision
            statistics = run(chosen, weight, _statistics, project, hidden.contiguous(), targets.contiguous())
        out[:, keep] = torch.stack(statistics)
    return HeadStatistics(*out)


def _statistics(kernels: ModuleType, project: Projection, hidden: Tensor, targets: Tensor) -> HeadStatistics:
    window = kernels.window(project, hidden, targets)
    maximum, s0, s1, s2, above, within, target_logit = kernels.fold(project, hidden, targets, window)
    rank = 1 + above
    alone = (within == 1) & (target_logit <= window[0]) & (target_logit >= window[1])
    unsure = (~alone).nonzero().squeeze(1)
    if len(unsure):
        rank[unsure] = _exact_rank(kernels, project, hidden[unsure], targets[unsure])
    log_s0, mean = s0.log(), s1 / s0
    return HeadStatistics(
        surprisal=(maximum + log_s0 - target_logit).clamp(min=0),
        entropy=(log_s0 - mean).clamp(min=0, max=math.log(len(project.weight))),
        varentropy=(s2 / s0 - mean * mean).clamp(min=0),
        rank=rank,
    )


def _exact_rank(kernels: ModuleType, project: Projection, hidden: Tensor, targets: Tensor) -> Tensor:
    """Ranks `(n,)` of targets that are not alone in their window, or whose logits lie outside of it.

    The same calls on the same arguments give the same bits: the first one finds the targets' logits, the second
    compares all others with just these.
    """
    target_logit = kernels.fold(project, hidden, targets).target_logit
    counts = kernels.fold(project, hidden, targets, (target_logit, target_logit), "earlier")
    return 1 + counts.above + counts.within
