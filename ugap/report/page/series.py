"""The curves of the page: for every writer and domain, human tokens compared with each decoding's.

Design choices:

- They are those of the study's PNG plots: shares of tokens above x, whose area between two curves is the difference of
  their means, and means in entropy bins of equal token count.
- Over the position in the text there are at most 16 bins of equal width. The 95% band is around people's curve, by the
  bootstrap of the study, source texts resampled.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_hex

from ugap.files import without_nan
from ugap.report.figure import ordered_colours
from ugap.report.labels import label, writer
from ugap.report.page.runs import Run
from ugap.report.plots import HUMAN, bin_means, finite
from ugap.scoring import TokenScores
from ugap.statistics.bootstrap import Clusters, Group, interval
from ugap.study.measures import token_values
from ugap.study.pairs import Cell

DISTRIBUTIONS = ("nll", "entropy", "deviation")
POSITIONS = 16
_GRID = 160
_TAIL = 0.01


def panels(run: Run, number: int, both: bool) -> list[dict[str, Any]]:
    """Curves of a run, one entry for every writer, scorer and domain.

    Args:
        run (`Run`): The run.
        number (`int`): Its place on the page.
        both (`bool`): Whether it has raw and chat prompting, which the names of the writers then tell apart.
    """
    grouped: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in run.cells:
        grouped.setdefault((*writer(cell, both), cell.domain), []).append(cell)
    return [
        {
            "run": number,
            "writer": name,
            "scorer": scorer,
            "domain": domain,
            "distributions": {measure: _distributions(cells, measure) for measure in DISTRIBUTIONS},
            "calibration": {
                series: _points(*bin_means(*values))
                for series, _, texts in _series(cells)
                if (values := _joined(texts))[0].size
            },
            "positions": _positions(cells, int(run.settings.get("seed") or 0)),
        }
        for (name, scorer, domain), cells in grouped.items()
    ]


def colours(every: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """Colours of the decodings for the light and the dark theme, ordered by the mean surprisal over the panels."""
    means: dict[str, list[float]] = {}
    for panel in every:
        for name, curve in panel["distributions"]["nll"]["series"].items():
            means.setdefault(name, []).append(curve["mean"])
    means.pop(HUMAN, None)
    names = sorted(means, key=lambda name: -np.mean(means[name]))
    # The dark theme takes the lighter part of the map, for contrast with its ground.
    dark = matplotlib.colormaps["viridis"](np.linspace(0.38, 1.0, len(names)))
    pairs = zip(ordered_colours(len(names)), dark, strict=True)
    return {name: (to_hex(a), to_hex(b)) for name, (a, b) in zip(names, pairs, strict=True)}


def _series(cells: Iterable[Cell]) -> Iterator[tuple[str, Sequence[str], list[TokenScores]]]:
    """Name, sources and texts of people, as the first cell has them, and of each decoding."""
    for i, cell in enumerate(cells):
        if i == 0:
            yield HUMAN, cell.sources, cell.human
        yield label(cell), cell.sources, cell.generated


def _joined(texts: Sequence[TokenScores]) -> tuple[Any, ...]:
    return finite(
        np.concatenate([scores.entropy for scores in texts]), np.concatenate([scores.surprisal for scores in texts])
    )


def _points(x: np.ndarray, y: np.ndarray) -> list[list[float]]:
    return [_rounded(x), _rounded(y)]


def _distributions(cells: Sequence[Cell], measure: str) -> dict[str, Any]:
    values = {
        series: np.sort(np.concatenate([token_values(scores, measure) for scores in texts]))
        for series, _, texts in _series(cells)
    }
    values = {series: array for series, array in values.items() if array.size}
    if not values:
        return {"x": [], "series": {}}
    # Only a deviation can be negative: the others start at 0.
    low = min(float(np.quantile(array, _TAIL)) for array in values.values()) if measure == "deviation" else 0.0
    high = max(float(np.quantile(array, 1 - _TAIL)) for array in values.values())
    grid = np.linspace(low, max(high, low + 1e-3), _GRID)
    return {
        "x": _rounded(grid),
        "series": {
            series: {
                "y": _rounded(100 * (1 - np.searchsorted(array, grid, side="right") / len(array)), 2),
                "mean": round(float(array.mean()), 4),
                "n": len(array),
            }
            for series, array in values.items()
        },
    }


def _positions(cells: Sequence[Cell], seed: int) -> dict[str, Any]:
    """Mean surprisal by the token's place in the text, in bins of one width."""
    longest = max(len(scores) for cell in cells for scores in cell.human)
    width = -(-longest // POSITIONS)
    bins = -(-longest // width)
    out: dict[str, Any] = {}
    for series, sources, texts in _series(cells):
        sums, counts = _by_source(sources, texts, width, bins)
        total = counts.sum(0)
        with np.errstate(invalid="ignore"):
            means = sums.sum(0) / total
        out[series] = {"y": _rounded(means), "n": total.astype(int).tolist()}
        if series == HUMAN:
            ends = [_interval(sums[:, i], counts[:, i], seed) for i in range(bins)]
            out[series] |= {"low": _rounded([low for low, _ in ends]), "high": _rounded([high for _, high in ends])}
    return {"x": [begin + (width + 1) / 2 for begin in range(0, longest, width)], "width": width, "series": out}


def _by_source(
    sources: Sequence[str], texts: Sequence[TokenScores], width: int, bins: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts of the surprisals of every source and bin of places, shape `(G, bins)` each."""
    index: dict[str, int] = {}
    owners = [index.setdefault(source, len(index)) for source in sources]
    surprisal = np.concatenate([scores.surprisal for scores in texts]).astype(np.float64)
    bins_of_tokens = np.concatenate([np.arange(len(scores)) // width for scores in texts])
    cells = np.repeat(owners, [len(scores) for scores in texts]) * bins + bins_of_tokens
    finite_tokens = np.isfinite(surprisal)
    shape = (len(index), bins)
    sums = np.bincount(cells[finite_tokens], weights=surprisal[finite_tokens], minlength=len(index) * bins).reshape(
        shape
    )
    return sums, np.bincount(cells[finite_tokens], minlength=len(index) * bins).reshape(shape).astype(np.float64)


def _interval(sums: np.ndarray, counts: np.ndarray, seed: int) -> tuple[float, float]:
    """The interval of a mean over tokens, the sources that have any resampled."""
    there = counts > 0
    if not there.any():
        return float("nan"), float("nan")
    clusters = Clusters(list(np.flatnonzero(there)), sums[there], counts[there])
    # Bounded work: a study of 10,000 sources would take minutes.
    resamples = max(200, min(1000, 500_000 // len(clusters.sources)))  # many sources need few
    return interval([Group([clusters], [1])], resamples=resamples, seed=seed)


def _rounded(values: Any, places: int = 3) -> list[Any]:
    return without_nan([round(float(value), places) for value in values])
