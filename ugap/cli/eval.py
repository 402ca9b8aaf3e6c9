"""`ugap eval PROGRAM`: runs a program of the folder `eval`, found by the name of its file.

A program has the form of a command: `Arguments` (a dataclass), `DESCRIPTION` (its first line says what it does) and
`run(arguments)`. A file is read, not run, to see whether it is one and what it does: the list answers at once.
"""

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from ugap.cli.programs import programs_folder
from ugap.cli.suggest import did_you_mean
from ugap.errors import InputError

KIND = "eval"


def pick(words: list[str]) -> tuple[str, ModuleType] | None:
    """The name of the program that the first word asks for, and the program; `None` where the list was asked for.

    Raises:
        InputError: There is no such program.
    """
    if not words or words[0] in ("-h", "--help"):
        print(_overview(programs()))
        return None
    path = programs_folder(KIND) / f"{words[0]}.py"
    if not words[0].isidentifier() or not path.is_file() or _description(path) is None:
        kind, known = ("option", ["--help"]) if words[0].startswith("-") else ("program", list(programs()))
        raise InputError(f"unknown {kind} {words[0]!r}{did_you_mean(words[0], known)} (see ugap {KIND} --help)")
    return words[0], load_program(path)


def programs() -> dict[str, str]:
    """What every program does, by name."""
    found = {path.stem: _description(path) for path in sorted(programs_folder(KIND).glob("*.py"))}
    return {name: description for name, description in found.items() if description is not None}


def load_program(path: Path) -> ModuleType:
    """Import a program from its file, under a name of its own."""
    name = f"ugap_{KIND}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # a dataclass looks its annotations up there
    spec.loader.exec_module(module)
    return module


def _description(path: Path) -> str | None:
    """The first line of a program's `DESCRIPTION`; `None` where the file is no program."""
    defined: dict[str, ast.AST] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            defined[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            defined[node.targets[0].id] = node.value
    text = defined.get("DESCRIPTION")
    if not {"Arguments", "run"} <= defined.keys() or not isinstance(text, ast.Constant):
        return None
    return str(text.value).strip().partition("\n")[0]


def _overview(found: dict[str, str]) -> str:
    width = max(map(len, found), default=0)
    return "\n".join(
        [
            f"usage: ugap {KIND} <program> [options]",
            "",
            "programs:",
            *(f"  {name:<{width}}  {description}" for name, description in found.items()),
            "",
            f"`ugap {KIND} <program> --help` shows the options of a program.",
        ]
    )
