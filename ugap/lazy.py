"""Packages whose names load their modules at first use (PEP 562): importing one costs next to nothing."""

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path


def names_of_stub(package: str, file: str) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package, from the `from .module import name` lines of its stub.

    Type checkers read the same `__init__.pyi`, so a name is declared once.

    Args:
        package (`str`): Its `__name__`.
        file (`str`): Its `__file__`.

    Raises:
        AttributeError: From `__getattr__`, for a name that the stub does not have.

    Example:
        >>> import ugap.statistics
        >>> ugap.statistics.holm([0.01, 0.04]).tolist()
        [0.02, 0.04]
    """
    stub = ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8"))
    homes = {
        alias.name: f"{package}.{node.module}"
        for node in stub.body
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }

    def load(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return load, names, sorted(homes)
