import itertools
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib import image
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

import ugap.report.figure
from ugap.report import plot_calibration, plot_distributions, plot_gap
from ugap.report.figure import DPI, columns, ordered_colours
from ugap.report.plots import DOMAIN_COLOURS, bin_means, finite

DECODINGS = ("ancestral", "top-p-0.9", "temperature-0.7", "top-k-50", "min-p-0.1", "typical-p-0.95", "greedy")


@pytest.fixture
def figures(monkeypatch):
    """The figures that are made, in order."""
    made = []

    class Recorded(Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(ugap.report.figure, "Figure", Recorded)
    return made


@pytest.fixture
def path(tmp_path):
    return tmp_path / "plots" / "plot.png"


def tokens(factor, n=3000, seed=0):
    """Entropy and surprisal of a text that is `factor` times as surprising as the scorer expects."""
    rng = np.random.default_rng(seed)
    entropy = rng.gamma(2.0, 1.5, n)
    return entropy, factor * entropy * rng.gamma(2.0, 0.5, n)


def read(path, figure):
    """The pixels of the PNG, which has the size of the figure and holds a drawing."""
    pixels = image.imread(path)
    assert pixels.shape[:2] == tuple(int(side * DPI) for side in figure.get_size_inches()[::-1])
    assert len(np.unique(pixels[..., :3] @ np.array([1, 256, 65536]))) > 20
    assert list(path.parent.iterdir()) == [path]
    return pixels


def has_colour(pixels, colour):
    return bool((np.abs(pixels[..., :3] - np.array(to_rgb(colour))).max(axis=-1) < 0.01).any())


def words(figure):
    """The texts that are seen, with their boxes in pixels."""
    renderer = figure.canvas.get_renderer()
    unseen = set()
    for axes in figure.axes:
        for axis, (low, high), at in ((axes.xaxis, axes.get_xlim(), 0), (axes.yaxis, axes.get_ylim(), 1)):
            labels = axis.get_ticklabels(which="both")
            unseen |= {label for label in labels if not low <= label.get_position()[at] <= high}
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text() and text not in unseen]
    return [(text.get_text(), text.get_window_extent(renderer)) for text in texts]


def check_layout(figure):
    """No text lies on another or outside the figure, and no panel on a text of the frame."""
    found = words(figure)
    width, height = figure.canvas.get_width_height()
    for text, box in found:
        assert -0.5 <= box.x0 <= box.x1 <= width + 0.5, text
        assert -0.5 <= box.y0 <= box.y1 <= height + 0.5, text
    for (text, box), (other, other_box) in itertools.combinations(found, 2):
        shared_width = min(box.x1, other_box.x1) - max(box.x0, other_box.x0)
        shared_height = min(box.y1, other_box.y1) - max(box.y0, other_box.y0)
        assert shared_width <= 1 or shared_height <= 1, (text, other)


LONG = "/data/checkpoints/a_model_with_a_very_long_name-2026-10-01/step-12000"


@pytest.mark.parametrize("models", [1, 2, 3, 4])
@pytest.mark.parametrize("decodings", [1, 10])
def test_gap_plot_of_any_size_is_readable(study, figures, path, models, decodings):
    names = ("gemma-3-270m", "smollm2-135m-instruct", "organisation/a-model-8B-instruct", LONG)[:models]
    plot_gap(study(names, decodings=decodings), path)
    (figure,) = figures
    pixels = read(path, figure)
    check_layout(figure)
    assert all(has_colour(pixels, colour) for colour in DOMAIN_COLOURS.values())
    shown = [text for text, _ in words(figure)]
    assert sum("scored by" in text for text in shown) == len(figure.axes) == models
    assert shown.count("human level") == models
    assert sum("people are more surprising" in text for text in shown) == columns(models)
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    note = next(text for text in shown if "filled mark" in text)
    assert "Creative: n = 16 prefixes of 8 source texts." in " ".join(note.split())


def test_gap_plot_places_estimates_and_intervals(gap_row, figures, path):
    sizes = {"greedy": 1.9, "ancestral": -0.2, "top-p-0.9": 0.5}
    rows = [gap_row(gap=gap, ci95=(gap - 0.1, gap + 0.3), decoding=name) for name, gap in sizes.items()]
    plot_gap([*rows, gap_row(measure="entropy", decoding="other")], path)
    (axes,) = figures[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ancestral", "top-p-0.9", "greedy"]
    lines = [line.get_xydata() for line in axes.get_lines()]
    for place, name in enumerate(["ancestral", "top-p-0.9", "greedy"]):
        gap = sizes[name]
        assert any(np.allclose(line, [[gap, place]]) for line in lines)
        assert any(np.allclose(line, [[gap - 0.1, place], [gap + 0.3, place]]) for line in lines)
    assert axes.get_xlim()[0] < -0.3 < 0 < 2.2 < axes.get_xlim()[1]
    points = {line.get_xdata()[0]: line for line in axes.get_lines() if line.get_marker() == "o"}
    assert points[-0.2].get_markerfacecolor() == "white"  # its interval covers 0
    assert points[1.9].get_markerfacecolor() == points[1.9].get_color()


def test_gap_plot_says_what_is_seen(study, gap_row, figures, path):
    plot_gap(study(), path)
    plot_gap([gap_row(measure="entropy", gap=-1, ci95=(-2, -0.5))], path, measure="entropy")
    titles = [" ".join(next(text for text, _ in words(figure) if "comparison" in text).split()) for figure in figures]
    assert titles == [
        "People are more surprising in 8 of 12 comparisons; the model is more surprising in 2, and no difference "
        "can be told in 2",
        "Model text is less certain in the one comparison",
    ]


def test_gap_plot_gives_every_scorer_a_panel_and_candidates_a_common_one(gap_row, figures, path):
    given = [gap_row(model=name, decoding="given", scorer="judge") for name in ("writer A", "writer B")]
    plot_gap([gap_row(), gap_row(scorer="judge"), *given], path)
    titles = [axes.get_title(loc="left") for axes in figures[0].axes]
    assert titles == ["gemma-3-270m, scored by itself", "gemma-3-270m, scored by judge", "given texts, scored by judge"]
    assert [label.get_text() for label in figures[0].axes[2].get_yticklabels()] == ["writer A", "writer B"]
    check_layout(figures[0])


@pytest.mark.parametrize("domains", [("creative",), ("a", "b", "c", "d", "e")])
def test_gap_plot_of_other_domains(study, figures, path, domains):
    plot_gap(study(domains=domains), path)
    check_layout(figures[0])
    handles = figures[0].legends[0].legend_handles
    assert len({(handle.get_color(), handle.get_marker()) for handle in handles}) == len(domains)


def test_gap_plot_without_intervals_or_without_rows(gap_row, figures, path):
    plot_gap([gap_row(ci95=None), gap_row(gap=None, ci95=None, decoding="greedy")], path)
    read(path, figures[0])
    assert [label.get_text() for label in figures[0].axes[0].get_yticklabels()] == ["top-p-0.9"]
    for rows in ([], [gap_row(gap=None)]):
        plot_gap(rows, path)
        assert {"nothing to show", "No gap could be estimated"} <= {text for text, _ in words(figures[-1])}


@pytest.mark.parametrize("name", ["$x$ and $\\frac{1}$", "_hidden", "a_b^c", "[x]", "100%"])
def test_names_are_drawn_letter_by_letter(gap_row, figures, path, name):
    plot_gap([gap_row(model=name, decoding=name, domain=name)], path)
    plot_distributions({name: {"human": [1.0, 2.0], name: [0.5, 1.0]}}, path)
    plot_calibration({name: {"human": ([1.0, 2.0], [1.0, 2.0]), name: ([0.5, 1.0], [0.5, 1.0])}}, path)
    for figure in figures:
        texts = figure.findobj(Text)
        assert not any(text.get_parse_math() for text in texts if name in text.get_text())
        legend = figure.legends[0] if figure.legends else figure.axes[0].get_legend()
        assert any(name in text.get_text() for text in legend.get_texts())
        assert sum(name in text.get_text() for text in texts) >= 2


@pytest.mark.parametrize("panels", [1, 4])
@pytest.mark.parametrize("series", [1, 10])
def test_token_plots_of_any_size_are_readable(figures, path, panels, series):
    names = ["human", *DECODINGS, *(f"custom-{i}" for i in range(20))][: series + 1]
    points = {
        f"creative: {LONG if panel == 1 else 'gemma-3-270m'}, read by judge {panel}": {
            name: tokens(1.1 - 0.08 * i, n=500, seed=panel) for i, name in enumerate(names)
        }
        for panel in range(panels)
    }
    plot_distributions({panel: {name: s for name, (_, s) in curve.items()} for panel, curve in points.items()}, path)
    read(path, figures[0])
    plot_calibration(points, path)
    assert has_colour(read(path, figures[1]), "black")
    for figure in figures:
        check_layout(figure)
        assert len(figure.axes) == panels
        for axes in figure.axes:
            assert len(axes.get_legend().get_texts()) == series + 1


def test_distributions_show_the_share_above_x_and_its_area_is_the_mean(figures, path):
    series = {"human": tokens(1.2)[1], "greedy": tokens(0.2)[1], "ancestral": tokens(1.0)[1]}
    plot_distributions({"creative": series}, path)
    (axes,) = figures[0].axes
    lines = {line.get_label().split("  ")[1]: line for line in axes.get_lines()}
    assert [text.get_text().split("  ")[1] for text in axes.get_legend().get_texts()] == [
        "human",
        "ancestral",
        "greedy",
    ]
    for name, line in lines.items():
        x, share = line.get_xdata(), line.get_ydata() / 100
        assert line.get_label().startswith(f"{series[name].mean():.2f}")
        np.testing.assert_allclose(share, [(series[name] > at).mean() for at in x], atol=1e-12)
        assert np.trapezoid(share, x) == pytest.approx(np.minimum(series[name], x[-1]).mean(), abs=0.01)
        assert (series[name] > x[-1]).mean() <= 0.021
    assert to_rgb(lines["human"].get_color()) == (0, 0, 0)
    assert lines["human"].get_linewidth() > 1.5 * lines["greedy"].get_linewidth()


def test_calibration_shows_bin_means_and_the_diagonal(figures, path):
    points = {"human": tokens(1.2), "greedy": tokens(0.2)}
    plot_calibration({"creative": points}, path)
    (axes,) = figures[0].axes
    assert axes.get_xlim() == axes.get_ylim()
    lines = {line.get_label().strip(): line.get_xydata() for line in axes.get_lines()}
    for name, factor in (("human", 1.2), ("greedy", 0.2)):
        h, s = lines[name].T
        np.testing.assert_allclose((h, s), bin_means(*points[name]))
        np.testing.assert_allclose(s, factor * h, rtol=0.2)
    diagonal = next(xy for xy in lines.values() if len(xy) == 2)
    np.testing.assert_array_equal(diagonal[:, 0], diagonal[:, 1])


def test_bins_have_equal_counts_and_hold_every_token():
    entropy, surprisal = tokens(1.0, n=6000)
    h, s = bin_means(entropy, surprisal)
    assert len(h) == 12
    assert (np.diff(h) > 0).all()
    # Bins of equal count: the mean of the means is the mean of all.
    assert np.mean(h) == pytest.approx(entropy.mean(), rel=1e-3)
    assert np.mean(s) == pytest.approx(surprisal.mean(), rel=1e-3)


@pytest.mark.parametrize("n", [1, 49, 100])
def test_few_or_equal_tokens_share_a_bin(n):
    h, s = bin_means(np.full(n, 1.5), np.arange(n, dtype=float))
    assert h == [1.5]
    assert s == [(n - 1) / 2]


def test_tokens_that_could_not_be_scored_are_left_out(figures, path):
    nan = float("nan")
    h, s = finite([nan, 1, 2, 3], [1, nan, 2, np.inf])
    assert (h.tolist(), s.tolist()) == ([2.0], [2.0])
    plot_distributions({"a": {"human": [nan, 1.0, 3.0], "greedy": [nan]}, "b": {"human": []}}, path)
    plot_calibration({"a": {"human": ([nan, 1.0], [2.0, 3.0])}, "b": {}}, path)
    plot_distributions({}, path)
    plot_calibration({}, path)
    assert [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()] == ["2.00  human"]
    for figure in figures:
        assert "nothing to show" in [text for text, _ in words(figure)]


def test_certain_tokens_alone_still_make_a_plot(figures, path):
    plot_distributions({"a": {"human": [0.0, 0.0]}}, path)
    plot_calibration({"a": {"human": ([0.0, 0.0], [0.0, 0.0])}}, path)
    assert all(figure.axes[0].get_xlim()[1] > 0 for figure in figures)
    assert not figures[0].axes[0].get_lines()[0].get_ydata().any()  # no token is more surprising than 0


def test_series_keep_their_colour_and_are_told_apart():
    colours = np.array(ordered_colours(10))
    lightness = colours[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > 0.01).all()


def test_a_series_has_one_colour_in_all_panels(figures, path):
    one, two = tokens(1.0)[1], tokens(0.5)[1]
    plot_distributions({"a": {"x": one, "y": two}, "b": {"y": one, "x": two, "z": two}}, path)
    colours = [{line.get_label()[6:]: line.get_color() for line in axes.get_lines()} for axes in figures[0].axes]
    assert colours[0]["x"] == colours[1]["x"] != colours[0]["y"] == colours[1]["y"]


def test_plots_leave_no_trace(gap_row, path, monkeypatch):
    before = dict(matplotlib.rcParams)
    plot_gap([gap_row()], path)
    first = path.read_bytes()
    plot_gap([gap_row()], path)
    assert path.read_bytes() == first
    assert dict(matplotlib.rcParams) == before

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plot_gap([], path)
    assert path.read_bytes() == first
    assert list(path.parent.iterdir()) == [Path(path)]
