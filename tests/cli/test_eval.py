"""`ugap eval`: programs are found by the name of their file, listed without being run, and parsed like commands."""

import subprocess
import sys
from pathlib import Path

import pytest

import ugap.cli.programs
from ugap.cli.main import main

ROOT = Path(__file__).parents[2]

PROGRAM = '''\
"""Not what the list shows."""

from dataclasses import dataclass

from ugap.cli.arguments import option
from ugap.errors import InputError

DESCRIPTION = """\\
Count to a number.

example: ugap eval count --number 3"""


@dataclass(kw_only=True)
class Arguments:
    number: int = option("how far")
    names: list[str] | None = option("for whom", default=None)


def run(arguments: Arguments) -> None:
    if arguments.number < 0:
        raise InputError("number is below 0")
    print(*range(arguments.number), __file__)
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of two programs, one of which cannot be imported, and of what is no program."""
    (tmp_path / "count.py").write_text(PROGRAM, encoding="utf-8")
    (tmp_path / "heavy.py").write_text(f"import no_such_module\n{PROGRAM}", encoding="utf-8")
    (tmp_path / "helper.py").write_text("def run(arguments): ...\n", encoding="utf-8")
    (tmp_path / "notes.txt").touch()
    monkeypatch.setattr(ugap.cli.programs, "programs_folder", lambda kind: {"eval": tmp_path}[kind])
    yield tmp_path
    sys.modules.pop(f"ugap_{tmp_path.name}_count", None)


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_the_list_runs_nothing(words, folder, capsys):
    assert main(["eval", *words]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: ugap eval <program> [options]\n")
    assert "  count  Count to a number.\n  heavy  Count to a number.\n" in printed
    assert "helper" not in printed
    assert "notes" not in printed


def test_a_program_runs_with_its_arguments(folder, capsys):
    assert main(["eval", "count", "--number", "3"]) == 0
    assert capsys.readouterr().out == f"0 1 2 {folder / 'count.py'}\n"


def test_help_of_a_program(folder, capsys):
    assert main(["eval", "count", "--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: ugap eval count [--config FILE] --number N [options]")
    assert "example: ugap eval count --number 3" in printed


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["cuont"], "unknown program 'cuont'; did you mean count? (see ugap eval --help)"),
        (["helper"], "unknown program 'helper' (see ugap eval --help)"),
        (["../count"], "unknown program '../count'; did you mean count? (see ugap eval --help)"),
        (["count.py"], "unknown program 'count.py'; did you mean count? (see ugap eval --help)"),
        (["--hepl"], "unknown option '--hepl'; did you mean --help? (see ugap eval --help)"),
        (["count"], "the following arguments are required: --number (see ugap eval count --help)"),
        (["count", "--nmber", "3"], "unknown option --nmber; did you mean --number? (see ugap eval count --help)"),
        (["count", "--number", "-1"], "number is below 0"),
    ],
)
def test_bad_words_get_one_line(words, line, folder, refused):
    assert refused("eval", *words) == f"ugap: error: {line}\n"


@pytest.mark.parametrize("words", [["--help"], ["factuality", "--help"]])
def test_help_needs_no_torch(words):
    call = f"from ugap.cli.main import main\nassert main({['eval', *words]}) == 0"
    code = f"{call}\nimport sys\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"


def test_the_programs_of_the_project(capsys):
    assert main(["eval"]) == 0
    printed = capsys.readouterr().out
    expected = {
        path.stem
        for path in (ROOT / "eval").rglob("*.py")
        if all(
            f"\n{part}" in path.read_text(encoding="utf-8")
            for part in ("class Arguments", "DESCRIPTION = ", "def run(")
        )
    }
    assert {"factuality", "bench_scoring", "bench_texts", "diversity", "quality"} <= expected
    listed = {line.split()[0] for line in printed.splitlines() if line.startswith("  ")}
    assert listed == expected
