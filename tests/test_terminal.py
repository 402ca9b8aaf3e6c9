"""What reaches a terminal: names and texts that try to steer it, through every way of printing that we have."""

import ast
import io
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

import ugap
from ugap.models.console import announced
from ugap.progress import progress_bar
from ugap.terminal import Name, Terminal, one_line, visible

# A colour, an erased screen, a link, a bell, a clipboard, a return, C1 controls, overrides, a separator.
ATTACKS = [
    "red \x1b[31m",
    "\x1b[2J\x1b[H gone",
    "\x1b]8;;http://evil\x07link\x1b]8;;\x07",
    "\x1b]52;c;bHM=\x1b\\",
    "fine\rbad \x08",
    "\x9b31m \x85",
    "\u202eabc\u2066 \u2028",
    "[red]markup[/]",
]
STEERING = "\x1b\x07\x08\r\x85\x9b\u202e\u2066\u2028"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, naß 東京 🦊\n\ttab", "plain, naß 東京 🦊\n\ttab"),
        ("👩\u200d🚀", "👩\u200d🚀"),
        ("a\x1b[31m\x00\x7f\x85", r"a\x1b[31m\x00\x7f\x85"),
        ("\u202eabc\u2066\u2028", r"\u202eabc\u2066\u2028"),
        ("\ud800", r"\ud800"),
    ],
)
def test_visible(text, expected):
    assert visible(text) == expected
    assert visible(expected) == expected


def test_a_name_is_one_line():
    assert one_line("a\nb\tc\x1b") == r"a\nb\tc\x1b"


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_of_ours_steers_a_terminal(attack, capsys):
    table = Table(attack)
    table.add_row(attack)
    table.add_row(Text(attack))
    stream = io.StringIO()
    console = Terminal(file=stream, force_terminal=True, color_system=None, width=200)
    console.print(table)
    console.print(attack)
    console.print(Text(attack, style="bold"))
    printed = stream.getvalue()
    assert not set(STEERING) & set(printed)
    assert not attack.startswith("[") or printed.count(attack) == 5


def test_a_column_has_room_for_what_is_spelt_out():
    table = Table("name", box=None)
    table.add_row("a\x1b[31m\u202e")
    stream = io.StringIO()
    Terminal(file=stream, width=60).print(table)
    assert r"a\x1b[31m\u202e" in stream.getvalue()


@pytest.mark.parametrize(
    ("name", "width", "lines"),
    [
        ("gemma-3-270m", 12, ["gemma-3-270m"]),
        ("gemma-3-270m", 11, ["gemma-3-", "270m"]),
        ("org/gemma_3", 7, ["org/", "gemma_3"]),
        ("two words", 5, ["two", "words"]),
        ("indivisible", 6, ["indivi", "sible"]),
        ("a\x1b-b", 6, [r"a\x1b-", "b"]),
        ("", 5, [""]),
    ],
)
def test_a_name_breaks_behind_a_hyphen(name, width, lines):
    stream = io.StringIO()
    Terminal(file=stream, width=width).print(Name(name))
    assert stream.getvalue().splitlines() == lines


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_progress_bar(attack, capsys):
    with progress_bar() as bar:
        bar.advance(bar.add_task(f"a\nsecond {attack}", total=1))
    out = capsys.readouterr().out
    assert not set(STEERING) & set(out)
    assert "\nsecond" not in out


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_announced(attack, capsys):
    with announced(f"reading {attack}\nfolder"):
        pass
    assert capsys.readouterr().err == f"reading {one_line(attack)}\\nfolder\n"


def test_what_is_printed_without_a_console_is_made_visible():
    """`print` writes what it gets: names of files, models and kinds have to pass through this module first."""
    # A shell substitutes the paths of assets, which are of this machine's cache.
    exempt = {"ugap/cli/assets.py"}
    safe = {"visible", "one_line", "_shown", "_overview", "len", "repr"}
    root = Path(ugap.__file__).parents[1]
    bare = []
    for path in sorted((root / "ugap").rglob("*.py")):
        if path.relative_to(root).as_posix() in exempt:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                parts = [
                    part for one in node.args for part in (one.values if isinstance(one, ast.JoinedStr) else [one])
                ]
                values = [part.value if isinstance(part, ast.FormattedValue) else part for part in parts]
                bare += [
                    f"{path.relative_to(root)}:{node.lineno}: {ast.unparse(value)}"
                    for value in values
                    if not isinstance(value, ast.Constant)
                    and ast.unparse(value) != "ugap.__version__"
                    and not (isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in safe)
                ]
    assert bare == []
