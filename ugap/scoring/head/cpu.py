"""The scoring head on a CPU: a compiled kernel that folds logits while they are in the first cache.

Design choices:
- With bfloat16 units the kernel multiplies as well: a block of 128 words x 64 tokens by oneDNN's micro-kernel, which
  torch exports (exact products, float32 sums), then its fold. A logit never leaves the first cache, and the weight is
  read as it is: there is no float32 copy of it and no tile of logits in memory.
- Without these units, or with other weights, torch multiplies a tile of 2,048 words x 512 tokens, and the kernel folds
  it block by block.
- The logit of a target is computed once more beforehand, by the same routine. It then has the bits that it has in its
  tile, and one comparison with each other logit gives the rank, ties included. A target whose bits differ is counted
  again.
- Inductor compiles `cpu.cpp` once on each machine, in a few seconds, and keeps it in its cache. Before its first
  use the kernel must reproduce torch's sums.
"""

import ctypes
import functools
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ugap.scoring.head import torch_tiles
from ugap.scoring.head.dispatch import KERNEL_DTYPES
from ugap.scoring.head.tiles import Count, Factors, Projection, Sums, Tile, Window, empty_sums, merged_sums

SOURCE = Path(__file__).with_suffix(".cpp")
TOKENS = 64  # of a block, as in the C++
# Tiles of logits in memory.
TILE_TOKENS, TILE_WORDS = 512, 2048


@functools.cache
def library() -> Any:
    """The compiled kernel.

    Raises:
        RuntimeError: If it cannot be compiled here.
        OSError: If it cannot be loaded here.
    """
    from torch._inductor.codecache import CppCodeCache

    kernel = CppCodeCache.load(SOURCE.read_text(encoding="utf-8"))
    pointer, integer, real, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_bool
    recipe = [pointer, real, real]
    fold = [*recipe, pointer, pointer, pointer, flag, integer, integer, pointer]
    for name, types in {
        "fold_products": [pointer, integer, pointer, flag, integer, integer, integer, *fold],
        "fold_tile": [pointer, integer, integer, integer, *fold],
        "gradient_tile": [pointer, integer, integer, integer, *recipe, *[pointer] * 5, integer],
    }.items():
        function = getattr(kernel, name)
        function.argtypes, function.restype = types, flag
    return kernel


def check() -> None:
    """Compile the kernel and compare its sums with torch's.

    Raises:
        RuntimeError: If it cannot be compiled here, or its sums are others.
        OSError: If it cannot be loaded here.
    """
    generator = torch.Generator().manual_seed(0)
    for dtype in KERNEL_DTYPES:
        hidden, weight = (torch.randn(n, 32, generator=generator).to(dtype) for n in (5, 300))
        project, targets = Projection(weight, None, None, 1.0), torch.arange(5)
        ways = (sys.modules[__name__], torch_tiles)
        got, expected = (torch.stack(way.fold(project, hidden, targets)) for way in ways)
        if not torch.allclose(got, expected, rtol=1e-4, atol=1e-3):
            raise RuntimeError("its sums are not those of torch")


def window(project: Projection, hidden: Tensor, targets: Tensor) -> Window:
    """Both ends `(n,)` of where the logits of the targets lie: the logits themselves."""
    target_logit = torch.cat(
        [
            fold(project.rows(target), states, torch.arange(len(target))).target_logit
            for states, target in zip(hidden.split(TILE_TOKENS), targets.split(TILE_TOKENS), strict=True)
        ]
    )
    return target_logit, target_logit


def fold(
    project: Projection, hidden: Tensor, targets: Tensor, window: Window | None = None, count: Count = "window"
) -> Sums:
    """Fold the logits of `n` tokens over the whole vocabulary, as `torch_tiles.fold` does.

    Both ends of a window are one number here. Words before the target that tie with it are counted as above, so that of
    the window the target alone is left; with `"earlier"` nothing is.
    """
    n = len(hidden)
    missing = -n % TOKENS if n else TOKENS
    target_logit = hidden.new_zeros(n, dtype=torch.float32) if window is None else window[0]
    fold_targets = FoldTargets(
        pad(targets, (0, missing), value=-1).float(),
        pad(target_logit, (0, missing)),
        pad(target_logit.nextafter(target_logit.new_tensor(torch.inf)), (0, missing)),
        window is not None,
    )
    hidden = pad(hidden, (0, 0, 0, missing))
    # The micro-kernel multiplies pairs of bfloat16 numbers.
    by_kernel = project.units and hidden.shape[1] % 2 == 0
    sums = (_fold_products if by_kernel else _fold_tiles)(project, hidden, fold_targets)
    folded = Sums(*(column[:n] for column in merged_sums(sums)))
    return folded._replace(within=torch.full_like(target_logit, float(window is not None and count == "window")))


class FoldTargets(NamedTuple):  # the fields are in the order of the kernel's arguments
    """Targets and their logits, of `n` tokens whose logits are to be folded; `n` is a multiple of `TOKENS`."""

    targets: Tensor
    target_logit: Tensor
    next: Tensor
    rank: bool

    def part(self, tokens: slice) -> "FoldTargets":
        return FoldTargets(self.targets[tokens], self.target_logit[tokens], self.next[tokens], self.rank)


def _fold_products(project: Projection, hidden: Tensor, fold_targets: FoldTargets) -> Tensor:
    """Sums `(threads, 7, n)` of each thread's words, multiplied by the kernel."""
    n, size = hidden.shape
    weight, threads = project.weight, torch.get_num_threads()
    # As the micro-kernel reads them: (n / TOKENS, parts, H / 2, TOKENS, 2).
    parts = [part.to(torch.bfloat16).view(-1, TOKENS, size // 2, 2).transpose(1, 2) for part in project.parts(hidden)]
    packed = torch.stack(parts, dim=1).contiguous()
    head = (packed, len(parts), weight, weight.dtype == torch.float32, weight.stride(0), size, len(weight))
    sums = empty_sums(threads, n)
    _run("fold_products", *head, *_recipe(project), *fold_targets, n, threads, sums)
    return sums


def _fold_tiles(project: Projection, hidden: Tensor, fold_targets: FoldTargets) -> Tensor:
    """Sums `(1, 7, n)`, multiplied by torch."""
    blocks = [slice(i, min(i + TILE_TOKENS, len(hidden))) for i in range(0, len(hidden), TILE_TOKENS)]
    columns = [[part.T.contiguous() for part in project.parts(hidden[block])] for block in blocks]
    sums = [empty_sums(1, block.stop - block.start) for block in blocks]
    recipe, threads = _recipe(project), torch.get_num_threads()
    memory = torch.empty(TILE_WORDS * TILE_TOKENS)
    for words, weight in project.weights(TILE_WORDS):
        for block, states, total in zip(blocks, columns, sums, strict=True):
            m, n = len(weight), block.stop - block.start
            product = project.multiply([weight], states, memory[: m * n].view(m, n))
            _run("fold_tile", product, n, words.start, m, *recipe, *fold_targets.part(block), n, threads, total)
    return torch.cat(sums, dim=2)


def gradient_tiles(weight: Tensor) -> tuple[int, int]:
    """Tokens and words of a tile in the backward pass."""
    return TILE_TOKENS, TILE_WORDS


def product_gradient(project: Projection, tile: Tile, targets: Tensor, maximum: Tensor, factors: Factors) -> Tensor:
    """Gradient `(n, t)` of a tile of products, which it overwrites; see `torch_tiles.product_gradient`."""
    columns = [column[tile.tokens].contiguous() for column in (targets, maximum, *factors)]
    out, threads = tile.product, torch.get_num_threads()
    _run("gradient_tile", out, *out.shape, tile.words.start, *_recipe(project), *columns, threads)
    return out


def _recipe(project: Projection) -> tuple[Tensor | None, float, float]:
    """Bias, scale and soft cap as the kernel takes them."""
    return None if project.bias is None else project.bias.float(), project.scale, project.softcap or 0.0


def _run(name: str, *arguments: Tensor | float | None) -> None:
    """Call a function of the kernel; a tensor is passed as the address of its memory."""
    if not getattr(library(), name)(*(x.data_ptr() if isinstance(x, Tensor) else x for x in arguments)):
        raise RuntimeError(f"the compiled kernel of the scoring head failed in {name}")
