"""`ugap report`: the page of one study or several, and bad input in one line."""

import json
import shutil

import pytest

from ugap.cli.main import main
from ugap.study.gap.run import VERSION


@pytest.fixture(scope="module")
def folder(tmp_path_factory, text_rows, tiny_folder):
    """What `ugap measure` leaves."""
    root = tmp_path_factory.mktemp("runs")
    data = root / "texts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in text_rows), encoding="utf-8")
    words = ["--model", str(tiny_folder), "--data", str(data), "--output", str(root / "first"), "--decoding", "greedy"]
    assert main(["measure", *words, "--prefix_tokens", "8", "--max_new_tokens", "10", "--limit", "3"]) == 0
    return root / "first"


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_measure_writes_it_too(folder):
    assert "first · ugap" in (folder / "report.html").read_text(encoding="utf-8")


def test_one_study(folder, tmp_path, capsys):
    path = tmp_path / "page.html"
    assert main(["report", str(folder), "--output", str(path)]) == 0
    assert capsys.readouterr().out == f"The report is in {path}: open it in a browser\n"
    html = path.read_text(encoding="utf-8")
    assert '<pre class="command">ugap' in html
    assert html == (folder / "report.html").read_text(encoding="utf-8")  # the same study, the same page


def test_several_studies(folder, copied, tmp_path):
    path = tmp_path / "page.html"
    assert main(["report", str(folder), str(copied), "--output", str(path)]) == 0
    html = path.read_text(encoding="utf-8")
    assert "Run first" in html
    assert "Run copy" in html


def test_a_study_that_still_runs(copied, tmp_path, capsys):
    for name in ("gap.json", "gap.md", "scores.parquet"):
        (copied / name).unlink()
    assert main(["report", str(copied), "--output", str(tmp_path / "page.html")]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.startswith(f"{copied} has not ended: 12 texts are scored so far\n")
    assert "This study has not ended" in (tmp_path / "page.html").read_text(encoding="utf-8")


class TestBadInput:
    def test_no_folder_is_named(self, refused):
        assert refused("report") == "ugap: error: name the folder of a study (see ugap report --help)\n"

    def test_no_such_folder(self, refused, tmp_path):
        assert refused("report", str(tmp_path / "gone")) == f"ugap: error: {tmp_path / 'gone'}: no such folder\n"

    def test_no_scores(self, refused, tmp_path):
        line = refused("report", str(tmp_path), "--output", str(tmp_path / "page.html"))
        assert line.startswith(f"ugap: error: {tmp_path}: no scores in it")
        assert not (tmp_path / "page.html").exists()

    def test_the_output_is_a_folder(self, refused, folder, tmp_path):
        line = refused("report", str(folder), "--output", str(tmp_path))
        assert line == f"ugap: error: {tmp_path}: a folder; name the HTML file to write\n"

    def test_a_newer_version(self, refused, copied, tmp_path):
        record = json.loads((copied / "gap.json").read_text())
        (copied / "gap.json").write_text(json.dumps({**record, "version": VERSION + 1}))
        line = refused("report", str(copied), "--output", str(tmp_path / "page.html"))
        assert line.startswith(f"ugap: error: {copied / 'gap.json'}: made by a newer ugap")
