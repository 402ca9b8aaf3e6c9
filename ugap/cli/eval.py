"""`ugap eval PROGRAM`: runs a program of the folder `eval`; see `ugap.cli.programs`."""

from types import ModuleType

from ugap.cli.programs import load_program, pick_program

__all__ = ["load_program", "pick"]


def pick(words: list[str]) -> tuple[str, ModuleType] | None:
    """The program that the first word names, with its name; `None` after printing the list.

    Raises:
        InputError: There is no such program.
    """
    path = pick_program("eval", words)
    return None if path is None else (path.stem, load_program(path))
