"""The one exception for bad input, and the blocks that turn errors of libraries into it."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

# The modules that an extra of the package installs.
EXTRAS = {
    "gguf": ("gguf",),
    "report": ("jinja2", "matplotlib", "plotly"),
    "train": ("datasets", "peft", "trl", "wandb"),
    "vllm": ("vllm",),
}


class InputError(ValueError):
    """Bad input that a person can mend: one line that names the file, the row and the cause.

    The command line prints the message and ends with status 2; library users catch it as a `ValueError`.
    """


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn whatever a library raises in the block, as it reads what others made, into one line that begins with `what`.

    A damaged file takes a library to any of its lines, and so to any exception. Keep to calls of libraries in the
    block: a fault of our own would read as one of the file. The library's exception stays as the cause. Memory that
    cannot be had, an interruption and an [`InputError`][] pass as they are.

    Raises:
        InputError: The block raised; the message ends with the first line of the library's own.

    Example:
        >>> import json
        >>> with reading("numbers.json: cannot be read"):
        ...     json.loads("[1, 2")
        Traceback (most recent call last):
            ...
        ugap.errors.InputError: numbers.json: cannot be read: Expecting ',' delimiter: line 1 column 6 (char 5)
    """
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        # A panic of a library written in Rust is no Exception: its class cannot be imported, but has this name.
        ours = isinstance(error, Exception) or type(error).__name__ == "PanicException"
        if not ours or is_out_of_memory(error):
            raise
        raise InputError(f"{what}: {_reason(error)}") from error


def require(extra: str) -> None:
    """Refuse to begin work that ends in a package which is not installed.

    Args:
        extra (`str`): A name of `EXTRAS`.

    Raises:
        InputError: A module of the extra is not installed; the message names the command that installs it.

    Example:
        >>> require("report")
    """
    for module in EXTRAS[extra]:
        if find_spec(module) is None:
            raise InputError(_install(module, extra))


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """The command that installs the missing module, as one line; `None` for a module that no extra installs.

    Example:
        >>> missing_extra(ModuleNotFoundError(name="plotly.offline"))
        'plotly is not installed: pip install "ugap[report]"'
    """
    module = (error.name or "").partition(".")[0]
    return next((_install(module, extra) for extra, modules in EXTRAS.items() if module in modules), None)


def _install(module: str, extra: str) -> str:
    return f'{module} is not installed: pip install "ugap[{extra}]"'


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is of memory that cannot be had.

    torch's class is known by its name, so that asking imports no torch; on a CPU torch has none, only a message.
    """
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def _reason(error: BaseException) -> str:
    """The first line of an error, with the next where it announces one; its class where that alone says too little."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if isinstance(error, KeyError):  # nothing but its key
        return f"{type(error).__name__}: {lines[0]}"
    return " ".join(lines[:2] if lines[0].endswith(":") else lines[:1])
