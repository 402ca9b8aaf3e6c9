"""What a study leaves for its reader: gap.md, three plots, and words on the terminal."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from ugap.data import TextRow
from ugap.report import write_report
from ugap.study import StudySettings, parse_decodings, run_study

PLOTS = ("gap.png", "distributions.png", "calibration.png")


@pytest.fixture(scope="module")
def result(tmp_path_factory, text_rows, chat_folder, tiny_folder):
    """A chat model, prompted both ways, read by itself and by another."""
    settings = StudySettings(
        models=[str(chat_folder)],
        scorers=["self", str(tiny_folder)],
        decodings=parse_decodings(["ancestral"]),
        promptings=["raw", "chat"],
        prefix_tokens=8,
        max_new_tokens=12,
        limit=3,
        pmi=False,
    )
    return run_study([TextRow(**row) for row in text_rows], settings, tmp_path_factory.mktemp("study"), data=["mine"])


@pytest.fixture(scope="module")
def report(result, tmp_path_factory):
    """The folder of the report and what was printed."""
    folder = tmp_path_factory.mktemp("report")
    stream = io.StringIO()
    write_report(result, folder, command="ugap measure --seed 7", console=Console(file=stream, width=200))
    return folder, stream.getvalue()


def test_the_files(report):
    folder, _ = report
    assert {path.name for path in folder.iterdir()} == {"gap.md", *PLOTS}
    for name in PLOTS:
        content = (folder / name).read_bytes()
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
        assert len(content) > 5000


def test_gap_md_has_the_command_and_every_figure(report, result):
    text = (report[0] / "gap.md").read_text(encoding="utf-8")
    assert "ugap measure --seed 7" in text
    rows = [row for row in result.record["gaps"] if row["measure"] == "nll"]
    assert len(rows) == 8
    for row in rows:
        assert f"{row['human']:.3f}" in text
        assert f"{row['model_value']:.3f}" in text
        assert f"{row['model']} ({row['prompting']})" in text


def test_the_terminal_says_what_was_found(report, result):
    folder, printed = report
    words = " ".join(printed.split())
    name = Path(result.record["settings"]["models"][0]).name
    assert f"{name} (raw)" in words
    assert f"{name} (chat)" in words
    assert "- In creative text, " in words
    assert f"The whole table, plots and per-token scores are in {folder}" in words


def test_a_study_that_found_nothing(tmp_path, result, capsys):
    empty = type(result)({**result.record, "gaps": [], "contrasts": []}, [])
    write_report(empty, tmp_path, command="ugap measure")
    assert {path.name for path in tmp_path.iterdir()} == {"gap.md", *PLOTS}
    assert "No gap could be estimated" in capsys.readouterr().out
