"""The report of a study of many models: findings in words, `study.md`, `contrasts.json`, the plot by stage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ugap.environment import environment
from ugap.files import replacing, without_nan, write_json
from ugap.report.figure import LABEL, PALETTE, SOFT, framed, wrapped
from ugap.report.forest import Mark, draw_forest, key, limits
from ugap.report.labels import named
from ugap.report.rows import ContrastRow, GapRow, read_gaps
from ugap.report.tables import MISSING, markdown, markdown_table
from ugap.report.words import ANCESTRAL, FILLED, MEASURES, contrast_sentence, counted, decoded, gap_sentence
from ugap.study.contrasts import STAGES
from ugap.study.multi.run import Outcome
from ugap.terminal import one_line

RECORD, TABLE, PLOT = "contrasts.json", "study.md", "models.png"
STAGE_MARKS = dict(zip(STAGES, zip(PALETTE, ("o", "s", "^"), strict=False), strict=True))
MOST_MODELS, MOST_DOMAINS = 4, 6  # that have sentences of their own; more are counted

Row = Mapping[str, Any]


def write_multi(
    gaps: Sequence[Row],
    contrasts: Sequence[Row],
    outcomes: Sequence[Outcome],
    settings: Mapping[str, Any],
    folder: str | Path,
    *,
    command: str,
) -> list[str]:
    """Write `contrasts.json`, `study.md` and `models.png` into the study's folder; the findings in words.

    Args:
        gaps (`Sequence[Mapping]`): The gaps that `ugap.study.multi.contrasts.contrast_multi` gave.
        contrasts (`Sequence[Mapping]`): Its contrasts.
        outcomes (`Sequence[Outcome]`): The outcome of every model.
        settings (`Mapping[str, Any]`): The settings of the study, of plain types.
        folder (`str` or `Path`): Where the files go.
        command (`str`): The command behind the numbers.
    """
    folder = Path(folder)
    models = [
        {
            "name": one.model.name,
            "label": one.model.title,
            "family": one.model.family,
            "stage": one.model.stage,
            "dtype": one.model.dtype,
            "chat": one.model.chat,
            "revision": one.model.revision,
            "commit": one.commit,
            "status": one.status,
            "reason": one.reason,
        }
        for one in outcomes
    ]
    record: dict[str, Any] = without_nan(
        {
            "version": 2,
            "settings": {**settings, "environment": environment()},
            "models": models,
            "gaps": gaps,
            "contrasts": contrasts,
            "command": command,
        }
    )
    write_json(folder / RECORD, record)
    sentences = multi_findings(gaps, contrasts, outcomes)
    header = ("label", "family", "stage", "dtype", "chat", "commit", "status")
    cells = [[str(one[name] or MISSING) for name in header] for one in models]
    for line, one in zip(cells, models, strict=True):
        line[-2] = line[-2][:12]  # enough of a commit to find it by
        line[-1] += f": {one['reason']}" if one["reason"] else ""
    text = markdown(
        [named(row, True) for row in gaps],
        [named(row, True) for row in contrasts],
        record["settings"],
        command,
        title="The uncertainty gap of many models",
        sentences=sentences,
        sections=[
            f"![The gap of every model, by stage]({PLOT})",
            "## Models",
            markdown_table(("model", *header[1:]), cells, words=len(header)),
            "p is corrected over the rows of all tables. Rows of all models or families pool the same source texts.",
        ],
    )
    with replacing(folder / TABLE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    plot_models(gaps, folder / PLOT)
    return sentences


def multi_findings(gaps: Sequence[Row], contrasts: Sequence[Row], outcomes: Sequence[Outcome]) -> list[str]:
    """State what was found about surprisal: which models ran, people against models, stages, domains.

    What a sentence claims follows from the p-value after its correction over all rows.
    """
    done = [one for one in outcomes if one.status == "finished"]
    skipped = [one for one in outcomes if one.status == "skipped"]
    sentences = [f"{len(done)} of {counted(len(outcomes), 'model')} could be measured."]
    sentences += [f"Skipped: {one.model.title} ({one.reason})." for one in skipped]
    groups: dict[tuple[str, str, str], list[GapRow]] = {}
    for row in _main(read_gaps([named(row, True) for row in gaps], "nll")):
        groups.setdefault((row.domain, row.prompting, row.decoding), []).append(row)
    for (domain, prompting, decoding), group in groups.items():
        single = [row for row in group if not row.pooled]
        asked = "asked through the chat template" if prompting == "chat" else "with the bare prefix"
        sentences.append(f"In {domain} text, {asked} and {decoded(decoding)}, {_count(single)}.")
        sentences += [gap_sentence(row) for row in group if row.pooled or len(single) <= MOST_MODELS]
    main = _main([ContrastRow.read(named(row, True)) for row in contrasts if row["measure"] == "nll"])
    stages = [row for row in main if not row.of_domains]
    many = any(row.pooled for row in stages)
    sentences += [contrast_sentence(row) for row in stages if row.pooled or not many]
    if not stages:
        sentences.append("No family has models of two stages that were measured, so stages cannot be compared.")
    domains = [row for row in main if row.of_domains]
    if domains:
        up, down, none = _signs(domains)
        sentences.append(
            f"The gap is larger in creative than in functional text in {up} of {counted(len(domains), 'comparison')}, "
            f"smaller in {down}; no difference can be told in {none}."
        )
        if len(domains) <= MOST_DOMAINS:
            sentences += [contrast_sentence(row) for row in domains]
    return [one_line(sentence) for sentence in sentences]  # a reason may hold anything


def _main(rows: Sequence[Any]) -> list[Any]:
    """The rows of ancestral sampling, else of the first decoding, and of the first scorer."""
    decodings = [row.decoding for row in rows]
    decoding = ANCESTRAL if ANCESTRAL in decodings else next(iter(decodings), "")
    scorer = next((row.scorer for row in rows), "")
    return [row for row in rows if (row.decoding, row.scorer) == (decoding, scorer)]


def _signs(rows: Sequence[GapRow] | Sequence[ContrastRow]) -> tuple[int, int, int]:
    verdicts = [row.verdict for row in rows]
    return verdicts.count(1), verdicts.count(-1), verdicts.count(0)


def _count(rows: Sequence[GapRow]) -> str:
    up, down, none = _signs(rows)
    return (
        f"people are more surprising than {up} of {counted(len(rows), 'model')}, {down} "
        f"{'is' if down == 1 else 'are'} more surprising than people, and no difference can be told for {none}"
    )


def _short(name: str) -> str:
    """A name without the owner of its repository, or the folder that it is in.

    Example:
        >>> _short("google/gemma-3-1b-it")
        'gemma-3-1b-it'
    """
    return name.rstrip("/").rpartition("/")[2]


@dataclass(frozen=True, order=True)
class _Line:
    """A line of the plot; in the order of families, stages, names, the bare prefix first."""

    family: str
    stage: int
    name: str
    chat: bool

    @classmethod
    def of(cls, row: GapRow) -> "_Line":
        """The line that a row about one model has its mark on."""
        return cls(row.family, STAGES.index(row.stage), row.model, row.prompting == "chat")

    @property
    def label(self) -> str:
        """The model, and how it was asked."""
        return f"{_short(self.name)} (chat)" if self.chat else _short(self.name)


def plot_models(gaps: Sequence[Row], path: str | Path, measure: str = "nll") -> None:
    """Plot the gap of every model with its interval, by stage, a panel per domain; families stand together.

    Args:
        gaps (`Sequence[Mapping]`): The gaps of `contrasts.json`; those of single models are shown, under ancestral
            sampling where there is that.
        path (`str` or `Path`): The PNG file to write.
        measure (`str`, *optional*, defaults to `"nll"`): Which measure.
    """
    shown = _main([row for row in read_gaps(gaps, measure) if not row.pooled])
    decoding, scorer = (shown[0].decoding, shown[0].scorer) if shown else ("", "")
    panels = [*dict.fromkeys(row.domain for row in shown)]
    lines = sorted({_Line.of(row) for row in shown})
    words = MEASURES[measure]
    stages = [stage for stage in STAGES if any(row.stage == stage for row in shown)]
    # Self-scored gaps are each on the scale of their own model: the plot has to say so.
    read_by = "each model reads its own text" if scorer == "self" else f"read by {scorer}"
    with framed(
        path,
        panels=max(1, len(panels)),
        panel_size=(5.4, 1.2 + 0.27 * max(1, len(lines))),
        title="The gap of every model, by stage",
        subtitle=f"Gap: human text less model text for the same prefixes. {words.heading}; 95% intervals; "
        f"{decoding} decoding; {read_by}.",
        note=f"{FILLED} (chat): asked through the chat template; else the bare prefix is continued.",
        legend=[key(stage, *STAGE_MARKS[stage]) for stage in stages],
    ) as frame:
        # Shaded by family and not by line, so that a family is seen together.
        families = [*dict.fromkeys(line.family for line in lines)]
        shaded = [y for y, line in enumerate(lines) if families.index(line.family) % 2 == 0]
        names = [wrapped(line.label, 2.6, LABEL) for line in lines]
        values = [value for row in shown for value in (row.gap, *row.ci95)]
        for index, (axes, domain) in enumerate(zip(frame.axes, panels, strict=False)):
            axes.set_title(wrapped(f"{domain} text", 4.8, 10), loc="left")
            marks = [
                Mark(lines.index(_Line.of(row)), row.gap, row.ci95, bool(row.verdict), *STAGE_MARKS[row.stage])
                for row in shown
                if row.domain == domain
            ]
            draw_forest(axes, marks, names if frame.first_in_row(index) else [""] * len(names), shaded=shaded)
            axes.set_xlim(limits(values))
            axes.set_xlabel(
                f"gap, {words.unit}\n← {words.model_higher}    {words.human_higher} →", color=SOFT, size=7.5
            )
        if not panels:
            frame.axes[0].set_axis_off()
            frame.axes[0].text(0.5, 0.5, "nothing to show", ha="center", va="center", color=SOFT)
