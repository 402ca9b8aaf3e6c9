"""Find the programs of `ugap eval` and `train` and the configs: next to the package in a checkout, else inside it.

A program has the form of a command: `Arguments` (a dataclass), `DESCRIPTION` (its first line says what it does) and
`run(arguments)`. It is found by the name of its file. The list of programs parses the files and runs
none, so it answers at once.
"""

import ast
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import ugap
from ugap.cli.suggest import did_you_mean
from ugap.errors import InputError

_PACKAGE = Path(ugap.__file__).parent


def programs_folder(kind: str) -> Path:
    """The folder of the programs of one `kind` (`"eval"`, `"train"`)."""
    installed = _PACKAGE / "programs"
    return (installed if installed.is_dir() else _PACKAGE.parent) / kind


def configs_folder() -> Path:
    """The folder of the YAML configs."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def find_config(name: str) -> Path:
    """The config file `name`: a path, or else the path of a shipped config below the folder of configs.

    If neither exists, the path is returned unchanged, and the reader of the file raises.

    Raises:
        InputError: The name is empty.
    """
    if not name:
        raise InputError("--config: '' names no file")
    # Not Path.expanduser, which raises for the home of an unknown user.
    given, shipped = Path(os.path.expanduser(name)), configs_folder() / name
    return shipped if not given.exists() and shipped.is_file() else given


def pick_program(kind: str, words: list[str]) -> Path | None:
    """The file of the program that the first word names; `None` after printing the list, for no word or `--help`.

    Raises:
        InputError: There is no such program.
    """
    if not words or words[0] in ("-h", "--help"):
        print(_overview(kind, programs(kind)))
        return None
    path = next((path for path in _files(kind) if path.stem == words[0]), None)
    if path is None or _description(path) is None:
        sort, names = ("option", ["--help"]) if words[0].startswith("-") else ("program", list(programs(kind)))
        raise InputError(f"unknown {sort} {words[0]!r}{did_you_mean(words[0], names)} (see ugap {kind} --help)")
    return path


def programs(kind: str) -> dict[str, str]:
    """The description of every program of a kind, by name."""
    descriptions = {path.stem: _description(path) for path in _files(kind)}
    return {name: description for name, description in descriptions.items() if description is not None}


def _files(kind: str) -> list[Path]:
    """The files that may be programs. Benchmarks have a folder of their own, which only a checkout has."""
    folder = programs_folder(kind)
    return [*sorted(folder.glob("*.py")), *sorted(folder.glob("benchmarks/*.py"))]


def load_program(path: Path) -> ModuleType:
    """Import a program from its file, as a module `ugap_FOLDER_NAME`."""
    # With the folder, as a program of `eval` may have the name of one of `train`.
    name = f"ugap_{path.parent.name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # a dataclass looks its annotations up there
    spec.loader.exec_module(module)
    return module


def _description(path: Path) -> str | None:
    """The first line of a program's `DESCRIPTION`; `None` if the file is no program."""
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


def _overview(kind: str, descriptions: dict[str, str]) -> str:
    width = max(map(len, descriptions), default=0)
    return "\n".join(
        [
            f"usage: ugap {kind} <program> [options]",
            "",
            "programs:",
            *(f"  {name:<{width}}  {description}" for name, description in descriptions.items()),
            "",
            f"`ugap {kind} <program> --help` shows the options of a program.",
        ]
    )
