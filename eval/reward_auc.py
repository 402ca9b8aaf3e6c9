"""Test the reward before any training: does it rank people above noise, attacks and model text, and select a mean?"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ugap.cli.arguments import option
from ugap.cli.main import main
from ugap.cli.model import adapter_option, device_option, trust_option
from ugap.files import locked, refuse_results, without_nan, write_json
from ugap.study.options import Dtype

if TYPE_CHECKING:
    from rich.console import Console

    from ugap.data import PartStore, TextRow
    from ugap.profile import HumanProfile
    from ugap.scoring import Scorer
    from ugap.study.excerpts import Excerpt
    from ugap.training.judge import Judge
    from ugap.training.separation import ReadText

DESCRIPTION = """\
Compare human continuations with others by the uncertainty reward, and by each of its measures alone. The AUC is the
probability that a human text has a higher reward than another text.

examples:
  ugap eval reward_auc --model smollm2-135m-instruct --data stories.test.jsonl --kind fairy-tale --output runs/reward
  ugap eval reward_auc --model smollm2-135m-instruct --scorer gemma-3-270m --data stories.test.jsonl --limit 40
  ugap eval reward_auc --model smollm2-135m-instruct --data continuations.jsonl --like_texts 64
      --written model_text --writer writer

Prefixes of held-out texts are continued by their author, by the model under each decoding, and by attacks: noise,
loops, shuffles, other languages, code, the prefix itself, another author, one fixed text, and rare or common words.
--written adds texts that models wrote. The reward is that of ugap train grpo, for a policy that writes texts of one
kind alone. Intervals are 95% bootstrap intervals over source texts.

Leave out texts that the profile was fitted to. --like_texts fits it to some of the texts, which are not judged.

Two tests are about training. Stopping early: what a human text and a model's gain over their group when they end at a
share of their length. Selection: for each prefix, the reward picks one of the model's texts at T=1. A reward that is
best for an average text picks texts that are nearer to the mean than people, and more alike.

The folder gets reward_auc.json: mean rewards, AUCs, means and deviations of each kind of text in human standard
deviations, the gain of stopping early, and what is selected. It also gets parts, from which --resume continues."""

NAME, PARTS = "reward_auc", "parts"
VERSION = 2
SHORT = {"surprisal": "s", "entropy": "h", "deviation": "dev", "repetition": "rep"}  # column heads of a table
DECODINGS = ["greedy", "temperature-0.7", "temperature-1.5=temperature:1.5", "ancestral"]
SHARES = (0.125, 0.25, 0.5, 0.75, 0.88, 0.95)  # of the length, at which a text stops early


@dataclass(kw_only=True)
class Arguments:
    """Arguments of `ugap eval reward_auc`."""

    model: str = option("asset, folder, .gguf file or Hub id of the writer", group="models", metavar="NAME")
    adapter: str | None = adapter_option("models")
    scorer: str | None = option(
        "frozen model behind the reward (default: the writer)", default=None, group="models", metavar="NAME"
    )
    profile: str | None = option(
        "human profile of the scorer, a file or the name of a shipped one (default: the scorer's own)",
        default=None,
        group="models",
        metavar="NAME",
    )
    kind: str | None = option(
        "kind of text or domain of the profile to compare with (default: --domain)", default=None, group="models"
    )
    dtype: Dtype = option("type of the weights", default="float32", group="models")
    device: str | None = device_option("models")
    trust_remote_code: bool = trust_option("models")
    data: str = option("held-out human texts", group="texts", metavar="FILE")
    domain: str = option("domain of the texts", default="creative", group="texts")
    like_texts: int = option(
        "fit the profile to so many of the texts instead of naming a kind; they are not judged",
        default=0,
        group="texts",
    )
    written: str | None = option(
        "column of what a model wrote to the same prompt", default=None, group="texts", metavar="COLUMN"
    )
    writer: str | None = option("column that names that model", default=None, group="texts", metavar="COLUMN")
    limit: int | None = option("maximum number of prefixes of every kind", default=None, group="texts")
    per_text: int = option("prefixes of one text", default=2, group="texts")
    prefix_tokens: int = option("tokens of a prefix", default=64, group="texts")
    max_new_tokens: int = option("tokens of a continuation", default=64, group="texts")
    decoding: list[str] = option(
        "decodings of the model's own continuations: see ugap measure --help",
        default=DECODINGS,
        group="texts",
        metavar="NAME",
    )
    best_of: int = option("texts at T=1 of which the reward selects one; 0 for none", default=8, group="texts")
    best_of_limit: int = option("prefixes of the selection", default=24, group="texts")
    batch_size: int = option("prefixes continued at once", default=16, group="texts")
    output: str = option("folder of the results", default="runs/reward_auc", group="output", metavar="DIR")
    resume: bool = option("resume an interrupted run, or add decodings to one", default=False, group="output")


@dataclass(frozen=True, eq=False)
class Kind:
    """Makes the texts of one kind, batch by batch. `key` names its parts, with the settings of a decoding."""

    key: str
    excerpts: "Sequence[Excerpt]"
    texts: "Callable[[Sequence[Excerpt]], list[str]]"


def run(arguments: Arguments) -> None:
    """Write, judge, compare, print the tables and write `reward_auc.json`.

    Raises:
        InputError: The input is bad. Finished parts stay for `--resume`.
    """
    from ugap.data.domain import load_domain
    from ugap.errors import InputError
    from ugap.study.decodings import parse_decodings
    from ugap.terminal import Terminal

    for name in ("limit", "per_text", "prefix_tokens", "max_new_tokens", "batch_size", "best_of_limit"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}, and at least 1 is needed")
    if arguments.best_of < 0 or arguments.best_of in (1, 2):
        raise InputError(f"best_of is {arguments.best_of}: a selection needs 3 texts, and 0 is none")
    if arguments.like_texts and arguments.kind:
        raise InputError("give --like_texts or --kind, not both")
    if (arguments.written is None) != (arguments.writer is None):
        raise InputError("--written and --writer belong together")
    output = Path(arguments.output)
    refuse_results(arguments.output, arguments.resume, PARTS)
    decodings = parse_decodings(arguments.decoding)
    rows = distinct(load_domain(arguments.data, arguments.domain))

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
    from ugap.training.judge import Judge
    from ugap.training.separation import DRAWN, HUMAN, Matching, compare, selection_of, stopping_early

    def load(name: str, adapter: str | None = None) -> Scorer:
        return Scorer.from_pretrained(
            name,
            adapter=adapter,
            dtype=arguments.dtype,
            device=arguments.device,
            trust_remote_code=arguments.trust_remote_code,
        )

    writer = load(arguments.model, arguments.adapter)
    check_writer(writer, decodings.values(), [arguments.domain])
    # With an adapter, the writer's name is that of its base.
    is_writer = arguments.scorer is None or (arguments.scorer == arguments.model and arguments.adapter is None)
    scorer = writer if is_writer else load(str(arguments.scorer))
    profile, selection = human(arguments, scorer, rows[: arguments.like_texts])
    judge = Judge(scorer, profile, selection, NAME)
    # Fails before any text is written if the profile does not fit the scorer.
    judge.bind(None, None)
    excerpts = cut(rows[arguments.like_texts :], writer, arguments)
    made = kinds(writer, excerpts, decodings, arguments)
    # Parts of other settings are refused. Decodings are part of the key instead, so that more can be added.
    settings = {
        **{name: getattr(arguments, name) for name in ("domain", "max_new_tokens", "batch_size", "dtype")},
        "writer": list(writer.id),
        "scorer": list(scorer.id),
        "profile": judge.profile.source,
        "kind": selection,
        "prefixes_hash": content_hash([excerpt.prefix + excerpt.human for excerpt in excerpts]),
        "profile_hash": content_hash(judge.profile.to_dict()),
    }
    columns = [("text", pa.string()), ("n_tokens", pa.int64()), ("features", pa.list_(pa.float64()))]
    parts = PartStore(Path(arguments.output) / PARTS, pa.schema(columns), settings)
    judged = {}
    with progress_bar() as bar:
        for name, kind in made.items():
            task = bar.add_task(name, total=len(kind.excerpts))
            judged[name] = read(name, kind, arguments.batch_size, judge, parts, partial(bar.advance, task))
    drawn = {name: judged.pop(name) for name in made if name.startswith(DRAWN)}
    early = {name: judged.pop(name) for name in made if name.startswith("first ")}
    matched = {name: Matching.of(texts, judge.human(), arguments.max_new_tokens) for name, texts in judged.items()}
    return {
        "version": VERSION,
        "settings": {**settings, "arguments": asdict(arguments), "environment": environment()},
        "kinds": [compare(name, matched[HUMAN], kind) for name, kind in matched.items()],
        "early": stopping_early(judged, early, judge.human(), arguments.max_new_tokens),
        "selection": selection_of(drawn, matched[HUMAN], judge.human(), arguments.max_new_tokens) if drawn else None,
    }


def human(arguments: Arguments, scorer: "Scorer", like: "Sequence[TextRow]") -> "tuple[HumanProfile, str]":
    """The human profile, and the kind of it to compare with.

    Raises:
        InputError: If there are too few texts to fit a profile to.
    """
    from ugap.errors import InputError
    from ugap.profile.fitting import like_texts
    from ugap.profile.profile import LIKE
    from ugap.sampling import profile_of

    own = profile_of(scorer.model, arguments.profile, scorer.tokenizer)
    profile = replace(own, weight_hash=scorer.id.weight_hash)  # of the base, it serves the adapted model
    if not arguments.like_texts:
        return profile, arguments.kind or arguments.domain
    fitted = like_texts(profile, scorer, [whole(row) for row in like])
    if fitted.kinds[LIKE].texts is None:
        raise InputError(f"like_texts is {arguments.like_texts}, and too few of them are long enough to fit a profile")
    return fitted, LIKE


def whole(row: "TextRow") -> str:
    """A text after its prompt."""
    from ugap.study.excerpts import after_prompt

    return row.text if row.prompt is None else after_prompt(row.prompt, row.text) + row.text


def distinct(rows: "Sequence[TextRow]") -> "list[TextRow]":
    """Rows with each text once."""
    return list({row.text: row for row in reversed(rows)}.values())[::-1]


def cut(rows: "Sequence[TextRow]", writer: "Scorer", arguments: Arguments) -> "list[Excerpt]":
    """Prefixes of whole texts, prompts included, with their continuations."""
    from ugap.study.excerpts import cut_excerpts

    return cut_excerpts(
        [replace(row, text=whole(row), prompt=None) for row in rows],
        writer.tokenizer,
        prefix_tokens=arguments.prefix_tokens,
        max_new_tokens=arguments.max_new_tokens,
        limit=arguments.limit,
        per_text=arguments.per_text,
    )


def kinds(
    writer: "Scorer", excerpts: "Sequence[Excerpt]", decodings: Mapping[str, Mapping[str, Any]], arguments: Arguments
) -> dict[str, Kind]:
    """Every kind of text by its name, human text first."""
    from ugap.errors import InputError
    from ugap.study.analysis.corruptions import corruptions, first_tokens
    from ugap.study.continuations import contexts_of
    from ugap.study.generation import generate_continuations, seed_of
    from ugap.training.separation import DRAWN, HUMAN

    n, tokenizer = arguments.max_new_tokens, writer.tokenizer

    def each(make: "Callable[[Excerpt], str]") -> "Callable[[Sequence[Excerpt]], list[str]]":
        return lambda batch: [make(one) for one in batch]

    def written(how: Mapping[str, Any], number: int = 0) -> "Callable[[Sequence[Excerpt]], list[str]]":
        def write(batch: "Sequence[Excerpt]") -> list[str]:
            return generate_continuations(
                writer.model,
                tokenizer,
                contexts_of(writer, batch),
                how,
                max_new_tokens=n,
                # By the prefixes: a batch draws the same texts in a resumed run.
                seed=seed_of("reward", number, *(one.prefix for one in batch)),
                domain=arguments.domain,
                names=[f"{one.where}, text {one.id!r}" for one in batch],
            )

        return write

    def first(length: int, one: "Excerpt") -> str:
        return first_tokens(tokenizer, one.human, length)

    out = {HUMAN: Kind(HUMAN, excerpts, each(lambda one: one.human))}
    out |= {name: Kind(name, excerpts, each(make)) for name, make in corruptions(excerpts, tokenizer, n).items()}
    for share in SHARES:
        name = f"first {share:.0%}"
        out[name] = Kind(f"{name} of a human text", excerpts, each(partial(first, round(share * n))))
    if arguments.written is not None:
        for name, rows in _written(arguments, excerpts).items():
            out[name] = Kind(f"{name}|given", cut(rows, writer, arguments), each(lambda one: one.human))
    for name, how in decodings.items():
        if name in out:
            raise InputError(f"decoding {name!r}: the name is taken")
        out[name] = Kind(f"{name}|{json.dumps(how, sort_keys=True)}", excerpts, written(how))
    for number in range(arguments.best_of):
        # Number 0 draws the texts of the decodings: these are others.
        key = f"{DRAWN} {number}"
        out[key] = Kind(key, excerpts[: arguments.best_of_limit], written({}, number + 1))
    return out


def _written(arguments: Arguments, excerpts: "Sequence[Excerpt]") -> "dict[str, list[TextRow]]":
    """What models wrote to the prompts of the domain, by the name of the model."""
    from ugap.data import load_texts
    from ugap.data.domain import load_domain
    from ugap.errors import InputError
    from ugap.training.separation import HUMAN

    assert arguments.written is not None
    assert arguments.writer is not None
    rows = load_texts(arguments.data, text_column=arguments.written, domain_column=arguments.writer)
    kept = {row.id for row in load_domain(arguments.data, arguments.domain)}
    out: dict[str, list[TextRow]] = {}
    for row in rows:
        if row.id in kept:
            out.setdefault(row.domain, []).append(row)
    if HUMAN in out:
        raise InputError(f"the writer {HUMAN!r} has the name of people's own texts")
    return out


def read(
    name: str, kind: Kind, size: int, judge: "Judge", parts: "PartStore", advance: Callable[[int], object]
) -> "list[ReadText]":
    """Read the texts of one kind. Finished batches are kept, and read by a resumed run."""
    from ugap.errors import InputError
    from ugap.training.separation import ReadText

    out = []
    for number, begin in enumerate(range(0, len(kind.excerpts), size)):
        batch = kind.excerpts[begin : begin + size]
        key = f"{kind.key}|{number}"
        if not parts.done(key):
            texts = kind.texts(batch)
            rows = []
            for one, text, judged in zip(batch, texts, judge.judge([one.prefix for one in batch], texts), strict=True):
                if not judged.finite:
                    raise InputError(
                        f"{one.where}, text {one.id!r} ({name}): the logits of {judge.scorer.name} are not finite"
                    )
                features = None if judged.features is None else judged.features.tolist()
                rows.append({"text": text, "n_tokens": judged.n_tokens, "features": features})
            parts.write(key, rows)
        for one, row in zip(batch, parts.read(key), strict=True):
            out.append(ReadText(one.source, one.prefix, row["n_tokens"], row["features"]))
        advance(len(batch))
    return out


def print_tables(record: Mapping[str, Any], console: "Console") -> None:
    """Print the mean reward and AUC of the whole reward, the AUCs of single measures, and the two tests of training."""
    from ugap.profile.texts import FEATURES
    from ugap.report.terminal import figure, text_table, with_interval
    from ugap.training.separation import ALL

    rows = record["kinds"]
    n, n_sources = rows[0]["n"], rows[0]["n_sources"]
    tables = [
        text_table(
            f"Mean reward, closeness, energy distance, and AUC of people against each text; {n} of people, from "
            f"{n_sources} texts",
            ["text", "n", "reward", "closeness", "energy", "AUC [95%]"],
            [
                [
                    row["kind"],
                    str(row["n"]),
                    figure(row["reward"][ALL], ".3f"),
                    figure(row["closeness"], ".3f"),
                    figure(row["energy_distance"], ".2f"),
                    with_interval(row["auc"][ALL]["auc"], row["auc"][ALL]["ci95"], ".3f") if "auc" in row else "",
                ]
                for row in rows
            ],
            words=1,
        ),
        text_table(
            "AUC of the closeness of one measure alone",
            ["text", *(SHORT.get(feature, feature) for feature in FEATURES)],
            [
                [row["kind"], *(figure(row["auc"].get(feature, {}).get("auc"), ".2f") for feature in FEATURES)]
                for row in rows
                if "auc" in row
            ],
            words=1,
        ),
        text_table(
            "Reward gained by a human text that stops early",
            ["text", "gain"],
            [[row["kind"], figure(row["gain"], "+.3f")] for row in record["early"]],
            words=1,
        ),
    ]
    if record["selection"] is not None:
        tables.append(
            text_table(
                "Selection by the reward among texts at T=1",
                ["texts", "n", "closeness", "energy distance", "spread"],
                [
                    [
                        name,
                        str(row["n"]),
                        figure(row["closeness"], ".3f"),
                        figure(row["energy_distance"], ".2f"),
                        figure(row["spread"], ".2f"),
                    ]
                    for name, row in record["selection"].items()
                ],
                words=1,
            )
        )
    for table in tables:
        console.print(table)
        console.print()


if __name__ == "__main__":
    sys.exit(main(["eval", NAME, *sys.argv[1:]]))
