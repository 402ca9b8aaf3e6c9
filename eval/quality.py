"""Does uncertainty go with quality? Rated texts, the measures of each, and how far each is from people's."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ugap.cli.arguments import option
from ugap.cli.main import main
from ugap.cli.model import adapter_option, device_option, trust_option
from ugap.files import locked, refuse_results, without_nan, write_json
from ugap.study.options import Dtype

if TYPE_CHECKING:
    from rich.console import Console

    from ugap.profile import KindProfile
    from ugap.scoring import Scorer, TokenScores
    from ugap.study.analysis.quality import RatedText

DESCRIPTION = """\
Relate the uncertainty of rated texts to their ratings: correlations, and whether too little and too much are worse.

examples:
  ugap eval quality --data rated.jsonl --text story --rating creativity --author author
  ugap eval quality --model gemma-3-270m --data rated.jsonl --text story --prompt prompt \\
      --rating expert_creativity lay_creativity --author author --group prompt --output runs/quality

Every measure of a text (surprisal, entropy, varentropy, deviation, rank, ...) and its distance from people in the human
profile of the scorer are correlated with each rating: Spearman's and Pearson's, and Spearman's partial for the length,
with 95% bootstrap intervals over texts and Holm's correction over the measures. An inverted U is found where the
quadratic term is below 0 and lines below and above its peak rise and fall, all beyond chance.

With --author all of it is done overall, within author group, and for each author group. Where people's texts are both
rated higher and more surprising, only the numbers within author group speak of uncertainty. --group narrows everything
to texts of one group, such as the answers to one prompt.

A profile is nearer to the texts that it was fitted to than to others. The shipped kind story was fitted to human
stories of creative-story-gen and HANNA: --without story where those are rated.

The folder gets quality.json: settings and all numbers; quality.png and quality-curves.png; and parts, from which
--resume goes on."""

NAME, PARTS = "quality", "parts"
VERSION = 1
WIDTH = 132  # of a table, where no terminal says how wide it is


@dataclass(kw_only=True)
class Arguments:
    """Arguments of `ugap eval quality`."""

    data: str = option("rated texts: .jsonl(.gz), .csv(.gz), .parquet or a Hub data set", group="texts", metavar="FILE")
    text: str = option("column of the text", default="text", group="texts", metavar="COLUMN")
    rating: list[str] = option("columns of the ratings: numbers, higher is better", group="texts", metavar="COLUMN")
    author: str | None = option(
        "column of who wrote, such as human or model", default=None, group="texts", metavar="COLUMN"
    )
    group: str | None = option(
        "column of what texts are compared within, such as the prompt", default=None, group="texts", metavar="COLUMN"
    )
    prompt: str | None = option(
        "column of the text's prompt, which the scorer reads before the text",
        default=None,
        group="texts",
        metavar="COLUMN",
    )
    limit: int | None = option("take the first N rows only", default=None, group="texts")
    model: str = option(
        "scorer: asset, folder, .gguf file or Hub id", default="gemma-3-270m", group="scorer", metavar="NAME"
    )
    adapter: str | None = adapter_option("scorer")
    profile: str | None = option(
        "human profile of the scorer, a file or the name of a shipped one (default: the scorer's own)",
        default=None,
        group="scorer",
        metavar="NAME",
    )
    domain: str = option("kind or domain of the profile", default="creative", group="scorer")
    without: list[str] = option(
        "kinds of the profile to leave out, such as one that was fitted to the rated texts",
        default=[],
        group="scorer",
        metavar="KIND",
    )
    dtype: Dtype = option("type of the weights", default="float32", group="scorer")
    device: str | None = device_option("scorer")
    trust_remote_code: bool = trust_option("scorer")
    pmi: bool = option("also score each text without its prompt, for PMI and CPMI", default=False, group="scorer")
    resamples: int = option("bootstrap resamples", default=2000, group="statistics")
    seed: int = option("seed of the bootstrap", default=0, group="statistics")
    output: str = option("folder of the results", default="runs/quality", group="output", metavar="DIR")
    resume: bool = option("resume an interrupted run", default=False, group="output")


def run(arguments: Arguments) -> None:
    """Score, relate, print the tables and write `quality.json` and the plots.

    Raises:
        InputError: The input is bad; what is finished stays for `--resume`.
    """
    from ugap.environment import environment
    from ugap.errors import InputError
    from ugap.report.quality import plot_curves, plot_quality
    from ugap.scoring import Scorer
    from ugap.study.analysis.quality import human_means, load_rated, quality_measures, relate
    from ugap.terminal import Terminal

    if arguments.resamples < 100:
        raise InputError(f"resamples is {arguments.resamples}, and at least 100 are needed")
    if arguments.pmi and arguments.prompt is None:
        raise InputError("--pmi needs --prompt: the column of the text's prompt")
    output = Path(arguments.output)
    refuse_results(arguments.output, arguments.resume, PARTS)
    with locked(output):
        texts = load_rated(
            arguments.data,
            arguments.rating,
            text_column=arguments.text,
            author_column=arguments.author,
            group_column=arguments.group,
            prompt_column=arguments.prompt,
            limit=arguments.limit,
        )
        # After the texts: a wrong column is found without a model.
        scorer = Scorer.from_pretrained(
            arguments.model,
            adapter=arguments.adapter,
            dtype=arguments.dtype,
            device=arguments.device,
            trust_remote_code=arguments.trust_remote_code,
        )
        profile, source = find_profile(arguments, scorer)
        scores = score(texts, scorer, arguments, output / PARTS)
        measures = [quality_measures(one, profile) for one in scores]
        record = without_nan(
            {
                "version": VERSION,
                "settings": {
                    "arguments": asdict(arguments),
                    "scorer": list(scorer.id),
                    "profile": source,
                    "environment": environment(),
                },
                "n_texts": len(texts),
                "means": means(texts),
                "human": human_means(profile),
                "relations": relate(texts, measures, resamples=arguments.resamples, seed=arguments.seed),
                "texts": [
                    {
                        "id": text.row.id,
                        "author": text.author,
                        "group": text.group,
                        "ratings": text.ratings,
                        "measures": one,
                    }
                    for text, one in zip(texts, measures, strict=True)
                ],
            }
        )
        write_json(output / f"{NAME}.json", record)
        plot_quality(record["relations"], output / f"{NAME}.png")
        plot_curves(record["texts"], output / f"{NAME}-curves.png", human=record["human"].get("nll"))
        console = Terminal()
        # In a pipe rich assumes 80 columns, which folds the numbers.
        if not console.is_terminal:
            console = Terminal(width=WIDTH)
        print_tables(record, console)
        console.print(f"All numbers are in {output / f'{NAME}.json'}", markup=False, soft_wrap=True)


def find_profile(arguments: Arguments, scorer: "Scorer") -> "tuple[KindProfile, str]":
    """The human profile, and where its texts came from."""
    from ugap.sampling import profile_of

    profile = profile_of(scorer.model, arguments.profile, scorer.tokenizer)
    for kind in arguments.without:
        profile = profile.without(kind)
    return profile.kind(arguments.domain), profile.source


def score(texts: "Sequence[RatedText]", scorer: "Scorer", arguments: Arguments, folder: Path) -> "list[TokenScores]":
    """The scores of the texts; finished parts are kept and read again."""
    from ugap.data import content_hash
    from ugap.study.scoring_job import ScoringJob
    from ugap.study.store import scores_from_row

    # Parts are resumed only for the same texts.
    texts_hash = content_hash([(text.prefix, text.row.text) for text in texts])
    settings = {"dtype": arguments.dtype, "texts_hash": texts_hash}
    job = ScoringJob(scorer, folder, pmi=arguments.pmi, resume=arguments.resume, settings=settings)
    keys = job.run(
        [text.row.id for text in texts],
        [text.row.text for text in texts],
        [text.prefix for text in texts],
        where=[f"{text.row.where}, text {text.row.id!r}" for text in texts],
        progress=True,
    )
    return [scores_from_row(row, scorer.id) for key in keys for row in job.store.read(key)]


def means(texts: "Sequence[RatedText]") -> list[dict[str, Any]]:
    """The mean of every rating, by author group."""
    import numpy as np

    out = []
    for rating in texts[0].ratings:
        for author in dict.fromkeys(text.author for text in texts):
            values = [text.ratings[rating] for text in texts if text.author == author]
            rated = [value for value in values if np.isfinite(value)]
            mean = float(np.mean(rated)) if rated else float("nan")
            out.append({"rating": rating, "author": author, "n": len(rated), "mean": mean})
    return out


def print_tables(record: Mapping[str, Any], console: "Console") -> None:
    """For every rating the correlations, and the inverted U, of every measure."""
    from ugap.report.quality import curve_table, relation_table

    rows = record["relations"]
    for rating in dict.fromkeys(row["rating"] for row in rows):
        of = [row for row in rows if row["rating"] == rating]
        rating_means = [one for one in record["means"] if one["rating"] == rating]
        rated = "; ".join(
            f"{one['author'] or 'all'}: mean {one['mean']:.2f} of {one['n']} texts" for one in rating_means if one["n"]
        )
        console.print(f"{rating} ({rated}), read by {record['settings']['scorer'][0]}", style="bold", markup=False)
        console.print(relation_table(of))
        console.print()
        console.print(curve_table(of))
        console.print()


if __name__ == "__main__":
    sys.exit(main(["eval", NAME, *sys.argv[1:]]))
