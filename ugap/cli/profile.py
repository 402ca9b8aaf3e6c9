"""`ugap profile`: fit a human profile, or show one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ugap.cli.arguments import option
from ugap.cli.model import ModelOptions
from ugap.errors import InputError

if TYPE_CHECKING:
    from ugap.data import TextRow
    from ugap.profile import HumanProfile
    from ugap.profile.fitting import HumanText
    from ugap.scoring import Scorer

DESCRIPTION = """\
Fit a human profile to human texts, or show one. For each kind of text, a profile holds quantiles of surprisal, entropy,
deviation, PMI and rank, and means by position. It also holds the calibration curve: how surprising people are where the
model's entropy is h. From three kinds on, it predicts the human level from a prompt. A model without a profile gets
one, fitted to embedded tales and manuals.

examples:
  ugap profile --show gemma-3-270m
  ugap profile --model org/model
  ugap profile --model gemma-3-270m --data stories.jsonl manuals.jsonl --output gemma-3-270m.json
  ugap profile --model gemma-3-270m --profile g.json --reader org/stronger --data stories.jsonl --output read.json

--reader calibrates the profile for a stronger model: of each kind, 32 texts are continued at several shares of the
human level. The profile keeps the share at which they surprise the reader as much as people's texts do. The mode
creative aims at this share. Texts that the fit left out (--limit) are taken first.

The first tokens of each text, or its prompt, are the prefix; the profile is of the text behind the prefix."""


# The settings that a resumed run has to share with the run before.
SETTINGS = ("data", "text_column", "domain", "dtype", "prefix_tokens", "max_tokens", "min_tokens", "limit")


@dataclass(kw_only=True)
class Arguments(ModelOptions):
    """Arguments of `ugap profile`."""

    show: str | None = option("show a shipped profile or a profile file", default=None, group="show", metavar="NAME")
    model: str = option("asset, folder, .gguf file or Hub id of the scorer", default="", group="model", metavar="NAME")
    data: list[str] = option(
        "human texts with a domain column, and a kind column if there are several kinds; several files are joined",
        default=[],
        group="fit",
        metavar="FILE",
    )
    profile: str | None = option(
        "with --reader: a profile of the model, instead of fitting one", default=None, group="reader", metavar="FILE"
    )
    reader: str | None = option(
        "also calibrate for this reader: asset, folder, .gguf file or Hub id",
        default=None,
        group="reader",
        metavar="NAME",
    )
    output: str | None = option("profile to write (JSON)", default=None, group="fit", metavar="FILE")
    source: str = option(
        "a description of the texts, kept in the profile (default: the names of the files)", default="", group="fit"
    )
    prefix_tokens: int = option(
        "tokens of a text that are its prefix, at most; half of a short text", default=64, group="fit"
    )
    max_tokens: int = option("profile at most so many tokens of a text", default=256, group="fit")
    min_tokens: int = option("leave out a text with fewer tokens after its prefix", default=16, group="fit")
    limit: int | None = option("use at most so many texts of each kind and file", default=None, group="fit")
    text_column: str = option("column of the text", default="text", group="fit", metavar="COLUMN")
    domain: str | None = option("one domain for all texts, instead of their own", default=None, group="fit")
    skip_bad: bool = option("log and skip bad rows instead of stopping", default=False, group="fit")
    seed: int = option("seed of the bootstrap", default=0, group="fit")
    resume: bool = option("resume an interrupted run", default=False, group="fit")


def run(arguments: Arguments) -> None:
    """Fit or show a profile.

    Raises:
        InputError: The input is bad, or options are missing.
    """
    from contextlib import nullcontext

    from ugap.files import locked, output_file
    from ugap.profile import HumanProfile
    from ugap.terminal import Terminal

    if arguments.output:
        # Before the model is loaded, which takes longer than a look at the folder.
        output_file(arguments.output)
    if arguments.show is not None:
        _show(HumanProfile.load(arguments.show))
        return
    if not arguments.model:
        raise InputError("--model is needed to fit a profile, or --show NAME to see one")
    if arguments.data and not arguments.output:
        raise InputError("--output is needed to fit a profile to texts")
    if arguments.profile and not arguments.reader:
        raise InputError("--profile is calibrated for a reader: name it with --reader")
    with locked(arguments.output) if arguments.output else nullcontext():
        profile = _made(arguments)
        if arguments.output:
            profile.save(arguments.output)
    _show(profile)
    if arguments.output:
        Terminal().print(f"\nwritten to {arguments.output}", soft_wrap=True)


def _made(arguments: Arguments) -> "HumanProfile":
    """The profile that the options ask for: fitted, given or the model's own, and calibrated for the reader."""
    from dataclasses import replace

    from ugap.data import load_texts
    from ugap.profile import HumanProfile
    from ugap.sampling import profile_of
    from ugap.scoring import Scorer

    given = HumanProfile.load(arguments.profile) if arguments.profile else None
    texts = [
        load_texts(name, text_column=arguments.text_column, domain=arguments.domain, skip_bad=arguments.skip_bad)
        for name in arguments.data
    ]
    writer = Scorer.from_pretrained(arguments.model, **arguments.loading())
    reader = None
    if arguments.reader:
        # Before a fit that can take an hour. Large readers fit in the type that they are stored in.
        reader = Scorer.from_pretrained(arguments.reader, **{**arguments.loading(), "adapter": None, "dtype": "auto"})
    if texts and given is None:
        profile = _fit(arguments, writer, texts)
    else:
        own = profile_of(writer.model, given, writer.tokenizer)
        profile = replace(own, weight_hash=writer.id.weight_hash)
    return profile if reader is None else _calibrate(arguments, profile, writer, reader, texts)


def _fit(arguments: Arguments, scorer: "Scorer", texts: "Sequence[Sequence[TextRow]]") -> "HumanProfile":
    from pathlib import Path

    from ugap.profile import HumanProfile
    from ugap.profile.fitting import by_kind
    from ugap.study.scoring_job import ScoringJob
    from ugap.study.store import scores_from_row

    assert arguments.output is not None
    cuts = _cut(arguments, scorer, texts)
    domains = by_kind((row.kind, row.domain) for rows in texts for row in rows)
    if missing := set(domains) - {row.kind for row, _ in cuts}:
        needed = 2 * arguments.min_tokens
        raise InputError(f"kind {min(missing)!r}: no text has the {needed} tokens of a prefix and its continuation")
    output = Path(arguments.output)
    job = ScoringJob(
        scorer,
        output.with_name(output.name + ".parts"),
        pmi=True,  # a profile has quantiles of PMI
        skip_bad=arguments.skip_bad,
        resume=arguments.resume,
        settings={name: getattr(arguments, name) for name in SETTINGS},
    )
    # Numbers, as the ids of several files may be the same. The prefixes are scored as texts of their own: the
    # prompt model learns from their surprisal and entropy.
    numbers = range(len(cuts))
    keys = job.run(
        [*(f"{i}" for i in numbers), *(f"{i}:prefix" for i in numbers)],
        [*(cut.text for _, cut in cuts), *(cut.prefix for _, cut in cuts)],
        [*(cut.prefix for _, cut in cuts), *("" for _ in cuts)],
        where=[f"{row.where}, text {row.id!r}" for row, _ in cuts] * 2,
        progress=True,
    )
    by_id = {row["id"]: scores_from_row(row, scorer.id) for key in keys for row in job.store.read(key)}
    scores: dict[str, list] = {kind: [] for kind in domains}
    prefixes: dict[str, list] = {kind: [] for kind in domains}
    for i, (row, _) in enumerate(cuts):
        if f"{i}" in by_id:  # not where --skip_bad left it out
            scores[row.kind].append(by_id[f"{i}"])
            # A prompt is not the start of its text, so it says nothing about positions.
            prefixes[row.kind].append(by_id.get(f"{i}:prefix") if row.prompt is None else None)
    source = arguments.source or ", ".join(Path(name).name for name in arguments.data)
    profile = HumanProfile.fit(scores, prefixes=prefixes, domains=domains, source=source, seed=arguments.seed)
    profile.save(output)
    job.store.clear()
    return profile


def _cut(
    arguments: Arguments, scorer: "Scorer", texts: "Sequence[Sequence[TextRow]]"
) -> "list[tuple[TextRow, HumanText]]":
    """The texts that are long enough, cut behind their prefixes; of each kind and file at most `--limit`."""
    from collections import Counter

    from ugap.profile.fitting import cut_text
    from ugap.study.excerpts import after_prompt

    cuts = []
    for rows in texts:
        taken: Counter[str] = Counter()
        for row in rows:
            if arguments.limit is not None and taken[row.kind] >= arguments.limit:
                continue
            cut = cut_text(
                scorer.tokenizer,
                row.text,
                None if row.prompt is None else after_prompt(row.prompt, row.text),
                prefix_tokens=arguments.prefix_tokens,
                max_tokens=arguments.max_tokens,
                min_tokens=arguments.min_tokens,
            )
            if cut is not None:
                cuts.append((row, cut))
                taken[row.kind] += 1
    return cuts


def _calibrate(
    arguments: Arguments,
    profile: "HumanProfile",
    writer: "Scorer",
    reader: "Scorer",
    texts: "Sequence[Sequence[TextRow]]",
) -> "HumanProfile":
    """The profile with the shares for `--reader`; those of an interrupted run are kept in a file next to the output."""
    import json
    from dataclasses import replace
    from pathlib import Path

    from ugap.data import content_hash
    from ugap.errors import reading as of_file
    from ugap.files import write_json
    from ugap.profile.reading import Reading, Share
    from ugap.sampling.reading import calibrate
    from ugap.terminal import Terminal

    cuts = _to_continue(arguments, profile, writer, texts)
    key = content_hash([writer.id.weight_hash, reader.id.weight_hash, cuts, profile.to_dict(), arguments.seed])
    kept = Path(f"{arguments.output}.reading.json") if arguments.output else None
    known: dict[str, Share] = {}
    if arguments.resume and kept is not None and kept.is_file():
        with of_file(f"{kept}: cannot be resumed: delete it, or leave out --resume"):
            document = json.loads(kept.read_text(encoding="utf-8"))
            if document["of"] == key:
                known = dict(Reading.from_dict("", document).shares)

    def done(kind: str, share: Share) -> None:
        known[kind] = share
        line = f"{kind}: {share.share:.3f} +- {share.error:.3f} of the human level is human to {reader.name}"
        Terminal().print(line, soft_wrap=True)
        if kept is not None:
            write_json(kept, {"of": key, **Reading("", "", known).to_dict()})

    reading = calibrate(writer, reader, profile, cuts, seed=arguments.seed, known=dict(known), done=done)
    if kept is not None:
        kept.unlink(missing_ok=True)
    return replace(profile, readings={**profile.readings, reading.reader: reading})


def _to_continue(
    arguments: Arguments, profile: "HumanProfile", writer: "Scorer", texts: "Sequence[Sequence[TextRow]]"
) -> "dict[str, list[HumanText]]":
    """The texts to calibrate with, by kind; the embedded ones where none are given."""
    from ugap.sampling.reading import FEWEST_TEXTS, cuts_of, embedded_texts
    from ugap.terminal import Terminal

    by_kind: dict[str, list[str]] = {}
    for row in (row for rows in texts for row in rows if row.kind in profile.kinds):
        by_kind.setdefault(row.kind, []).append(row.text)
    limit = arguments.limit or 0
    # The texts behind the limit come first: the fit did not see them.
    cuts = {kind: cuts_of(writer, [*column[limit:], *column[:limit]]) for kind, column in by_kind.items()}
    cuts = cuts or embedded_texts(writer, profile)
    if any(len(column) >= FEWEST_TEXTS for column in cuts.values()):
        for kind in [kind for kind, column in cuts.items() if len(column) < FEWEST_TEXTS]:
            line = f"{kind}: {len(cuts.pop(kind))} texts are too few to calibrate: it takes the mean of the others"
            Terminal().print(line, soft_wrap=True)
    return cuts


def _show(profile: "HumanProfile") -> None:
    from ugap.report.profile import profile_tables
    from ugap.terminal import Terminal

    console = Terminal()
    for part in profile_tables(profile):
        console.print(part)
