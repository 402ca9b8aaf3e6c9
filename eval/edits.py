"""What does editing change? Texts before and after an edit: the measures, and the spans that were changed."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ugap.cli.arguments import option
from ugap.cli.main import main
from ugap.cli.model import adapter_option, device_option, trust_option
from ugap.files import locked, refuse_results, without_nan, write_json
from ugap.study.options import Dtype

if TYPE_CHECKING:
    from ugap.profile import KindProfile
    from ugap.scoring import Scorer, TokenScores
    from ugap.study.analysis.edits import Edit

DESCRIPTION = """\
Compare texts before and after an edit: how far editing moves surprisal, and whether surprisal points at the changes.

examples:
  ugap eval edits --data edits.jsonl --before draft --after edited --output runs/edits
  ugap eval edits --model gemma-3-270m --data edits.jsonl --before draft --after edited --group writer \\
      --prompt instruction --pmi --score_before score_before --score_after score_after --output runs/edits

Measures are compared over the tokens that both texts have: surprisal, entropy, deviation, bits per byte, PMI with the
prompt, and closeness to human texts in the profile. Rows are for all edits, for each group, and for each third by the
share of words changed.

An AUC says whether removed tokens are more surprising than the kept tokens of their text, and added ones likewise.
0.5 says nothing. Below 0.5, low values point at the changes.

With ratings before and after, the changes of the measures are correlated with those of the ratings, within groups.
Intervals are 95% and resample texts before the edit.

The folder gets edits.json: settings and all numbers; edits.html: both texts side by side, changes marked and tokens
tinted by surprisal or deviation; and parts, from which --resume continues."""

NAME, PARTS = "edits", "parts"
VERSION = 1
WIDTH = 132  # of a table, where no terminal says how wide it is


@dataclass(kw_only=True)
class Arguments:
    """Arguments of `ugap eval edits`."""

    data: str = option("edits: .jsonl(.gz), .csv(.gz), .parquet or a Hub data set", group="texts", metavar="FILE")
    before: str = option("column of the text before", group="texts", metavar="COLUMN")
    after: str = option("column of the text after", group="texts", metavar="COLUMN")
    group: str | None = option(
        "column of the group, such as the model that wrote the text before",
        default=None,
        group="texts",
        metavar="COLUMN",
    )
    prompt: str | None = option(
        "column of the instruction, which the scorer reads before the text",
        default=None,
        group="texts",
        metavar="COLUMN",
    )
    score_before: str | None = option(
        "column of a rating of the text before", default=None, group="texts", metavar="COLUMN"
    )
    score_after: str | None = option(
        "column of a rating of the text after", default=None, group="texts", metavar="COLUMN"
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
    closeness: bool = option(
        "measure the closeness to human texts; a scorer without a profile gets one", default=True, group="scorer"
    )
    dtype: Dtype = option("type of the weights", default="float32", group="scorer")
    device: str | None = device_option("scorer")
    trust_remote_code: bool = trust_option("scorer")
    pmi: bool = option("also score each text without its prompt, for PMI", default=False, group="scorer")
    resamples: int = option("bootstrap resamples", default=2000, group="statistics")
    seed: int = option("seed of the bootstrap", default=0, group="statistics")
    output: str = option("folder of the results", default="runs/edits", group="output", metavar="DIR")
    resume: bool = option("resume an interrupted run", default=False, group="output")


def run(arguments: Arguments) -> None:
    """Score, compare, print the tables and write `edits.json` and `edits.html`.

    Raises:
        InputError: The input is bad; what is finished stays for `--resume`.
    """
    from ugap.environment import environment
    from ugap.errors import InputError, require
    from ugap.scoring import Scorer
    from ugap.study.analysis.edits import changes, load_edits, measure_edit, summary
    from ugap.terminal import Terminal

    if arguments.resamples < 100:
        raise InputError(f"resamples is {arguments.resamples}, and at least 100 are needed")
    if arguments.pmi and arguments.prompt is None:
        raise InputError("--pmi needs --prompt: the column of the instruction")
    if (arguments.score_before is None) != (arguments.score_after is None):
        raise InputError("--score_before and --score_after belong together")
    # Before the scoring, which can take hours.
    require("report")
    from ugap.report.edits import edits_tables
    from ugap.report.page.edits import write_edits

    output = Path(arguments.output)
    refuse_results(arguments.output, arguments.resume, PARTS)
    with locked(output):
        edits = load_edits(
            arguments.data,
            arguments.before,
            arguments.after,
            group=arguments.group,
            prompt=arguments.prompt,
            score_before=arguments.score_before,
            score_after=arguments.score_after,
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
        profile, source = find_profile(arguments, scorer) if arguments.closeness else (None, None)
        scores = score(edits, scorer, arguments, output / PARTS)
        changed = [changes(*edit.texts) for edit in edits]
        measured = [measure_edit(*pair, change, profile) for pair, change in zip(scores, changed, strict=True)]
        found = summary(edits, measured, resamples=arguments.resamples, seed=arguments.seed)
        record = without_nan(
            {
                "version": VERSION,
                "settings": {
                    "arguments": asdict(arguments),
                    "scorer": list(scorer.id),
                    "profile": source,
                    "environment": environment(),
                },
                **found,
                # Numbers and no text, so that the file can be given away.
                "edits": [
                    {"id": edit.row.id, "text": text, "group": edit.group, "scores": list(edit.scores), **asdict(one)}
                    for edit, one, text in zip(edits, measured, numbers(edits), strict=True)
                ],
            }
        )
        write_json(output / f"{NAME}.json", record)
        write_edits(record, edits, scores, changed, output / f"{NAME}.html")
        console = Terminal()
        # In a pipe rich assumes 80 columns, which folds the numbers.
        if not console.is_terminal:
            console = Terminal(width=WIDTH)
        console.print(f"read by {record['settings']['scorer'][0]}", style="bold", markup=False)
        for table in edits_tables(record):
            console.print(table)
            console.print()
        for what, file in (("All numbers are in", "json"), ("The texts side by side are in", "html")):
            console.print(f"{what} {output / f'{NAME}.{file}'}", markup=False, soft_wrap=True)


def find_profile(arguments: Arguments, scorer: "Scorer") -> "tuple[KindProfile, str]":
    """The human profile, and where its texts came from."""
    from ugap.sampling import profile_of

    profile = profile_of(scorer.model, arguments.profile, scorer.tokenizer)
    return profile.kind(arguments.domain), profile.source


def score(
    edits: "Sequence[Edit]", scorer: "Scorer", arguments: Arguments, folder: Path
) -> "list[tuple[TokenScores, TokenScores]]":
    """The scores of the two texts of each edit; finished parts are kept and read again."""
    from ugap.data import content_hash
    from ugap.study.scoring_job import ScoringJob
    from ugap.study.store import scores_from_row

    # A text that several people edited is read once.
    where: dict[tuple[str, str], str] = {}
    for edit in edits:
        for prefix, text in zip(edit.prefixes, edit.texts, strict=True):
            where.setdefault((prefix, text), f"{edit.row.where}, text {edit.row.id!r}")
    settings = {"dtype": arguments.dtype, "texts_hash": content_hash(list(where))}
    job = ScoringJob(scorer, folder, pmi=arguments.pmi, resume=arguments.resume, settings=settings)
    prefixes, texts = zip(*where, strict=True)
    keys = job.run([str(i) for i in range(len(where))], texts, prefixes, where=list(where.values()), progress=True)
    scores = [scores_from_row(row, scorer.id) for key in keys for row in job.store.read(key)]
    found = dict(zip(where, scores, strict=True))
    sides = [list(zip(edit.prefixes, edit.texts, strict=True)) for edit in edits]
    return [(found[before], found[after]) for before, after in sides]


def numbers(edits: "Sequence[Edit]") -> list[int]:
    """The number of the text before each edit: edits of one text have one number."""
    index: dict[str, int] = {}
    return [index.setdefault(edit.row.text, len(index)) for edit in edits]


if __name__ == "__main__":
    sys.exit(main(["eval", NAME, *sys.argv[1:]]))
