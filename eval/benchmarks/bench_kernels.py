"""Our heads at real sizes: all four statistics and the gradients against float64, and the sizes of blocks and tiles."""

import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from unittest.mock import patch

from ugap.cli.arguments import option
from ugap.cli.main import main
from ugap.cli.programs import load_program
from ugap.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from eval.benchmarks import bench_scoring, bench_utils, heads
else:
    bench_utils = load_program(Path(__file__).with_name("bench_utils.py"))
    bench_scoring = load_program(Path(__file__).with_name("bench_scoring.py"))

DESCRIPTION = """\
Check our scoring heads at real sizes against float64, or time other sizes of their blocks and tiles.

examples:
  ugap eval bench_kernels
  ugap eval bench_kernels --what blocks --shapes 4096x131072 --tokens 8192

agreement: the largest differences of all four statistics and of the gradients, for every head that runs here.
blocks: milliseconds of a forward pass, or of forward and backward, for each size; the first of a kind is today's.
Under TRITON_INTERPRET=1 the Triton kernels run on a CPU, on small shapes."""

STATISTICS = ("surprisal", "entropy", "varentropy")
WAYS = ("torch", "compiled", "triton-fused", "triton-tiles")
# Sizes for each way: names of the module's constants, and what they are set to.
FUSED = [
    (128, 256, 64, 3, 8),
    (128, 256, 64, 4, 8),
    (128, 128, 64, 3, 8),
    (128, 128, 64, 4, 4),
    (128, 128, 128, 3, 8),
    (64, 256, 64, 4, 4),
    (256, 128, 64, 3, 8),
]
TILES = [(2048, 4096), (4096, 4096), (8192, 4096), (2048, 8192), (4096, 8192), (1024, 4096)]
READERS = [(1, 4096), (1, 2048), (1, 8192), (4, 1024)]
GRADIENTS = [(4096, 4096), (2048, 4096), (8192, 4096), (4096, 8192)]
TORCH = [(2048, 8192), (1024, 8192), (4096, 8192), (8192, 8192), (2048, 16384)]


@dataclass(kw_only=True)
class Arguments:
    """Arguments of `ugap eval bench_kernels`."""

    what: Literal["agreement", "blocks"] = option("what to find out", default="agreement")
    shapes: list[str] = option(
        "heads by name, or as HIDDENxVOCABULARY", default=["4096x131072", "640x262144"], group="cases", metavar="NAME"
    )
    tokens: int | None = option("tokens (default: 512 for agreement, 8192 for blocks)", default=None, group="cases")
    dtype: Literal["float32", "bfloat16", "float16"] = option(
        "dtype of states and weight", default="bfloat16", group="cases"
    )
    device: Literal["cpu", "cuda"] | None = option("default: cuda where there is one", default=None, group="cases")
    repeats: int = option("timings of each size, of which the median counts", default=5, group="cases")


def run(arguments: Arguments) -> None:
    """Print a table for each shape.

    Raises:
        InputError: A shape or a number that fits nothing, or no such device.
    """
    import torch

    arguments.device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device: torch finds no CUDA device here")
    tokens = arguments.tokens or (512 if arguments.what == "agreement" else 8192)
    if min(tokens, arguments.repeats) < 1:
        raise InputError("--tokens and --repeats must be positive numbers")
    sizes = [bench_scoring._size(shape) for shape in arguments.shapes]
    for hidden, vocabulary in sizes:
        name = f"{hidden} x {vocabulary:,}, {tokens:,} tokens, {arguments.dtype}, {arguments.device}"
        print(f"## {name}\n")
        shape = _heads().Shape(name, hidden, vocabulary)
        dtype = getattr(torch, arguments.dtype)
        case = _heads().Case.draw(shape, tokens, dtype, arguments.device, trained_head=True)
        if arguments.what == "agreement":
            print_agreement(case)
        else:
            print_blocks(case, arguments.repeats)


def _heads() -> Any:
    return bench_scoring._heads()


def statistics_of(case: "heads.Case", way: str) -> "tuple[Tensor, ...]":
    """The four statistics `(N,)` of each token, by one of `WAYS`."""
    from ugap.scoring.head.statistics import head_statistics

    impl: Any = way.partition("-")[0]
    return head_statistics(case.hidden, case.weight.detach(), case.targets, None, case.softcap, impl=impl)


def gradients_of(case: "heads.Case", way: str) -> "tuple[Tensor, ...]":
    """Gradients of the hidden states and of the weight, for the case's upstream gradients."""
    impl: Any = way.partition("-")[0]
    gradients: tuple[Tensor, ...] = _heads()._differentiated(partial(_heads()._our_values, impl=impl), case).gradients
    return gradients


def ways_here(case: "heads.Case") -> "Iterator[tuple[str, Callable[..., Any]]]":
    """Each way that runs on the case's device, and what makes a function of a case take it."""
    import torch

    from ugap.scoring.head import dispatch

    for way in WAYS:
        impl: Any = way.partition("-")[0]
        try:
            dispatch.choose(impl, case.weight, 0)
        except ValueError as error:
            bench_utils.progress(f"{way} does not run here: {error}")
            continue
        yield way, partial(_heads().by_kernels, fused=way == "triton-fused") if impl == "triton" else lambda work: work
        if case.weight.device.type == "cuda":
            torch.cuda.empty_cache()


def reference(case: "heads.Case") -> "tuple[Tensor, ...]":
    """The four statistics in float64, from whole logits."""
    import torch

    columns = []
    for states, targets in zip(case.hidden.split(128), case.targets.split(128), strict=True):
        # Part by part of the vocabulary: a float64 copy of the whole weight would not fit beside it.
        log_p = torch.cat([states.double() @ part.double().T for part in case.weight.detach().split(8192)], dim=1)
        log_p -= log_p.logsumexp(-1, keepdim=True)
        target_log_p = log_p.gather(1, targets[:, None])
        p = log_p.exp()
        entropy = -(p * log_p).sum(-1)
        varentropy = (p * (log_p + entropy[:, None]).square()).sum(-1)
        columns.append(torch.stack([-target_log_p[:, 0], entropy, varentropy, 1.0 + (log_p > target_log_p).sum(-1)]))
    return tuple(torch.cat(columns, dim=1))


def print_agreement(case: "heads.Case") -> None:
    """A row for each way: largest differences, and ranks that differ."""
    import torch

    right = reference(case)
    of_states = _heads().reference(case, gradients=True)
    index = case.checked()
    expected = of_states.by_surprisal + of_states.by_entropy
    print(
        f"| head | {' | '.join(STATISTICS)} | ranks that differ | largest difference of a rank | gradient, relative |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    for way, by in ways_here(case):
        *values, rank = by(partial(statistics_of, way=way))(case)
        cells = [f"{(a.double() - b).abs().max():.1e}" for a, b in zip(values, right, strict=False)]
        apart = (rank.double() - right[3]).abs()
        cells += [f"{(apart > 0).double().mean():.2%}", f"{apart.max():.0f}"]
        slope = by(partial(gradients_of, way=way))(replace(case))[0][index].double()
        cells.append(f"{(slope - expected).norm() / expected.norm():.1e}")
        print(f"| `{way}` | {' | '.join(cells)} |", flush=True)
        if any(not torch.isfinite(column).all() for column in (*values, rank, slope)):
            print(f"\n**`{way}` gives numbers that are not finite.**\n")
    print()


def print_blocks(case: "heads.Case", repeats: int) -> None:
    """A row for each size of each way."""
    print("| head | pass | sizes | ms | TFLOP/s |\n|---|---|---|---:|---:|")
    operations = 2 * case.hidden.numel() * len(case.weight)
    for way, by in ways_here(case):
        for which, sizes in candidates(way):
            with ExitStack() as patches:
                for module, name, value in sizes:
                    patches.enter_context(patch.object(module, name, value))
                work = by(partial(statistics_of if which == "forward" else gradients_of, way=way))
                shown = ", ".join(f"{name} {tuple(v) if isinstance(v, tuple) else v}" for _, name, v in sizes)
                try:
                    seconds = _median(partial(work, case), case.hidden.device.type, repeats)
                except Exception as error:  # of any kind: a size may need more than a device has
                    print(f"| `{way}` | {which} | {shown} | {bench_scoring._reason(error)} | |", flush=True)
                    continue
            products = 1 if which == "forward" else 4  # logits twice, and a product for each gradient
            rate = products * operations / seconds / 1e12
            print(f"| `{way}` | {which} | {shown} | {1e3 * seconds:.3f} | {rate:.3g} |", flush=True)
    print()


def candidates(way: str) -> "Iterator[tuple[str, list[tuple[Any, str, Any]]]]":
    """For each size: the pass that it matters to, and the constants that are set; today's come first."""
    from ugap.scoring.head import cpu, torch_tiles

    if way == "torch":
        for size in TORCH:
            yield "forward", [(torch_tiles, "TILES", {"cpu": size, "cuda": size})]
    elif way == "compiled":
        for words in (2048, 1024, 4096, 8192):
            yield "backward", [(cpu, "TILE_WORDS", words)]
    else:
        from ugap.scoring.head import triton_kernels

        if way == "triton-fused":
            for blocks in FUSED:
                both = triton_kernels.Blocks(*blocks)
                yield "forward", [(triton_kernels, "WIDE", both), (triton_kernels, "NARROW", both)]
            return
        for tokens, words in TILES:
            yield "forward", [(triton_kernels, "TILE_TOKENS", tokens), (triton_kernels, "TILE_WORDS", words)]
        for rows, columns in READERS[1:]:
            yield "forward", [(triton_kernels, "ROWS", rows), (triton_kernels, "COLUMNS", columns)]
        for tokens, words in GRADIENTS:
            yield "backward", [(triton_kernels, "GRADIENT_TOKENS", tokens), (triton_kernels, "TILE_WORDS", words)]


def _median(work: Callable[[], object], device: str, repeats: int) -> float:
    work()  # compiles the kernel for these sizes
    return statistics.median(_heads().seconds_of(work, device) for _ in range(repeats))


if __name__ == "__main__":
    sys.exit(main(["eval", "bench_kernels", *sys.argv[1:]]))
