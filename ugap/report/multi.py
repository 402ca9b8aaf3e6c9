"""The report of a study of many models: findings in words, `study.md`, `contrasts.json`, the plot of models by kind."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ugap.environment import environment
from ugap.files import replacing, without_nan, write_json
from ugap.report.figure import LABEL, SOFT, framed, wrapped
from ugap.report.forest import Mark, draw_forest, key, limits
from ugap.report.rows import ends, number, sign
from ugap.report.tables import MISSING, escape_markdown, markdown_block, markdown_table, p_value
from ugap.report.words import (
    ANCESTRAL,
    MEASURES,
    UNTESTED,
    caveats,
    counted,
    decimals,
    decoded,
    fixed,
    gaps_clause,
    interval,
    people_clause,
)
from ugap.study.multi.contrasts import ALL
from ugap.study.multi.run import KINDS, Outcome
from ugap.terminal import one_line

RECORD, TABLE, PLOT = "contrasts.json", "study.md", "models.png"
KIND_MARKS = {"base": ("#0072b2", "o"), "instruct": ("#d55e00", "s"), "reasoning": ("#009e73", "^")}

Row = Mapping[str, Any]


def write_multi(
    rows: Sequence[Row], outcomes: Sequence[Outcome], settings: Mapping[str, Any], folder: str | Path, *, command: str
) -> list[str]:
    """Write `contrasts.json`, `study.md` and `models.png` into the study's folder; the findings in words.

    Args:
        rows (`Sequence[Mapping]`): What `ugap.study.multi.contrasts.contrast_multi` gave.
        outcomes (`Sequence[Outcome]`): Where every model stands.
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
            "kind": one.model.kind,
            "dtype": one.model.dtype,
            "chat": one.model.chat,
            "revision": one.model.revision,
            "commit": one.commit,
            "status": one.status,
            "reason": one.reason,
        }
        for one in outcomes
    ]
    record: dict[str, Any] = {
        "version": 1,
        "settings": {**settings, "environment": environment()},
        "models": models,
        "contrasts": list(rows),
        "command": command,
    }
    write_json(folder / RECORD, record)
    sentences = multi_findings(rows, outcomes)
    with replacing(folder / TABLE) as temporary:
        temporary.write_text(_markdown(rows, models, sentences, record["settings"], command), encoding="utf-8")
    plot_models(rows, folder / PLOT)
    return sentences


def multi_findings(rows: Sequence[Row], outcomes: Sequence[Outcome]) -> list[str]:
    """State what was found about surprisal: which models ran, people against models, stages, domains.

    What a sentence claims follows from the 95% interval; one that Holm's correction does not support says so.
    """
    done = [one for one in outcomes if one.status == "finished"]
    skipped = [one for one in outcomes if one.status == "skipped"]
    sentences = [f"{len(done)} of {counted(len(outcomes), 'model')} could be measured."]
    sentences += [f"Skipped: {one.model.title} ({one.reason})." for one in skipped]
    main = _main(rows)
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in main:
        if row["kind"] == "people":
            groups.setdefault((row["domain"], row["prompting_b"], row["decoding"]), []).append(row)
    for (domain, prompting, decoding), group in groups.items():
        single = [row for row in group if row["family"] != ALL]
        sentences.append(f"In {domain} text, {_asked(prompting)} and {decoded(decoding)}, {_count(single)}.")
        sentences += [_people_sentence(row) for row in group if row["family"] == ALL or len(single) <= 4]
    stages = [row for row in main if row["kind"] == "stage"]
    many = any(row["family"] == ALL for row in stages)
    sentences += [_stage_sentence(row) for row in stages if row["family"] == ALL or not many]
    if not stages:
        sentences.append("No family has two kinds of models that were measured, so stages cannot be compared.")
    domains = [row for row in main if row["kind"] == "domain"]
    if domains:
        up, down, none = _signs(domains)
        sentences.append(
            f"The gap is larger in creative than in functional text in {up} of {counted(len(domains), 'comparison')}, "
            f"smaller in {down}; no difference can be told in {none}."
        )
        if len(domains) <= 6:
            sentences += [_domain_sentence(row) for row in domains]
    return [one_line(sentence) for sentence in sentences]  # a name or a reason may hold anything


def _main(rows: Sequence[Row]) -> list[Row]:
    """The rows about surprisal: of ancestral sampling, else of the first decoding, and of the first scorer."""
    of = [row for row in rows if row["measure"] == "nll"]
    decodings, scorers = ([*dict.fromkeys(row[key] for row in of)] for key in ("decoding", "scorer"))
    decoding = ANCESTRAL if ANCESTRAL in decodings else next(iter(decodings), "")
    return [row for row in of if row["decoding"] == decoding and row["scorer"] == next(iter(scorers))]


def _asked(prompting: str) -> str:
    return "asked through the chat template" if prompting == "chat" else "with the bare prefix"


def _signs(rows: Sequence[Row]) -> tuple[int, int, int]:
    verdicts = [sign(ends(row["ci95"])) for row in rows]
    return verdicts.count(1), verdicts.count(-1), verdicts.count(0)


def _count(rows: Sequence[Row]) -> str:
    up, down, none = _signs(rows)
    return (
        f"people are more surprising than {up} of {counted(len(rows), 'model')}, {down} "
        f"{'is' if down == 1 else 'are'} more surprising than people, and no difference can be told for {none}"
    )


def _basis(row: Row, places: int, *more: str) -> str:
    """The two values that a difference is of, what else it rests on, and what supports or weakens it."""
    p = number(row["p_holm"])
    tested = UNTESTED if math.isnan(p) else f"p (Holm) {'< 0.001' if p < 0.001 else f'{p:.3f}'}"
    weak = caveats(sign(ends(row["ci95"])), p)
    values = f"{fixed(number(row['value_a']), places)} against {fixed(number(row['value_b']), places)}"
    return "; ".join([values, *(weak or [tested]), *more])


def _estimate(row: Row) -> tuple[float, tuple[float, float], int]:
    """The difference, its interval, and the decimals that they are written with."""
    difference, ci95 = number(row["difference"]), ends(row["ci95"])
    return difference, ci95, decimals(difference, *ci95)


def _people_sentence(row: Row) -> str:
    pooled, estimate = row["family"] == ALL, _estimate(row)
    who = f"{row['b']} models" if pooled else row["b"]
    said = people_clause(f"{who} ({row['prompting_b']})", *estimate, plural=pooled)
    return f"In {row['domain']} text, {said} ({_basis(row, estimate[2])})."


def _stage_sentence(row: Row) -> str:
    estimate, sources = _estimate(row), counted(row["n_sources"][0], "source text")
    a, b = f"{row['a']} ({row['prompting_a']})", f"{row['b']} ({row['prompting_b']})"
    return f"In {row['domain']} text, {gaps_clause(a, b, *estimate)} (gaps {_basis(row, estimate[2], sources)})."


def _domain_sentence(row: Row) -> str:
    estimate = _estimate(row)
    said = gaps_clause(row["a"], row["b"], *estimate, domains=True)
    return f"For {row['model']} ({row['prompting_a']}), {said} (gaps {_basis(row, estimate[2])})."


def _markdown(
    rows: Sequence[Row], models: Sequence[Row], sentences: Sequence[str], settings: Mapping[str, Any], command: str
) -> str:
    parts = ["# The uncertainty gap of many models", "## Findings"]
    parts.append("\n".join(f"- {escape_markdown(sentence)}" for sentence in sentences))
    parts += [f"![The gap of every model, by kind]({PLOT})", "## Models"]
    header = ("model", "family", "kind", "dtype", "chat", "commit", "status")
    parts.append(
        markdown_table(
            header,
            [
                (
                    str(one["label"]), str(one["family"]), str(one["kind"]), str(one["dtype"]), str(one["chat"]),
                    str(one["commit"] or MISSING)[:12],
                    f"{one['status']}: {one['reason']}" if one["reason"] else str(one["status"]),
                )
                for one in models
            ],
            words=len(header),
        )
    )  # fmt: skip
    parts.append(
        "A gap is human less model, paired by prefix; intervals are 95% bootstrap intervals over source texts; p is "
        "Holm's over all rows of the three tables. Rows of all models or families pool the same source texts."
    )
    for kind, title, names in (
        ("people", "People against models", ("model", "human", "model value", "gap")),
        ("stage", "Stages of training within a family", ("later - earlier", "gap later", "gap earlier", "difference")),
        ("domain", "Creative against functional text", ("model", "gap creative", "gap functional", "difference")),
    ):  # fmt: skip
        own = [row for row in rows if row["kind"] == kind]
        if own:
            parts += [f"## {title}", _contrast_table(own, names)]
    shown = yaml.safe_dump(_plain(settings), sort_keys=False, allow_unicode=True)
    parts += ["## Settings", markdown_block(shown, "yaml"), "## Command", markdown_block(command, "sh")]
    return "\n\n".join(parts) + "\n"


def _plain(settings: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(without_nan(dict(settings))))


def _contrast_table(rows: Sequence[Row], names: tuple[str, str, str, str]) -> str:
    who, first, second, third = names
    header = (
        "measure",
        "domain",
        who,
        "decoding",
        "scorer",
        "sources",
        first,
        second,
        f"{third} [95% interval]",
        "p (Holm)",
    )
    cells = []
    for row in rows:
        low, high = ends(row["ci95"])
        domain = f"{row['a']} - {row['b']}" if row["kind"] == "domain" else row["domain"]
        both = f"{row['a']} ({row['prompting_a']}) - {row['b']} ({row['prompting_b']})"
        model = {"people": f"{row['b']} ({row['prompting_b']})", "stage": both}.get(row["kind"])
        cells.append(
            (
                row["measure"],
                domain,
                model or f"{row['model']} ({row['prompting_a']})",
                row["decoding"],
                row["scorer"],
                ", ".join(str(n) for n in dict.fromkeys(row["n_sources"])),
                fixed(number(row["value_a"]), 3),
                fixed(number(row["value_b"]), 3),
                f"{fixed(number(row['difference']), 3)} {interval(low, high, 3)}",
                p_value(number(row["p_holm"])),
            )
        )
    return markdown_table(header, cells, words=5)


def _short(name: str) -> str:
    """A name without the owner of its repository, or the folder that it is in.

    Example:
        >>> _short("google/gemma-3-1b-it")
        'gemma-3-1b-it'
    """
    return name.rstrip("/").rpartition("/")[2]


@dataclass(frozen=True, order=True)
class _Line:
    """A line of the plot; in the order of families, kinds, names, the bare prefix first."""

    family: str
    kind: int
    name: str
    chat: bool

    @classmethod
    def of(cls, row: Row) -> "_Line":
        """The line that a row about one model has its mark on."""
        return cls(row["family"], KINDS.index(row["kind_b"]), row["b"], row["prompting_b"] == "chat")

    @property
    def label(self) -> str:
        """The model, and how it was asked."""
        return f"{_short(self.name)} (chat)" if self.chat else _short(self.name)


def plot_models(rows: Sequence[Row], path: str | Path, measure: str = "nll") -> None:
    """Plot the gap of every model with its interval, by kind, a panel per domain; families stand together.

    Args:
        rows (`Sequence[Mapping]`): Rows of `contrasts.json`; those of people against single models are shown, under
            ancestral sampling where there is that.
        path (`str` or `Path`): The PNG file to write.
        measure (`str`, *optional*, defaults to `"nll"`): Which measure.
    """
    of = [row for row in rows if row["kind"] == "people" and row["measure"] == measure and row["family"] != ALL]
    decodings = [*dict.fromkeys(row["decoding"] for row in of)]
    decoding = ANCESTRAL if ANCESTRAL in decodings else next(iter(decodings), "")
    scorer = next((row["scorer"] for row in of), "")
    shown = [row for row in of if row["decoding"] == decoding and row["scorer"] == scorer]
    panels = [*dict.fromkeys(row["domain"] for row in shown)]
    lines = sorted({_Line.of(row) for row in shown})
    words = MEASURES[measure]
    kinds = [kind for kind in KINDS if any(row["kind_b"] == kind for row in shown)]
    read_by = "each model reads its own text" if scorer == "self" else f"read by {scorer}"
    with framed(
        path,
        panels=max(1, len(panels)),
        panel_size=(5.4, 1.2 + 0.27 * max(1, len(lines))),
        title="The gap of every model, by kind",
        subtitle=f"Gap: human text less model text for the same prefixes. {words.heading}; 95% intervals; "
        f"{decoding} decoding; {read_by}.",
        note="A filled mark: the interval does not cover 0; a hollow one: no difference can be told. "
        "(chat): asked through the chat template; else the bare prefix is continued.",
        legend=[key(kind, *KIND_MARKS[kind]) for kind in kinds],
    ) as frame:
        families = [*dict.fromkeys(line.family for line in lines)]
        shaded = [place for place, line in enumerate(lines) if families.index(line.family) % 2 == 0]
        names = [wrapped(line.label, 2.6, LABEL) for line in lines]
        values = [value for row in shown for value in (number(row["difference"]), *ends(row["ci95"]))]
        for index, (axes, domain) in enumerate(zip(frame.axes, panels, strict=False)):
            axes.set_title(wrapped(f"{domain} text", 4.8, 10), loc="left")
            marks = [
                Mark(lines.index(_Line.of(row)), row["difference"], ends(row["ci95"]), *KIND_MARKS[row["kind_b"]])
                for row in shown
                if row["domain"] == domain
            ]
            draw_forest(axes, marks, names if frame.first_in_row(index) else [""] * len(names), shaded=shaded)
            axes.set_xlim(limits(values))
            axes.set_xlabel(
                f"gap, {words.unit}\n← {words.model_higher}    {words.human_higher} →", color=SOFT, size=7.5
            )
        if not panels:
            frame.axes[0].set_axis_off()
            frame.axes[0].text(0.5, 0.5, "nothing to show", ha="center", va="center", color=SOFT)
