"""The arguments of a command: a dataclass, read from the command line and from a flat YAML file by TRL's `TrlParser`.

What is added to `TrlParser`:

- a list option may be repeated and takes several values each time (`--model a --model b`, `--decoding x y`);
- the values of the YAML file pass the same type checks as those of the command line;
- whatever is wrong is one line (an `InputError`), with the closest known name where a name is unknown;
- the help has sections, defaults and examples, and shows each option once.
"""

import argparse
import dataclasses
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

from trl import TrlParser

from ugap.cli.config import convert, read_config
from ugap.cli.programs import find_config
from ugap.cli.suggest import did_you_mean
from ugap.errors import InputError

T = TypeVar("T")

_TRUTH_VALUES = {"yes", "true", "t", "y", "1", "no", "false", "f", "n", "0"}  # what TrlParser takes
_METAVARS = {"int": "N", "float": "X", "str": "TEXT"}


def option(
    help: str,
    *,
    default: Any = dataclasses.MISSING,
    group: str = "options",
    metavar: str | None = None,
    positional: bool = False,
) -> Any:
    """Declare an argument: a dataclass field that carries its help.

    Args:
        help (`str`):
            What the option does. The default is added to it.
        default (`Any`, *optional*):
            Value where neither the command line nor the YAML file gives one. Without a default the option is required.
        group (`str`, *optional*, defaults to `"options"`):
            Section of the help. Sections stand in the order in which they are first named.
        metavar (`str`, *optional*):
            What stands for the value in the help. Defaults to `N`, `X` or `TEXT`, by type.
        positional (`bool`, *optional*, defaults to `False`):
            Take the values without an option's name; for one list per command.

    Example:
        >>> @dataclasses.dataclass(kw_only=True)
        ... class Arguments:
        ...     model: list[str] = option("models to measure", group="models", metavar="NAME")
        ...     limit: int | None = option("at most so many texts", default=None)
        >>> parse(Arguments, "measure", "Measure the gap.", ["--model", "a", "--model", "b"])
        Arguments(model=['a', 'b'], limit=None)
    """
    metadata: dict[str, Any] = {"help": help, "group": group}
    if metavar is not None:
        metadata["metavar"] = metavar
    if positional:
        metadata["positional"] = True
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def parse(arguments: type[T], command: str, description: str, argv: Sequence[str]) -> T:
    """Read the arguments of a command.

    Args:
        arguments (`type[T]`):
            A dataclass whose fields are made by [`option`].
        command (`str`):
            Name of the command.
        description (`str`):
            What the command does, with an example; shown as it is at the top of the help.
        argv (`Sequence[str]`):
            The command line after the command's name.

    Returns:
        `T`: The arguments: the command line wins over the file named by `--config`, which wins over the defaults.

    Raises:
        InputError: An unknown option, a value of the wrong type, a required option that is missing, or a YAML file
            that cannot be read.
        SystemExit: `--help` was asked for and has been printed.
    """
    parser = _Parser(arguments, prog=f"ugap {command}", description=description)
    config, words = _split_config(argv)
    if config is not None and not {"-h", "--help"} & set(words):
        parser.apply_config(find_config(config))
    parser.refuse_unknown(words)
    parsed, *_, left = parser.parse_args_into_dataclasses(
        args=parser.spell_flags(words), return_remaining_strings=True, look_for_args_file=False
    )
    if left:
        raise InputError(f"unexpected argument {left[0]!r}")
    return parsed


class Collect(argparse.Action):
    """Gather the values of a list option: the first use replaces the default, later uses extend.

    A default is a list made by the dataclass or by the YAML file; it is told from gathered values by identity.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Store `values`, as `argparse` asks."""
        current = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*values] if current is self.default else [*current, *values])


class _Parser(TrlParser):
    """A `TrlParser` for one dataclass."""

    def __init__(self, arguments: type, **kwargs: Any) -> None:
        self._sections: dict[str, argparse._ArgumentGroup] = {}
        self._arguments: dict[str, argparse.Action] = {}
        formatter = functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=30)
        super().__init__(arguments, formatter_class=formatter, allow_abbrev=False, add_help=False, **kwargs)
        hints = get_type_hints(arguments)
        self._nullable = {name for name in self._arguments if type(None) in get_args(hints[name])}
        required = "".join(
            f" {action.option_strings[0]} {action.metavar}" for action in self._arguments.values() if action.required
        )
        listed = "".join(f" [{action.metavar} ...]" for action in self._arguments.values() if not action.option_strings)
        self.usage = f"%(prog)s [--config FILE]{required} [options]{listed}"
        general = self.add_argument_group("general")
        general.add_argument(
            "--config", metavar="FILE", default=argparse.SUPPRESS, help="a YAML file of options (name: value)"
        )
        general.add_argument("-h", "--help", action="help", help="show this help and exit")

    def add_argument(self, *names: Any, **kwargs: Any) -> argparse.Action:
        """Add what `TrlParser` made of a field, with the section, the value's name and the default in the help."""
        group, positional = kwargs.pop("group", "options"), kwargs.pop("positional", False)
        if group not in self._sections:
            self._sections[group] = self.add_argument_group(group)
        section = self._sections[group]
        if kwargs.get("action") == "store_false":  # the --no_NAME that TrlParser adds to a flag that is on
            return section.add_argument(*names, **{**kwargs, "help": argparse.SUPPRESS})
        name = names[0].removeprefix("--")
        if kwargs.get("nargs") == "+":
            kwargs["action"] = Collect
        if positional:
            names, kwargs["nargs"] = (name,), "*"
        if kwargs.get("nargs") == "?":  # a flag
            kwargs["metavar"] = "yes|no"
        elif "choices" not in kwargs:
            kwargs.setdefault("metavar", _METAVARS.get(kwargs["type"].__name__, "VALUE"))
        kwargs["help"] = (kwargs["help"] + _default_note(kwargs.get("default"))).replace("%", "%%")
        action = section.add_argument(*names, **kwargs)
        action.option_strings = action.option_strings[:1]  # --a-b is understood as well; the help names --a_b alone
        self._arguments[name] = action
        return action

    def error(self, message: str) -> NoReturn:
        """Raise what `argparse` would print with the usage."""
        raise InputError(re.sub(r"^argument ", "", message))

    def refuse_unknown(self, words: Sequence[str]) -> None:
        """Raise for the first word that looks like an option and is none, whatever else is wrong with the line."""
        for word in words:
            name = word.partition("=")[0].replace("-", "_").removeprefix("__")
            if word.startswith("--") and name.removeprefix("no_") not in {"", "help", *self._arguments}:
                known = [*(f"--{known}" for known in self._arguments), "--config", "--help"]
                self.error(f"unknown option {word}{did_you_mean(word.partition('=')[0], known)}")

    def spell_flags(self, words: Sequence[str]) -> list[str]:
        """Write `--flag` as `--flag=yes` unless a truth value follows, so that a flag never swallows another word."""
        flags = {f"--{name}" for name, action in self._arguments.items() if action.nargs == "?"}
        spelt = list(words)
        for place, word in enumerate(words):
            follower = words[place + 1].lower() if place + 1 < len(words) else ""
            if word.replace("-", "_").replace("__", "--", 1) in flags and follower not in _TRUTH_VALUES:
                spelt[place] = f"{word}=yes"
        return spelt

    def apply_config(self, path: Path) -> None:
        """Make the values of a YAML file the defaults."""
        config = read_config(path)
        for name in config:
            if name not in self._arguments:
                raise InputError(f"{path}: unknown option {name!r}{did_you_mean(str(name), self._arguments)}")
        try:
            values = {name: self._typed(name, value) for name, value in config.items()}
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        self.set_defaults_with_config(**values)

    def _typed(self, name: str, value: object) -> object:
        """Convert the YAML `value` of an option as a value of the command line would be."""
        action = self._arguments[name]
        if value is None and name in self._nullable:
            return None
        if not isinstance(action, Collect):
            return convert(action, value)
        values = value if isinstance(value, list) else [value]
        if action.required and not values:
            raise InputError(f"{name}: needs a value")
        return [convert(action, element) for element in values]


def _split_config(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Take `--config FILE` out of a command line."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config")
    try:
        found, rest = finder.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise InputError(f"--config: {error.message}") from error
    return found.config, rest


def _default_note(default: object) -> str:
    if default is None or default is False or default == "" or default == []:
        return ""
    if default is True:
        return " (default: yes)"
    return f" (default: {' '.join(map(str, default)) if isinstance(default, list) else default})"
