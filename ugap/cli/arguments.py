"""The arguments of a command: dataclasses, read from the command line and from a flat YAML file.

A field becomes an option, by its type. Beyond what `argparse` does:

- a list option may be repeated and takes several values each time (`--model a --model b`, `--decoding x y`);
- the values of the YAML file pass the same type checks as those of the command line;
- a default may depend on other options, as those of a training depend on the device;
- every error is one line (an `InputError`), with the closest known name for an unknown one;
- the help has sections, defaults and examples, and shows each option once. It shows the many options of a trainer only
  with `--help_all`.
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
from types import MappingProxyType
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
            Value if neither the command line nor the YAML file has one. Without a default the option is required.
        group (`str`, *optional*, defaults to `"options"`):
            Section of the help. Sections come in the order in which fields first name them.
        metavar (`str`, *optional*):
            Placeholder of the value in the help. Defaults to `N`, `X` or `TEXT`, by type.
        positional (`bool`, *optional*, defaults to `False`):
            Take the values without the name of an option; a command has at most one such list.

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
    # Dataclasses refuse a mutable default.
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def parse(
    arguments: type[T],
    command: str,
    description: str,
    argv: Sequence[str],
    not_taken: Mapping[str, str] = MappingProxyType({}),
) -> T:
    """Read the arguments of a command.

    Args:
        arguments (`type[T]`):
            A dataclass whose fields are made by `option`.
        command (`str`):
            Name of the command.
        description (`str`):
            What the command does, with an example; shown unchanged at the top of the help.
        argv (`Sequence[str]`):
            The command line after the command's name.
        not_taken (`Mapping[str, str]`, *optional*):
            Names that are no options, though a person may expect them; each with the reason.

    Returns:
        `T`: The arguments: the command line wins over the file named by `--config`, which wins over the defaults.

    Raises:
        InputError: An unknown option, a value of the wrong type, a required option that is missing, or a YAML file
            that cannot be read.
        SystemExit: `--help` was asked for and has been printed.
    """
    return CommandParser([arguments], command, description, not_taken=not_taken).parse(argv)[0]


@contextmanager
def see_help(command: str) -> Iterator[None]:
    """Add the command that shows the options to an error of the command line."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{error} (see ugap {command} --help)") from error


class Collect(argparse.Action):
    """Gather the values of a list option: the first use replaces the default, later uses extend.

    A default is a list made by the dataclass or by the YAML file. Identity tells it apart from gathered values.
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
            Dataclasses. Fields made by `option` say their section of the help themselves.
        command (`str`):
            Name of the command.
        description (`str`):
            What the command does, with an example; shown unchanged at the top of the help.
        sections (`Mapping[str, str]`, *optional*):
            Sections of the help by name, for fields without a section. Fields that are in neither are shown by
            `--help_all` alone.
        defaults (`Callable`, *optional*):
            Computes defaults that replace those of the classes, from the values of all options.
        closing (`str`, *optional*):
            Text at the end of the help.
        not_taken (`Mapping[str, str]`, *optional*):
            Names that are no options, though a person may expect them; each with the reason.
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
        not_taken: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._not_taken = not_taken
        self._section_of, self._computed_defaults = sections, defaults
        self._sections: dict[str, argparse._ArgumentGroup] = {}
        self._arguments: dict[str, argparse.Action] = {}
        self._help: dict[str, str] = {}
        self._hidden: set[str] = set()
        self._in_config: set[str] = set()  # names of options in the YAML file
        # Wide enough for most of our option names, so that their help starts on the same line.
        formatter = functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=30)
        super().__init__(
            prog=f"ugap {command}",
            description=description,
            epilog=closing,
            formatter_class=formatter,
            allow_abbrev=False,  # an abbreviation would change its meaning with the next new option
            add_help=False,  # `general` has it, as the last section
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
            InputError: See `parse`; also if a class refuses its values.
            SystemExit: Help was asked for and has been printed.
        """
        read = vars(self._read(argv)[0])
        try:
            return tuple(
                of(**{field.name: read[field.name] for field in dataclasses.fields(of)}) for of in self._classes
            )
        except InputError:
            raise
        # A config of TRL refuses values with messages of several lines.
        except ValueError as error:
            raise InputError(" ".join(str(error).split())) from error

    def check(self, argv: Sequence[str]) -> list[str]:
        """Check the options only; returns the words of the command line without `--config`.

        Raises:
            InputError: See `parse`.
            SystemExit: Help was asked for and has been printed.
        """
        return self._read(argv)[1]

    def _read(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """The values of all options, and the words of the command line without `--config`."""
        config, words = _split_config(argv)
        if {"-h", "--help", "--help_all"} & set(words):
            # The help shows the computed defaults too.
            self._settle(argparse.Namespace(**{name: action.default for name, action in self._arguments.items()}))
        elif config is not None:
            self._apply_config(find_config(config))
        # First, as argparse would name a missing option rather than the misspelt one.
        self._refuse_unknown(words)
        words = self._spell_flags(words)
        namespace, left = self.parse_known_args(words)
        if left:
            raise InputError(f"unexpected argument {left[0]!r}")
        # Computed defaults need the values of the options, so the words are read twice.
        if self._settle(namespace):
            namespace = self.parse_args(words)
        return namespace, words

    def _settle(self, options: argparse.Namespace) -> bool:
        """Set the computed defaults of options that the YAML file lacks; returns whether there are any."""
        computed = {} if self._computed_defaults is None else self._computed_defaults(options)
        self._replace_defaults({name: computed[name] for name in computed if name not in self._in_config})
        return bool(computed)

    def _replace_defaults(self, values: Mapping[str, object]) -> None:
        """Set defaults by the names of options. An option with a default is not required."""
        for action in self._actions:
            # `--no_x` is an action of its own with the same dest, so `_arguments` would not do.
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
            described["default"] = described["default"].split()  # argparse would take it for one value
        if "choices" not in described:
            described.setdefault("metavar", _METAVARS.get(described["type"].__name__, "VALUE"))
        # TRL's help escapes % for argparse. `format_help` escapes it again, behind the default.
        self._help[name] = described.get("help", "").replace("%%", "%")
        if positional:
            action = section.add_argument(name, **{**described, "nargs": "*"})
        else:
            required = "default" not in described
            action = section.add_argument(*_spellings(f"--{name}"), required=required, **described)
            action.option_strings = action.option_strings[:1]  # the help shows --a_b alone; both still parse
        self._arguments[name] = action
        if field.default is True:
            # The help says "default: yes"; `--x no` works too.
            off = _spellings(f"--no_{name}")
            section.add_argument(*off, action="store_false", dest=name, default=True, help=argparse.SUPPRESS)

    def format_help(self) -> str:
        """The help with the current defaults, without the options that only `--help_all` shows."""
        for name, action in self._arguments.items():
            text = (self._help[name] + _default_note(action.default)).replace("%", "%%")
            action.help = argparse.SUPPRESS if name in self._hidden else text
        return super().format_help()

    def show_all(self) -> None:
        """Let the help show every option."""
        self._hidden.clear()

    def error(self, message: str) -> NoReturn:
        """Raise the message that `argparse` would print with the usage."""
        raise InputError(re.sub(r"^argument ", "", message))

    def _refuse_unknown(self, words: Sequence[str]) -> None:
        """Raise for the first word that looks like an unknown option, before any other error of the line."""
        for word in words:
            name = word.partition("=")[0].replace("-", "_").removeprefix("__")
            if word.startswith("--") and name in self._not_taken:
                self.error(self._not_taken[name])
            if word.startswith("--") and name.removeprefix("no_") not in {"", "help", "help_all", *self._arguments}:
                options = [*(f"--{option}" for option in self._arguments), "--config", "--help"]
                self.error(f"unknown option {word}{did_you_mean(word.partition('=')[0], options)}")

    def _spell_flags(self, words: Sequence[str]) -> list[str]:
        """Write `--flag` as `--flag=yes` unless a truth value follows, so that a flag never swallows another word."""
        flags = {f"--{name}" for name, action in self._arguments.items() if action.nargs == "?"}
        spelt = list(words)
        for i, word in enumerate(words):
            follower = words[i + 1].lower() if i + 1 < len(words) else ""
            if word.replace("-", "_").replace("__", "--", 1) in flags and follower not in TRUTH_VALUES:
                spelt[i] = f"{word}=yes"
        return spelt

    def _apply_config(self, path: Path) -> None:
        """Make the values of a YAML file the defaults."""
        config = read_config(path)
        for name in config:
            if name in self._not_taken:
                raise InputError(f"{path}: {self._not_taken[name]}")
            if name not in self._arguments:
                raise InputError(f"{path}: unknown option {name!r}{did_you_mean(str(name), self._arguments)}")
        try:
            values = {name: self._typed(name, value) for name, value in config.items()}
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        self._replace_defaults(values)
        self._in_config = set(values)

    def _typed(self, name: str, value: object) -> object:
        """Convert the YAML `value` of an option as a value of the command line would be."""
        action = self._arguments[name]
        admitted = {get_origin(kind) or kind for kind in get_args(self._hints[name])}
        if value is None and type(None) in admitted:
            return None
        # One value needs no brackets in YAML.
        if isinstance(action, Collect):
            values = value if isinstance(value, list) else [value]
            if action.required and not values:
                raise InputError(f"{name}: needs a value")
            return [convert(action, element) for element in values]
        # A trainer takes a mapping or a list from YAML; on the command line it is one word of JSON.
        return value if action.type is str and type(value) in admitted else convert(action, value)


class _HelpAll(argparse.Action):
    """Print the help with every option, and exit."""

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
    # A parser of its own: the file sets the defaults of the other one before it reads the words.
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config")
    try:
        options, rest = finder.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise InputError(f"--config: {error.message}") from error
    return options.config, rest


def _spellings(name: str) -> list[str]:
    """The name of an option, and its form with hyphens."""
    return list(dict.fromkeys([name, f"--{name[2:].replace('_', '-')}"]))


def _default(field: dataclasses.Field) -> dict[str, Any]:
    if field.default is not dataclasses.MISSING:
        return {"default": field.default}
    if field.default_factory is not dataclasses.MISSING:
        return {"default": field.default_factory()}
    return {}


def _reading(hint: Any) -> dict[str, Any]:
    """How `argparse` reads the words of an option whose field has the type `hint`.

    A word of a union is read as its first type that is not text, as in `Strategy | str`. In an optional union with
    text, as in `dict | str | None`, it stays text.
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
