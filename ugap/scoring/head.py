"""The fused head: surprisal, entropy, varentropy and rank of target tokens from hidden states, without logits.

The vocabulary projection is folded tile by tile with an online logsumexp, so `[tokens, vocabulary]` is never built: one
tile of logits (512 tokens x 8,192 words at most) lives at a time and is still in cache when it is folded.

Design choices:
- Products and sums are float32 whatever the dtype of the weights (float64 for float64 inputs). Half-precision inputs
  are multiplied exactly: bfloat16 units where the CPU has them (with a float32 accumulator and a float32 result), plain
  float32 products of the upcast tile where it has none, `out_dtype=float32` on CUDA.
- Entropy and varentropy come from three sums, `e`, `e z` and `e z²`, with `z` the logit below the running maximum; when
  the maximum moves, the sums are shifted along. `z` is clamped at -80, where `exp` is zero to float32: `-inf` logits
  then give no NaN and no denormals.
- The rank counts logits above the target's. The target's logit is known before its tile is reached only up to rounding,
  so tokens with any other logit inside that rounding are counted again, exactly, from one full row of logits (a
  few percent of human text, 64 rows at a time).
- On CPU the fold of a tile is compiled when there is enough work and a C++ compiler; otherwise it runs eagerly.
"""

import functools
import logging
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch

from ugap.scoring.bfloat16 import bfloat16_units, has_bfloat16_units, is_bfloat16_exact, split_bfloat16

logger = logging.getLogger(__name__)

Impl = Literal["auto", "torch", "compiled"]
Precision = Literal["exact", "split"]
Fold = Callable[..., tuple[torch.Tensor, ...]]

TOKEN_TILE = 512
VOCAB_TILE = 8192
RECOUNT_ROWS = 64
# Below this many logits a compiled fold does not earn back its compilation.
COMPILE_FROM = 2**26
# Logits this far below the maximum have probability zero in float32.
FLOOR = -80.0
# Two float32 evaluations of one logit differ by less than this, relative to the logits' scale.
TIE_TOLERANCE = 1e-6


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
        impl (`str`, *optional*, defaults to `"auto"`): `"torch"` folds eagerly, `"compiled"` compiles the fold (eager
            where there is no compiler), `"auto"` chooses by the amount of work.
        precision (`str`, *optional*, defaults to `"exact"`): `"split"` runs float32 hidden states as a sum of two
            bfloat16 parts through the CPU's bfloat16 units, within 1e-4 nats of `"exact"`. It needs weights whose
            values are bfloat16 numbers, and is `"exact"` on a CPU without such units.

    Returns:
        [`HeadStatistics`]

    Raises:
        ValueError: If shapes, dtypes or devices do not fit together, a target is out of range, or `"split"` is asked
            for with weights that bfloat16 cannot hold.

    Example:
        >>> hidden, weight = torch.eye(3), torch.zeros(5, 3)
        >>> stats = head_statistics(hidden, weight, torch.tensor([0, 4, -100]))
        >>> [round(x, 4) for x in stats.entropy.tolist()]
        [1.6094, 1.6094, nan]
        >>> stats.rank.tolist()
        [1.0, 5.0, nan]
    """
    _check(hidden, weight, targets, bias, precision)
    _check_options(softcap, logit_scale, impl)
    accumulate = torch.promote_types(hidden.dtype, torch.float32)
    project = _Projection(hidden, weight, bias, softcap, logit_scale, precision, accumulate)
    keep = (targets != -100).nonzero().squeeze(1)
    out = HeadStatistics(*(torch.full_like(targets, math.nan, dtype=accumulate) for _ in range(4)))
    if keep.numel():
        folded = _fold_all(
            project, hidden[keep], targets[keep], _choose_fold(impl, hidden, keep.numel() * weight.shape[0])
        )
        for whole, part in zip(out, folded, strict=True):
            whole[keep] = part
    return out


class _Projection:
    """`hidden -> logits` for a tile of the vocabulary, in the accumulation dtype."""

    def __init__(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        softcap: float | None,
        scale: float,
        precision: Precision,
        accumulate: torch.dtype,
    ):
        self.weight, self.bias, self.softcap, self.scale, self.accumulate = weight, bias, softcap, scale, accumulate
        half = weight.dtype in (torch.bfloat16, torch.float16)
        self.native = half and weight.device.type == "cuda"
        on_units = weight.device.type == "cpu" and has_bfloat16_units()
        self.split = precision == "split" and on_units and weight.dtype == torch.float32
        self.units = self.split or (on_units and weight.dtype == torch.bfloat16)

    def tile(self, begin: int, end: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight `(H, end - begin)` and bias `(end - begin,)` of one tile, ready to multiply."""
        return self.prepare(self.weight[begin:end], None if self.bias is None else self.bias[begin:end])

    def prepare(self, weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        weight = weight if self.native else weight.to(self.accumulate)
        return weight.T, None if bias is None else bias.to(self.accumulate)

    def rows(self, hidden: torch.Tensor) -> list[torch.Tensor]:
        """The summands of the hidden states: one, or two bfloat16 parts where the product is split."""
        if self.native:
            return [hidden]
        hidden = hidden.to(self.accumulate)
        return split_bfloat16(hidden) if self.split else [hidden]

    def logits(self, rows: list[torch.Tensor], tile: tuple[torch.Tensor, torch.Tensor | None]) -> torch.Tensor:
        weight, bias = tile
        if self.native:
            out = torch.mm(rows[0], weight, out_dtype=self.accumulate)
        else:
            with bfloat16_units(self.units):
                out = torch.mm(rows[0], weight)
                for row in rows[1:]:
                    out.addmm_(row, weight)
        if bias is not None:
            out += bias
        if self.scale != 1.0:
            out *= self.scale
        if self.softcap is not None:
            out.div_(self.softcap).tanh_().mul_(self.softcap)
        return out

    def own(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Logit `(N,)` of each row's own target, up to the rounding of a float32 product."""
        weight = self.weight[targets].to(self.accumulate)
        out = (hidden.to(self.accumulate) * weight).sum(-1)
        if self.bias is not None:
            out = out + self.bias[targets].to(self.accumulate)
        out = out * self.scale
        return out if self.softcap is None else self.softcap * torch.tanh(out / self.softcap)

    def size(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scale `(N,)` of the rounding errors of a row's logits."""
        norms = hidden.to(self.accumulate).norm(dim=-1)
        return norms * (self.weight_norm * abs(self.scale))

    @functools.cached_property
    def weight_norm(self) -> torch.Tensor:
        step = max(1, self.weight.shape[0] // 4096)
        return self.weight[::step].to(self.accumulate).norm(dim=-1).amax()


def _fold_all(project: _Projection, hidden: torch.Tensor, targets: torch.Tensor, fold: Fold) -> HeadStatistics:
    n, vocabulary = hidden.shape[0], project.weight.shape[0]
    blocks = [slice(i, min(i + TOKEN_TILE, n)) for i in range(0, n, TOKEN_TILE)]
    rows = [project.rows(hidden[block]) for block in blocks]
    own = project.own(hidden, targets)
    slack = TIE_TOLERANCE * (project.size(hidden) + own.abs())
    high, low = own + slack, own - slack
    zeros = torch.zeros_like(own)
    # Per block: running maximum, sums of e, e z and e z², counts of logits above and within the rounding of the target.
    states = [(torch.full_like(own[block], -math.inf), *(zeros[block].clone() for _ in range(5))) for block in blocks]
    exact = own.clone()
    # The vocabulary is the outer loop, so that a tile of half-precision weights is upcast once for all tokens.
    for begin, end in _tiles(vocabulary):
        tile = project.tile(begin, end)
        for i, block in enumerate(blocks):
            logits = project.logits(rows[i], tile)
            local = targets[block] - begin
            here = ((local >= 0) & (local < end - begin)).nonzero().squeeze(1)
            exact[block][here] = logits[here, local[here]]
            states[i] = fold(logits, *states[i], high[block], low[block])
    maximum, s0, s1, s2, above, within = (torch.cat(column) for column in zip(*states, strict=True))
    rank = 1 + above
    unsure = (within - above != 1).nonzero().squeeze(1)
    for chunk in unsure.split(RECOUNT_ROWS):
        rank[chunk] = _exact_rank(project, hidden[chunk], targets[chunk])
    log_s0, mean = s0.log(), s1 / s0
    return HeadStatistics(
        surprisal=(maximum + log_s0 - exact).clamp(min=0),
        entropy=(log_s0 - mean).clamp(min=0, max=math.log(vocabulary)),
        varentropy=(s2 / s0 - mean * mean).clamp(min=0),
        rank=rank,
    )


def _tiles(vocabulary: int) -> list[tuple[int, int]]:
    """Tiles of one width, but for rounding: a sliver at the end would be multiplied in another order, breaking ties."""
    width = math.ceil(vocabulary / math.ceil(vocabulary / VOCAB_TILE))
    return [(begin, min(begin + width, vocabulary)) for begin in range(0, vocabulary, width)]


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
    return (
        new,
        decay * s0 + e.sum(-1),
        decay * (s1 + shift * s0) + ez.sum(-1),
        decay * (s2 + 2 * shift * s1 + shift * shift * s0) + (ez * z).sum(-1),
        above + (logits > high.unsqueeze(1)).to(s0.dtype).sum(-1),
        within + (logits >= low.unsqueeze(1)).to(s0.dtype).sum(-1),
    )


def _exact_rank(project: _Projection, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Ranks `(n,)` from whole rows of logits, for the few tokens whose rank hangs on rounding or on a tie."""
    vocabulary = project.weight.shape[0]
    rows = project.rows(hidden)
    logits = torch.empty(len(targets), vocabulary, dtype=project.accumulate, device=targets.device)
    for begin, end in _tiles(vocabulary):
        logits[:, begin:end] = project.logits(rows, project.tile(begin, end))
    own = logits.gather(1, targets.unsqueeze(1))
    earlier = torch.arange(vocabulary, device=targets.device) < targets.unsqueeze(1)
    return 1 + ((logits > own) | ((logits == own) & earlier)).sum(-1).to(project.accumulate)


def _choose_fold(impl: Impl, hidden: torch.Tensor, n_logits: int) -> Fold:
    wanted = impl == "compiled" or (impl == "auto" and hidden.device.type == "cpu" and n_logits >= COMPILE_FROM)
    return _compiled_fold() if wanted else _fold


@functools.cache
def _compiled_fold() -> Fold:
    """The fold through inductor, or the eager one where it cannot be compiled."""
    try:
        compiled = torch.compile(_fold, dynamic=True)
        probe = [torch.zeros(8) for _ in range(8)]
        compiled(torch.zeros(8, VOCAB_TILE), *probe)  # inductor makes other code for narrow tiles
    except (RuntimeError, OSError) as error:
        logger.info("the fold of the scoring head cannot be compiled, running it eagerly: %s", error)
        return _fold
    return compiled


def _check(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, bias: torch.Tensor | None, precision: Precision
) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} are not (N, H) and (V, H)")
    if not hidden.is_floating_point() or hidden.dtype != weight.dtype:
        raise ValueError(f"hidden is {hidden.dtype} and weight is {weight.dtype}: both must be of one floating dtype")
    if targets.shape != hidden.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(f"targets are {tuple(targets.shape)} of {targets.dtype}, not ({hidden.shape[0]},) of int64")
    if bias is not None and (bias.shape != weight.shape[:1] or not bias.is_floating_point()):
        raise ValueError(f"bias is {tuple(bias.shape)} of {bias.dtype}, not ({weight.shape[0]},) of a floating dtype")
    if bias is not None and bias.device != weight.device:
        raise ValueError(f"bias is on {bias.device}, weight on {weight.device}")
    if hidden.device != weight.device or targets.device != weight.device:
        raise ValueError(f"hidden is on {hidden.device}, weight on {weight.device}, targets on {targets.device}")
    wrong = (targets != -100) & ((targets < 0) | (targets >= weight.shape[0]))
    if wrong.any():
        raise ValueError(f"targets holds {int(targets[wrong][0])}, outside the vocabulary of {weight.shape[0]}")
    if precision not in ("exact", "split"):
        raise ValueError(f"precision is {precision!r}, not 'exact' or 'split'")
    if (
        precision == "split"
        and weight.dtype == torch.float32
        and has_bfloat16_units()
        and not is_bfloat16_exact(weight)
    ):
        raise ValueError("precision 'split' needs a weight whose values are bfloat16 numbers")


def _check_options(softcap: float | None, logit_scale: float, impl: Impl) -> None:
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap is {softcap}, not a positive number")
    if not math.isfinite(logit_scale):
        raise ValueError(f"logit_scale is {logit_scale}, not a finite number")
    if impl not in ("auto", "torch", "compiled"):
        raise ValueError(f"impl is {impl!r}, not 'auto', 'torch' or 'compiled'")
