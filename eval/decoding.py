"""Which way to decode writes as people do: the sampler at human uncertainty compared with others."""

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ugap.cli.arguments import option
from ugap.cli.eval import load_program
from ugap.cli.human import like_option, read_like
from ugap.cli.main import main
from ugap.cli.model import adapter_option, check_adapter, device_option, trust_option
from ugap.files import locked, refuse_results, replacing, without_nan, write_json
from ugap.study.options import ENGINE_ARGS_HELP, ENGINE_HELP, Dtype, EngineName

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress
    from transformers import LogitsProcessor

    from ugap.data import TextRow
    from ugap.scoring import Scorer
    from ugap.study.continuations import Continuations
    from ugap.study.excerpts import Excerpt
    from ugap.study.generation import Engine
    from ugap.study.pairs import Cell, ScoredText

DESCRIPTION = """\
Compare ways to decode on held-out human texts: surprisal, its distribution, repetition and variety against people's.

examples:
  ugap eval decoding --model gemma-3-270m --data stories.test.jsonl --tune stories.val.jsonl --output runs/decoding
  ugap eval decoding --model gemma-3-270m --data stories.jsonl --decoding ugap-creative ancestral "warm=temperature:1.1"

Prefixes of human texts are continued under every decoding, by every seed. The model itself, or --reader, reads these
texts and people's continuations.

decodings: those of ugap measure, and
  mirostat-2     holding the human level of the profile
  top-n-sigma-1
  NAME-tuned     the setting at which the mean surprisal on the texts of --tune is the human one; NAME is temperature,
                 top-p, top-k, min-p, typical-p, eta, top-h, top-n-sigma, mirostat-2, adaptive-p (behind min-p 0.03),
                 xtc, p-less (with a temperature) or edt (entropy-based dynamic temperature)

The folder gets decoding.json and decoding.md: for each decoding the mean surprisal against people's with its interval
(bootstrap over source texts), the 1-Wasserstein distances of the per-token distributions of surprisal and deviation,
distinct-4 and repetition (rep/128) against people's."""

VERSION = 1
TUNED, MIROSTAT, TOP_N_SIGMA = "-tuned", "mirostat-2", "top-n-sigma-1"
DECODINGS = [
    "ugap-own",
    "ugap-creative",
    "ancestral",
    f"temperature{TUNED}",
    "temperature-0.7",
    "top-p-0.9",
    "top-k-50",
    "min-p-0.1",
    "typical-p-0.95",
    "eta-0.0009",
    "top-h-0.4",
    MIROSTAT,
    TOP_N_SIGMA,
]
HUMAN, PARTS = "human", "parts"
_ENGINE = ("engine", "engine_args")


@dataclass(kw_only=True)
class Arguments:
    """Arguments of `ugap eval decoding`."""

    model: list[str] = option(
        "models that write and read", default=["gemma-3-270m", "smollm2-135m-instruct"], group="models", metavar="NAME"
    )
    adapter: str | None = adapter_option("models")
    dtype: Dtype = option("type of the weights", default="float32", group="models")
    device: str | None = device_option("models")
    trust_remote_code: bool = trust_option("models")
    data: str = option("human texts to continue and compare with", group="texts", metavar="FILE")
    tune: str | None = option(
        f"other human texts, to tune the setting of each NAME{TUNED} on", default=None, group="texts", metavar="FILE"
    )
    profile: str | None = option(
        "human profile of the model (default: its own)", default=None, group="models", metavar="NAME"
    )
    like: str | None = like_option("decodings")
    reader: str | None = option(
        "a stronger model that reads all texts; modes aim at the level that is human to it",
        default=None,
        group="models",
        metavar="NAME",
    )
    domain: str = option("domain of the texts that are taken", default="creative", group="texts")
    limit: int = option("prefixes", default=46, group="texts")
    per_text: int = option("prefixes of one text", default=2, group="texts")
    prefix_tokens: int = option("tokens of a prefix", default=64, group="texts")
    max_new_tokens: int = option("tokens of a continuation", default=128, group="texts")
    decoding: list[str] = option("decodings", default=DECODINGS, group="decodings", metavar="NAME")
    seeds: int = option("continuations of every prefix, each with a seed of its own", default=3, group="decodings")
    batch_size: int = option("prefixes that are continued side by side", default=23, group="decodings")
    engine: EngineName = option(ENGINE_HELP, default="transformers", group="models")
    engine_args: list[str] = option(ENGINE_ARGS_HELP, default=[], group="models", metavar="KEY=VALUE")
    output: str = option("folder of the results", default="runs/decoding", group="output", metavar="DIR")
    resume: bool = option("resume an interrupted run, or add decodings", default=False, group="output")


def run(arguments: Arguments) -> None:
    """Write, read, compare, print the tables and write `decoding.json` and `decoding.md`.

    Raises:
        InputError: The input is bad; what is finished stays for `--resume`.
    """
    from ugap.data import content_hash
    from ugap.data.domain import load_domain
    from ugap.errors import InputError
    from ugap.study.decodings import parse_decodings
    from ugap.study.engine import check_engine
    from ugap.study.following import check_kinds, check_texts, like_hash, with_profile

    samplers = load_program(Path(__file__).with_name("baselines.py")).TUNED
    tuned = [name for name in arguments.decoding if name.removesuffix(TUNED) in samplers and name.endswith(TUNED)]
    special = [*tuned, *(name for name in arguments.decoding if name in (MIROSTAT, TOP_N_SIGMA))]
    decodings: dict[str, Mapping[str, Any]] = {
        **parse_decodings([name for name in arguments.decoding if name not in special]),
        **{name: {} for name in special},
    }
    # In the order that was typed: tables and plots keep it.
    names = [name.partition("=")[0] for name in arguments.decoding]
    decodings = with_profile({name: decodings[name] for name in names}, arguments.profile, arguments.reader)
    if tuned and arguments.tune is None:
        raise InputError(f"{tuned[0]} needs --tune: other human texts, to tune it on")
    for name, number in (("seeds", arguments.seeds), ("limit", arguments.limit), ("batch_size", arguments.batch_size)):
        if number < 1:
            raise InputError(f"{name}: expected a positive number, got {number}")
    check_adapter(arguments.adapter, arguments.model, arguments.engine)
    check_engine(arguments.engine, arguments.engine_args, decodings)
    if arguments.engine != "transformers":
        for name in special:
            if name != f"temperature{TUNED}":
                raise InputError(f"not with --engine {arguments.engine}: {name}; leave out this decoding")
    rows = load_domain(arguments.data, arguments.domain)
    others = load_domain(arguments.tune, arguments.domain) if arguments.tune else []
    like = read_like(arguments.like)
    if arguments.adapter is None:  # else they are those of its own profile, if it has one
        check_kinds(decodings, arguments.model)
    check_texts(like, decodings, [row.text for row in rows])
    output = Path(arguments.output)
    refuse_results(arguments.output, arguments.resume, PARTS)
    # These are in the names of parts, so that models, decodings and seeds can be added to a folder.
    elsewhere = ("model", "adapter", "decoding", "seeds", "output", "resume", "device", "trust_remote_code", *_ENGINE)
    settings = {
        **{name: value for name, value in asdict(arguments).items() if name not in elsewhere},
        "like": like_hash(like),
        "data_hash": content_hash([row.text for row in rows]),
        "tune_hash": content_hash([row.text for row in others]),
    }
    with locked(output):
        record = measure(arguments, decodings, settings, rows, others, like)
        write_json(output / "decoding.json", record)
        text = "\n".join(markdown(entry) for entry in record["models"])
        with replacing(output / "decoding.md") as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(text)


def measure(
    arguments: Arguments,
    decodings: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
    rows: "Sequence[TextRow]",
    others: "Sequence[TextRow]",
    like: Sequence[str],
) -> dict[str, Any]:
    """Let every model write and read; the content of `decoding.json`."""
    from ugap.environment import environment
    from ugap.progress import progress_bar
    from ugap.scoring import Scorer
    from ugap.study.continuations import Continuations, check_writer
    from ugap.study.engine import open_engine
    from ugap.study.following import following, plain

    work = Continuations(Path(arguments.output) / PARTS, dict(settings))
    records = []
    # In the type that it is stored in: a stronger model is a larger one.
    reader = None
    if arguments.reader is not None:
        reader = Scorer.from_pretrained(
            arguments.reader, dtype="auto", device=arguments.device, trust_remote_code=arguments.trust_remote_code
        )
    for name in arguments.model:
        scorer = Scorer.from_pretrained(
            name,
            adapter=arguments.adapter,
            dtype=arguments.dtype,
            device=arguments.device,
            trust_remote_code=arguments.trust_remote_code,
        )
        # Before the first text: a decoding that the model cannot do would be found after hours.
        readers = {reader.name: reader} if reader else {}
        follow = following(decodings, scorer.model, scorer.tokenizer, like, readers)
        check_writer(scorer, follow.decodings.values(), [arguments.domain])
        how_of = follow.decodings
        engine = open_engine(
            arguments.engine,
            arguments.engine_args,
            scorer.model,
            scorer.tokenizer,
            name,
            trust_remote_code=arguments.trust_remote_code,
        )
        with closing(engine), progress_bar() as bar:
            writer = Writer(scorer, reader or scorer, arguments, work, bar, like, engine)
            excerpts = writer.cut(rows)
            human = writer.texts("test", excerpts, HUMAN, {}, 0)
            # On other texts than those of the table: a temperature fitted on them would match them by construction.
            table = []
            for decoding, how in how_of.items():
                sampler = baseline(decoding, writer, others)
                how = how if sampler is None else sampler.generate
                texts = [
                    writer.texts("test", excerpts, decoding, how, seed, sampler) for seed in range(arguments.seeds)
                ]
                settings_of = plain(how) if sampler is None else sampler.settings
                table.append(
                    {"model": scorer.name, "settings": settings_of, **compare(human, texts), "decoding": decoding}
                )
        likes = {"like": follow.certainty} if follow.certainty else {}
        read_by = {} if reader is None else {"reader": reader.name}
        records.append({"model": scorer.name, "weight_hash": scorer.id.weight_hash, **read_by, **likes, "rows": table})
    added = {"decodings": arguments.decoding, "seeds": arguments.seeds}
    added |= {name: getattr(arguments, name) for name in _ENGINE}
    recorded = {**settings, **added, "environment": environment()}
    return dict(without_nan({"version": VERSION, "settings": recorded, "models": records}))


@dataclass(frozen=True)
class Sampler:
    """A sampler of others at one setting.

    Args:
        settings (`dict[str, Any]`): The setting by name, for the record.
        generate (`Mapping[str, Any]`): What `generate()` has of it.
        processors (`Callable[[int], list[LogitsProcessor]]`): Further processors, for a seed.
    """

    settings: dict[str, Any]
    generate: Mapping[str, Any]
    processors: "Callable[[int], list[LogitsProcessor]]"


@dataclass(frozen=True)
class Writer:
    """One model that continues prefixes, and the one that reads what was written."""

    scorer: "Scorer"
    reader: "Scorer"
    arguments: Arguments
    work: "Continuations"
    bar: "Progress"
    like: Sequence[str] = ()
    engine: "Engine | None" = None

    def cut(self, rows: "Sequence[TextRow]") -> "list[Excerpt]":
        """The prefixes of human texts, and how people went on."""
        from ugap.study.excerpts import cut_excerpts

        a = self.arguments
        return cut_excerpts(
            rows,
            self.scorer.tokenizer,
            prefix_tokens=a.prefix_tokens,
            max_new_tokens=a.max_new_tokens,
            limit=a.limit,
            per_text=a.per_text,
        )

    def texts(
        self,
        use: str,
        excerpts: "Sequence[Excerpt]",
        decoding: str,
        how: Mapping[str, Any],
        seed: int,
        sampler: Sampler | None = None,
    ) -> "list[ScoredText]":
        """The texts of one decoding and seed, scored; people's own continuations for `"human"`."""
        from ugap.study.continuations import Text, batches
        from ugap.study.following import plain
        from ugap.study.generation import seed_of

        a, scorer, out = self.arguments, self.scorer, []
        labels = [] if sampler is None else [f"{name} {value:.4g}" for name, value in sampler.settings.items()]
        what = ", ".join([decoding, *labels, f"seed {seed}"])
        label = f"{scorer.name} {'tunes' if use == 'tune' else 'writes'}: {what}"
        task = self.bar.add_task(label, total=len(excerpts))
        for number, batch in batches(excerpts, a.batch_size):
            if decoding == HUMAN:
                texts = [excerpt.human for excerpt in batch]
            else:
                of_sampler = {} if sampler is None else sampler.settings
                made_by = json.dumps({**plain(how), **of_sampler}, sort_keys=True)
                drawn = (scorer.name, use, decoding, made_by, str(seed), str(number))
                seed_of_batch = seed_of("|".join(drawn))
                texts = self.work.write(
                    scorer,
                    batch,
                    decoding,
                    how,
                    scorer.name,
                    *labels,
                    max_new_tokens=a.max_new_tokens,
                    seed=seed_of_batch,
                    domain=a.domain,
                    processors=[] if sampler is None else sampler.processors(seed_of_batch),
                    engine=self.engine,
                )
            read = [Text(one, scorer.name, decoding, text) for one, text in zip(batch, texts, strict=True)]
            out += self.work.scores(self.work.read(self.reader, read, scorer.name, decoding, pmi=False))
            self.bar.advance(task, len(batch))
        return out


def baseline(decoding: str, writer: Writer, others: "Sequence[TextRow]") -> Sampler | None:
    """The sampler of others that a decoding is, tuned on other texts than those of the table; `None` for no such."""
    from ugap.profile.profile import LIKE
    from ugap.sampling import profile_of

    baselines = load_program(Path(__file__).with_name("baselines.py"))
    if decoding == TOP_N_SIGMA:
        return Sampler({}, {}, lambda seed: [baselines.TopNSigmaLogitsProcessor(1.0)])
    if decoding == MIROSTAT:
        a = writer.arguments
        profile = profile_of(writer.scorer.model, a.profile, writer.scorer.tokenizer, like=writer.like or None)
        positions = profile.kind(LIKE if writer.like else a.domain).positions
        surprisal = positions.mean_surprisal(a.prefix_tokens, a.max_new_tokens)
        return Sampler({"surprisal": surprisal}, {}, lambda seed: [baselines.MirostatLogitsProcessor(surprisal)])
    name = decoding.removesuffix(TUNED)
    if not decoding.endswith(TUNED) or name not in baselines.TUNED:
        return None
    tuned = baselines.TUNED[name]

    def at(place: float) -> Sampler:
        value = tuned.value(place)
        return Sampler({tuned.setting: value}, tuned.settings(value), lambda seed: tuned.processors(value, seed))

    return at(matched(writer, writer.cut(others), name, at, tuned.first, tuned.bounds))


def matched(
    writer: Writer,
    excerpts: "Sequence[Excerpt]",
    name: str,
    sampler_at: "Callable[[float], Sampler]",
    first: Sequence[float],
    bounds: tuple[float, float],
) -> float:
    """Where a sampler matches people's mean surprisal; see `ugap.study.compare.matched`."""
    import numpy as np

    from ugap.study.compare.matched import matched_setting

    def mean_surprisal(texts: "Sequence[ScoredText]") -> float:
        return float(np.mean([text.scores.nll for text in texts if len(text.scores)]))

    def surprisal_at(place: float) -> float:
        sampler = sampler_at(place)
        return mean_surprisal(writer.texts("tune", excerpts, name, sampler.generate, 0, sampler))

    people = mean_surprisal(writer.texts("tune", excerpts, HUMAN, {}, 0))
    return matched_setting(people, surprisal_at, first=first, bounds=bounds)


def compare(human: "Sequence[ScoredText]", seeds: "Sequence[Sequence[ScoredText]]") -> dict[str, Any]:
    """One row of the table: the texts of all seeds compared with human ones, pair by pair cut to one length."""
    from ugap.study.analysis.variety import variety
    from ugap.study.gap.table import gap_table
    from ugap.study.pairs import pair

    (cell,) = pair([*human, *(text for texts in seeds for text in texts)])
    measures = {row["measure"]: row for row in gap_table([cell], seed=0)}
    nll = measures["nll"]
    varied: dict[str, list[list[float]]] = {"distinct_4": [], "repetition": []}
    for texts in seeds:  # each sample is as large as people's
        (one,) = pair([*human, *texts])
        both = [variety(one.human), variety(one.generated)]
        for name, values in varied.items():
            values.append([side[name] for side in both])
    sides = ("human", "model_value")
    return {
        "n": nll["n"],
        "n_sources": nll["n_sources"],
        "n_dropped": cell.n_dropped,
        **{name: nll[name] for name in ("human", "model_value", "gap", "ci95", "p_value")},
        "text_distance": text_distance(cell),
        "wasserstein_surprisal": nll["wasserstein"],
        "wasserstein_deviation": measures.get("deviation", nll)["wasserstein"],
        **{measure: {side: measures.get(measure, nll)[side] for side in sides} for measure in ("entropy", "deviation")},
        **{
            name: {
                side: sum(value[side_index] for value in values) / len(values) for side_index, side in enumerate(sides)
            }
            for name, values in varied.items()
        },
    }


def text_distance(cell: "Cell") -> float | None:
    """Mean distance of the mean surprisals of the two texts of a prefix, nats per token; `None` without a pair."""
    import numpy as np

    if not cell.human:
        return None
    return float(np.mean([abs(one.nll - other.nll) for one, other in zip(cell.human, cell.generated, strict=True)]))


def markdown(entry: Mapping[str, Any]) -> str:
    """The table of one model; a dash where no text was long enough."""
    from ugap.report.tables import MISSING
    from ugap.report.terminal import figure, with_interval

    rows = entry["rows"]
    # Short texts leave pairs out: the row with the most pairs says most about people.
    people = max(rows, key=lambda row: row["n"])
    head = (
        f"### {entry['model']}\n\n"
        f"People: surprisal {figure(people['human'], '.3f')}, entropy {figure(people['entropy']['human'], '.3f')}, "
        f"deviation {figure(people['deviation']['human'], '+.3f')}, "
        f"distinct-4 {figure(people['distinct_4']['human'], '.4f')}, "
        f"repetition {figure(people['repetition']['human'], '.4f')} "
        f"({people['n']} pairs of {people['n_sources']} texts).\n\n"
        + (f"Read by {entry['reader']}.\n\n" if "reader" in entry else "")
        + (f"Written like {entry['like']}.\n\n" if "like" in entry else "")
        + "| decoding | surprisal | gap [95%] | gap, % | per text | W1 surprisal | W1 deviation | entropy "
        "| distinct-4, % | repetition, % |\n"
        "|---|---|---|---|---|---|---|---|---|---|\n"
    )
    lines = []
    for row in rows:
        tuned = row["settings"].values() if row["decoding"].endswith(TUNED) else ()
        cells = [
            row["decoding"] + "".join(f" ({value:.4g})" for value in tuned),
            figure(row["model_value"], ".3f"),
            with_interval(row["gap"], row["ci95"], "+.3f"),
            f"{100 * row['gap'] / row['human']:+.1f}" if row["n"] else MISSING,
            figure(row["text_distance"], ".3f"),
            figure(row["wasserstein_surprisal"], ".3f"),
            figure(row["wasserstein_deviation"], ".4f"),
            figure(row["entropy"]["model_value"], ".3f"),
            percent_more(**row["distinct_4"]),
            percent_more(**row["repetition"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return head + "\n".join(lines) + "\n"


def percent_more(human: float | None, model_value: float | None) -> str:
    """By how many percent a model's value exceeds people's; empty where people's is nothing to compare with."""
    return f"{100 * (model_value / human - 1):+.1f}" if human and human > 0 and model_value is not None else ""


if __name__ == "__main__":
    sys.exit(main(["eval", "decoding", *sys.argv[1:]]))
