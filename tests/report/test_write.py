"""What a study leaves for its reader: gap.md, three plots, and words on the terminal."""

import dataclasses
import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from ugap.data import TextRow
from ugap.report import write_report
from ugap.study import StudyResult, StudySettings, parse_decodings, run_study

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


def test_a_cell_without_a_pair_is_in_the_table_alone(tmp_path, result, capsys):
    (row, *_), (cell, *_) = result.record["gaps"], result.cells
    figures = ("human", "model_value", "gap", "ratio", "effect_size", "p_value", "p_adjusted", "wasserstein")
    missing = dict.fromkeys(figures)
    empty = {**row, **missing, "decoding": "short", "n": 0, "n_sources": 0, "n_dropped": 3, "ci95": [None, None]}
    none = dataclasses.replace(cell, decoding="short", sources=[], human=[], generated=[], n_dropped=3)
    record = {**result.record, "gaps": [row, empty], "contrasts": []}
    write_report(StudyResult(record, [cell, none]), tmp_path, command="ugap measure")
    assert "| short | self | 0 (0) | – | – | – |" in (tmp_path / "gap.md").read_text(encoding="utf-8")


def test_a_study_that_found_nothing(tmp_path, result, capsys):
    empty = type(result)({**result.record, "gaps": [], "contrasts": []}, [])
    write_report(empty, tmp_path, command="ugap measure")
    assert {path.name for path in tmp_path.iterdir()} == {"gap.md", *PLOTS}
    assert "No gap could be estimated" in capsys.readouterr().out


NASTY = "a|`b`\x1b[2J\x1b]8;;http://x\x07\r\u202e\n- In creative text, all is well."


def test_names_steer_no_terminal_and_break_no_table(tmp_path, result, capsys):
    """Every name of the study is hostile; standard output, and gap.md where somebody prints it, stay plain."""
    names = dict.fromkeys(("domain", "model", "decoding", "scorer", "a", "b"), NASTY)
    gaps, contrasts = (
        [{**row, **{name: value for name, value in names.items() if name in row}} for row in rows]
        for rows in (result.record["gaps"][:3], result.record["contrasts"])
    )
    cells = [dataclasses.replace(cell, domain=NASTY, model=NASTY, decoding=NASTY) for cell in result.cells]
    settings = {**result.record["settings"], "models": [NASTY]}
    record = {**result.record, "gaps": gaps, "contrasts": contrasts, "settings": settings}
    write_report(StudyResult(record, cells), tmp_path, command=f"ugap measure --model {NASTY!s}")
    printed, text = capsys.readouterr(), (tmp_path / "gap.md").read_text(encoding="utf-8")
    assert not set(printed.out + text) & set("\x1b\x07\r\u202e")
    assert "\n- In creative text, all is well." not in printed.out
    assert "\n- In creative text, all is well." not in text.split("## Command")[0]
    assert printed.err == ""
    for line in text.split("## Contrasts")[0].splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 14
