"""The arguments of a command: dataclasses, read from the command line and from a flat YAML file.

A field becomes an option, by its type. Beyond what `argparse` does:

- a list option may be repeated and takes several values each time (`--model a --model b`, `--decoding x y`);
- the values of the YAML file pass the same type checks as those of the command line;
- defaults may follow from what is given: those of a training from the device, say;
- whatever is wrong is one line (an `InputError`), with the closest known name where a name is unknown;
- the help has sections, defaults and examples, and shows each option once; the many options of a trainer only where
  all are asked for.
"""

import argparse
import dataclasses
import functools
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from ugap.cli.config import TRUTH_VALUES, convert, read_config, truth
from ugap.cli.programs import find_config
from ugap.cli.suggest import did_you_mean
from ugap.errors import InputError

T = TypeVar("T")

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
            A dataclass whose fields are made by `option`.
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
    return CommandParser([arguments], command, description).parse(argv)[0]


@contextmanager
def see_help(command: str) -> Iterator[None]:
    """Add to what is wrong with a command line where the options of the command are shown."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{error} (see ugap {command} --help)") from error


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


class CommandParser(argparse.ArgumentParser):
    """A parser for the dataclasses of one command.

    Args:
        classes (`Sequence[type]`):
            Dataclasses; fields that are made by `option` say their section of the help themselves.
        command (`str`):
            Name of the command.
        description (`str`):
            What the command does, with an example; shown as it is at the top of the help.
        sections (`Mapping[str, str]`, *optional*):
            Section of the help by name, for fields that say none. Where it is given, fields that are not in it
            are shown by `--help_all` alone.
        defaults (`Callable`, *optional*):
            Defaults that replace those of the classes, from a namespace of all options as they are without them.
        closing (`str`, *optional*):
            What stands at the end of the help.
    """

    def __init__(
        self,
        classes: Sequence[type],
        command: str,
        description: str,
        *,
        sections: Mapping[str, str] | None = None,
        defaults: Callable[[argparse.Namespace], Mapping[str, Any]] | None = None,
        closing: str = "",
    ) -> None:
        self._section_of, self._following = sections, defaults
        self._sections: dict[str, argparse._ArgumentGroup] = {}
        self._arguments: dict[str, argparse.Action] = {}
        self._help: dict[str, str] = {}
        self._hidden: set[str] = set()
        self._given: set[str] = set()  # names that the YAML file has
        formatter = functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=30)
        super().__init__(
            prog=f"ugap {command}",
            description=description,
            epilog=closing,
            formatter_class=formatter,
            allow_abbrev=False,
            add_help=False,
        )
        self._classes = classes
        self._hints = {name: hint for of in classes for name, hint in get_type_hints(of).items()}
        for of in classes:
            for field in dataclasses.fields(of):
                self._add_field(field)
        required = "".join(
            f" {action.option_strings[0]} {action.metavar}" for action in self._arguments.values() if action.required
        )
        listed = "".join(f" [{action.metavar} ...]" for action in self._arguments.values() if not action.option_strings)
        self.usage = f"%(prog)s [--config FILE]{required} [options]{listed}"
        general = self.add_argument_group("general")
        general.add_argument(
            "--config", metavar="FILE", default=argparse.SUPPRESS, help="a YAML file of options (name: value)"
        )
        if self._hidden:
            general.add_argument("--help_all", action=_HelpAll, help="show all options of the trainer as well")
        general.add_argument("-h", "--help", action="help", help="show this help and exit")

    def parse(self, argv: Sequence[str]) -> tuple[Any, ...]:
        """Read the options: one object of each class.

        Raises:
            InputError: As of `parse`; also if a class refuses its values.
            SystemExit: Help was asked for and has been printed.
        """
        given = vars(self._read(argv)[0])
        try:
            return tuple(
                of(**{field.name: given[field.name] for field in dataclasses.fields(of)}) for of in self._classes
            )
        except InputError:
            raise
        except ValueError as error:
            raise InputError(" ".join(str(error).split())) from error

    def check(self, argv: Sequence[str]) -> list[str]:
        """Read the options without making anything of them; the words of the command line without `--config`.

        Raises:
            InputError: As of `parse`.
            SystemExit: Help was asked for and has been printed.
        """
        return self._read(argv)[1]

    def _read(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """The values of all options, and the words of the command line without `--config`."""
        config, words = _split_config(argv)
        if {"-h", "--help", "--help_all"} & set(words):
            self._settle(argparse.Namespace(**{name: action.default for name, action in self._arguments.items()}))
        elif config is not None:
            self._apply_config(find_config(config))
        self._refuse_unknown(words)
        words = self._spell_flags(words)
        namespace, left = self.parse_known_args(words)
        if left:
            raise InputError(f"unexpected argument {left[0]!r}")
        if self._settle(namespace):
            namespace = self.parse_args(words)
        return namespace, words

    def _settle(self, given: argparse.Namespace) -> bool:
        """Set the defaults that follow from what is given, where the YAML file says nothing; whether there are any."""
        following = {} if self._following is None else self._following(given)
        self._replace_defaults({name: following[name] for name in following if name not in self._given})
        return bool(following)

    def _replace_defaults(self, values: Mapping[str, object]) -> None:
        """Set defaults by the names of options. An option with a default is not required."""
        for action in self._actions:
            if action.dest in values:
                action.default, action.required = values[action.dest], False

    def _add_field(self, field: dataclasses.Field) -> None:
        """Make an option of a field."""
        name = field.name
        described: dict[str, Any] = dict(field.metadata)
        group, positional = described.pop("group", None), described.pop("positional", False)
        if group is None and self._section_of is not None:
            group = self._section_of.get(name)
            if group is None:
                self._hidden.add(name)
        group = group or ("options" if self._section_of is None else "more options of the trainer")
        if group not in self._sections:
            self._sections[group] = self.add_argument_group(group)
        section = self._sections[group]
        described |= _reading(self._hints[name]) | _default(field)
        if described.get("action") is Collect and isinstance(described.get("default"), str):
            described["default"] = described["default"].split()  # argparse would read it as one value
        if "choices" not in described:
            described.setdefault("metavar", _METAVARS.get(described["type"].__name__, "VALUE"))
        self._help[name] = described.get("help", "").replace("%%", "%")
        if positional:
            action = section.add_argument(name, **{**described, "nargs": "*"})
        else:
            required = "default" not in described
            action = section.add_argument(*_spellings(f"--{name}"), required=required, **described)
            action.option_strings = action.option_strings[:1]  # the help names --a_b alone
        self._arguments[name] = action
        if field.default is True:
            off = _spellings(f"--no_{name}")
            section.add_argument(*off, action="store_false", dest=name, default=True, help=argparse.SUPPRESS)

    def format_help(self) -> str:
        """The help, with the defaults as they are now and without what is shown by `--help_all` alone."""
        for name, action in self._arguments.items():
            text = (self._help[name] + _default_note(action.default)).replace("%", "%%")
            action.help = argparse.SUPPRESS if name in self._hidden else text
        return super().format_help()

    def show_all(self) -> None:
        """Let the help show every option."""
        self._hidden.clear()

    def error(self, message: str) -> NoReturn:
        """Raise what `argparse` would print with the usage."""
        raise InputError(re.sub(r"^argument ", "", message))

    def _refuse_unknown(self, words: Sequence[str]) -> None:
        """Raise for the first word that looks like an option and is none, whatever else is wrong with the line."""
        for word in words:
            name = word.partition("=")[0].replace("-", "_").removeprefix("__")
            if word.startswith("--") and name.removeprefix("no_") not in {"", "help", "help_all", *self._arguments}:
                known = [*(f"--{known}" for known in self._arguments), "--config", "--help"]
                self.error(f"unknown option {word}{did_you_mean(word.partition('=')[0], known)}")

    def _spell_flags(self, words: Sequence[str]) -> list[str]:
        """Write `--flag` as `--flag=yes` unless a truth value follows, so that a flag never swallows another word."""
        flags = {f"--{name}" for name, action in self._arguments.items() if action.nargs == "?"}
        spelt = list(words)
        for place, word in enumerate(words):
            follower = words[place + 1].lower() if place + 1 < len(words) else ""
            if word.replace("-", "_").replace("__", "--", 1) in flags and follower not in TRUTH_VALUES:
                spelt[place] = f"{word}=yes"
        return spelt

    def _apply_config(self, path: Path) -> None:
        """Make the values of a YAML file the defaults."""
        config = read_config(path)
        for name in config:
            if name not in self._arguments:
                raise InputError(f"{path}: unknown option {name!r}{did_you_mean(str(name), self._arguments)}")
        try:
            values = {name: self._typed(name, value) for name, value in config.items()}
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        self._replace_defaults(values)
        self._given = set(values)

    def _typed(self, name: str, value: object) -> object:
        """Convert the YAML `value` of an option as a value of the command line would be."""
        action = self._arguments[name]
        admitted = {get_origin(kind) or kind for kind in get_args(self._hints[name])}
        if value is None and type(None) in admitted:
            return None
        if isinstance(action, Collect):
            values = value if isinstance(value, list) else [value]
            if action.required and not values:
                raise InputError(f"{name}: needs a value")
            return [convert(action, element) for element in values]
        # A trainer takes a mapping or a list where the command line has a word in JSON.
        return value if action.type is str and type(value) in admitted else convert(action, value)


class _HelpAll(argparse.Action):
    """Print the help with every option, and leave."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *rest: Any) -> None:
        """Print, as `argparse` asks."""
        assert isinstance(parser, CommandParser)
        parser.show_all()
        parser.print_help()
        parser.exit()


def _split_config(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Take `--config FILE` out of a command line."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config")
    try:
        found, rest = finder.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise InputError(f"--config: {error.message}") from error
    return found.config, rest


def _spellings(name: str) -> list[str]:
    """The name of an option, and the same with hyphens."""
    return list(dict.fromkeys([name, f"--{name[2:].replace('_', '-')}"]))


def _default(field: dataclasses.Field) -> dict[str, Any]:
    if field.default is not dataclasses.MISSING:
        return {"default": field.default}
    if field.default_factory is not dataclasses.MISSING:
        return {"default": field.default_factory()}
    return {}


def _reading(hint: Any) -> dict[str, Any]:
    """How `argparse` reads the words of an option whose field has the type `hint`.

    Of the types of a union, a word is read as the first that is not text, as in `Strategy | str`. Where `None` is one
    of them, it stays text if it may be, as in `dict | str | None`.
    """
    union = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    optional = type(None) in union
    others = [kind for kind in union if kind not in (str, type(None))]
    kind = str if not others or (optional and str in union) else others[0]
    origin = get_origin(kind) or kind
    if origin is Literal:
        return _choice(get_args(kind))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _choice([member.value for member in kind])
    if kind is bool:
        return {"type": truth, "metavar": "yes|no", "nargs": "?", "const": True}
    if origin is list:
        return {"type": get_args(kind)[0], "nargs": "+", "action": Collect}
    return {"type": _or_none(kind) if optional and kind is not str else kind}


def _choice(choices: Sequence[Any]) -> dict[str, Any]:
    named = {str(choice): choice for choice in choices}
    return {"choices": choices, "type": lambda word: named.get(word, word)}


def _or_none(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """Read `none` and `null` as `None`, and other words as `kind` does."""

    @functools.wraps(kind, updated=())  # argparse names the type in its errors
    def read(word: str) -> Any:
        return None if word.lower() in ("none", "null") else kind(word)

    return read


def _default_note(default: object) -> str:
    if default is None or default is False or default == "" or default == []:
        return ""
    if default is True:
        return " (default: yes)"
    default = getattr(default, "value", default)  # of an enumeration
    return f" (default: {' '.join(map(str, default)) if isinstance(default, list) else default})"
