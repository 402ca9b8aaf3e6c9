"""How varied are several texts to one prompt, compared with human ones?"""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ugap.cli.arguments import option
from ugap.cli.main import main
from ugap.files import without_nan, write_json

if TYPE_CHECKING:
    from rich.console import Console

    from ugap.models.embedding import Embedder

DESCRIPTION = """\
Compare how varied several texts to one prompt are, by each system that wrote them, with people's.

examples:
  ugap eval diversity --data samples.jsonl --group prompt
  ugap eval diversity --data samples.jsonl --text story --group prompt --system writer --reference human \\
      --samples 8 --words 50 --output runs/diversity

All texts are cut to their first --words words (shorter ones are left out), and what one system wrote to one prompt is
taken in sets of --samples texts, since variety depends on both. Of every set: distinct-2 and distinct-4 (word n-grams
that differ), self-BLEU (each text against the others), compression ratio, repeated-4 (word 4-grams that come back
within a text), and, from embeddings by all-MiniLM-L6-v2, the number of clusters of texts that say about the same and
the Vendi score, an effective number of different texts. Means over sets; intervals and tests are over prompts.

Self-BLEU, clusters and Vendi need `pip install "ugap[diversity]"`; without it they are left out.
The folder gets diversity.json."""

NAME = "diversity"
VERSION = 1
WIDTH = 150  # of a table, where no terminal says how wide it is
WHOLE = ("clusters", "vendi")  # numbers of texts; the others are shares and a ratio


@dataclass(kw_only=True)
class Arguments:
    """Arguments of `ugap eval diversity`."""

    data: str = option("texts: .jsonl(.gz), .csv(.gz), .parquet or a Hub data set", group="texts", metavar="FILE")
    text: str = option("column of the text", default="text", group="texts", metavar="COLUMN")
    group: str = option("column of the prompt, or of its name", group="texts", metavar="COLUMN")
    system: str | None = option(
        "column of who wrote, such as the model or the decoding", default=None, group="texts", metavar="COLUMN"
    )
    reference: str | None = option(
        "the system that the others are compared with (default: human, if there is one)",
        default=None,
        group="texts",
        metavar="NAME",
    )
    samples: int = option("texts of a set", default=8, group="measures")
    words: int = option("words that texts are cut to", default=50, group="measures")
    threshold: float = option(
        "largest mean cosine distance within a cluster's last joining", default=0.4, group="measures", metavar="X"
    )
    device: str | None = option(
        "where texts are embedded (default: the GPU if there is one)", default=None, group="measures"
    )
    resamples: int = option("bootstrap resamples", default=2000, group="statistics")
    seed: int = option("seed of the bootstrap", default=0, group="statistics")
    output: str = option("folder of the results", default="runs/diversity", group="output", metavar="DIR")


def run(arguments: Arguments) -> None:
    """Measure, compare, print the tables and write `diversity.json`.

    Raises:
        InputError: The input is bad.
    """
    from importlib.util import find_spec

    from ugap.environment import environment
    from ugap.errors import InputError
    from ugap.progress import progress_bar
    from ugap.study.analysis.diversity import compare_samples, load_samples
    from ugap.study.analysis.variety import sample_variety
    from ugap.terminal import Terminal

    if not 0 < arguments.threshold < 2:
        raise InputError(f"threshold is {arguments.threshold}, and a cosine distance lies between 0 and 2")
    if arguments.resamples < 100:
        raise InputError(f"resamples is {arguments.resamples}, and at least 100 are needed")
    samples = load_samples(
        arguments.data,
        group_column=arguments.group,
        text_column=arguments.text,
        system_column=arguments.system,
        size=arguments.samples,
        words=arguments.words,
    )
    # "human" is the default only where the data has it: a reference that was asked for must be there.
    systems = {one.system for one in samples.sets}
    reference: str | None = arguments.reference if arguments.reference is not None else "human"
    if reference not in systems:
        if arguments.reference is not None:
            raise InputError(
                f"{arguments.data}: no set of texts by {reference!r}; there are {', '.join(sorted(systems))}"
            )
        reference = None
    embedder, bleu = find_embedder(arguments.device), find_spec("sacrebleu") is not None
    if not bleu:
        print('self-BLEU is left out: sacrebleu is not installed: pip install "ugap[diversity]"', file=sys.stderr)
    measures = []
    with progress_bar() as bar:
        # Self-BLEU compares every pair of texts: seconds a set.
        for one in bar.track(samples.sets, description="sets"):
            embeddings = None if embedder is None else embedder(one.texts)
            measures.append(sample_variety(one.texts, embeddings, bleu=bleu, threshold=arguments.threshold))
    means, differences = compare_samples(
        samples.sets, measures, reference, resamples=arguments.resamples, seed=arguments.seed
    )
    record = without_nan(
        {
            "version": VERSION,
            "settings": {"arguments": asdict(arguments), "reference": reference, "environment": environment()},
            "n_texts": samples.n_texts,
            "n_short": samples.n_short,
            "means": means,
            "differences": differences,
            "sets": [
                {"system": one.system, "group": one.group, **measured}
                for one, measured in zip(samples.sets, measures, strict=True)
            ],
        }
    )
    path = Path(arguments.output) / f"{NAME}.json"
    write_json(path, record)
    console = Terminal()
    # In a pipe rich assumes 80 columns, which folds the numbers.
    if not console.is_terminal:
        console = Terminal(width=WIDTH)
    print_tables(record, console)
    console.print(f"All numbers are in {path}", markup=False, soft_wrap=True)


def find_embedder(device: str | None) -> "Embedder | None":
    """The model that embeds; without its package, the measures on embeddings are left out."""
    from ugap.errors import InputError
    from ugap.models.embedding import Embedder

    try:
        return Embedder(device)
    except InputError as error:
        print(f"clusters and Vendi are left out: {error}", file=sys.stderr)
        return None


def print_tables(record: Mapping[str, Any], console: "Console") -> None:
    """The mean measures of every system, and how they differ from the reference's."""
    from ugap.report.tables import p_value
    from ugap.report.terminal import text_table, with_interval

    arguments, reference = record["settings"]["arguments"], record["settings"]["reference"]
    systems = list(dict.fromkeys(row["system"] for row in record["means"]))
    cells = {(row["measure"], row["system"]): row for row in record["means"]}
    counts = {row["system"]: str(row["n_sets"]) for row in record["means"]}
    rows = [
        [
            measure,
            *(
                with_interval(row["mean"], row["ci95"], ".2f" if measure in WHOLE else ".3f")
                for row in (cells[measure, system] for system in systems)
            ),
        ]
        for measure in dict.fromkeys(row["measure"] for row in record["means"])
    ]
    shown = text_table(
        f"Sets of {arguments['samples']} texts of {arguments['words']} words: means [95% over {arguments['group']}]",
        ["measure", *systems],
        [["sets", *(counts[system] for system in systems)], *rows],
        words=1,
    )
    console.print(shown)
    console.print()
    if record["differences"]:
        console.print(
            text_table(
                f"Less {reference}, on the same {arguments['group']} [95%]",
                ["system", "measure", "difference", "p (Holm)"],
                [
                    [
                        row["system"],
                        row["measure"],
                        with_interval(row["difference"], row["ci95"], "+.3f"),
                        p_value(float("nan") if row["p_holm"] is None else row["p_holm"]),
                    ]
                    for row in record["differences"]
                ],
                words=2,
            )
        )
        console.print()
    for system, n in record["n_short"].items():
        if n:
            console.print(f"{system}: {n} texts were shorter and are left out", markup=False)


if __name__ == "__main__":
    sys.exit(main(["eval", NAME, *sys.argv[1:]]))
