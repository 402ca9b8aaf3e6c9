"""The page: a template filled with words, settings and data, and everything that it needs inside.

Design choices:

- One file. plotly.js comes out of the Python package; style and script are in this package, next to the template.
- What people and models wrote goes into the page as JSON whose `<`, `>`, `&` and `'` are escaped, and from there into
  text nodes; names and settings go through the template's escaping. A content security policy forbids every request and
  every script but the three of the page, which it knows by their hashes.
- The statistics are those of the study and of its plots; the browser draws them and computes none.
"""

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

import ugap
from ugap.errors import InputError
from ugap.files import replacing, without_nan
from ugap.report.labels import GIVEN_TEXTS, named
from ugap.report.page.reader import reading
from ugap.report.page.runs import Run, read_run
from ugap.report.page.series import colours, panels
from ugap.report.plots import DOMAIN_COLOURS, OTHER_COLOURS
from ugap.report.rows import GapRow, preferred_scorer, read_gaps
from ugap.report.tables import DEFINITIONS
from ugap.report.words import (
    ANCESTRAL,
    MEASURES,
    NO_GAP,
    decimals,
    findings,
    like_sentences,
    people_clause,
    tally,
    writer,
)
from ugap.study.pairs import GIVEN, SELF
from ugap.terminal import visible

COLUMNS = (
    "domain", "model", "prompting", "decoding", "scorer", "measure", "n", "n_sources", "n_dropped", "human",
    "model_value", "gap", "low", "high", "ratio", "effect_size", "p_value", "p_adjusted", "verdict", "wasserstein",
)  # fmt: skip


def write_page(folders: Sequence[str | Path], path: str | Path) -> list[Run]:
    """Write the HTML report of one or more studies.

    Args:
        folders (`Sequence[str]`): Folders of studies; several are compared on one page.
        path (`str` or `Path`): The HTML file.

    Returns:
        `list[Run]`: The studies that it shows.

    Raises:
        InputError: If a folder is no study's, holds no scores or is of another version, one is named twice, or the
            file to write is a folder.
    """
    if Path(path).is_dir():
        raise InputError(f"{path}: a folder; name the HTML file to write")
    resolved = [Path(folder).resolve() for folder in folders]
    for i, folder_path in enumerate(resolved):
        if folder_path in resolved[:i]:
            raise InputError(f"{folders[i]}: named twice")
    runs = [read_run(folder) for folder in folders]
    html = render(runs)
    with replacing(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return runs


def template_environment() -> Environment:
    """The environment of the templates of pages."""
    return Environment(
        loader=PackageLoader("ugap.report.page", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Names and settings come from the user: they may hold overrides, or surrogates that no encoding takes.
        finalize=lambda value: visible(value) if type(value) is str else value,
    )


def render(runs: Sequence[Run]) -> str:
    """The page of these runs as HTML."""
    environment = template_environment()
    # Short separators: a page holds 100,000 tokens. NaN is no JSON, so a browser would refuse it.
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    resources = files("ugap.report.page")
    style, script = (resources.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    theme = resources.joinpath("theme.js").read_text(encoding="utf-8")
    scripts = {"plotly": get_plotlyjs(), "script": script, "theme": theme}
    data = content(runs)
    return environment.get_template("page.html.j2").render(
        **scripts,
        style=style,
        # Hashes, and not `unsafe-inline`: a script in a text must not run.
        policy=" ".join(f"'sha256-{_digest(text)}'" for text in scripts.values()),
        data=data,
        runs=[_words(run, name) for run, name in zip(runs, _names(runs), strict=True)],
        overall=_overall(runs),
        n_shown=len(data["reader"]["items"]),
        definitions=DEFINITIONS,
        version=ugap.__version__,
    )


def content(runs: Sequence[Run]) -> dict[str, Any]:
    """The data that the page's script draws: the table, the curves, and the texts of the reader."""
    both = [len({row["prompting"] for row in run.gaps}) > 1 for run in runs]
    every = [panel for number, run in enumerate(runs) for panel in panels(run, number, both[number])]
    domains = list(dict.fromkeys(row["domain"] for run in runs for row in run.gaps))
    # Repeated: any number of domains takes its colours in turn.
    spare = iter(OTHER_COLOURS * len(domains))
    return {
        "runs": [{"name": name, "unfinished": run.unfinished} for name, run in zip(_names(runs), runs, strict=True)],
        "measures": {name: asdict(measure) for name, measure in MEASURES.items()},
        "domains": {domain: DOMAIN_COLOURS.get(domain) or next(spare) for domain in domains},
        "columns": ["run", "writer", "series", *COLUMNS],
        "rows": [
            [number, *_row(row, both[number])]
            for number, run in enumerate(runs)
            for row in run.gaps
            if row["measure"] in MEASURES
        ],
        "panels": every,
        "colours": colours(every),
        "reader": reading(runs, both),
    }


def headline(run: Run) -> str:
    """The finding in one sentence: creative text (else the first domain) and the first model, with intervals.

    It states the largest gap and, where it is another, that of ancestral sampling.
    """
    rows = [row for row in read_gaps(run.gaps, "nll") if math.isfinite(row.ci95[0])]
    if not rows:
        return NO_GAP
    domain = "creative" if any(row.domain == "creative" for row in rows) else rows[0].domain
    rows = [row for row in rows if row.domain == domain]
    rows = [row for row in rows if row.given == rows[0].given and (row.given or row.model == rows[0].model)]
    scorer = preferred_scorer([row.scorer for row in rows], rows[0].model)
    by_size = sorted((row for row in rows if row.scorer == scorer), key=lambda row: -abs(row.gap))
    plain = next((row for row in by_size if row.decoding == ANCESTRAL), by_size[0])
    shown = list(dict.fromkeys([by_size[0], plain]))
    places = decimals(*(value for row in shown for value in (row.gap, *row.ci95)))
    parts = [f"In {domain} text, {_clause(shown[0], places)}"]
    if len(shown) > 1:
        parts.append(_clause(shown[1], places))
    reader = "" if plain.self_scored else f" (scored by {plain.scorer})"
    return "; ".join(parts) + f"{reader}."


def _clause(row: GapRow, places: int) -> str:
    return people_clause(writer(row.model, row.decoding), row.gap, row.ci95, row.verdict, places)


def _overall(runs: Sequence[Run]) -> str:
    """Several studies in one sentence: how many of their comparisons point which way."""
    rows = [row for run in runs for row in read_gaps(run.gaps, "nll")]
    return f"{tally(rows, MEASURES['nll'])}." if rows else NO_GAP


def _words(run: Run, name: str) -> dict[str, Any]:
    """The words of the template about a run."""
    both = len({row["prompting"] for row in run.gaps}) > 1
    gaps, contrasts = ([named(row, both) for row in rows] for rows in (run.gaps, run.contrasts))
    said = [*findings(gaps, contrasts), *like_sentences(run.settings)]
    rest = dict(run.settings)
    environment = rest.pop("environment", {})
    hashes = rest.pop("weight_hashes", {})
    return {
        "name": name,
        "headline": headline(run),
        "lede": said[0] if len(read_gaps(gaps, "nll")) > 2 else "",  # the count over all comparisons
        "findings": said,
        "unfinished": run.unfinished,
        "n_texts": len(run.texts),
        "command": run.command,
        "seed": rest.get("seed"),
        "versions": {**environment, **{f"weights of {model}": value for model, value in hashes.items()}},
        "settings": yaml.safe_dump(rest, sort_keys=False, allow_unicode=True),
    }


def _row(row: dict[str, Any], both: bool) -> list[Any]:
    low, high = row["ci95"] or (None, None)
    given = row["decoding"] == GIVEN
    whose = GIVEN_TEXTS if given else named(row, both)["model"]
    scorer = SELF if row["scorer"] == row["model"] else row["scorer"]
    # The rule is not written again in the script.
    flat = {**row, "low": low, "high": high, "scorer": scorer, "verdict": GapRow.read(row).verdict}
    return [whose, row["model"] if given else row["decoding"], *without_nan([flat[name] for name in COLUMNS])]


def _names(runs: Sequence[Run]) -> list[str]:
    """Names of the runs, numbered where two folders have one name."""
    names = [run.name for run in runs]
    return [f"{name} ({names[: i + 1].count(name)})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _digest(text: str) -> str:
    """The hash by which a content security policy knows an inline script."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
