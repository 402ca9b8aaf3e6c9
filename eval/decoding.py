"""Which way to decode writes as people do: the sampler at human uncertainty beside the others."""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ugap.cli.arguments import option
from ugap.cli.eval import load_program
from ugap.cli.main import main
from ugap.files import replacing

if TYPE_CHECKING:
    from rich.progress import Progress
    from transformers import LogitsProcessor

    from ugap.data import PartStore, TextRow
    from ugap.scoring import Scorer
    from ugap.study.excerpts import Excerpt
    from ugap.study.table import ScoredText

DESCRIPTION = """\
Compare ways to decode on held-out human texts: surprisal, its distribution, repetition and variety against people's.

examples:
  ugap eval decoding --model gemma-3-270m --data stories.test.jsonl --tune stories.val.jsonl --output runs/decoding
  ugap eval decoding --model gemma-3-270m --data stories.jsonl --decoding ugap-creative ancestral "warm=temperature:1.1"

Prefixes of human texts are continued under every decoding, by every seed, and read by the model itself, as people's
continuations are. decodings: those of ugap measure, and temperature-tuned (the temperature at which the mean surprisal
on the texts of --tune is the human one), mirostat-2 (holding the human level of the profile), top-n-sigma-1.

The folder gets decoding.json and decoding.md: for each decoding the mean surprisal against people's with its interval
(bootstrap over source texts), the 1-Wasserstein distances of the per-token distributions of surprisal and deviation,
distinct-4 and repetition (rep/128) against people's."""

VERSION = 1
TUNED, MIROSTAT, TOP_N_SIGMA = "temperature-tuned", "mirostat-2", "top-n-sigma-1"
DECODINGS = [
    "ugap-creative",
    "ancestral",
    TUNED,
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
HUMAN = "human"


@dataclass(kw_only=True)
class Arguments:
    """Arguments of `ugap eval decoding`."""

    model: list[str] = option(
        "models that write and read", default=["gemma-3-270m", "smollm2-135m-instruct"], group="models", metavar="NAME"
    )
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = option(
        "type of the weights", default="float32", group="models"
    )
    device: str | None = option("where models run (default: the GPU if there is one)", default=None, group="models")
    trust_remote_code: bool = option("run the code that a repository brings along", default=False, group="models")
    data: str = option("human texts to continue and compare with", group="texts", metavar="FILE")
    tune: str | None = option(
        f"other human texts, to tune the temperature of {TUNED} on", default=None, group="texts", metavar="FILE"
    )
    profile: str | None = option(
        "human profile of the model (default: the shipped one)", default=None, group="models", metavar="NAME"
    )
    domain: str = option("domain of the texts that are taken", default="creative", group="texts")
    limit: int = option("prefixes", default=46, group="texts")
    per_text: int = option("prefixes of one text", default=2, group="texts")
    prefix_tokens: int = option("tokens of a prefix", default=64, group="texts")
    max_new_tokens: int = option("tokens of a continuation", default=128, group="texts")
    decoding: list[str] = option("decodings", default=DECODINGS, group="decodings", metavar="NAME")
    seeds: int = option("continuations of every prefix, each with a seed of its own", default=3, group="decodings")
    batch_size: int = option("prefixes that are continued side by side", default=23, group="decodings")
    output: str = option("folder of the results", default="runs/decoding", group="output", metavar="DIR")
    resume: bool = option("go on with an interrupted run, or add decodings", default=False, group="output")


def run(arguments: Arguments) -> None:
    """Write, read, compare, print the tables and write `decoding.json` and `decoding.md`.

    Raises:
        InputError: The input is bad; what is finished stays for `--resume`.
    """
    from ugap.data import PartStore
    from ugap.data.domain import load_domain
    from ugap.errors import InputError
    from ugap.progress import progress_bar
    from ugap.scoring import Scorer
    from ugap.study.decodings import parse_decodings
    from ugap.study.store import SCORED
    from ugap.study.study import environment, without_nan

    special = [name for name in arguments.decoding if name in (TUNED, MIROSTAT, TOP_N_SIGMA)]
    decodings: dict[str, dict[str, Any]] = {
        **parse_decodings([name for name in arguments.decoding if name not in special]),
        **{name: {} for name in special},
    }
    decodings = {name.partition("=")[0]: decodings[name.partition("=")[0]] for name in arguments.decoding}
    if arguments.profile is not None:
        for how in decodings.values():
            if "human_weight" in how:
                how.setdefault("human_profile", arguments.profile)
    if TUNED in decodings and arguments.tune is None:
        raise InputError(f"{TUNED} needs --tune: other human texts, to tune the temperature on")
    for name, number in (("seeds", arguments.seeds), ("limit", arguments.limit), ("batch_size", arguments.batch_size)):
        if number < 1:
            raise InputError(f"{name}: expected a positive number, got {number}")
    rows = load_domain(arguments.data, arguments.domain)
    others = load_domain(arguments.tune, arguments.domain) if arguments.tune else []
    output = Path(arguments.output)
    if (output / "parts").exists() and not arguments.resume:
        raise InputError(f"{output}: there are results already; add --resume to go on, or choose another folder")
    settings = {
        **{
            name: value
            for name, value in asdict(arguments).items()
            if name not in ("model", "decoding", "seeds", "output", "resume", "device", "trust_remote_code")
        },
        "data_hash": digest([row.text for row in rows]),
        "tune_hash": digest([row.text for row in others]),
    }
    parts = PartStore(output / "parts", SCORED, settings)
    records = []
    for name in arguments.model:
        scorer = Scorer.from_pretrained(
            name,
            dtype=arguments.dtype,
            device=arguments.device,
            trust_remote_code=arguments.trust_remote_code,
        )
        with progress_bar() as bar:
            writer = Writer(scorer, arguments, parts, bar)
            excerpts = writer.cut(rows)
            human = writer.texts("test", excerpts, HUMAN, {}, 0)
            if TUNED in decodings:
                decodings[TUNED] = {"temperature": tuned_temperature(writer, writer.cut(others))}
            made = {
                (decoding, seed): writer.texts("test", excerpts, decoding, how, seed)
                for decoding, how in decodings.items()
                for seed in range(arguments.seeds)
            }
        table = [
            {
                "model": name,
                "settings": how,
                **compare(human, [made[decoding, seed] for seed in range(arguments.seeds)]),
            }
            for decoding, how in decodings.items()
        ]
        for row, decoding in zip(table, decodings, strict=True):
            row["decoding"] = decoding
        records.append({"model": name, "weight_hash": scorer.id.weight_hash, "rows": table})
    record = {
        "version": VERSION,
        "settings": {
            **settings,
            "decodings": arguments.decoding,
            "seeds": arguments.seeds,
            "environment": environment(),
        },
        "models": records,
    }
    with replacing(output / "decoding.json") as temporary:
        temporary.write_text(json.dumps(without_nan(record), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    text = "\n".join(markdown(entry) for entry in records)
    with replacing(output / "decoding.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)


@dataclass(frozen=True)
class Writer:
    """One model that continues prefixes and reads what was written; finished batches are kept and read again."""

    scorer: "Scorer"
    arguments: Arguments
    parts: "PartStore"
    bar: "Progress"

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
        self, use: str, excerpts: "Sequence[Excerpt]", decoding: str, how: Mapping[str, Any], seed: int
    ) -> "list[ScoredText]":
        """What was written under one decoding by one seed, scored; people's own continuations for `"human"`."""
        from ugap.study.store import from_row, to_row

        size, out = self.arguments.batch_size, []
        label = f"{self.scorer.name} {'tunes' if use == 'tune' else 'writes'}: {decoding}, seed {seed}"
        task = None
        for number, start in enumerate(range(0, len(excerpts), size)):
            batch = excerpts[start : start + size]
            key = "|".join((self.scorer.name, use, decoding, json.dumps(how, sort_keys=True), str(seed), str(number)))
            if not self.parts.done(key):
                if task is None:
                    task = self.bar.add_task(label, total=len(excerpts), completed=start)
                self.parts.write(key, [to_row(text) for text in self._write(batch, decoding, how, key)])
            if task is not None:
                self.bar.update(task, completed=start + len(batch))
            out += [from_row(row) for row in self.parts.read(key)]
        return out

    def _write(self, batch: "Sequence[Excerpt]", decoding: str, how: Mapping[str, Any], key: str) -> "list[ScoredText]":
        from ugap.study.generation import generate_continuations, seed_of
        from ugap.study.store import no_scores
        from ugap.study.table import ScoredText

        scorer = self.scorer
        prefixes = [excerpt.prefix for excerpt in batch]
        if decoding == HUMAN:
            texts = [excerpt.human for excerpt in batch]
        else:
            plain = scorer.tokenizer(prefixes, add_special_tokens=False, split_special_tokens=True)
            texts = generate_continuations(
                scorer.model,
                scorer.tokenizer,
                [scorer.bos + ids for ids in plain["input_ids"]],
                how,
                max_new_tokens=self.arguments.max_new_tokens,
                seed=seed_of(key),
                domain=self.arguments.domain,
                processors=self._peers(decoding),
            )
        # A model may write nothing; a human text has to be scored.
        scores = scorer.score(texts, prefixes, skip_bad=decoding != HUMAN)
        return [
            ScoredText(
                excerpt.id,
                excerpt.source,
                excerpt.domain,
                scorer.name,
                "raw",
                decoding,
                scorer.name,
                excerpt.prefix,
                score or no_scores(text, scorer.id, []),
            )
            for excerpt, text, score in zip(batch, texts, scores, strict=True)
        ]

    def _peers(self, decoding: str) -> "list[LogitsProcessor]":
        from ugap.sampling import human_figures, profile_of

        if decoding not in (MIROSTAT, TOP_N_SIGMA):
            return []
        peers = load_program(Path(__file__).with_name("peers.py"))
        if decoding == TOP_N_SIGMA:
            return [peers.TopNSigmaLogitsProcessor(1.0)]
        level = human_figures(profile_of(self.scorer.model, self.arguments.profile), self.arguments.domain)["level"]
        return [peers.MirostatLogitsProcessor(level)]


def tuned_temperature(writer: Writer, excerpts: "Sequence[Excerpt]") -> float:
    """The temperature at which the mean surprisal of what is written is that of people; see `ugap.study.matched`."""
    import numpy as np

    from ugap.study.matched import matched_temperature

    def level(texts: "Sequence[ScoredText]") -> float:
        return float(np.mean([text.scores.nll for text in texts if len(text.scores)]))

    def level_at(temperature: float) -> float:
        return level(writer.texts("tune", excerpts, f"temperature-{temperature}", {"temperature": temperature}, 0))

    return matched_temperature(level(writer.texts("tune", excerpts, HUMAN, {}, 0)), level_at)


def compare(human: "Sequence[ScoredText]", seeds: "Sequence[Sequence[ScoredText]]") -> dict[str, Any]:
    """One row of the table: what the texts of all seeds are like beside people's, pair by pair cut to one length."""
    import numpy as np

    from ugap.study.table import gap_table, pair
    from ugap.study.variety import variety

    (cell,) = pair([*human, *(text for texts in seeds for text in texts)])
    measures = {row["measure"]: row for row in gap_table([cell], seed=0)}
    nll, deviation = measures["nll"], measures["deviation"]
    varied: dict[str, list[list[float]]] = {"distinct_4": [], "repetition": []}
    for texts in seeds:  # each sample is as large as people's
        (one,) = pair([*human, *texts])
        both = [variety(one.human), variety(one.generated)]
        for name, values in varied.items():
            values.append([side[name] for side in both])
    return {
        "n": nll["n"],
        "n_sources": nll["n_sources"],
        "n_dropped": cell.n_dropped,
        **{name: nll[name] for name in ("human", "model_value", "gap", "ci95", "p_value")},
        "wasserstein_surprisal": nll["wasserstein"],
        "wasserstein_deviation": deviation["wasserstein"],
        "entropy": {name: measures["entropy"][name] for name in ("human", "model_value")},
        "deviation": {name: deviation[name] for name in ("human", "model_value")},
        **{
            name: dict(zip(("human", "model_value"), np.mean(values, axis=0).tolist(), strict=True))
            for name, values in varied.items()
        },
    }


def markdown(entry: Mapping[str, Any]) -> str:
    """The table of one model."""
    rows = entry["rows"]
    people = rows[0]
    head = (
        f"### {entry['model']}\n\n"
        f"People: surprisal {people['human']:.3f}, entropy {people['entropy']['human']:.3f}, deviation "
        f"{people['deviation']['human']:+.3f}, distinct-4 {people['distinct_4']['human']:.4f}, repetition "
        f"{people['repetition']['human']:.4f} ({people['n']} pairs of {people['n_sources']} texts).\n\n"
        "| decoding | surprisal | gap [95%] | gap, % | W1 surprisal | W1 deviation | entropy | distinct-4, % "
        "| repetition, % |\n"
        "|---|---|---|---|---|---|---|---|---|\n"
    )
    lines = []
    for row in rows:
        low, high = row["ci95"]
        shares = [percent_more(**row[m]) for m in ("distinct_4", "repetition")]
        temperature = row["settings"].get("temperature")
        name = f"{row['decoding']} ({temperature})" if row["decoding"] == TUNED else row["decoding"]
        lines.append(
            f"| {name} | {row['model_value']:.3f} | {row['gap']:+.3f} [{low:+.3f}, {high:+.3f}] "
            f"| {100 * row['gap'] / row['human']:+.1f} | {row['wasserstein_surprisal']:.3f} "
            f"| {row['wasserstein_deviation']:.4f} | {row['entropy']['model_value']:.3f} "
            f"| {shares[0]} | {shares[1]} |"
        )
    return head + "\n".join(lines) + "\n"


def percent_more(human: float, model_value: float) -> str:
    """By how many percent a model's value exceeds people's; empty where people's is nothing to compare with."""
    return f"{100 * (model_value / human - 1):+.1f}" if human > 0 else ""


def digest(texts: Sequence[str]) -> str:
    """A fingerprint of texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


if __name__ == "__main__":
    sys.exit(main(["eval", "decoding", *sys.argv[1:]]))
