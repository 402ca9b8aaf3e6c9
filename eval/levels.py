"""Whether text is written at the human level of its kind, whatever kind it is."""

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ugap.cli.arguments import option
from ugap.cli.main import main
from ugap.cli.model import ModelOptions
from ugap.files import locked, refuse_results, without_nan, write_json

if TYPE_CHECKING:
    import numpy as np

    from ugap.data import TextRow
    from ugap.profile import HumanProfile
    from ugap.scoring import Scorer
    from ugap.study.excerpts import Excerpt

DESCRIPTION = """\
Continue prefixes of human texts of many kinds, and compare the mean surprisal with people's.

examples:
  ugap eval levels --model smollm2-135m-instruct --data texts.jsonl --output runs/levels
  ugap eval levels --model smollm2-135m-instruct --data texts.jsonl --without reviews=review --like 32 --resume

The texts need a column kind. People's level of a kind is that of all its texts, behind the prefix.

decodings: those of ugap measure, and
  auto               the prompt sets the level
  named              the kind of the profile that --named KIND=PROFILE_KIND gives
  like               a profile of --like other texts of the kind
  temperature-tuned  the temperature whose text has people's level on the same prefixes
--without KIND=PROFILE_KIND hides a kind of the profile from auto, for texts of a kind.

The folder gets levels.json, with a row for each kind and decoding. A row has the miss of people's level in per cent
with its interval (bootstrap over texts) and the Wasserstein distance of the surprisals. It also has the mean distance
between the two texts of a prefix."""

AUTO, NAMED, LIKE, TUNED = "auto", "named", "like", "temperature-tuned"
DECODINGS = [AUTO, NAMED, LIKE, "ancestral", TUNED]
PARTS = "parts"
RESAMPLES = 2000
READ_TOGETHER = 32


@dataclass(kw_only=True)
class Arguments(ModelOptions):
    """Arguments of `ugap eval levels`."""

    data: str = option("human texts with a column kind", group="texts", metavar="FILE")
    profile: str | None = option(
        "human profile of the model (default: its own)", default=None, group="model", metavar="NAME"
    )
    limit: int = option("prefixes of a kind", default=24, group="texts")
    prefix_tokens: int = option("tokens of a prefix", default=64, group="texts")
    max_new_tokens: int = option("tokens of a continuation", default=64, group="texts")
    decoding: list[str] = option("decodings", default=DECODINGS, group="decodings", metavar="NAME")
    named: list[str] = option(
        "kind of the profile that texts of a kind are", default=[], group="decodings", metavar="KIND=PROFILE_KIND"
    )
    without: list[str] = option(
        "kind of the profile that auto does not know for texts of a kind",
        default=[],
        group="decodings",
        metavar="KIND=PROFILE_KIND",
    )
    like: int = option("texts that like learns from", default=32, group="decodings")
    seeds: int = option("continuations of every prefix, each with a seed of its own", default=3, group="decodings")
    batch_size: int = option("prefixes that are continued together", default=12, group="decodings")
    output: str = option("folder of the results", default="runs/levels", group="output", metavar="DIR")
    resume: bool = option("resume an interrupted run, or add decodings", default=False, group="output")


def run(arguments: Arguments) -> None:
    """Write, read, compare, print the table and write `levels.json`.

    Raises:
        InputError: The input is bad; finished parts stay for `--resume`.
    """
    from ugap.data import content_hash, load_texts
    from ugap.environment import environment
    from ugap.scoring import Scorer

    rows: dict[str, list[TextRow]] = defaultdict(list)
    for row in load_texts(arguments.data):
        rows[row.kind].append(row)
    named, without = (pairs_of(name, getattr(arguments, name), rows) for name in ("named", "without"))
    output = Path(arguments.output)
    refuse_results(arguments.output, arguments.resume, PARTS)
    with locked(output):
        scorer = Scorer.from_pretrained(arguments.model, **arguments.loading())
        table = measure(arguments, scorer, rows, named, without)
        # In the names of the parts already, or free to change between two runs.
        elsewhere = ("output", "resume", "device", "trust_remote_code")
        settings = {name: value for name, value in asdict(arguments).items() if name not in elsewhere}
        record = {
            "model": arguments.model,
            "weight_hash": scorer.id.weight_hash,
            "settings": settings,
            "data_hash": content_hash([row.text for column in rows.values() for row in column]),
            "environment": environment(),
            "rows": table,
        }
        write_json(output / "levels.json", dict(without_nan(record)))
    show(table)


def pairs_of(option_name: str, words: Sequence[str], kinds: Any) -> dict[str, str]:
    """The pairs of `--named` or `--without`.

    Raises:
        InputError: A word is no pair, or names a kind that no text has.
    """
    from ugap.errors import InputError

    out = {}
    for word in words:
        kind, equals, other = word.partition("=")
        if not equals or not other:
            raise InputError(f"--{option_name} {word!r}: not KIND=PROFILE_KIND")
        if kind not in kinds:
            raise InputError(f"--{option_name} {word!r}: no text is of kind {kind!r}; there are {', '.join(kinds)}")
        out[kind] = other
    return out


def measure(
    arguments: Arguments,
    scorer: "Scorer",
    rows: "dict[str, list[TextRow]]",
    named: dict[str, str],
    without: dict[str, str],
) -> list[dict[str, Any]]:
    """A row for every kind and decoding."""
    import numpy as np

    from ugap.profile.fitting import like_texts
    from ugap.progress import progress_bar
    from ugap.sampling import profile_of
    from ugap.study.compare.matched import matched_setting
    from ugap.study.continuations import Continuations, Text, batches
    from ugap.study.decodings import parse_decodings
    from ugap.study.excerpts import cut_excerpts
    from ugap.study.generation import seed_of
    from ugap.study.pairs import HUMAN

    output = Path(arguments.output)
    profile = profile_of(scorer.model, arguments.profile, scorer.tokenizer)
    for kind in (*named.values(), *without.values()):
        profile.weights(kind)
    others = parse_decodings([name for name in arguments.decoding if name not in (AUTO, NAMED, LIKE, TUNED)])
    work = Continuations(output / PARTS, {})

    def ours(name: str, kind: str, one: "HumanProfile") -> dict[str, Any]:
        path = output / "profiles" / f"{name}-{kind}.json"
        one.save(path)
        return {"human_weight": 1.0, "human_kind": AUTO, "human_profile": str(path)}

    def write(
        kind: str, excerpts: "Sequence[Excerpt]", name: str, how: dict[str, Any], seed: int
    ) -> "list[tuple[str, np.ndarray]]":
        """Continuations of the excerpts: the id of each, and the surprisals that the model itself reads."""
        out = []
        for _, batch in batches(excerpts, arguments.batch_size):
            texts = work.write(
                scorer,
                batch,
                name,
                how,
                kind,
                max_new_tokens=arguments.max_new_tokens,
                seed=seed_of(kind, name, seed, batch[0].id),
            )
            read = [Text(one, scorer.name, name, text) for one, text in zip(batch, texts, strict=True)]
            scored = work.scores(work.read(scorer, read, kind, name, str(seed), pmi=False))
            out += [(one.id, one.scores.surprisal) for one in scored]
        return out

    def tuned(kind: str, excerpts: "Sequence[Excerpt]", level: float) -> dict[str, Any]:
        def level_at(temperature: float) -> float:
            how = {"temperature": temperature}
            written = write(kind, excerpts, f"temperature-{temperature}", how, 0)
            return float(np.mean([surprisal.mean() for _, surprisal in written if len(surprisal)]))

        return {"temperature": matched_setting(level, level_at)}

    table = []
    with progress_bar() as bar:
        task = bar.add_task("kinds", total=len(rows))
        for kind, column in rows.items():
            excerpts = cut_excerpts(
                column,
                scorer.tokenizer,
                prefix_tokens=arguments.prefix_tokens,
                max_new_tokens=arguments.max_new_tokens,
                min_new_tokens=arguments.max_new_tokens // 2,
                per_text=1,
            )
            used, rest = excerpts[: arguments.limit], excerpts[arguments.limit :]
            human = [
                one.scores.surprisal
                for _, batch in batches(excerpts, READ_TOGETHER)
                for one in work.scores(
                    work.read(scorer, [Text(one, HUMAN, HUMAN, one.human) for one in batch], kind, HUMAN, pmi=False)
                )
            ]
            number_of = {one.id: number for number, one in enumerate(excerpts)}
            hows: dict[str, dict[str, Any]] = {}
            for name in arguments.decoding:
                if name == AUTO:
                    hows[name] = ours(name, kind, profile.without(without[kind]) if kind in without else profile)
                elif name == NAMED:
                    if kind in named or kind in profile.kinds:
                        hows[name] = {**ours(name, kind, profile), "human_kind": named.get(kind, kind)}
                elif name == LIKE:
                    if len(rest) >= arguments.like:
                        texts = [one.prefix + one.human for one in rest[: arguments.like]]
                        hows[name] = {**ours(name, kind, like_texts(profile, scorer, texts)), "human_kind": LIKE}
                elif name == TUNED:
                    hows[name] = tuned(kind, used, float(np.mean([text.mean() for text in human])))
                else:
                    hows[name] = others[name.partition("=")[0]]
            for name, how in hows.items():
                written = [text for seed in range(arguments.seeds) for text in write(kind, used, name, how, seed)]
                sources = [number_of[id] for id, _ in written]
                row = {"kind": kind, "decoding": name, **compared(human, [text for _, text in written], sources)}
                table.append({**row, **({"temperature": how["temperature"]} if name == TUNED else {})})
            bar.advance(task)
    return table


def compared(human: "Sequence[np.ndarray]", written: "Sequence[np.ndarray]", sources: Sequence[int]) -> dict[str, Any]:
    """How far what was written lies from people's level.

    Args:
        human (`Sequence[np.ndarray]`): Surprisals of people's continuations in nats; the first are those of `sources`.
        written (`Sequence[np.ndarray]`): Surprisals of what was written, several for a prefix.
        sources (`Sequence[int]`): The human text that each has its prefix from.
    """
    import numpy as np
    from scipy.stats import wasserstein_distance

    levels = np.array([text.mean() for text in human])
    means = np.array([text.mean() if len(text) else np.nan for text in written])
    source = np.asarray(sources)
    kept = np.isfinite(means)
    means, source = means[kept], source[kept]
    rng = np.random.default_rng(0)
    misses = []
    for _ in range(RESAMPLES):
        # Texts that were continued are texts of the level too, and are resampled together with what follows them.
        drawn = rng.integers(len(levels), size=len(levels))
        weight = np.bincount(drawn, minlength=len(levels))[source]
        if weight.sum():
            misses.append(100 * ((means @ weight) / weight.sum() / levels[drawn].mean() - 1))
    return {
        "n_texts": len(human),
        "n_written": len(means),
        "human": float(levels.mean()),
        "written": float(means.mean()),
        "miss_percent": float(100 * (means.mean() / levels.mean() - 1)),
        "miss_ci95": [float(value) for value in np.quantile(misses, [0.025, 0.975])],
        "w1_surprisal": float(wasserstein_distance(np.concatenate(human), np.concatenate(written))),
        "text_distance": float(np.abs(means - levels[source]).mean()),
    }


def show(table: Sequence[dict[str, Any]]) -> None:
    """Print a row for every kind and decoding, and the means over kinds."""
    import numpy as np
    from rich.table import Table

    from ugap.terminal import Terminal, one_line

    out = Table("kind", "decoding", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("people", "written", "miss, %", "95%", "W1", "per text"):
        out.add_column(name, justify="right")
    for row in table:
        low, high = row["miss_ci95"]
        numbers = (row["human"], row["written"])
        out.add_row(
            one_line(row["kind"]),
            one_line(row["decoding"]),
            *(f"{value:.2f}" for value in numbers),
            f"{row['miss_percent']:+.1f}",
            f"[{low:+.1f}, {high:+.1f}]",
            f"{row['w1_surprisal']:.2f}",
            f"{row['text_distance']:.2f}",
        )
    console = Terminal()
    console.print(out)
    for name in dict.fromkeys(row["decoding"] for row in table):
        rows = [row for row in table if row["decoding"] == name]
        mean = np.mean([abs(row["miss_percent"]) for row in rows])
        w1 = np.mean([row["w1_surprisal"] for row in rows])
        console.print(one_line(f"{name}: mean absolute miss {mean:.1f}% over {len(rows)} kinds, W1 {w1:.2f}"))


if __name__ == "__main__":
    sys.exit(main(["eval", "levels", *sys.argv[1:]]))
