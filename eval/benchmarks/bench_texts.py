"""Time and memory of the scoring module on whole texts against its baselines: the first half of `make bench`.

From strings to statistics, through a model; `bench_scoring` times the head alone, on given shapes.

Design choices:
- Timings share one process and are interleaved (A B C A B C ...); the median counts. A busy machine slows all alike.
- On a CPU the baselines take one text at a time. On a GPU that is too little work: there they take several.
- Peak memory is what comes on top of the loaded model. A CPU needs a fresh process per variant for that (this program
  with `--only`); on a GPU torch counts what it allocates.
- What cannot be measured here is named with its reason; no figure is made up.
- Surprisals are compared with our eager ones, so that no wrong result is timed unseen.
"""

import gc
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from unittest.mock import patch

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ugap.cli.arguments import option, parse
from ugap.cli.programs import load_program
from ugap.cli.suggest import did_you_mean
from ugap.data import DEMO, load_texts
from ugap.errors import InputError, is_out_of_memory
from ugap.files import write_json
from ugap.models import load_model
from ugap.scoring import Scorer, batching
from ugap.scoring.head import bfloat16, cpu, dispatch
from ugap.scoring.head.dispatch import Impl
from ugap.scoring.head.lm_head import backbone
from ugap.scoring.head.tiles import Precision
from ugap.scoring.tokenise import encode

if TYPE_CHECKING:
    from eval.benchmarks import bench_utils
else:
    bench_utils = load_program(Path(__file__).with_name("bench_utils.py"))

DESCRIPTION = """\
Time the scoring module and its baselines on texts of one length, and measure their memory.

examples:
  python eval/benchmarks/bench_texts.py --model smollm2-135m-instruct --dtype float32 --tokens 512 --output bench.json
  python eval/benchmarks/bench_texts.py --device cuda --tokens 32768 --length 1024"""

DTYPES = {"cpu": ["float32", "bfloat16"], "cuda": ["bfloat16"]}
# Rows of logits that the bare product writes at a time: about the fastest on either device.
GEMM_ROWS = {"cpu": 512, "cuda": 4096}
GPU_TOKENS = 8192  # of the texts that a baseline takes at a time on a GPU
N_CONTINUATIONS = 16
MORE_TEXTS = 4  # times as many texts must not need more memory
PACKAGES = ("torch", "triton", "transformers", "trl", "minicons")

# Works on the first so many texts; returns the surprisals of all tokens that these predict, if it has any.
Run = Callable[[int], np.ndarray | None]
Seconds = dict[str, list[float]]
Found = dict[str, np.ndarray]
Reasons = dict[str, str]
Memory = dict[str, dict[str, Any]]


class NotMeasuredError(Exception):
    """Why a variant cannot be measured here."""


@dataclass(kw_only=True)
class Arguments:
    """Arguments of the benchmark."""

    model: str = option("model to score with", default="gemma-3-270m", metavar="NAME")
    dtype: list[str] = option(
        "dtypes of its weights (default: float32 and bfloat16 on a CPU, bfloat16 on CUDA)", default=[], metavar="DTYPE"
    )
    device: Literal["cpu", "cuda"] | None = option("where the model runs (default: cuda if there is one)", default=None)
    round_weights: bool = option("round the weights to bfloat16 numbers: variant ours-split needs them", default=False)
    variants: list[str] = option(
        "variants to run (default: all; on CUDA without minicons, which is slow)", default=[], metavar="NAME"
    )
    texts: str = option("file of texts, or the embedded set", default=DEMO, metavar="FILE")
    tokens: int = option("tokens in all", default=2048)
    length: int = option("tokens of one text", default=512)
    threads: int | None = option("threads of torch; by default what torch chooses", default=None)
    repeats: int = option("timings of each variant, of which the median counts", default=3)
    memory: bool = option("also measure peak memory; on a CPU in a process for each variant", default=True)
    output: str | None = option("write the figures to this JSON file", default=None, metavar="FILE")
    only: str | None = option("print the peak memory of this variant alone", default=None, metavar="NAME")

    def settle(self) -> None:
        """Refuse numbers and names that fit nothing, and fill in what follows from the device."""
        if self.length < 2 * N_CONTINUATIONS or self.tokens < self.length:
            raise InputError(f"--length must be {2 * N_CONTINUATIONS} tokens or more, and --tokens as much as one text")
        if min(self.repeats, 1 if self.threads is None else self.threads) < 1:
            raise InputError("--repeats and --threads must be at least 1")
        for name in {*self.variants, self.only or "ours"} - set(VARIANTS):
            raise InputError(f"unknown variant {name!r}{did_you_mean(name, VARIANTS)}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError("--device: torch finds no CUDA device here")
        self.device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = self.dtype or DTYPES[self.device]
        self.variants = self.variants or [name for name in VARIANTS if (self.device, name) != ("cuda", "minicons")]


@dataclass(frozen=True, eq=False)
class Case:
    """A loaded model and the texts that every variant works on."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    texts: list[str]

    @property
    def device(self) -> str:
        return self.model.device.type

    @cached_property
    def scorer(self) -> Scorer:
        return Scorer(self.model, self.tokenizer, impl="torch")

    @cached_property
    def rows(self) -> list[torch.Tensor]:
        """Token ids `(T,)` of each text, after BOS where the tokenizer has one: what the scorer sees."""
        encoded = [encode(self.tokenizer, text, bos=self.scorer.bos) for text in self.texts]
        return [torch.tensor(text.context + text.token_ids, device=self.model.device) for text in encoded]

    @property
    def at_once(self) -> int:
        """Texts that a baseline takes at a time."""
        return 1 if self.device == "cpu" else max(1, GPU_TOKENS // (len(self.rows[0]) - 1))

    def batches(self, n_texts: int) -> Sequence[torch.Tensor]:
        """Token ids `(B, T)` of the first texts, as a baseline takes them; all texts are of one length."""
        return torch.stack(self.rows[:n_texts]).split(self.at_once)

    @cached_property
    def hidden(self) -> list[torch.Tensor]:
        """Hidden states `(T - 1, H)` of each text, at the positions that predict a token."""
        states = [backbone(self.model)(input_ids=row[None, :-1], use_cache=False) for row in self.rows]
        return [state.last_hidden_state[0].to(self.scorer.head.weight.dtype) for state in states]


def run_backbone(case: Case) -> Run:
    def run(n_texts: int) -> None:
        for ids in case.batches(n_texts):
            backbone(case.model)(input_ids=ids[:, :-1], use_cache=False)

    return run


def run_gemm(case: Case) -> Run:
    states, weight, most = case.hidden, case.scorer.head.weight, GEMM_ROWS[case.device]

    def run(n_texts: int) -> None:
        hidden = torch.cat(states[:n_texts])
        buffer = weight.new_empty(min(most, len(hidden)), weight.shape[0])  # reused: fresh memory costs as much
        for block in hidden.split(most):
            torch.mm(block, weight.T, out=buffer[: len(block)])

    return run


def run_ours(case: Case, impl: Impl, precision: Precision = "exact") -> Run:
    require(case, impl, precision)
    scorer = Scorer(case.model, case.tokenizer, impl=impl, precision=precision)
    skip = 0 if scorer.bos else 1

    def run(n_texts: int) -> np.ndarray:
        surprisals = np.concatenate([scores.surprisal[skip:] for scores in scorer.score(case.texts[:n_texts])])
        refuse_stand_in(impl)
        return surprisals

    return run


def run_our_head(case: Case, impl: Impl) -> Run:
    require(case, impl)
    states, targets, head = case.hidden, [row[1:] for row in case.rows], case.scorer.head

    def run(n_texts: int) -> np.ndarray:
        result = head.statistics(torch.cat(states[:n_texts]), torch.cat(targets[:n_texts]), impl=impl)
        refuse_stand_in(impl)
        return result.surprisal.cpu().numpy()

    return run


def run_naive(case: Case) -> Run:
    def run(n_texts: int) -> np.ndarray:
        tables = []
        for ids in case.batches(n_texts):
            logits = case.model(input_ids=ids[:, :-1], use_cache=False).logits.flatten(0, 1)
            log_p = logits.float().log_softmax(-1)
            target_log_p = log_p.gather(1, ids[:, 1:].reshape(-1, 1))
            p = log_p.exp()
            entropy = -(p * log_p).sum(-1)
            varentropy = (p * (log_p + entropy[:, None]) ** 2).sum(-1)  # surprisal is -log_p, with the mean `entropy`
            rank = 1 + (log_p > target_log_p).sum(-1)
            tables.append(torch.stack([-target_log_p.squeeze(1), entropy, varentropy, rank]))
        return torch.cat(tables, dim=1)[0].cpu().numpy()

    return run


def run_trl(case: Case) -> Run:
    try:
        from trl.trainer.utils import add_fused_lm_head
    except ImportError as error:
        raise NotMeasuredError(f"this TRL has no fused head ({error})") from error
    add_fused_lm_head(case.model, outputs=("log_probs", "entropy"))

    def run(n_texts: int) -> np.ndarray:
        outputs = [case.model(input_ids=ids, labels=ids, fused_lm_head=True) for ids in case.batches(n_texts)]
        return -torch.cat([output.log_probs.flatten() for output in outputs]).float().cpu().numpy()

    return run


def run_minicons(case: Case) -> Run:
    try:
        from minicons.scorer import IncrementalLMScorer
    except ImportError as error:
        raise NotMeasuredError(f"pip install 'ugap[bench]' brings it ({error})") from error
    theirs = IncrementalLMScorer(case.model, str(case.model.device), tokenizer=case.tokenizer)
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
    if impl == "triton" and case.device != "cuda":
        raise NotMeasuredError("its Triton kernels need a GPU")
    if impl == "triton" and importlib.util.find_spec("triton") is None:
        raise NotMeasuredError("its kernels need Triton, which is not installed")
    if impl == "compiled" and case.device != "cpu":
        raise NotMeasuredError("it is a kernel for CPUs")
    if impl == "compiled":
        try:
            cpu.check()
        except (RuntimeError, OSError) as error:
            raise NotMeasuredError(f"its kernel cannot be compiled here ({error})") from error
    if precision == "split" and weight.dtype != torch.float32:
        raise NotMeasuredError("it is a way to multiply float32")
    if precision == "split" and not bfloat16.has_bfloat16_units():
        raise NotMeasuredError("this CPU has no bfloat16 units (AVX512-BF16 or AMX)")
    if precision == "split" and not bfloat16.is_bfloat16_exact(weight):
        raise NotMeasuredError("the weights are no bfloat16 numbers, --round_weights makes them so")


def refuse_stand_in(impl: Impl) -> None:
    """Refuse what torch did in silence, in place of kernels that failed in this process."""
    error = dispatch._given_up.get(impl)
    if error is not None:
        raise NotMeasuredError(f"its kernels cannot run here ({one_line(error)})") from error


def one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def reason(error: Exception) -> str:
    """Why a variant cannot be measured."""
    if isinstance(error, NotMeasuredError):
        return str(error)
    return "out of memory" if is_out_of_memory(error) else one_line(error)


@dataclass(frozen=True)
class Variant:
    """`prepare` does what is not to be timed and returns what is; a `whole` variant goes from texts to statistics."""

    computes: str
    prepare: Callable[[Case], Run]
    whole: bool = True


FOUR = "surprisal, entropy, varentropy, rank"
SPLIT = partial(run_ours, impl="compiled", precision="split")
VARIANTS = {
    "backbone": Variant("last hidden states", run_backbone, whole=False),
    "gemm": Variant("logits of given hidden states, thrown away", run_gemm, whole=False),
    "head-eager": Variant(f"our head alone, torch alone: {FOUR}", partial(run_our_head, impl="torch"), whole=False),
    "head": Variant(f"our head alone, compiled kernel: {FOUR}", partial(run_our_head, impl="compiled"), whole=False),
    "head-triton": Variant(
        f"our head alone, Triton kernels: {FOUR}", partial(run_our_head, impl="triton"), whole=False
    ),
    "ours-eager": Variant(f"Scorer.score, torch alone: {FOUR}", partial(run_ours, impl="torch")),
    "ours": Variant(f"Scorer.score, compiled kernel: {FOUR}", partial(run_ours, impl="compiled")),
    "ours-split": Variant(f"Scorer.score, compiled kernel, precision 'split': {FOUR}", SPLIT),
    "ours-triton": Variant(f"Scorer.score, Triton kernels: {FOUR}", partial(run_ours, impl="triton")),
    "trl": Variant("TRL's fused head: surprisal, entropy (it has no varentropy or rank)", run_trl),
    "naive": Variant(f"logits, float32 log-softmax: {FOUR}", run_naive),
    "minicons": Variant("minicons, text by text: surprisal, rank (it has no entropy or varentropy)", run_minicons),
}


def prepare_sharing(case: Case, continuations: Sequence[str]) -> dict[str, Run]:
    """Score continuations of one prefix with its keys and values shared, and with the whole row run for each."""
    prefix = case.rows[0][: len(case.rows[0]) * 3 // 4].tolist()

    def shared(n: int) -> np.ndarray:
        return np.concatenate([scores.surprisal for scores in case.scorer.score(continuations[:n], [prefix] * n)])

    def apart(n: int) -> np.ndarray:
        with patch.object(batching, "MIN_SHARED", sys.maxsize):
            return shared(n)

    return {"shared": shared, "apart": apart}


@torch.no_grad()
def time_interleaved(
    runs: Mapping[str, Run], n_texts: int, repeats: int, device: str = "cpu"
) -> tuple[Seconds, Found, Reasons]:
    """Seconds of each run in each round of all runs, the surprisals of its last round, and why a run was left out."""
    seconds: Seconds = {name: [] for name in runs}
    last_surprisals: Found = {}
    why_not: Reasons = {}
    # Variants take turns, so that a machine that slows down slows all of them.
    # On a GPU kernels are chosen, and memory is fetched, by size: only a round of all texts warms it up.
    warm_up = n_texts if device == "cuda" else min(2, n_texts)
    for turn in range(repeats + 1):
        for name, run in runs.items():
            if name in why_not:
                continue
            with attempt(name, why_not):
                value, surprisals = timed(partial(run, n_texts if turn else warm_up), device)
                if turn:
                    seconds[name].append(value)
                    bench_utils.progress(f"  round {turn} of {repeats}: {name} {value:.3f} s")
                if surprisals is not None:
                    last_surprisals[name] = surprisals
    for name in why_not:
        del seconds[name]
        last_surprisals.pop(name, None)
    return seconds, last_surprisals, why_not


@contextmanager
def attempt(name: str, why_not: Reasons) -> Iterator[None]:
    """Write down why a variant cannot be measured, so that the others go on; bad input is no such reason."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of any kind: libraries of others fail in their own ways
        why_not[name] = reason(error)
        bench_utils.progress(f"  {name} was not measured: {why_not[name]}")


def timed(work: Callable[[], np.ndarray | None], device: str) -> tuple[float, np.ndarray | None]:
    bench_utils.synchronize(device)  # kernels run after their launch: those of before must not count
    begin = time.perf_counter()
    result = work()
    bench_utils.synchronize(device)
    return time.perf_counter() - begin, result


@torch.no_grad()
def measure_alone(arguments: Arguments, name: str) -> dict[str, Any]:
    """Bytes that a variant adds at its peak to a loaded model; on a CPU its compiler and imports count."""
    case, _ = load_case(arguments, arguments.dtype[0])
    # A new scorer probes the model: after it, weights that are mapped from the file are resident.
    _ = case.scorer if VARIANTS[name].whole else case.hidden
    why_not: Reasons = {}
    with attempt(name, why_not):
        if case.device == "cpu":
            return bench_utils.peak_extra(lambda: VARIANTS[name].prepare(case)(len(case.texts)))
        run = VARIANTS[name].prepare(case)
        run(len(case.texts))  # what kernels need to be chosen and compiled is left out
        return peak_on_gpu(name, run, len(case.texts))
    return {"why_not": why_not[name]}


def peak_on_gpu(name: str, run: Run, n_texts: int) -> dict[str, Any]:
    """Bytes that a run adds at its peak on the GPU; it must have run before."""
    why_not: Reasons = {}
    with attempt(name, why_not):
        peak = bench_utils.peak_extra_on_gpu(partial(run, n_texts))
        bench_utils.progress(f"  memory of {name}, {n_texts} texts: {peak}")
        return peak
    return {"why_not": why_not[name]}


@torch.no_grad()
def measure_memory_on_gpu(case: Case, runs: Mapping[str, Run]) -> Memory:
    """Peak memory of each variant, and of our scorers on more texts."""
    memory = {name: peak_on_gpu(name, run, len(case.texts)) for name, run in runs.items()}
    more = replace(case, texts=case.texts * MORE_TEXTS)
    for name in ("ours-eager", "ours-triton"):
        if name in memory:
            peak = peak_on_gpu(name, VARIANTS[name].prepare(more), len(more.texts))
            memory[f"{name}, {MORE_TEXTS} times the tokens"] = peak
    return memory


def measure_memory_in_children(arguments: Arguments, dtype: str, names: Sequence[str]) -> Memory:
    """Peak memory of each variant in a process of its own, and of our scorer on more texts."""
    memory = {name: memory_in_child(arguments, dtype, name, arguments.tokens) for name in names}
    if "ours" in memory:
        more = MORE_TEXTS * arguments.tokens
        memory[f"ours, {more} tokens"] = memory_in_child(arguments, dtype, "ours", more)
    return memory


def memory_in_child(arguments: Arguments, dtype: str, name: str, tokens: int) -> dict[str, Any]:
    """What this program prints with `--only`."""
    words = ["--only", name, "--dtype", dtype, "--tokens", tokens, "--length", arguments.length]
    words += ["--model", arguments.model, "--texts", arguments.texts, "--threads", torch.get_num_threads()]
    words += ["--device", "cpu"]
    peak = bench_utils.in_child(__file__, [*words, *(["--round_weights"] if arguments.round_weights else [])])
    bench_utils.progress(f"  memory of {name}: {peak}")
    return peak


def load_case(arguments: Arguments, dtype: str) -> tuple[Case, list[str]]:
    """The model, the texts, and the continuations that will share a prefix."""
    model, tokenizer = load_model(arguments.model, dtype=dtype, device=arguments.device)
    if arguments.round_weights:
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
    rows = load_texts(arguments.texts, domain=None if arguments.texts == DEMO else "creative")
    sources = [row.text for row in rows if row.domain == "creative"]
    texts = cut(sources, tokenizer, arguments.length, arguments.tokens // arguments.length)
    return Case(model, tokenizer, texts), cut(sources, tokenizer, arguments.length // 16, N_CONTINUATIONS)


def cut(sources: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, count: int) -> list[str]:
    """The first `count` pieces of the sources that are tokenised to exactly `length` tokens."""
    pieces: list[str] = []
    for source in sources:
        offsets = encode(tokenizer, source, bos=[]).offsets
        for begin in range(0, len(offsets) - length + 1, length):
            piece = source[offsets[begin, 0] : offsets[begin + length - 1, 1]]
            if len(encode(tokenizer, piece, bos=[]).token_ids) == length:
                pieces.append(piece)
            if len(pieces) == count:
                return pieces
    raise InputError(f"the texts hold {len(pieces)} pieces of {length} tokens, and {count} are needed")


def measure(arguments: Arguments, dtype: str) -> dict[str, Any]:
    """All figures of one dtype."""
    bench_utils.progress(f"{arguments.model}, {dtype}")
    case, continuations = load_case(arguments, dtype)
    shapes = {
        "texts": len(case.texts),
        "tokens_per_text": arguments.length,
        "predicted_tokens": sum(len(row) - 1 for row in case.rows),
        "vocabulary": case.scorer.head.weight.shape[0],
        "hidden": case.scorer.head.weight.shape[1],
        "parameters": sum(parameter.numel() for parameter in case.model.parameters()),
    }
    emulated = dtype == "bfloat16" and case.device == "cpu" and not bfloat16.has_bfloat16_units()
    notes = [bench_utils.EMULATED] if emulated else []
    notes.append(about_batches(case))
    runs, left_out = prepare(case, arguments.variants)
    seconds, found, failed = time_interleaved(runs, len(case.texts), arguments.repeats, case.device)
    notes += [f"`{name}` was not measured: {why_not}." for name, why_not in {**left_out, **failed}.items()]
    sharing, about = measure_sharing(case, continuations, arguments)
    notes.append(about)
    memory: Memory = {}
    if arguments.memory and case.device == "cuda":
        memory = measure_memory_on_gpu(case, {name: runs[name] for name in seconds})
    del case, runs
    gc.collect()
    if arguments.memory and arguments.device == "cpu":
        memory = measure_memory_in_children(arguments, dtype, list(seconds))
    for name, one in memory.items():
        if "why_not" in one or name not in VARIANTS:
            size = f"not measured: {one['why_not']}" if "why_not" in one else f"{one['peak_extra_bytes'] / 1e9:.2f} GB"
            notes.append(f"Peak extra memory of `{name}`: {size}.")
    rows = table_rows(seconds, found, memory, shapes["predicted_tokens"])
    return {"dtype": dtype, "shapes": shapes, "rows": rows, "sharing": sharing, "memory": memory, "notes": notes}


@torch.no_grad()
def prepare(case: Case, names: Sequence[str]) -> tuple[dict[str, Run], Reasons]:
    """The runs of variants, and why others cannot be measured here."""
    runs: dict[str, Run] = {}
    why_not: Reasons = {}
    for name in names:
        with attempt(name, why_not):
            runs[name] = VARIANTS[name].prepare(case)
    return runs, why_not


def about_batches(case: Case) -> str:
    """What is worked on at a time."""
    ours = f"`Scorer.score` takes up to {case.scorer.token_budget:,} tokens at a time"
    baselines = f"`backbone`, `trl` and `naive` take {case.at_once} text{'s' if case.at_once > 1 else ''}"
    return f"{ours}, {baselines}, `gemm` {GEMM_ROWS[case.device]:,} rows."


def measure_sharing(case: Case, continuations: Sequence[str], arguments: Arguments) -> tuple[dict[str, float], str]:
    """Median seconds with the cache of a prefix shared and without, and what is to be said about them."""
    runs = prepare_sharing(case, continuations)
    times, _, why_not = time_interleaved(runs, len(continuations), arguments.repeats, case.device)
    median = {name: statistics.median(values) for name, values in times.items()}
    about = f"{len(continuations)} continuations of {arguments.length // 16} tokens"
    about += f" after a prefix of {len(case.rows[0]) * 3 // 4}"
    if why_not:
        return median, f"{about} were not measured: {'; '.join(why_not.values())}."
    about += f": {median['shared']:.3f} s with its cache shared, {median['apart']:.3f} s without"
    return median, f"{about}, {median['apart'] / median['shared']:.2f} times as long."


def table_rows(
    seconds: Seconds, found: Found, memory: Mapping[str, Mapping[str, Any]], tokens: int
) -> list[dict[str, Any]]:
    """Medians and their ratios. The yardstick is the backbone and the bare product with the head."""
    median = {name: statistics.median(values) for name, values in seconds.items()}
    yardstick = median["backbone"] + median["gemm"] if {"backbone", "gemm"} <= set(median) else None
    compared = set(found) if "ours-eager" in found else set()
    return [
        {
            "variant": name,
            "computes": VARIANTS[name].computes,
            "seconds": value,
            "tokens_per_second": tokens / value,
            "rounds": seconds[name],
            "ratio": value / yardstick if yardstick else None,
            "speedup": median["naive"] / value if "naive" in median and VARIANTS[name].whole else None,
            "peak_extra_bytes": memory.get(name, {}).get("peak_extra_bytes"),
            "difference": float(np.abs(found[name] - found["ours-eager"]).max()) if name in compared else None,
        }
        for name, value in median.items()
    ]


def to_markdown(run: Mapping[str, Any]) -> str:
    """The table of one dtype, and what is to be said about it."""

    def show(value: float | None, form: str = ".2f", unit: float = 1) -> str:
        return "" if value is None else format(value / unit, form)

    shapes = ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in run["shapes"].items())
    lines = [
        f"## {run['dtype']}\n\n{shapes}\n",
        "| variant | what it computes | seconds | tokens/s | ratio to backbone + gemm | speed-up over naive "
        "| peak extra GB | largest difference of surprisal |\n|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in run["rows"]:
        cells = [f"`{row['variant']}`", row["computes"], show(row["seconds"], ".4g")]
        cells += [show(row["tokens_per_second"], ",.0f"), show(row["ratio"])]
        cells += [show(row["speedup"]), show(row["peak_extra_bytes"], unit=1e9), show(row["difference"], ".0e")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {note}" for note in run["notes"])]) + "\n"


def describe_machine(device: str) -> dict[str, Any]:
    """What the figures depend on, the device first."""
    found = bench_utils.environment(PACKAGES)
    if device == "cpu":
        return {"device": "cpu", "device_name": found["cpu"], **found}
    return {"device": device, "device_name": torch.cuda.get_device_name(), "cuda": torch.version.cuda, **found}


def run(arguments: Arguments) -> None:
    """Measure, print the tables, and write the report after each dtype."""
    arguments.settle()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    if arguments.only is not None:
        print(json.dumps(measure_alone(arguments, arguments.only)))
        return
    environment = describe_machine(arguments.device or "cpu")
    report: dict[str, Any] = {"version": 1, "environment": environment, "settings": asdict(arguments), "runs": []}
    print("\n".join(f"- {name}: {value}" for name, value in environment.items()) + "\n")
    for dtype in arguments.dtype:
        report["runs"].append(measure(arguments, dtype))
        print(to_markdown(report["runs"][-1]), flush=True)
        if arguments.output is not None:
            write_json(arguments.output, report)


def main(argv: Sequence[str] | None = None) -> int:
    """Run as a program; bad input is one line and status 2."""
    try:
        run(parse(Arguments, "eval bench_texts", DESCRIPTION, sys.argv[1:] if argv is None else argv))
    except InputError as error:
        print(f"ugap: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
