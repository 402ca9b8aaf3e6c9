"""The scoring head alone, on given shapes: time and memory beside the bare product and the heads of others.

Design choices:
- The heads of one case (shape, tokens, pass) share a process and take turns (A B C A B C ...), after a call each to
  warm up and compile; the median counts. On CUDA the device's own events tell the time.
- The yardstick is the bare product in the dtype of the weight. Going backward it is the products that no method can do
  without: logits, gradient of the hidden states and, for a trained head, of the weight. What is computed again counts.
- TFLOP/s are of the products that a head makes, logits made again among them.
- Peak memory is what a call adds to its inputs, and gradients that it returns are part of it. On a CPU a fresh process
  measures it after a call on few tokens, so that neither imports nor compilers count.
- A head that cannot run has its reason in place of figures. Figures stand beside the head's difference from float64.
- The CSV is written after every case. A case is measured as a whole: its ratios are of one time and one machine.
"""

import csv
import functools
import gc
import json
import math
import re
import statistics
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ugap.cli.arguments import option
from ugap.cli.main import main
from ugap.cli.programs import load_program
from ugap.cli.suggest import did_you_mean
from ugap.errors import InputError
from ugap.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from eval.benchmarks import bench_utils, heads
else:
    bench_utils = load_program(Path(__file__).with_name("bench_utils.py"))

DESCRIPTION = """\
Time the scoring head alone, on given shapes, beside the bare product and other heads; measure its memory.

examples:
  ugap eval bench_scoring --output runs/head
  ugap eval bench_scoring --device cpu --shapes smollm2-135m --dtype float32 bfloat16 --tokens 1024 4096
  ugap eval bench_scoring --shapes llama-3-8b 2048x50000 --tokens 8192 --passes backward --trained_head

Shapes: gemma-3-270m (hidden 640, vocabulary 262144), smollm2-135m (576, 49152), llama-3-8b (4096, 128256),
qwen3-8b (4096, 151936), or HIDDENxVOCABULARY. No model is loaded: states and weights are drawn, with logits like those
of a language model. forward is without gradients; backward is forward and backward of surprisal and entropy, with
upstream gradients for both (for surprisal alone in heads that have no entropy).

Variants: gemm, the bare product and the yardstick; naive, logits and a float32 log-softmax; trl and liger, the fused
heads of TRL and Liger Kernel with surprisal and entropy; cce, that of cut-cross-entropy with surprisal alone;
ours-torch, ours-compiled (on a CPU), ours-triton-fused and ours-triton-tiles (on a GPU), with all four statistics.
What is not installed or cannot run is named with the reason.

--output runs/head writes runs/head.csv, one row for each shape, number of tokens, pass and variant, and the plots
runs/head-DTYPE-forward.png and -backward.png; a folder gets bench_scoring.csv and so on. --resume goes on with the CSV
of an earlier run: what it has of this machine, these versions and these options is not measured again."""

SHAPES = {
    "gemma-3-270m": (640, 262_144),
    "smollm2-135m": (576, 49_152),
    "llama-3-8b": (4096, 128_256),
    "qwen3-8b": (4096, 151_936),
}
PASSES = ("forward", "backward")
DTYPES = ("float32", "bfloat16", "float16")
DEVICES = ("cpu", "cuda")
DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {"shapes": list(SHAPES)[:2], "dtype": ["float32"], "tokens": [1024], "repeats": 3},
    "cuda": {"shapes": list(SHAPES), "dtype": ["bfloat16"], "tokens": [2**n for n in range(10, 16)], "repeats": 10},
}
PACKAGES = ("torch", "triton", "trl", "liger_kernel", "cut_cross_entropy")
WARM_UP_TOKENS = 16

# What tells one case from another in the CSV, and what was found.
CASE = ("shape", "hidden", "vocabulary", "tokens", "pass", "dtype", "trained_head", "softcap", "seed", "device")
MACHINE = ("device_name", "cpu", "instructions", "bfloat16_units", "threads", "python", "cuda", *PACKAGES)
FOUND = (
    "seconds",
    "tokens_per_second",
    "teraflops",
    "ratio_to_gemm",
    "peak_extra_bytes",
    "share_of_logits",
    "difference",
)
COLUMNS = (*CASE, "variant", "computes", *FOUND, "gradient_difference", "rounds", "why_not", *MACHINE, "date")

# Okabe and Ito's colours, told apart with every common colour blindness, and by marker as well.
MARKS = {
    "naive": ("#777777", "o"),
    "trl": ("#d55e00", "s"),
    "liger": ("#cc79a7", "^"),
    "cce": ("#e69f00", "v"),
    "ours-torch": ("#56b4e9", "D"),
    "ours-compiled": ("#0072b2", "P"),
    "ours-triton-fused": ("#009e73", "P"),
    "ours-triton-tiles": ("#0072b2", "X"),
}
LABELS = {"ratio_to_gemm": "time / bare product", "share_of_logits": "extra memory / logits"}

Row = dict[str, str]


@dataclass(kw_only=True)
class Arguments:
    """Arguments of `ugap eval bench_scoring`; what is left empty follows from the device."""

    shapes: list[str] = option(
        "heads by name, or as HIDDENxVOCABULARY (default: all four on CUDA, the two small ones on a CPU)",
        default=[],
        group="cases",
        metavar="NAME",
    )
    tokens: list[int] = option(
        "tokens in a call (default: 1024 to 32768 on CUDA, 1024 on a CPU)", default=[], group="cases"
    )
    passes: list[str] = option("forward, backward or both", default=list(PASSES), group="cases", metavar="PASS")
    dtype: list[str] = option(
        "dtypes of states and weight (default: bfloat16 on CUDA, float32 on a CPU)",
        default=[],
        group="cases",
        metavar="DTYPE",
    )
    device: str | None = option("cpu or cuda (default: cuda where there is one)", default=None, group="cases")
    trained_head: bool = option(
        "going backward, ask for the gradient of the weight as well (else it is frozen, as under LoRA)",
        default=False,
        group="cases",
    )
    softcap: float | None = option("soft-capping of the logits, as in Gemma 2", default=None, group="cases")
    seed: int = option("seed of states, weights and targets", default=0, group="cases")
    variants: list[str] = option(
        "heads to compare (default: all, and what cannot run is named)", default=[], group="bench", metavar="NAME"
    )
    repeats: int | None = option(
        "timings of each head, of which the median counts (default: 10 on CUDA, 3 on a CPU)",
        default=None,
        group="bench",
    )
    memory: bool = option("also measure peak memory; on a CPU in a process for each head", default=True, group="bench")
    threads: int | None = option("threads of torch (default: its own choice)", default=None, group="bench")
    output: str | None = option("write CSV and plots under this name", default=None, group="output", metavar="NAME")
    resume: bool = option("keep what the CSV has already, measure the rest", default=False, group="output")
    only: str | None = option(
        "print the peak memory of this head in the first case, and nothing else", default=None, group="bench"
    )

    def settle(self) -> None:
        """Refuse what fits nothing, and fill in what follows from the device."""
        import torch

        _check_names("device", DEVICES, [] if self.device is None else [self.device])
        cuda = torch.cuda.is_available()
        if self.device == "cuda" and not cuda:
            raise InputError("--device: torch finds no CUDA device here")
        self.device = self.device or ("cuda" if cuda else "cpu")
        for name, value in DEFAULTS[self.device].items():
            if getattr(self, name) in (None, []):
                setattr(self, name, value)
        self.variants = self.variants or list(_heads().HEADS)
        for name in ("shapes", "dtype", "passes"):
            setattr(self, name, list(dict.fromkeys(getattr(self, name))))
        _check_names("pass", PASSES, self.passes)
        _check_names("dtype", DTYPES, self.dtype)
        _check_names("variant", tuple(_heads().HEADS), [*self.variants, *([] if self.only is None else [self.only])])
        for shape in self.shapes:
            _size(shape)
        for name, least in (("tokens", min(self.tokens)), ("repeats", self.repeats), ("threads", self.threads)):
            if least is not None and least < 1:
                raise InputError(f"--{name}: expected a positive number, got {least}")
        if self.softcap is not None and not 0 < self.softcap < math.inf:
            raise InputError(f"--softcap: expected a positive number, got {self.softcap}")
        if self.resume and self.output is None:
            raise InputError("--resume needs the --output of the run that it goes on with")

    def cases(self) -> Iterator[Row]:
        """The columns of `CASE` of every case, those of a dtype and a shape together."""
        for dtype in self.dtype:
            for shape in self.shapes:
                hidden, vocabulary = _size(shape)
                for tokens in dict.fromkeys(self.tokens):
                    for which in self.passes:
                        settings = (tokens, which, dtype, self.trained_head, self.softcap, self.seed, self.device)
                        values = (shape, hidden, vocabulary, *settings)
                        yield {name: _text(value) for name, value in zip(CASE, values, strict=True)}


def _check_names(kind: str, names: Sequence[str], asked: Sequence[str]) -> None:
    for name in asked:
        if name not in names:
            guess = did_you_mean(name, names) or f" (there are {', '.join(names)})"
            raise InputError(f"unknown {kind} {name!r}{guess}")


def _size(shape: str) -> tuple[int, int]:
    """Hidden size and vocabulary of a shape."""
    if shape in SHAPES:
        return SHAPES[shape]
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", shape)
    if match is None:
        known = ", ".join(SHAPES)
        raise InputError(f"unknown shape {shape!r}{did_you_mean(shape, SHAPES) or f' (there are {known}, and HxV)'}")
    return int(match[1]), int(match[2])


@functools.cache
def _heads() -> ModuleType:
    """The heads; not at the top, for the help to need no torch."""
    return load_program(Path(__file__).with_name("heads.py"))


def run(arguments: Arguments) -> None:
    """Measure, print a table for each shape and pass, and write the CSV after every case.

    Raises:
        InputError: A name or a number that fits nothing, no such device, or a CSV that cannot be gone on with.
    """
    import torch

    arguments.settle()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    cases = list(arguments.cases())
    if arguments.only is not None:
        print(json.dumps(_peak_alone(cases[0], arguments.only)))
        return
    machine = _machine(cases[0]["device"])
    results = Results(arguments.output, machine, resume=arguments.resume)
    print("\n".join(f"- {name}: {value}" for name, value in machine.items() if value) + "\n")
    if cases[0]["device"] == "cpu" and "bfloat16" in arguments.dtype and machine["bfloat16_units"] == "False":
        print(f"{bench_utils.EMULATED}\n")
    for dtype in arguments.dtype:
        for shape in arguments.shapes:
            for case in cases:
                if (case["dtype"], case["shape"]) == (dtype, shape):
                    _fill(results, case, arguments)
            for which in arguments.passes:
                drawn = [
                    row for case in cases for row in results.of(case) if (row["dtype"], row["pass"]) == (dtype, which)
                ]
                print(to_markdown([row for row in drawn if row["shape"] == shape]), flush=True)
                if results.path is not None:
                    plot(drawn, results.path.with_name(f"{results.path.stem}-{dtype}-{which}.png"))


def _fill(results: "Results", case: Row, arguments: Arguments) -> None:
    """Measure a case unless all of it is there; other variants that it has are measured again beside the new ones."""
    there = [row["variant"] for row in results.of(case)]
    if set(arguments.variants) <= set(there):
        bench_utils.progress(f"{_title(case)}, {case['tokens']} tokens: is there already")
        return
    bench_utils.progress(f"{_title(case)}, {case['tokens']} tokens")
    names = [name for name in _heads().HEADS if name in {*arguments.variants, *there}]
    results.put(case, measure(case, names, arguments))


class Results:
    """The rows of all cases, and the CSV that holds them.

    Args:
        output (`str`, *optional*): What the user called it.
        machine (`dict[str, str]`): The columns of `MACHINE` and the date; other machines' rows are kept as they are.
        resume (`bool`): Whether to go on with a CSV that is there.
    """

    def __init__(self, output: str | None, machine: Row, *, resume: bool):
        self.machine, self.rows = machine, list[Row]()
        self.path = None if output is None else _csv_path(output)
        if self.path is None or not self.path.exists():
            return
        if not resume:
            raise InputError(f"{self.path} is there already: --resume goes on with it, or name another --output")
        with self.path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames is None or set(reader.fieldnames) != set(COLUMNS):
                raise InputError(f"{self.path} is not a CSV of this benchmark: its columns are others")
            self.rows = list(reader)

    def of(self, case: Row) -> list[Row]:
        """The rows of a case on this machine."""
        key = {**case, **{name: self.machine[name] for name in MACHINE}}
        return [row for row in self.rows if all(row[name] == value for name, value in key.items())]

    def put(self, case: Row, measured: Sequence[Mapping[str, Any]]) -> None:
        """Replace the rows of a case, and write them all."""
        old = self.of(case)
        self.rows = [row for row in self.rows if row not in old]
        self.rows += [{name: _text({**case, **self.machine, **row}.get(name)) for name in COLUMNS} for row in measured]
        if self.path is not None:
            with replacing(self.path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(self.rows)


def _csv_path(output: str) -> Path:
    path = Path(output).expanduser()
    if path.is_dir() or output.endswith("/"):
        return path / "bench_scoring.csv"
    return path if path.suffix == ".csv" else path.with_name(f"{path.name}.csv")


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _number(row: Row, name: str) -> float | None:
    return float(row[name]) if row[name] else None


def _machine(device: str) -> Row:
    """The columns of `MACHINE`, and the date."""
    import torch

    environment = bench_utils.environment(PACKAGES)
    environment["device_name"] = torch.cuda.get_device_name() if device == "cuda" else environment["cpu"]
    environment["cuda"] = torch.version.cuda
    return {name: _text(environment[name]) for name in (*MACHINE, "date")}


def _draw(case: Row) -> "heads.Case":
    import torch

    shape = _heads().Shape(case["shape"], int(case["hidden"]), int(case["vocabulary"]))
    return _heads().Case.draw(
        shape,
        int(case["tokens"]),
        getattr(torch, case["dtype"]),
        case["device"],
        softcap=_number(case, "softcap"),
        trained_head=case["trained_head"] == "True",
        seed=int(case["seed"]),
    )


def measure(row: Row, names: Sequence[str], arguments: Arguments) -> list[dict[str, Any]]:
    """Measure each head in one case: the columns from `variant` to `why_not`."""
    which, device = row["pass"], row["device"]
    heads_of = {name: _heads().HEADS[name] for name in names}
    results: dict[str, dict[str, Any]] = {
        name: {"variant": name, "computes": head.computes if which == "forward" else head.differentiates}
        for name, head in heads_of.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with _attempt(device, *results.values()):
        case = _draw(row)
        right = _heads().reference(case, gradients=which == "backward")
        for name in names:  # one call each before any timing: it compiles, and chooses kernels
            with _attempt(device, results[name]):
                results[name] |= _first_calls(row, name, case, right, memory=arguments.memory)
        for _ in range(arguments.repeats or 1):  # in turns, so that a machine that slows down slows all heads
            for name, head in heads_of.items():
                if "why_not" not in results[name]:
                    with _attempt(device, results[name]):
                        seconds[name].append(_heads().seconds_of(functools.partial(head.run, case, which), device))
    # The bytes that all logits would take: the memory of a head is given as a share of them.
    logits = int(row["vocabulary"]) * int(row["tokens"]) * _bytes(row["dtype"])
    median = {name: statistics.median(seconds[name]) for name, one in results.items() if "why_not" not in one}
    for name, one in results.items():
        if "why_not" in one:
            bench_utils.progress(f"  {name} was not measured: {one['why_not']}")
            continue
        peak = one.get("peak_extra_bytes")
        one |= {
            "seconds": median[name],
            "rounds": " ".join(map(repr, seconds[name])),
            "tokens_per_second": int(row["tokens"]) / median[name],
            # Of the products alone, recomputed logits included: comparable with what the device can do at best.
            "teraflops": heads_of[name].operations(case, which) / median[name] / 1e12,
            "ratio_to_gemm": median[name] / median["gemm"] if "gemm" in median else None,
            "share_of_logits": None if peak is None else peak / logits,
        }
        bench_utils.progress(f"  {name}: {1e3 * median[name]:.3f} ms")
    return list(results.values())


@contextmanager
def _attempt(device: str, *variants: dict[str, Any]) -> Iterator[None]:
    """Write down why, where something fails; the others go on."""
    try:
        yield
    except Exception as error:  # of any kind: libraries of others fail in their own ways
        reason = _reason(error)
        traceback.clear_frames(error.__traceback__)  # they hold the tensors of what failed
        for one in variants:
            kept = {name: one[name] for name in ("variant", "computes")}
            one.clear()
            one.update(kept, why_not=reason)
    else:
        return
    _free(device)


def _first_calls(row: Row, name: str, case: "heads.Case", right: "heads.Reference", *, memory: bool) -> dict[str, Any]:
    """Measure all of a head but its time, in calls that also warm it up."""
    head, which, device = _heads().HEADS[name], row["pass"], row["device"]
    why_not = head.needs(case, which)
    if why_not is not None:
        return {"why_not": why_not}
    result: dict[str, Any] = {}
    if memory and device == "cpu":
        child = _memory_in_child(row, name)
        if child.get("status", 0) < 0:  # it was killed: here it would take all the others along
            return {"why_not": child["why_not"]}
        result["peak_extra_bytes"] = child.get("peak_extra_bytes")
    result["difference"], result["gradient_difference"] = head.differences(case, head.run(case, which), right)
    _free(device)
    if memory and device == "cuda":
        peak = bench_utils.peak_extra_on_gpu(lambda: head.run(case, which))
        result["peak_extra_bytes"] = peak["peak_extra_bytes"]
    return result


def _bytes(dtype: str) -> int:
    import torch

    return int(getattr(torch, dtype).itemsize)


def _reason(error: Exception) -> str:
    from ugap.errors import is_out_of_memory

    text = " ".join(str(error).split()) or "no message"
    if is_out_of_memory(error):
        return f"out of memory ({text.partition(' GPU ')[0][:120]})"
    return f"{type(error).__name__}: {text[:200]}"


def _free(device: str) -> None:
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()  # torch keeps what one head freed, which the next would be spared to fetch


def _memory_in_child(row: Row, name: str) -> dict[str, Any]:
    """What this program prints with `--only`."""
    import torch

    words = ["--only", name, "--shapes", row["shape"], "--passes", row["pass"], "--threads", torch.get_num_threads()]
    for column in ("tokens", "dtype", "device", "trained_head", "softcap", "seed"):
        words += [f"--{column}", row[column]] if row[column] else []
    found = bench_utils.in_child(__file__, words)
    if "why_not" in found:
        bench_utils.progress(f"  memory of {name} was not measured: {found['why_not']}")
    return found


def _peak_alone(row: Row, name: str) -> dict[str, Any]:
    """Peak memory of a head in a process that has nothing else to do."""
    import torch

    case, head, which = _draw(row), _heads().HEADS[name], row["pass"]
    try:
        why_not = head.needs(case, which)
        if why_not is not None:
            return {"why_not": why_not}
        head.run(case.part(torch.arange(min(WARM_UP_TOKENS, len(case.targets)), device=row["device"])), which)
        if row["device"] == "cuda":
            return bench_utils.peak_extra_on_gpu(lambda: head.run(case, which))
        return bench_utils.peak_extra(lambda: head.run(case, which))
    except Exception as error:  # as in `measure`
        return {"why_not": _reason(error)}


def _title(row: Row) -> str:
    """A case without its tokens."""
    options = ["trained head"] if row["trained_head"] == "True" else []
    options += [f"soft cap {row['softcap']}"] if row["softcap"] else []
    size = f"({row['hidden']} x {int(row['vocabulary']):,})"
    return ", ".join([f"{row['shape']} {size}", row["dtype"], row["pass"], *options])


def to_markdown(rows: Sequence[Row]) -> str:
    """The table of one shape and pass, and what could not be measured."""

    def show(row: Row, name: str, form: str, unit: float = 1) -> str:
        value = _number(row, name)
        return "" if value is None else format(value / unit, form)

    lines = [
        f"## {_title(rows[0])}\n",
        "| tokens | variant | what it computes | ms | tokens/s | TFLOP/s | ratio to gemm | peak extra MB "
        "| share of the logits | largest difference of surprisal | relative difference of the gradient |",
        "|---:|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in sorted(rows, key=lambda row: int(row["tokens"])):
        if row["why_not"]:
            reasons.setdefault((row["variant"], row["why_not"]), []).append(f"{int(row['tokens']):,}")
            continue
        cells = [f"{int(row['tokens']):,}", f"`{row['variant']}`", row["computes"], show(row, "seconds", ".3f", 1e-3)]
        cells += [show(row, "tokens_per_second", ",.0f"), show(row, "teraflops", ".3g")]
        cells += [show(row, "ratio_to_gemm", ".2f")]
        cells += [show(row, "peak_extra_bytes", ",.1f", 1e6), show(row, "share_of_logits", ".1%")]
        cells += [show(row, "difference", ".0e"), show(row, "gradient_difference", ".0e")]
        lines.append(f"| {' | '.join(cells)} |")
    everywhere = len({row["tokens"] for row in rows})
    notes = [
        f"- `{variant}` was not measured{'' if len(at) == everywhere else f' at {chr(32).join(at)} tokens'}: {reason}."
        for (variant, reason), at in reasons.items()
    ]
    return "\n".join([*lines, "", *notes]) + "\n"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Plot time and memory over tokens, a column for each shape; nothing where nothing was measured."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.lines import Line2D

    from ugap.report.figure import DPI, MARGIN, SOFT, STYLE, wrapped

    drawn = [row for row in rows if row["variant"] in MARKS and not row["why_not"]]
    columns = [name for name in LABELS if any(float(row[name] or 0) > 0 for row in drawn)]
    shapes = list(dict.fromkeys(row["shape"] for row in drawn))
    if not columns:
        return
    first, names = drawn[0], [name for name in MARKS if any(row["variant"] == name for row in drawn)]
    with matplotlib.rc_context(STYLE):
        handles = [
            Line2D([], [], label=name, color=MARKS[name][0], marker=MARKS[name][1], linewidth=_width(name))
            for name in names
        ]
        handles.append(Line2D([], [], label="bare product; the logits", color=SOFT, linestyle="--", linewidth=1))
        width = max(7.0, 1.0 + 2.7 * len(shapes))
        per_line = min(len(handles), int(width / 1.75))
        head, foot = 0.55 + 0.19 * -(-len(handles) // per_line), 0.35  # inches
        height = head + 2.4 * len(columns) + foot
        figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
        FigureCanvasAgg(figure)
        figure.set_layout_engine(
            ConstrainedLayoutEngine(rect=(0.01, foot / height, 0.98, 1 - (head + foot) / height), h_pad=0.06)
        )
        grid = figure.subplots(len(columns), len(shapes), sharex=True, sharey="row", squeeze=False)
        for column, line in zip(columns, grid, strict=True):
            line[0].set_ylabel(LABELS[column])
            for shape, axes in zip(shapes, line, strict=True):
                _panel(axes, [row for row in drawn if row["shape"] == shape], column)
        for place, shape in enumerate(shapes):
            row = next(row for row in drawn if row["shape"] == shape)
            size = f"{row['hidden']} x {int(row['vocabulary']):,}"
            grid[0][place].set_title(f"{shape}\n{size}" if shape in SHAPES else size, size=9)
            grid[-1][place].set_xlabel("tokens")
        left = MARGIN / width
        title = f"The head alone: {_title(first).partition('), ')[2]}"
        figure.text(left, 1 - MARGIN / height, title, size=11, weight="bold", va="top")
        figure.legend(
            handles=handles, loc="upper left", bbox_to_anchor=(left, 1 - 0.45 / height), ncols=per_line, borderaxespad=0
        )
        versions = ", ".join(f"{name} {first[name]}" for name in PACKAGES if first[name])
        device = first["device_name"] + (f", {first['threads']} thread(s)" if first["device"] == "cpu" else "")
        note = wrapped(f"{device}; {versions}", width - 2 * MARGIN, 7.5)
        figure.text(left, 0.1 / height, note, size=7.5, color=SOFT, va="bottom")
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": None})


def _panel(axes: "Axes", rows: Sequence[Row], column: str) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    from ugap.report.figure import FAINT, SOFT

    for name, (colour, marker) in MARKS.items():
        points = sorted((int(row["tokens"]), float(row[column] or 0)) for row in rows if row["variant"] == name)
        points = [point for point in points if point[1] > 0]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=5, linewidth=_width(name))
    axes.axhline(1.0, color=SOFT, linestyle="--", linewidth=1, zorder=1)
    axes.grid(color=FAINT)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted({int(row["tokens"]) for row in rows})))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n / 1024:g}k" if n % 1024 == 0 else f"{n:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    share = column == "share_of_logits"
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 3) if share else (1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g}%" if share else f"{y:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _width(name: str) -> float:
    return 2.2 if name.startswith("ours") else 1.2


if __name__ == "__main__":
    sys.exit(main(["eval", "bench_scoring", *sys.argv[1:]]))
