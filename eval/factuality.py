"""The factual probe of one model: what it knows, and what it says under each decoding, with or without an adapter."""

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ugap.cli.arguments import option
from ugap.cli.main import main
from ugap.cli.model import device_option, trust_option
from ugap.files import locked, refuse_results, write_json
from ugap.study.options import Dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ugap.data import PartStore
    from ugap.data.facts import Fact
    from ugap.study.probes.facts import FactResult

DESCRIPTION = """\
Ask a model simple facts: does it hold the right answer for the likeliest, and does it say it under a decoding?

examples:
  ugap eval factuality --model gemma-3-270m --output runs/facts
  ugap eval factuality --model gemma-3-270m --decoding greedy ancestral "warm=temperature:0.7" --seeds 3 --resume
  ugap eval factuality --model gemma-3-270m --adapter runs/grpo/adapter --output runs/facts-grpo

The facts ship with ugap: statements to complete, of twelve kinds. contrastive: the right answer has the lowest mean
surprisal of four. generative: what the model writes starts with the right answer. Intervals are Wilson's over facts.
Decodings are compared with the first one, an adapter with its base, on the same facts: McNemar's exact test, or with
several seeds a bootstrap-t test, with a bootstrap interval of the difference. decodings: see ugap measure --help.

The folder gets factuality.json: settings, accuracies, comparisons, and what was said to every fact."""

VERSION = 1
CONTRASTIVE = "contrastive"
COLUMNS = 3  # of accuracies in one table of a terminal


@dataclass(kw_only=True)
class Arguments:
    """Arguments of `ugap eval factuality`."""

    model: str = option("asset, folder, .gguf file or Hub id of the model", group="model", metavar="NAME")
    adapter: str | None = option(
        "folder of a PEFT adapter; the model is asked with it and without it",
        default=None,
        group="model",
        metavar="DIR",
    )
    dtype: Dtype = option("type of the weights", default="float32", group="model")
    device: str | None = device_option("model")
    trust_remote_code: bool = trust_option("model")
    decoding: list[str] = option(
        "decodings of the generative score; the others are compared with the first",
        default=["greedy"],
        group="probe",
        metavar="NAME",
    )
    seeds: int = option("runs of every decoding, each with a seed of its own", default=1, group="probe")
    limit: int | None = option("ask N facts only, some of every kind", default=None, group="probe")
    output: str = option("folder of the results", default="runs/factuality", group="output", metavar="DIR")
    resume: bool = option(
        "resume an interrupted run, or add decodings and seeds to a finished one", default=False, group="output"
    )
    compare: str | None = option(
        "compare with the results of another run, in this folder", default=None, group="output", metavar="DIR"
    )


@dataclass(frozen=True)
class Result:
    """The runs of one test (contrastive, or a decoding by its name) by one model."""

    model: str
    test: str
    runs: "Sequence[FactResult]"


def run(arguments: Arguments) -> None:
    """Ask, compare, print the tables and write `factuality.json`.

    Raises:
        InputError: The input is bad; what is finished stays for `--resume`.
    """
    from ugap.data import content_hash
    from ugap.data.facts import load_facts
    from ugap.environment import environment
    from ugap.errors import InputError
    from ugap.models import adapter_hash, load_model
    from ugap.models.adapter import without_wrapper
    from ugap.models.fingerprint import weight_hash
    from ugap.study.decodings import parse_decodings

    # The hash is of all facts: another --limit may use the parts and results of this run.
    facts, all_facts = load_facts(limit=arguments.limit), load_facts()
    decodings = parse_decodings(arguments.decoding)
    if CONTRASTIVE in decodings:
        raise InputError(f"decoding {CONTRASTIVE!r}: the name is taken")
    if arguments.seeds < 1:
        raise InputError(f"seeds is {arguments.seeds}, and at least 1 is needed")
    output, adapter = Path(arguments.output), Path(arguments.adapter) if arguments.adapter is not None else None
    refuse_results(arguments.output, arguments.resume, "parts")
    with locked(output):
        settings: dict[str, Any] = {
            "model": arguments.model,
            "adapter": arguments.adapter,
            "adapter_hash": adapter_hash(adapter) if adapter is not None else None,
            "dtype": arguments.dtype,
            "limit": arguments.limit,
            "facts_hash": content_hash(all_facts),
        }
        others = read_results(Path(arguments.compare), settings["facts_hash"]) if arguments.compare is not None else []
        load = partial(
            load_model,
            arguments.model,
            dtype=arguments.dtype,
            device=arguments.device,
            trust_remote_code=arguments.trust_remote_code,
        )
        model, tokenizer = load(adapter=adapter)
        settings["weight_hash"] = weight_hash(model)  # the base's
        # A part is named by what was typed, so that another decoding of the same name is another part.
        words = dict(zip(decodings, arguments.decoding, strict=True))
        parts = open_parts(output / "parts", settings)
        ask = partial(ask_model, facts=facts, decodings=decodings, words=words, seeds=arguments.seeds, parts=parts)
        adapted = []
        if adapter is not None:
            adapted = ask(without_wrapper(model), tokenizer, name=f"{arguments.model} + {adapter}")
            # Not the adapter switched off: it may have embeddings and a tokenizer of its own.
            del model
            model, tokenizer = load()
        results = [*ask(model, tokenizer, name=arguments.model), *adapted]

        record = {
            "version": VERSION,
            "settings": {
                **settings,
                "decodings": arguments.decoding,
                "seeds": arguments.seeds,
                "compare": arguments.compare,
                "environment": environment(),
            },
            "accuracies": [row for result in results for row in accuracy_rows(result)],
            "comparisons": [comparison_row(a, b) for a, b in pairs(results, others)],
            "results": [result_row(result) for result in results],
        }
        write_json(output / "factuality.json", record)
        print_tables(record)
        print(f"\nThe answers to every fact are in {output / 'factuality.json'}")


def ask_model(
    model: "PreTrainedModel",
    tokenizer: Any,
    *,
    name: str,
    facts: "Sequence[Fact]",
    decodings: Mapping[str, Any],
    words: Mapping[str, str],
    seeds: int,
    parts: "PartStore",
) -> list[Result]:
    """The contrastive score and the score of each decoding; a finished run is a part, and is read, not made again."""
    from ugap.progress import progress_bar
    from ugap.scoring import Scorer
    from ugap.study.decodings import is_deterministic
    from ugap.study.probes.facts import FactResult, contrastive, generative

    scorer = Scorer(model, tokenizer, name=name)
    tests: dict[str, list[Callable[..., FactResult]]] = {CONTRASTIVE: [partial(contrastive, scorer, facts)]}
    for decoding, how in decodings.items():
        go_on = partial(generative, model, tokenizer, facts, how, bos=scorer.bos)
        # Greedy gives one answer whatever the seed.
        tests[decoding] = [partial(go_on, seed=seed) for seed in range(1 if is_deterministic(how) else seeds)]
    results = []
    with progress_bar() as bar:
        for test, runs in tests.items():
            done = []
            for seed, run_once in enumerate(runs):
                key = f"{name}|{words.get(test, test)}|{seed}"
                if not parts.done(key):
                    task = bar.add_task(f"{name}: {test}" + (f", seed {seed}" if seeds > 1 else ""), total=len(facts))
                    answered = run_once(advance=partial(bar.advance, task))
                    rows = zip(answered.said, answered.right.tolist(), strict=True)
                    parts.write(key, [{"said": said, "right": right} for said, right in rows])
                kept = parts.read(key)
                done.append(FactResult.of(facts, [row["said"] for row in kept], [row["right"] for row in kept]))
            results.append(Result(name, test, done))
    return results


def open_parts(folder: Path, settings: Mapping[str, Any]) -> "PartStore":
    """Where finished runs are kept, as one row a fact."""
    import pyarrow as pa

    from ugap.data import PartStore

    return PartStore(folder, pa.schema([("said", pa.string()), ("right", pa.bool_())]), settings)


def read_results(folder: Path, facts_hash: str) -> list[Result]:
    """The results of another run."""
    from ugap.errors import InputError
    from ugap.study.probes.facts import FactResult

    path = folder / "factuality.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["settings"]["facts_hash"] != facts_hash:
            raise InputError(f"{path}: other facts were asked there")
        results = []
        for row in record["results"]:
            ids, kinds = (tuple(fact[name] for fact in row["facts"]) for name in ("id", "kind"))
            said, right = (list(zip(*(fact[name] for fact in row["facts"]), strict=True)) for name in ("said", "right"))
            runs = [FactResult(ids, kinds, s, np.array(r, np.bool_)) for s, r in zip(said, right, strict=True)]
            results.append(Result(f"{row['model']} ({folder})", row["test"], runs))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        # An InputError is a ValueError, and says its own cause.
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not the results of ugap eval factuality") from error
    return results


def pairs(results: Sequence[Result], others: Sequence[Result]) -> Iterator[tuple[Result, Result]]:
    """The comparisons: decodings with the first, an adapter with its base, and this run's model with the other's."""
    models = list(dict.fromkeys(result.model for result in results))
    for model in models:
        first, *rest = [result for result in results if result.model == model and result.test != CONTRASTIVE]
        yield from ((result, first) for result in rest)
    # The last model is the one with the adapter, where there is one.
    of_last = [result for result in results if result.model == models[-1]]
    base = [result for result in results if result.model == models[0]] if len(models) > 1 else []
    others_last = [result for result in others if result.model == others[-1].model]
    for result in of_last:
        yield from ((result, other) for other in [*base, *others_last] if other.test == result.test)


def accuracy_rows(result: Result) -> list[dict[str, Any]]:
    """The accuracies of a result, for the record."""
    from ugap.study.probes.facts import accuracies

    return [{"model": result.model, "test": result.test, **asdict(row)} for row in accuracies(result.runs)]


def result_row(result: Result) -> dict[str, Any]:
    """The answers to every fact, run by run."""
    first = result.runs[0]
    said, right = zip(*(run.said for run in result.runs), strict=True), np.stack([run.right for run in result.runs], 1)
    facts = [
        {"id": name, "kind": kind, "right": r, "said": s}
        for name, kind, r, s in zip(first.ids, first.kinds, right.tolist(), said, strict=True)
    ]
    return {"model": result.model, "test": result.test, "facts": facts}


def comparison_row(a: Result, b: Result) -> dict[str, Any]:
    """A comparison for the record; null where there are too few facts for a number."""
    from ugap.study.probes.facts import compare

    comparison = asdict(compare(a.runs, b.runs))
    comparison["ci95"] = [end if math.isfinite(end) else None for end in comparison["ci95"]]
    comparison["p_value"] = comparison["p_value"] if math.isfinite(comparison["p_value"]) else None
    names = {"a_model": a.model, "a_test": a.test, "b_model": b.model, "b_test": b.test}
    return {**names, **comparison}


def print_tables(record: Mapping[str, Any]) -> None:
    """The accuracies in percent, all facts first, and the comparisons."""
    from ugap.report.tables import p_value
    from ugap.report.terminal import text_table, with_interval
    from ugap.terminal import Terminal

    console = Terminal()
    cells = {(row["model"], row["test"], row["kind"]): row for row in record["accuracies"]}
    kinds = {row["kind"]: row["n"] for row in record["accuracies"]}
    for model in dict.fromkeys(row["model"] for row in record["accuracies"]):
        tests = list(dict.fromkeys(row["test"] for row in record["accuracies"] if row["model"] == model))
        console.print(f"{model}: % right [95% interval]\n", markup=False)
        for begin in range(0, len(tests), COLUMNS):
            shown = tests[begin : begin + COLUMNS]
            rows = []
            for kind, n in kinds.items():
                shown_rows = [cells[model, test, kind] for test in shown]
                rows.append(
                    [
                        f"{kind or 'all'} ({n})",
                        *(with_interval(row["accuracy"], row["ci95"], ".1f", scale=100) for row in shown_rows),
                    ]
                )
            console.print(text_table("", ["facts", *shown], rows, words=1))
            console.print()
    rows = []
    for row in record["comparisons"]:
        shared, compared = ("test", "model") if row["a_test"] == row["b_test"] else ("model", "test")
        only = ["" if row[name] is None else str(row[name]) for name in ("a_only", "b_only")]
        p = p_value(math.nan if row["p_value"] is None else row["p_value"])
        difference = with_interval(row["difference"], row["ci95"], "+.1f", scale=100)
        rows.append([row[f"a_{shared}"], row[f"a_{compared}"], row[f"b_{compared}"], difference, *only, p])
    if rows:
        console.print(text_table("", ["of", "a", "b", "a - b, points [95%]", "only a", "only b", "p"], rows, words=3))


if __name__ == "__main__":
    sys.exit(main(["eval", "factuality", *sys.argv[1:]]))
