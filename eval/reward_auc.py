"""Test the reward before any training: does it rank human continuations above noise, loops and model text?"""

import json
import math
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ugap.cli.arguments import option
from ugap.cli.main import main
from ugap.files import locked, refuse_results, without_nan, write_json

if TYPE_CHECKING:
    from rich.console import Console

    from ugap.data import PartStore, TextRow
    from ugap.scoring import Scorer
    from ugap.study.excerpts import Excerpt
    from ugap.training import UncertaintyReward

DESCRIPTION = """\
Compare human continuations with corrupted ones by the uncertainty reward, and by each of its measures alone. The AUC is
the probability that a human text has a higher reward than another text.

examples:
  ugap eval reward_auc --model smollm2-135m-instruct --data stories.test.jsonl --output runs/reward
  ugap eval reward_auc --model smollm2-135m-instruct --scorer gemma-3-270m --data stories.test.jsonl --limit 40

Prefixes of held-out texts are continued by their author, by random tokens, by the author's words shuffled, by loops of
the first 8 and of the first 20 words, by a person in another text, and by the model under each decoding. The reward is
that of ugap train grpo: closeness of a completion to the human profile under a frozen scorer. Intervals are 95%
bootstrap intervals over source texts.

The folder gets reward_auc.json: mean rewards, AUCs, and the mean distances of each kind of text from people in human
standard deviations. It also gets parts, from which --resume continues."""

NAME, PARTS = "reward_auc", "parts"
VERSION = 1
HUMAN, ALL = "human", "uncertainty"
SHORT = {"surprisal": "s", "entropy": "h", "deviation": "dev", "repetition": "rep"}  # column heads of a table
DECODINGS = ["greedy", "temperature-0.7", "temperature-1.5=temperature:1.5", "ancestral"]


@dataclass(kw_only=True)
class Arguments:
    """Arguments of `ugap eval reward_auc`."""

    model: str = option("asset, folder, .gguf file or Hub id of the writer", group="models", metavar="NAME")
    scorer: str | None = option(
        "frozen model behind the reward (default: the writer)", default=None, group="models", metavar="NAME"
    )
    profile: str | None = option(
        "human profile of the scorer, a file or the name of a shipped one (default: the shipped one)",
        default=None,
        group="models",
        metavar="NAME",
    )
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = option(
        "type of the weights", default="float32", group="models"
    )
    device: str | None = option("where models run (default: the GPU if there is one)", default=None, group="models")
    trust_remote_code: bool = option("run the code of the model's repository", default=False, group="models")
    data: str = option("held-out human texts", group="texts", metavar="FILE")
    domain: str = option("domain of the texts", default="creative", group="texts")
    limit: int | None = option("maximum number of prefixes", default=None, group="texts")
    per_text: int = option("prefixes of one text", default=2, group="texts")
    prefix_tokens: int = option("tokens of a prefix", default=64, group="texts")
    max_new_tokens: int = option("tokens of a continuation", default=64, group="texts")
    decoding: list[str] = option(
        "decodings of the model's own continuations: see ugap measure --help",
        default=DECODINGS,
        group="texts",
        metavar="NAME",
    )
    batch_size: int = option("prefixes continued at once", default=16, group="texts")
    output: str = option("folder of the results", default="runs/reward_auc", group="output", metavar="DIR")
    resume: bool = option("resume an interrupted run, or add decodings to one", default=False, group="output")


@dataclass(frozen=True)
class Judged:
    """A text and its rewards by name: of all measures together, and of each alone."""

    source: str
    rewards: Mapping[str, float]
    standardised: Sequence[float] | None


def run(arguments: Arguments) -> None:
    """Write, judge, compare, print the tables and write `reward_auc.json`.

    Raises:
        InputError: The input is bad. Finished parts stay for `--resume`.
    """
    from ugap.data.domain import load_domain
    from ugap.errors import InputError
    from ugap.study.decodings import parse_decodings
    from ugap.terminal import Terminal

    for name in ("limit", "per_text", "prefix_tokens", "max_new_tokens", "batch_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}, and at least 1 is needed")
    output = Path(arguments.output)
    refuse_results(arguments.output, arguments.resume, PARTS)
    decodings = parse_decodings(arguments.decoding)
    rows = load_domain(arguments.data, arguments.domain)

    with locked(output):
        # JSON has no NaN.
        record = without_nan(measure(arguments, rows, decodings))
        write_json(output / f"{NAME}.json", record)
    console = Terminal()
    print_tables(record, console)
    console.print(f"\nAll numbers are in {output / f'{NAME}.json'}", markup=False)


def measure(
    arguments: Arguments, rows: "Sequence[TextRow]", decodings: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Write and judge texts of every kind; the content of `reward_auc.json`."""
    import pyarrow as pa

    from ugap.data import PartStore, content_hash
    from ugap.environment import environment
    from ugap.progress import progress_bar
    from ugap.scoring import Scorer
    from ugap.study.continuations import check_writer
    from ugap.study.excerpts import cut_excerpts
    from ugap.training import UncertaintyReward

    def load(name: str) -> Scorer:
        return Scorer.from_pretrained(
            name,
            dtype=arguments.dtype,
            device=arguments.device,
            trust_remote_code=arguments.trust_remote_code,
        )

    writer = load(arguments.model)
    check_writer(writer, decodings.values(), [arguments.domain])
    scorer = writer if arguments.scorer in (None, arguments.model) else load(str(arguments.scorer))
    reward = UncertaintyReward(arguments.profile, scorer, domain=arguments.domain)
    # Fails before any text is written if the profile does not fit the scorer.
    reward.bind(None, None)
    excerpts = cut_excerpts(
        rows,
        writer.tokenizer,
        prefix_tokens=arguments.prefix_tokens,
        max_new_tokens=arguments.max_new_tokens,
        limit=arguments.limit,
        per_text=arguments.per_text,
    )
    # Parts of other settings are refused. Decodings are part of the key instead, so that more can be added.
    settings = {
        **{name: getattr(arguments, name) for name in ("domain", "max_new_tokens", "batch_size", "dtype")},
        "writer": list(writer.id),
        "scorer": list(scorer.id),
        "profile": reward.first.profile.source,
        "prefixes_hash": content_hash([excerpt.prefix + excerpt.human for excerpt in excerpts]),
        "profile_hash": content_hash(reward.first.profile.to_dict()),
    }
    columns = [("text", pa.string()), ("reward", pa.float64()), ("standardised", pa.list_(pa.float64()))]
    parts = PartStore(Path(arguments.output) / PARTS, pa.schema(columns), settings)
    with progress_bar() as bar:
        judged = {}
        for kind, make in kinds(writer, excerpts, decodings, arguments).items():
            task = bar.add_task(kind, total=len(excerpts))
            judged[kind] = judge(kind, make, excerpts, arguments.batch_size, reward, parts, partial(bar.advance, task))
    return {
        "version": VERSION,
        "settings": {**settings, "arguments": asdict(arguments), "environment": environment()},
        "kinds": [compare(kind, judged[HUMAN], texts) for kind, texts in judged.items()],
    }


@dataclass(frozen=True)
class Kind:
    """Makes the texts of one kind, batch by batch. `key` names its parts, with the settings of a decoding."""

    key: str
    texts: "Callable[[Sequence[Excerpt]], list[str]]"


def kinds(
    writer: "Scorer", excerpts: "Sequence[Excerpt]", decodings: Mapping[str, Mapping[str, Any]], arguments: Arguments
) -> dict[str, Kind]:
    """Every kind of text by its name, human text first."""
    from ugap.errors import InputError
    from ugap.study.analysis.corruptions import looped, of_other_sources, random_tokens, shuffled_words
    from ugap.study.continuations import contexts_of
    from ugap.study.generation import generate_continuations, seed_of

    n, tokenizer = arguments.max_new_tokens, writer.tokenizer
    # Each prefix with the continuation of another source.
    others = {one.id: text for one, text in zip(excerpts, of_other_sources(excerpts), strict=True)}

    def rng(excerpt: "Excerpt") -> random.Random:
        # By the excerpt, so that a resumed run or another limit corrupts a text in the same way.
        return random.Random(excerpt.id)

    def each(make: "Callable[[Excerpt], str]") -> "Callable[[Sequence[Excerpt]], list[str]]":
        return lambda batch: [make(one) for one in batch]

    def written(how: Mapping[str, Any]) -> "Callable[[Sequence[Excerpt]], list[str]]":
        def write(batch: "Sequence[Excerpt]") -> list[str]:
            return generate_continuations(
                writer.model,
                tokenizer,
                contexts_of(writer, batch),
                how,
                max_new_tokens=n,
                # By the prefixes: a batch draws the same texts in a resumed run.
                seed=seed_of("reward", *(one.prefix for one in batch)),
                domain=arguments.domain,
                names=[f"{one.where}, text {one.id!r}" for one in batch],
            )

        return write

    corrupted: dict[str, Callable[[Excerpt], str]] = {
        HUMAN: lambda one: one.human,
        "random tokens": lambda one: random_tokens(tokenizer, n, rng(one)),
        "shuffled words": lambda one: shuffled_words(one.human, rng(one)),
        "loop of 8 words": lambda one: looped(one.human, 8),
        "loop of 20 words": lambda one: looped(one.human, 20),
        "another story": lambda one: others[one.id],
    }
    for name in decodings:
        if name in corrupted:
            raise InputError(f"decoding {name!r}: the name is taken")
    return {
        **{name: Kind(name, each(one)) for name, one in corrupted.items()},
        **{name: Kind(f"{name}|{json.dumps(how, sort_keys=True)}", written(how)) for name, how in decodings.items()},
    }


def judge(
    name: str,
    kind: Kind,
    excerpts: "Sequence[Excerpt]",
    size: int,
    reward: "UncertaintyReward",
    parts: "PartStore",
    advance: Callable[[int], object],
) -> list[Judged]:
    """The rewards of the texts of one kind. Finished batches are kept, and read by a resumed run."""
    from ugap.errors import InputError
    from ugap.profile.texts import FEATURES

    out = []
    for number, begin in enumerate(range(0, len(excerpts), size)):
        batch = excerpts[begin : begin + size]
        key = f"{kind.key}|{number}"
        if not parts.done(key):
            texts = kind.texts(batch)
            judged = reward.judge([one.prefix for one in batch], texts)
            rows = []
            for one, text, details in zip(batch, texts, judged, strict=True):
                if math.isnan(details.reward):
                    raise InputError(
                        f"{one.where}, text {one.id!r} ({name}): the scorer has logits that are not finite"
                    )
                standardised = details.judged[0].standardised
                z = None if standardised is None else standardised.tolist()
                rows.append({"text": text, "reward": details.reward, "standardised": z})
            parts.write(key, rows)
        for one, row in zip(batch, parts.read(key), strict=True):
            z = row["standardised"]
            # A text that the reward could not score has reward 0, so it has 0 by each measure too.
            single = {feature: 0.0 if z is None else alone(z[i]) for i, feature in enumerate(FEATURES)}
            out.append(Judged(one.source, {ALL: row["reward"], **single}, z))
        advance(len(batch))
    return out


def alone(z: float) -> float:
    """The reward of one measure: `1 / (1 + d² / 4)` as in `UncertaintyReward`, with `d` the measure's own distance."""
    return 1 / (1 + z**2 / 4)


def compare(kind: str, human: Sequence[Judged], texts: Sequence[Judged]) -> dict[str, Any]:
    """One kind of text: its mean rewards, its mean distances from people, and the AUC of human texts against it."""
    import numpy as np

    from ugap.profile.texts import FEATURES
    from ugap.statistics.auc import auc

    scored = [text.standardised for text in texts if text.standardised is not None]
    row: dict[str, Any] = {
        "kind": kind,
        "n": len(texts),
        "n_sources": len({text.source for text in texts}),
        "n_not_scored": len(texts) - len(scored),
        "reward": {name: float(np.mean([text.rewards[name] for text in texts])) for name in (ALL, *FEATURES)},
        "standardised": dict(zip(FEATURES, np.mean(scored, axis=0).tolist(), strict=True)) if scored else None,
    }
    if kind == HUMAN:
        return row
    sides = [[one.source for one in side] for side in (human, texts)]
    areas = {}
    for name in (ALL, *FEATURES):
        values = [[one.rewards[name] for one in side] for side in (human, texts)]
        if np.isfinite(values[0] + values[1]).all():  # NaN where the profile lacks a measure
            area = auc(values[0], sides[0], values[1], sides[1])
            areas[name] = {"auc": area.auc, "ci95": list(area.ci95)}
    return {**row, "auc": areas}


def print_tables(record: Mapping[str, Any], console: "Console") -> None:
    """Print the mean reward and AUC of the whole reward, and the AUCs of single measures."""
    from ugap.profile.texts import FEATURES
    from ugap.report.terminal import figure, text_table, with_interval

    rows = record["kinds"]
    n, n_sources = rows[0]["n"], rows[0]["n_sources"]
    whole = text_table(
        f"The uncertainty reward of {n} continuations of each kind, from {n_sources} texts",
        ["text", "mean reward", "AUC of people against it [95%]"],
        [
            [
                row["kind"],
                figure(row["reward"][ALL], ".3f"),
                with_interval(row["auc"][ALL]["auc"], row["auc"][ALL]["ci95"], ".3f") if "auc" in row else "",
            ]
            for row in rows
        ],
        words=1,
    )
    single = text_table(
        "AUC of a reward of one measure alone",
        ["text", *(SHORT.get(feature, feature) for feature in FEATURES)],
        [
            [row["kind"], *(figure(row["auc"].get(feature, {}).get("auc"), ".2f") for feature in FEATURES)]
            for row in rows
            if "auc" in row
        ],
        words=1,
    )
    console.print(whole)
    console.print()
    console.print(single)


if __name__ == "__main__":
    sys.exit(main(["eval", NAME, *sys.argv[1:]]))
