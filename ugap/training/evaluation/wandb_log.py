"""Two plots and a table of completions in Weights & Biases, for each evaluation.

Design choices:

- The table has the same prefixes at every evaluation. Each token is followed by its surprisal, as text: the column can
  be read, searched and downloaded like any other.
- Both plots show the tokens of paired texts, cut to one length, like the gaps.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ugap.report.figure import FAINT, INK, framed, ordered_colours, wrapped
from ugap.report.plots import Points, plot_calibration
from ugap.scoring import TokenScores
from ugap.study.measures import token_values
from ugap.study.pairs import HUMAN, Cell, ScoredText
from ugap.terminal import visible
from ugap.training.evaluation.evaluate import POLICY

COLUMNS = ("domain", "prefix", "human", "completion", "nll", "nll_human", "surprisal")
AXES = {
    "nll": "surprisal, nats",
    "entropy": "entropy of the scorer, nats",
    "deviation": "deviation, standard deviations",
}
TAIL = 0.005


def wandb_media(
    texts: Sequence[ScoredText], human: Mapping[str, ScoredText], cells: Sequence[Cell], n_rows: int, folder: str | Path
) -> dict[str, Any]:
    """Plots and table of an evaluation. Log them before `folder` is removed.

    Args:
        texts (`Sequence[ScoredText]`): The policy's texts.
        human (`Mapping[str, ScoredText]`): The human continuations by id.
        cells (`Sequence[Cell]`): Their pairs, by domain.
        n_rows (`int`): Completions of each domain in the table.
        folder (`str` or `Path`): Folder for the plots.
    """
    # An optional extra, imported where it is used.
    import wandb

    media: dict[str, Any] = {"ugap/completions": wandb.Table(list(COLUMNS), completions(texts, human, n_rows))}
    # Without a pair there is nothing to plot.
    if cells:
        folder = Path(folder)
        curves = {cell.domain: {HUMAN: _points(cell.human), POLICY: _points(cell.generated)} for cell in cells}
        plot_calibration(curves, folder / "calibration.png")
        plot_tokens(cells, folder / "distributions.png")
        for name in ("calibration", "distributions"):
            media[f"ugap/{name}"] = wandb.Image(str(folder / f"{name}.png"))
    return media


def completions(texts: Sequence[ScoredText], human: Mapping[str, ScoredText], n_rows: int) -> list[list[Any]]:
    """Rows of the table, as `COLUMNS` names them: the first `n_rows` texts of each domain."""
    rows = []
    for domain in dict.fromkeys(text.domain for text in texts):
        for text in [text for text in texts if text.domain == domain][:n_rows]:
            other = human[text.id].scores
            shown = [visible(part) for part in (text.prefix, other.text, text.scores.text)]
            rows.append([domain, *shown, text.scores.nll, other.nll, spelt_surprisal(text.scores)])
    return rows


def spelt_surprisal(scores: TokenScores) -> str:
    """The text with the surprisal in nats after every token.

    Example:
        >>> row = np.array([6.1, 0.2, np.nan], np.float32)
        >>> ids, offsets = np.zeros(3, np.int32), np.array([[0, 4], [4, 9], [9, 11]], np.int32)
        >>> from ugap.scoring import ScorerId
        >>> id = ScorerId("tiny", "0")
        >>> spelt_surprisal(TokenScores("Once upon a", ids, offsets, row, row, row, row, None, id, False))
        'Once[6.1] upon[0.2] a'
    """
    parts = []
    for (begin, end), nats in zip(scores.offsets.tolist(), scores.surprisal.tolist(), strict=True):
        parts.append(visible(scores.text[begin:end]) + (f"[{nats:.1f}]" if np.isfinite(nats) else ""))
    return "".join(parts)


def plot_tokens(cells: Sequence[Cell], path: str | Path) -> None:
    """Plot the share of tokens above x in surprisal, entropy and deviation, human text against the policy's.

    Args:
        cells (`Sequence[Cell]`): Pairs, a row of panels for each.
        path (`str` or `Path`): The PNG file to write.
    """
    with framed(
        path,
        panels=len(AXES) * len(cells),
        panel_size=(3.8, 3.1),
        title="How the policy's tokens compare with people's",
        subtitle="The share of tokens above x; the area between two curves is the difference of their means.",
        note="All tokens of all pairs pooled. Numbers in the legends: means. The axes end where half a percent of the "
        "tokens is left on either side.",
    ) as frame:
        panels = [(cell, measure) for cell in cells for measure in AXES]
        for index, (axes, (cell, measure)) in enumerate(zip(frame.axes, panels, strict=True)):
            axes.set_title(wrapped(cell.domain, 3.0, 10), loc="left")
            sides = {
                name: np.concatenate([token_values(scores, measure) for scores in texts])
                for name, texts in ((HUMAN, cell.human), (POLICY, cell.generated))
            }
            _draw_shares(axes, sides)
            axes.set_xlabel(AXES[measure])
            if frame.first_in_row(index):
                axes.set_ylabel("tokens above x, %")


def _draw_shares(axes: Axes, sides: Mapping[str, np.ndarray]) -> None:
    # A few extreme tokens would squeeze the rest of the curve.
    low, high = np.quantile(np.concatenate(list(sides.values())), [TAIL, 1 - TAIL]).tolist()
    grid = np.linspace(low, high, 400)
    evaluations: dict[str, dict[str, Any]] = {
        HUMAN: {"color": INK, "linewidth": 3.2},
        POLICY: {"color": ordered_colours(1)[0], "linewidth": 1.5},
    }
    for name, values in sides.items():
        # Share of values above x, from the sorted values.
        share = 1 - np.searchsorted(np.sort(values), grid, side="right") / len(values)
        axes.plot(grid, 100 * share, label=f"{values.mean():.2f}  {name}", **evaluations[name])
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_ylim(0, 100)
    axes.legend(loc="upper right", fontsize=7.5, labelspacing=0.3, handlelength=1.8)


def _points(texts: Sequence[TokenScores]) -> Points:
    entropy, surprisal = ([getattr(scores, name) for scores in texts] for name in ("entropy", "surprisal"))
    return np.concatenate(entropy), np.concatenate(surprisal)
