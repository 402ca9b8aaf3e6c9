# mypy: disallow-untyped-defs=false, disallow-incomplete-defs=false
"""The scoring head on a GPU: Triton kernels that fold logits into the sums behind all four statistics.

Imported only where Triton is installed; under `TRITON_INTERPRET=1` the kernels run on a CPU, for tests.

Design choices:
- Two ways to the same sums, and the one arithmetic `_folded` under both. *Fused*: one kernel multiplies a tile of
  hidden states with a tile of the weight and folds the product while it is still in registers; nothing else reaches
  memory. *Tiles*: the matrix product of the vendor's library writes a float32 tile of at most 2,048 tokens x 4,096
  words (32 MB, which stays in the L2 cache of a large GPU), and a kernel folds it.
- Which one is chosen by the hidden size. The product costs `2 H` operations a logit, writing and reading the logit
  costs the same for every `H`: at 640 the round trip takes about as long as the product, at 4,096 a tenth of it, less
  than what a library's product gains on one written in Triton. `FUSED_UP_TO` is that arithmetic for an H100, and no
  measurement: none of the kernels has been timed on a GPU yet. `eval/benchmarks/bench_scoring.py` times both.
- Float32 inputs take the tiles: their product has no tensor cores to gain from and is the library's to tune.
- The vocabulary is cut into splits that run side by side, each with its own sums, and these are merged at the end.
- Accumulation is float32 throughout. `z`, the logit below the running maximum, is clamped at `FLOOR` as in the torch
  fold, so that `-inf` logits give no NaN; a NaN stays one.
- A target's own logit is taken where its tile passes by. Counts for the rank are of logits above a window around an
  estimate of it, and of those inside: `ugap.scoring.head.statistics` recounts the few targets that are not alone in
  their window.
- In the backward pass the product is computed again tile by tile, and one kernel turns a tile of logits into its
  rounded gradient, which the library multiplies.
"""

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ugap.scoring.head import torch_tiles
from ugap.scoring.head.tiles import FLOOR, Count, Factors, Projection, Sums, Tile, Window, empty_sums, merged_sums

# Hidden sizes up to this take the fused kernel.
FUSED_UP_TO = 1024
# Tiles of logits in memory. The backward pass adds a product per tile to a gradient in memory, which wants larger ones.
TILE_TOKENS, GRADIENT_TOKENS, TILE_WORDS = 2048, 4096, 4096
# Programs of the fused kernel for each multiprocessor: enough that the last wave of them being short costs little.
WAVES = 16
# Block of the kernels that read a tile of logits, of tokens and words: a whole row, so that it is reduced once.
ROWS, COLUMNS = 1, 4096


class Blocks(NamedTuple):
    """How the fused kernel cuts its work: tokens, words and hidden units of a block, stages of its pipeline, warps."""

    tokens: int
    words: int
    hidden: int
    stages: int
    warps: int = 8


# Wide blocks need the least traffic between the L2 cache and the multiprocessors.
WIDE, NARROW = Blocks(128, 256, 64, 3), Blocks(128, 128, 64, 3)


def blocks_for(major: int, plain: bool) -> Blocks:
    """Blocks for a compute capability, and a recipe without bias and soft cap, or with them.

    The wide ones fit into the registers of capability 9 (all but about a hundred bytes a thread) in a plain recipe;
    elsewhere they spill one to two kilobytes, and the narrow ones little or nothing.
    """
    return WIDE if major == 9 and plain else NARROW


INTERPRETED = triton.knobs.runtime.interpret
_FLOOR = tl.constexpr(FLOOR)
_LOWEST = tl.constexpr(torch.finfo(torch.float32).min)


@triton.jit
def _logits(product, bias, scale, softcap, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr):
    """Logits of a float32 product; `bias` broadcasts against it."""
    if HAS_BIAS:
        product += bias
    product *= scale
    if HAS_SOFTCAP:
        # tanh by the exponential of what is never positive: no overflow, and odd to the last bit.
        small = tl.exp(-2.0 * tl.abs(product / softcap))
        capped = softcap * (1.0 - small) / (1.0 + small)
        product = tl.where(product < 0, -capped, capped)
    return product


@triton.jit
def _folded(logits, columns, target, high, low, maximum, s0, s1, s2, above, within, target_logit, COUNT: tl.constexpr):
    """The sums `(rows,)` with a tile of logits `(rows, columns)` folded in; logits past the vocabulary are `-inf`.

    `COUNT` is "nothing", "window", or "earlier" for the words of the window before the target.
    """
    new = tl.maximum(maximum, tl.max(logits, 1), propagate_nan=tl.PropagateNan.ALL)
    finite = tl.maximum(new, _LOWEST, propagate_nan=tl.PropagateNan.ALL)
    z = tl.maximum(logits - finite[:, None], _FLOOR, propagate_nan=tl.PropagateNan.ALL)
    e = tl.exp(z)
    ez = e * z
    # The old sums in terms of the new maximum: z moves by `shift`.
    shift = tl.maximum(maximum - finite, _FLOOR, propagate_nan=tl.PropagateNan.ALL)
    decay = tl.exp(shift)
    s2 = decay * (s2 + 2.0 * shift * s1 + shift * shift * s0) + tl.sum(ez * z, 1)
    s1 = decay * (s1 + shift * s0) + tl.sum(ez, 1)
    s0 = decay * s0 + tl.sum(e, 1)
    target_logit += tl.sum(tl.where(columns[None, :] == target[:, None], logits, 0.0), 1)
    if COUNT != "nothing":
        over = logits > high[:, None]
        above += tl.sum(over.to(tl.float32), 1)
        inside = (logits >= low[:, None]) & (over == 0)
        if COUNT == "earlier":
            inside = inside & (columns[None, :] < target[:, None])
        within += tl.sum(inside.to(tl.float32), 1)
    return new, s0, s1, s2, above, within, target_logit


@triton.jit(do_not_specialize=["n", "tiles_per_split"])
def _fused_kernel(
    hidden,  # (n, H)
    weight,  # (V, H)
    bias,  # (V,)
    targets,  # (n,)
    high,  # (n,)
    low,  # (n,)
    out,  # (splits, 7, n)
    n,
    vocabulary,
    n_hidden,
    hidden_stride,
    weight_stride,
    tiles_per_split,
    scale,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    COUNT: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    # Programs that run at one time share a split, so that its part of the weight is read once into the L2 cache.
    split = tl.program_id(1)
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    real = token < n
    target = tl.load(targets + token, mask=real, other=-1)
    above_from = tl.load(high + token, mask=real, other=0.0)
    within_from = tl.load(low + token, mask=real, other=0.0)
    maximum = tl.full([BLOCK_T], float("-inf"), tl.float32)
    s0 = tl.zeros([BLOCK_T], tl.float32)
    s1 = tl.zeros([BLOCK_T], tl.float32)
    s2 = tl.zeros([BLOCK_T], tl.float32)
    above = tl.zeros([BLOCK_T], tl.float32)
    within = tl.zeros([BLOCK_T], tl.float32)
    target_logit = tl.zeros([BLOCK_T], tl.float32)
    unit = tl.arange(0, BLOCK_H)
    left = hidden + tl.where(real, token, 0).to(tl.int64)[:, None] * hidden_stride + unit[None, :]
    first = split * tiles_per_split
    last = tl.minimum(first + tiles_per_split, tl.cdiv(vocabulary, BLOCK_V))
    for tile in range(first, last):
        column = tile * BLOCK_V + tl.arange(0, BLOCK_V)
        inside = column < vocabulary
        right = weight + column.to(tl.int64)[None, :] * weight_stride + unit[:, None]
        product = tl.zeros([BLOCK_T, BLOCK_V], tl.float32)
        for start in range(0, n_hidden, BLOCK_H):
            left_part = tl.load(left + start, mask=(unit < n_hidden - start)[None, :], other=0.0)
            right_part = tl.load(right + start, mask=inside[None, :] & (unit < n_hidden - start)[:, None], other=0.0)
            if UPCAST:
                left_part, right_part = left_part.to(tl.float32), right_part.to(tl.float32)
            product = tl.dot(left_part, right_part, product, input_precision="ieee")
        shift = 0.0
        if HAS_BIAS:
            shift = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
        logits = _logits(product, shift, scale, softcap, HAS_BIAS, HAS_SOFTCAP)
        logits = tl.where(inside[None, :], logits, float("-inf"))
        maximum, s0, s1, s2, above, within, target_logit = _folded(
            logits, column, target, above_from, within_from, maximum, s0, s1, s2, above, within, target_logit, COUNT
        )
    address = out + split * 7 * n + token
    tl.store(address, maximum, mask=real)
    tl.store(address + n, s0, mask=real)
    tl.store(address + 2 * n, s1, mask=real)
    tl.store(address + 3 * n, s2, mask=real)
    tl.store(address + 4 * n, above, mask=real)
    tl.store(address + 5 * n, within, mask=real)
    tl.store(address + 6 * n, target_logit, mask=real)


@triton.jit(do_not_specialize=["n", "begin"])
def _fold_kernel(
    product,  # (n, width)
    bias,  # (V,)
    targets,  # (n,)
    high,  # (n,)
    low,  # (n,)
    sums,  # (7, n), row stride `stride`
    n,
    begin,
    width,
    stride,
    scale,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    real = token < n
    target = tl.load(targets + token, mask=real, other=-1)
    above_from = tl.load(high + token, mask=real, other=0.0)
    within_from = tl.load(low + token, mask=real, other=0.0)
    address = sums + token
    maximum = tl.load(address, mask=real, other=0.0)
    s0 = tl.load(address + stride, mask=real, other=0.0)
    s1 = tl.load(address + 2 * stride, mask=real, other=0.0)
    s2 = tl.load(address + 3 * stride, mask=real, other=0.0)
    above = tl.load(address + 4 * stride, mask=real, other=0.0)
    within = tl.load(address + 5 * stride, mask=real, other=0.0)
    target_logit = tl.load(address + 6 * stride, mask=real, other=0.0)
    line = product + token.to(tl.int64)[:, None] * width
    for start in range(0, width, BLOCK_V):
        local = start + tl.arange(0, BLOCK_V)
        inside = local < width
        shift = 0.0
        if HAS_BIAS:
            shift = tl.load(bias + begin + local, mask=inside, other=0.0).to(tl.float32)[None, :]
        part = tl.load(line + local[None, :], mask=real[:, None] & inside[None, :], other=0.0)
        logits = _logits(part, shift, scale, softcap, HAS_BIAS, HAS_SOFTCAP)
        logits = tl.where(inside[None, :], logits, float("-inf"))
        column = tl.where(inside, begin + local, 2147483647)  # what lies past the tile is no word of the next one
        maximum, s0, s1, s2, above, within, target_logit = _folded(
            logits, column, target, above_from, within_from, maximum, s0, s1, s2, above, within, target_logit, COUNT
        )
    tl.store(address, maximum, mask=real)
    tl.store(address + stride, s0, mask=real)
    tl.store(address + 2 * stride, s1, mask=real)
    tl.store(address + 3 * stride, s2, mask=real)
    tl.store(address + 4 * stride, above, mask=real)
    tl.store(address + 5 * stride, within, mask=real)
    tl.store(address + 6 * stride, target_logit, mask=real)


@triton.jit
def _own_kernel(
    hidden,  # (n, H)
    weight,  # (V, H)
    bias,  # (V,)
    targets,  # (n,)
    out,  # (n,)
    n_hidden,
    hidden_stride,
    weight_stride,
    scale,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    token = tl.program_id(0)
    target = tl.load(targets + token)
    left = hidden + token.to(tl.int64) * hidden_stride
    right = weight + target * weight_stride
    total = tl.zeros([BLOCK_H], tl.float32)
    for start in range(0, n_hidden, BLOCK_H):
        unit = start + tl.arange(0, BLOCK_H)
        left_part = tl.load(left + unit, mask=unit < n_hidden, other=0.0).to(tl.float32)
        total += left_part * tl.load(right + unit, mask=unit < n_hidden, other=0.0).to(tl.float32)
    product = tl.sum(total, 0)
    shift = 0.0
    if HAS_BIAS:
        shift = tl.load(bias + target).to(tl.float32)
    tl.store(out + token, _logits(product, shift, scale, softcap, HAS_BIAS, HAS_SOFTCAP))


@triton.jit(do_not_specialize=["n", "begin"])
def _gradient_kernel(
    product,  # (n, width)
    bias,  # (V,)
    out,  # (n, width)
    targets,  # (n,)
    maximum,  # (n,)
    constant,  # (n,)
    per_z,  # (n,)
    by_surprisal,  # (n,)
    n,
    begin,
    width,
    scale,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    local = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    real, inside = token < n, local < width
    mask = real[:, None] & inside[None, :]
    target = tl.load(targets + token, mask=real, other=-1)
    top = tl.load(maximum + token, mask=real, other=0.0)
    flat = tl.load(constant + token, mask=real, other=0.0)
    slope = tl.load(per_z + token, mask=real, other=0.0)
    at_target = tl.load(by_surprisal + token, mask=real, other=0.0)
    shift = 0.0
    if HAS_BIAS:
        shift = tl.load(bias + begin + local, mask=inside, other=0.0).to(tl.float32)[None, :]
    offset = token.to(tl.int64)[:, None] * width + local[None, :]
    part = tl.load(product + offset, mask=mask, other=0.0)
    logits = _logits(part, shift, scale, softcap, HAS_BIAS, HAS_SOFTCAP)
    finite = tl.maximum(top, _LOWEST, propagate_nan=tl.PropagateNan.ALL)
    z = tl.maximum(logits - finite[:, None], _FLOOR, propagate_nan=tl.PropagateNan.ALL)
    gradient = tl.exp(z) * (flat[:, None] + slope[:, None] * z)
    gradient -= tl.where((begin + local)[None, :] == target[:, None], at_target[:, None], 0.0)
    if HAS_SOFTCAP:
        share = logits / softcap
        gradient *= 1.0 - share * share
    tl.store(out + offset, (gradient * scale).to(out.dtype.element_ty), mask=mask)


def window(project: Projection, hidden: Tensor, targets: Tensor) -> Window:
    """Upper and lower end `(n,)` of where the logits of the targets lie: known up to rounding, and some slack."""
    out = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    bias, options = _transform(project)
    _own_kernel[(len(hidden),)](
        hidden,
        project.weight,
        bias,
        targets,
        out,
        hidden.shape[1],
        hidden.stride(0),
        project.weight.stride(0),
        **options,
        BLOCK_H=min(1024, triton.next_power_of_2(hidden.shape[1])),
    )
    return torch_tiles.window(project, hidden, targets, out)


def fold(
    project: Projection,
    hidden: Tensor,
    targets: Tensor,
    window: Window | None = None,
    count: Count = "window",
) -> Sums:
    """Fold the logits of `n` tokens over the whole vocabulary.

    Args:
        project (`Projection`): The head.
        hidden (`Tensor` of shape `(n, H)`): Hidden states of the dtype of the head's weight, contiguous.
        targets (`Tensor` of shape `(n,)`, int64): Their targets.
        window (`Window`, *optional*): Of each target's logit, for the rank; without it nothing is counted.
        count (`str`, *optional*, defaults to `"window"`): Words of the window that are counted.
    """
    if hidden.shape[1] <= FUSED_UP_TO and (hidden.dtype != torch.float32 or INTERPRETED):
        return _fused(project, hidden, targets, window, count)
    return _by_tiles(project, hidden, targets, window, count)


def _fused(project: Projection, hidden: Tensor, targets: Tensor, window: Window | None, count: Count) -> Sums:
    n, vocabulary = len(hidden), len(project.weight)
    multiprocessors, major = _device(hidden.device)
    shape = blocks_for(major, plain=project.bias is None and project.softcap is None)
    blocks, steps = triton.cdiv(n, shape.tokens), triton.cdiv(vocabulary, shape.words)
    per_split = triton.cdiv(steps, min(steps, triton.cdiv(WAVES * multiprocessors, blocks)))
    splits = triton.cdiv(steps, per_split)
    out = torch.empty(splits, 7, n, dtype=torch.float32, device=hidden.device)
    high, low = window or (out, out)
    bias, options = _transform(project)
    _fused_kernel[(blocks, splits)](
        hidden,
        project.weight,
        bias,
        targets,
        high,
        low,
        out,
        n,
        vocabulary,
        hidden.shape[1],
        hidden.stride(0),
        project.weight.stride(0),
        per_split,
        **options,
        COUNT="nothing" if window is None else count,
        UPCAST=INTERPRETED,
        BLOCK_T=shape.tokens,
        BLOCK_V=shape.words,
        BLOCK_H=shape.hidden,
        num_warps=shape.warps,
        num_stages=shape.stages,
    )
    return merged_sums(out)


def _by_tiles(project: Projection, hidden: Tensor, targets: Tensor, window: Window | None, count: Count) -> Sums:
    sums = empty_sums(1, len(hidden), device=hidden.device)[0]
    high, low = window or (sums[0], sums[0])
    bias, options = _transform(project)
    for tile in project.tiles(hidden, TILE_TOKENS, TILE_WORDS):
        n, width = tile.product.shape
        _fold_kernel[(triton.cdiv(n, ROWS),)](
            tile.product,
            bias,
            targets[tile.tokens],
            high[tile.tokens],
            low[tile.tokens],
            sums[:, tile.tokens],
            n,
            tile.words.start,
            width,
            sums.stride(0),
            **options,
            COUNT="nothing" if window is None else count,
            BLOCK_T=ROWS,
            BLOCK_V=COLUMNS,
        )
    return Sums(*sums)


def gradient_tiles(weight: Tensor) -> tuple[int, int]:
    """Tokens and words of a tile in the backward pass."""
    return GRADIENT_TOKENS, TILE_WORDS


def product_gradient(project: Projection, tile: Tile, targets: Tensor, maximum: Tensor, factors: Factors) -> Tensor:
    """Gradient `(n, t)` of a tile of products, see `torch_tiles.product_gradient`."""
    bias, options = _transform(project)
    out = torch.empty_like(tile.product, dtype=project.gradient_dtype)
    n, width = out.shape
    _gradient_kernel[(triton.cdiv(n, ROWS), triton.cdiv(width, COLUMNS))](
        tile.product,
        bias,
        out,
        targets[tile.tokens],
        maximum[tile.tokens],
        *(factor[tile.tokens] for factor in factors),
        n,
        tile.words.start,
        width,
        **options,
        BLOCK_T=ROWS,
        BLOCK_V=COLUMNS,
    )
    return out


def _transform(project: Projection) -> tuple[Tensor, dict[str, Any]]:
    """The bias, or something in its place that is never read, and what else turns a product into logits."""
    return project.weight if project.bias is None else project.bias, {
        "scale": project.scale,
        "softcap": 1.0 if project.softcap is None else project.softcap,
        "HAS_BIAS": project.bias is not None,
        "HAS_SOFTCAP": project.softcap is not None,
    }


@functools.cache
def _device(device: torch.device) -> tuple[int, int]:
    """Number of multiprocessors, and the major part of the compute capability."""
    if INTERPRETED:
        return 1, 0
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.major
