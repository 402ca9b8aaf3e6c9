"""Time and memory of the scoring module against its baselines: the benchmark behind `make bench`.

Design choices:
- Everything runs in one process on the same texts, interleaved (A B C A B C ...), and the median is reported: a busy
  machine then slows all variants alike, and ratios hold where seconds do not. Each variant runs once before, untimed.
- Peak memory is that of a fresh process per variant (this program with `--only`): its highest resident memory less what
  was resident after the model was loaded and a few tokens had touched every weight.
- What cannot be measured here is named with its reason; no figure is made up, and none is carried over.
- Each variant's surprisals are compared with our exact ones, so that no time is reported for a wrong result.
"""

import ctypes
import datetime
import gc
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import ugap
from ugap.cli.arguments import option, parse
from ugap.cli.suggest import did_you_mean
from ugap.data import DEMO, load_texts
from ugap.errors import InputError
from ugap.files import replacing
from ugap.models import load_model
from ugap.scoring import Scorer, batches
from ugap.scoring import head as fused_head
from ugap.scoring.encoding import encode
from ugap.scoring.head import Impl, Precision
from ugap.scoring.output_head import backbone

COMMAND = "eval bench_scoring"
DESCRIPTION = """Time the scoring module and its baselines on texts of equal length, and measure their memory.

examples:
  python eval/bench_scoring.py --output bench.json
  python eval/bench_scoring.py --model smollm2-135m-instruct --dtype float32 --tokens 512 --threads 1"""

GEMM_ROWS = 512
FLAT_FACTOR = 4
N_CONTINUATIONS = 16

# Works on the first so many texts; returns the surprisals of all tokens that these predict, if it has any.
Run = Callable[[int], np.ndarray | None]


class NotMeasuredError(Exception):
    """Why a variant cannot be measured here."""


@dataclass(kw_only=True)
class Arguments:
    """Arguments of the benchmark."""

    model: str = option("model to score with", default="gemma-3-270m", group="what is measured", metavar="NAME")
    dtype: list[str] = option("dtypes of its weights", default=["float32", "bfloat16"], group="what is measured")
    round_weights: bool = option(
        "round the weights to bfloat16 numbers first, as those of most published checkpoints are: precision 'split' "
        "needs it",
        default=False,
        group="what is measured",
    )
    variants: list[str] = option("variants to run, all by default", default=[], group="what is measured")
    texts: str = option(
        "where the texts come from: a file, or the embedded set", default=DEMO, group="texts", metavar="FILE"
    )
    tokens: int = option("tokens in all", default=2048, group="texts")
    length: int = option("tokens of one text", default=512, group="texts")
    threads: int | None = option("threads of torch; what torch chooses by default", default=None, group="how")
    repeats: int = option("timings of each variant, of which the median counts", default=3, group="how")
    memory: bool = option("also measure peak memory, in a process per variant", default=True, group="how")
    output: str | None = option(
        "write the figures to this file as JSON, and beside it as CSV", default=None, group="how", metavar="FILE"
    )
    only: str | None = option(
        "measure the peak memory of one variant in this process and print it as JSON", default=None, group="how"
    )

    def check(self) -> None:
        """Raise for numbers that fit nothing."""
        if self.length < 2 * N_CONTINUATIONS:
            raise InputError(f"--length: {self.length} is less than {2 * N_CONTINUATIONS} tokens")
        if self.tokens < self.length:
            raise InputError(f"--tokens: {self.tokens} is less than one text of {self.length}")
        if self.repeats < 1 or (self.threads is not None and self.threads < 1):
            raise InputError("--repeats and --threads must be at least 1")
        for name in [*self.variants, *([self.only] if self.only else [])]:
            if name not in VARIANTS:
                raise InputError(f"unknown variant {name!r}{did_you_mean(name, VARIANTS)}")


@dataclass(frozen=True, eq=False)
class Case:
    """A loaded model and the texts that every variant works on."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    texts: list[str]

    @cached_property
    def scorer(self) -> Scorer:
        return Scorer(self.model, self.tokenizer, impl="torch")

    @cached_property
    def rows(self) -> list[torch.Tensor]:
        """Token ids `(T,)` of each text, after BOS where the tokenizer has one: what the scorer sees."""
        ids = [encode(self.tokenizer, text, bos=self.scorer.bos) for text in self.texts]
        return [torch.tensor(e.context + e.token_ids) for e in ids]

    @cached_property
    def hidden(self) -> list[torch.Tensor]:
        """Hidden states `(T - 1, H)` of each text, at the positions that predict a token."""
        states = [backbone(self.model)(input_ids=row[None, :-1], use_cache=False) for row in self.rows]
        return [state.last_hidden_state[0].to(self.scorer.head.weight.dtype) for state in states]


# The variants. Each takes a case, prepares what is not to be measured, and returns what is.


def run_backbone(case: Case) -> Run:
    def run(n_texts: int) -> None:
        for row in case.rows[:n_texts]:
            backbone(case.model)(input_ids=row[None, :-1], use_cache=False)

    return run


def run_gemm(case: Case) -> Run:
    states, weight = case.hidden, case.scorer.head.weight

    def run(n_texts: int) -> None:
        hidden = torch.cat(states[:n_texts])
        buffer = torch.empty(min(GEMM_ROWS, len(hidden)), weight.shape[0], dtype=weight.dtype)
        for block in hidden.split(GEMM_ROWS):
            torch.mm(block, weight.T, out=buffer[: len(block)])

    return run


def run_ours(case: Case, impl: Impl, precision: Precision = "exact") -> Run:
    require(case, impl, precision)
    scorer = Scorer(case.model, case.tokenizer, impl=impl, precision=precision)
    skip = 0 if scorer.bos else 1
    return lambda n: np.concatenate([scores.surprisal[skip:] for scores in scorer.score(case.texts[:n])])


def run_our_head(case: Case, impl: Impl) -> Run:
    require(case, impl)
    states, targets, head = case.hidden, [row[1:] for row in case.rows], case.scorer.head
    return lambda n: head.statistics(torch.cat(states[:n]), torch.cat(targets[:n]), impl=impl).surprisal.numpy()


def run_naive(case: Case) -> Run:
    def run(n_texts: int) -> np.ndarray:
        found = []
        for row in case.rows[:n_texts]:
            logits = case.model(input_ids=row[None, :-1], use_cache=False).logits[0]
            log_p = logits.float().log_softmax(-1)
            own = log_p.gather(1, row[1:, None])
            p = log_p.exp()
            entropy = -(p * log_p).sum(-1)
            varentropy = (p * (log_p + entropy[:, None]) ** 2).sum(-1)
            rank = 1 + (log_p > own).sum(-1)
            found.append(torch.stack([-own.squeeze(1), entropy, varentropy, rank]))
        return torch.cat(found, dim=1)[0].numpy()

    return run


def run_trl(case: Case) -> Run:
    try:
        from trl.trainer.utils import add_fused_lm_head
    except ImportError as error:
        raise NotMeasuredError(f"this TRL has no fused head: {error}") from error
    add_fused_lm_head(case.model, outputs=("log_probs", "entropy"))

    def run(n_texts: int) -> np.ndarray:
        rows = case.rows[:n_texts]
        outputs = [case.model(input_ids=row[None], labels=row[None], fused_lm_head=True) for row in rows]
        return -torch.cat([output.log_probs[0] for output in outputs]).float().numpy()

    return run


def run_minicons(case: Case) -> Run:
    try:
        from minicons.scorer import IncrementalLMScorer
    except ImportError as error:
        raise NotMeasuredError(f"{error}; pip install 'ugap[bench]' brings it") from error
    # It sets the side of padding; nothing here is padded.
    theirs = IncrementalLMScorer(case.model, "cpu", tokenizer=case.tokenizer)
    # Some tokenizers put BOS in front by themselves; asked for once more it would stand there twice.
    bos = bool(case.scorer.bos) and case.tokenizer("a")["input_ids"][:1] != case.scorer.bos

    def run(n_texts: int) -> np.ndarray:
        texts = case.texts[:n_texts]
        tables = [theirs.token_score([text], surprisal=True, rank=True, bos_token=bos)[0] for text in texts]
        return np.array([surprisal for table in tables for _, surprisal, _ in table[1:]], np.float32)

    return run


def require(case: Case, impl: Impl, precision: Precision = "exact") -> None:
    """Refuse what would be measured as something else, since the head falls back in silence."""
    weight = case.scorer.head.weight
    if impl == "compiled" and fused_head._compiled_fold() is fused_head._fold:
        raise NotMeasuredError("torch finds no C++ compiler here")
    if precision == "split" and weight.dtype != torch.float32:
        raise NotMeasuredError("it is a way to multiply float32")
    if precision == "split" and not fused_head.has_bfloat16_units():
        raise NotMeasuredError("this CPU has no bfloat16 units (AVX512-BF16 or AMX)")
    if precision == "split" and not fused_head.is_bfloat16_exact(weight):
        raise NotMeasuredError("the weights are no bfloat16 numbers; --round_weights makes them so")


@dataclass(frozen=True)
class Variant:
    """One thing to measure; `whole` says that it starts from the texts or their tokens and ends with statistics."""

    computes: str
    prepare: Callable[[Case], Run]
    whole: bool = True


FOUR = "surprisal, entropy, varentropy, rank"
VARIANTS = {
    "backbone": Variant("last hidden states, text by text", run_backbone, whole=False),
    "gemm": Variant(f"logits of given hidden states, {GEMM_ROWS} rows at a time", run_gemm, whole=False),
    "head-eager": Variant(f"our head alone, eager fold: {FOUR}", partial(run_our_head, impl="torch"), whole=False),
    "head": Variant(f"our head alone, compiled fold: {FOUR}", partial(run_our_head, impl="compiled"), whole=False),
    "ours-eager": Variant(f"Scorer.score, eager fold: {FOUR}", partial(run_ours, impl="torch")),
    "ours": Variant(f"Scorer.score, compiled fold: {FOUR}", partial(run_ours, impl="compiled")),
    "ours-split": Variant(
        f"Scorer.score, compiled fold, precision 'split': {FOUR}",
        partial(run_ours, impl="compiled", precision="split"),
    ),
    "trl": Variant("TRL's fused head, text by text: surprisal, entropy (it has no varentropy or rank)", run_trl),
    "naive": Variant(f"logits, float32 log-softmax, text by text: {FOUR}", run_naive),
    "minicons": Variant("minicons, text by text: surprisal, rank", run_minicons),
}


def prepare_sharing(case: Case, continuations: Sequence[str]) -> dict[str, Run]:
    """Score continuations of one prefix with its keys and values shared, and with each row on its own."""
    prefix = case.rows[0][: len(case.rows[0]) * 3 // 4].tolist()

    def shared(n: int) -> np.ndarray:
        return np.concatenate([s.surprisal for s in case.scorer.score(continuations[:n], [prefix] * n)])

    def apart(n: int) -> np.ndarray:
        with patch.object(batches, "MIN_SHARED", sys.maxsize):
            return shared(n)

    return {"prefix shared": shared, "prefix apart": apart}


# Measuring.


@torch.no_grad()
def time_interleaved(
    runs: Mapping[str, Run], n_texts: int, repeats: int
) -> tuple[dict[str, list[float]], dict[str, np.ndarray]]:
    """Seconds of each run in each round of all runs, and the surprisals that each found."""
    for run in runs.values():
        run(min(2, n_texts))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    found: dict[str, np.ndarray] = {}
    for turn in range(repeats):
        for name, run in runs.items():
            begin = time.perf_counter()
            surprisals = run(n_texts)
            seconds[name].append(time.perf_counter() - begin)
            say(f"  round {turn + 1} of {repeats}: {name} {seconds[name][-1]:.2f} s")
            if surprisals is not None:
                found[name] = surprisals
    return seconds, found


@torch.no_grad()
def measure_alone(arguments: Arguments, name: str) -> dict[str, Any]:
    """Bytes that a variant adds at its peak to what is resident with a loaded model; compiler and imports count."""
    case, _ = load_case(arguments, arguments.dtype[0], arguments.tokens)
    case.model(input_ids=case.rows[0][None, :4], use_cache=False)  # makes every weight resident
    if not VARIANTS[name].whole:
        case.compute_hidden()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is free but kept would hide as much of the peak
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = resident("VmRSS")
        VARIANTS[name].prepare(case)(len(case.texts))
        return {"peak_extra_bytes": resident("VmHWM") - before, "resident_bytes": before}
    except NotMeasuredError as error:
        return {"why_not": str(error)}
    except OSError as error:
        return {"why_not": f"that needs Linux ({error})"}


def resident(field: str) -> int:
    """A field of `/proc/self/status` in bytes."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[field].split()[0]) * 1024


def memory_in_child(arguments: Arguments, dtype: str, name: str, tokens: int) -> dict[str, Any]:
    """Run this program with `--only` and read what it prints."""
    words = [sys.executable, __file__, "--only", name, "--dtype", dtype, "--tokens", str(tokens)]
    words += ["--length", str(arguments.length), "--model", arguments.model, "--texts", arguments.texts]
    words += ["--threads", str(arguments.threads)] if arguments.threads else []
    words += ["--round_weights"] if arguments.round_weights else []
    done = subprocess.run(words, check=False, stdout=subprocess.PIPE, encoding="utf-8")
    if done.returncode < 0:
        return {"why_not": f"its process was ended by signal {-done.returncode}, for memory perhaps"}
    done.check_returncode()
    found = json.loads(done.stdout.splitlines()[-1])
    say(f"  memory of {name}, {tokens} tokens: {found}")
    return found


# The case.


def load_case(arguments: Arguments, dtype: str, tokens: int) -> tuple[Case, list[str]]:
    """The model, the texts, and the continuations that share a prefix."""
    model, tokenizer = load_model(arguments.model, dtype=dtype, device="cpu")
    if arguments.round_weights:
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
    if arguments.texts == DEMO:
        sources = [row.text for row in load_texts(DEMO) if row.domain == "creative"]
    else:
        sources = [row.text for row in load_texts(arguments.texts, domain="any")]
    texts = cut(sources, tokenizer, arguments.length, tokens // arguments.length)
    return Case(model, tokenizer, texts), cut(sources, tokenizer, arguments.length // 16, N_CONTINUATIONS)


def cut(sources: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, count: int) -> list[str]:
    """The first `count` pieces of `length` tokens each, as strings that are tokenised to exactly so many."""
    pieces: list[str] = []
    for source in sources:
        offsets = encode(tokenizer, source, bos=[]).offsets
        for begin in range(0, len(offsets) - length + 1, length):
            piece = source[offsets[begin, 0] : offsets[begin + length - 1, 1]]
            if len(encode(tokenizer, piece, bos=[]).token_ids) == length:
                pieces.append(piece)
            if len(pieces) == count:
                return pieces
    raise InputError(f"the texts hold {len(pieces)} pieces of {length} tokens, {count} are needed: fewer --tokens")


# The report.


def measure(arguments: Arguments, dtype: str) -> dict[str, Any]:
    """All figures of one dtype."""
    say(f"{arguments.model}, {dtype}")
    case, continuations = load_case(arguments, dtype, arguments.tokens)
    head = case.scorer.head.weight
    shapes = {
        "texts": len(case.texts),
        "tokens_per_text": arguments.length,
        "predicted_tokens": sum(len(row) - 1 for row in case.rows),
        "vocabulary": head.shape[0],
        "hidden": head.shape[1],
        "parameters": sum(parameter.numel() for parameter in case.model.parameters()),
        "prefix_tokens": len(case.rows[0]) * 3 // 4,
        "continuations": len(continuations),
        "continuation_tokens": arguments.length // 16,
    }
    notes: list[str] = []
    if dtype == "bfloat16" and not fused_head.has_bfloat16_units():
        notes.append(
            "This CPU has no bfloat16 units (AVX512-BF16 or AMX): products of bfloat16 are emulated, many times slower "
            "than those of float32, and ratios to them tell nothing about a CPU that has such units."
        )
    runs: dict[str, Run] = {}
    for name in arguments.variants or VARIANTS:
        try:
            runs[name] = VARIANTS[name].prepare(case)
        except NotMeasuredError as error:
            notes.append(f"`{name}` was not measured: {error}.")
    seconds, found = time_interleaved(runs, len(case.texts), arguments.repeats)
    sharing, scores = time_interleaved(prepare_sharing(case, continuations), len(continuations), arguments.repeats)
    del case, runs, head
    gc.collect()
    memory: dict[str, dict[str, Any]] = {}
    if arguments.memory:
        memory = {name: memory_in_child(arguments, dtype, name, arguments.tokens) for name in seconds}
        if "ours" in seconds:
            more = FLAT_FACTOR * arguments.tokens
            memory["ours, more texts"] = {"tokens": more, **memory_in_child(arguments, dtype, "ours", more)}
        notes += [f"Memory of `{k}` was not measured: {m['why_not']}." for k, m in memory.items() if "why_not" in m]
    return {
        "dtype": dtype,
        "shapes": shapes,
        "rows": [
            {"dtype": dtype, **row, "peak_extra_bytes": memory.get(row["variant"], {}).get("peak_extra_bytes")}
            for row in table_rows(seconds, found)
        ],
        "memory": memory,
        "rounds": {**seconds, **sharing},
        "prefix": {
            **{name: statistics.median(values) for name, values in sharing.items()},
            "difference": difference(*scores.values()),
        },
        "notes": notes,
    }


def table_rows(seconds: Mapping[str, Sequence[float]], found: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Medians and their ratios. The yardstick is the backbone and the bare product with the head."""
    median = {name: statistics.median(values) for name, values in seconds.items()}
    yardstick = median["backbone"] + median["gemm"] if {"backbone", "gemm"} <= set(median) else None
    return [
        {
            "variant": name,
            "computes": VARIANTS[name].computes,
            "seconds": value,
            "ratio": value / yardstick if yardstick else None,
            "speedup": median["naive"] / value if "naive" in median and VARIANTS[name].whole else None,
            "difference": difference(found.get(name), found.get("ours-eager")),
        }
        for name, value in median.items()
    ]


def difference(one: np.ndarray | None, other: np.ndarray | None) -> float | None:
    """The largest absolute difference; infinite where the shapes or the unscored tokens differ."""
    if one is None or other is None:
        return None
    if one.shape != other.shape or (np.isnan(one) != np.isnan(other)).any():
        return float("inf")
    return float(np.nanmax(np.abs(one - other)))


def to_markdown(run: Mapping[str, Any]) -> str:
    """The table of one dtype, and what is to be said about it."""

    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    shapes, prefix = run["shapes"], run["prefix"]
    lines = [
        f"## {run['dtype']}",
        "",
        "{texts} texts of {tokens_per_text} tokens, {predicted_tokens} of them predicted; vocabulary {vocabulary:,}, "
        "hidden {hidden}, {parameters:,} parameters.".format(**shapes),
        "",
        "| variant | what it computes | seconds | ratio to backbone + gemm | speed-up over naive | peak extra GB "
        "| largest difference of surprisal |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in run["rows"]:
        peak = row["peak_extra_bytes"]
        cells = [
            f"`{row['variant']}`",
            row["computes"],
            number(row["seconds"], ".3f"),
            number(row["ratio"], ".2f"),
            number(row["speedup"], ".2f"),
            number(None if peak is None else peak / 1e9, ".2f"),
            number(row["difference"], ".0e"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    shared, apart = prefix["prefix shared"], prefix["prefix apart"]
    lines += [
        "",
        "{continuations} continuations of {continuation_tokens} tokens after a prefix of {prefix_tokens}: ".format(
            **shapes
        )
        + f"{shared:.3f} s with the prefix's cache shared, {apart:.3f} s without, a gain of {apart / shared:.2f} times.",
    ]
    more = run["memory"].get("ours, more texts", {})
    if "peak_extra_bytes" in more:
        lines += ["", f"`ours` on {more['tokens']:,} tokens: peak extra {more['peak_extra_bytes'] / 1e9:.2f} GB."]
    for note in run["notes"]:
        lines += ["", note]
    return "\n".join(lines) + "\n"


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        cpuinfo = []
    models = [line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name")]
    versions = {}
    for project in ("torch", "transformers", "trl", "minicons"):
        try:
            versions[project] = importlib.metadata.version(project)
        except importlib.metadata.PackageNotFoundError:
            versions[project] = None
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": models[0] if models else platform.processor(),
        "bfloat16_units": fused_head.has_bfloat16_units(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "versions": {"python": platform.python_version(), "ugap": ugap.__version__, **versions},
    }


def write(path: Path, report: Mapping[str, Any]) -> None:
    """Write the report as JSON, and its rows as CSV beside it."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    rows = [row for run in report["runs"] for row in run["rows"]]
    with replacing(path.with_suffix(".csv")) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def run(arguments: Arguments) -> None:
    """Measure, print the tables, and write the report after each dtype."""
    arguments.check()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    if arguments.only is not None:
        print(json.dumps(measure_alone(arguments, arguments.only)))
        return
    report: dict[str, Any] = {"version": 1, "environment": environment(), "settings": asdict(arguments), "runs": []}
    print("# Scoring: time and memory\n\n" + "\n".join(f"- {k}: {v}" for k, v in report["environment"].items()) + "\n")
    for dtype in arguments.dtype:
        report["runs"].append(measure(arguments, dtype))
        print(to_markdown(report["runs"][-1]), flush=True)
        if arguments.output is not None:
            write(Path(arguments.output), report)


def main(argv: Sequence[str] | None = None) -> int:
    """Run as a program; bad input is one line and status 2."""
    try:
        run(parse(Arguments, COMMAND, DESCRIPTION, sys.argv[1:] if argv is None else argv))
    except InputError as error:
        print(f"bench_scoring: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
