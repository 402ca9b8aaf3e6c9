"""The arguments of a command: dataclass, command line, YAML file, and what a person sees when one of them is wrong."""

import os
from dataclasses import dataclass
from enum import Enum
from typing import Literal

import pytest

from ugap.cli.arguments import option, parse
from ugap.errors import InputError

# Nine lines that stand for ten thousand million words.
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)


@dataclass(kw_only=True)
class Arguments:
    """Every kind of field that a command may have."""

    model: list[str] = option("models to look at", group="models", metavar="NAME")
    dtype: Literal["float32", "bfloat16"] = option("precision of the weights", default="float32", group="models")
    decoding: list[str] = option("decodings to try", default=["ancestral", "top-p"], group="study", metavar="NAME")
    prefix_tokens: int = option("tokens of the prefix, 100% of them human", default=64, group="study")
    limit: int | None = option("at most so many texts", default=None, group="study")
    weight: float = option("weight of the marginal", default=0.5)
    scorer: str | None = option("one scorer for all", default=None)
    pmi: bool = option("also score without the prefix", default=False)
    bars: bool = option("show progress", default=True)


@dataclass(kw_only=True)
class Listing:
    """A command that takes words without an option's name."""

    names: list[str] = option("what to fetch", default=[], metavar="NAME", positional=True)
    path: bool = option("print paths", default=False)


class Strategy(Enum):
    """When something happens."""

    NO = "no"
    STEPS = "steps"


@dataclass(kw_only=True)
class Unions:
    """The unions that configs of trainers have."""

    strategy: Strategy | str = "no"
    more: dict | str | None = None
    share: float | None = None
    debug: str | list[int] = ""


def read(*words: str) -> Arguments:
    return parse(Arguments, "measure", "Measure the gap.", words)


def refusal(*words: str) -> str:
    with pytest.raises(InputError) as caught:
        read(*words)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.fixture
def config(tmp_path):
    def write(text: str | bytes) -> str:
        path = tmp_path / "run.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


class TestCommandLine:
    def test_defaults(self):
        assert read("--model", "a") == Arguments(model=["a"])
        assert Arguments(model=["a"]).decoding == ["ancestral", "top-p"]

    def test_every_type(self):
        given = read(
            *("--model", "a", "--dtype", "bfloat16", "--prefix_tokens", "3", "--limit", "7", "--weight", "-0.25"),
            *("--scorer", "b", "--pmi", "--bars", "no"),
        )
        assert given == Arguments(
            model=["a"], dtype="bfloat16", prefix_tokens=3, limit=7, weight=-0.25, scorer="b", pmi=True, bars=False
        )

    def test_a_list_option_repeats_and_takes_several_values(self):
        given = read("--model", "a", "--decoding", "x", "y", "--model", "b", "c", "--decoding=z")
        assert given.model == ["a", "b", "c"]
        assert given.decoding == ["x", "y", "z"]

    def test_a_default_list_is_not_shared(self):
        read("--model", "a").decoding.append("greedy")
        assert read("--model", "a").decoding == ["ancestral", "top-p"]

    def test_hyphens_stand_for_underscores(self):
        assert read("--model", "a", "--prefix-tokens", "3").prefix_tokens == 3

    @pytest.mark.parametrize("words", [["--no_bars"], ["--no-bars"], ["--bars=no"], ["--bars", "false"]])
    def test_ways_to_turn_a_flag_off(self, words):
        assert read("--model", "a", *words).bars is False

    def test_a_flag_swallows_no_word(self):
        given = parse(Listing, "assets", "List.", ["--path", "one", "two"])
        assert given == Listing(names=["one", "two"], path=True)
        assert parse(Listing, "assets", "List.", []) == Listing(names=[], path=False)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ([], "the following arguments are required: --model"),
            (["--model"], "--model: expected at least one argument"),
            (["--modle", "a"], "unknown option --modle; did you mean --model?"),
            (["--model", "a", "--prefix_token=3"], "unknown option --prefix_token=3; did you mean --prefix_tokens?"),
            (["--model", "a", "--no_model"], "unexpected argument '--no_model'"),
            (["--model", "a", "--pmi", "perhaps"], "unexpected argument 'perhaps'"),
            (["--model", "a", "--prefix_tokens", "many"], "--prefix_tokens: invalid int value: 'many'"),
            (["--model", "a", "--limit", "1.5"], "--limit: invalid int value: '1.5'"),
            (["--config"], "--config: expected one argument"),
        ],
    )
    def test_refusals(self, words, message):
        assert refusal(*words) == message

    def test_an_unknown_choice_names_the_choices(self):
        message = refusal("--model", "a", "--dtype", "float8")
        assert message.startswith("--dtype: invalid choice: 'float8'")
        assert "bfloat16" in message

    @pytest.mark.parametrize(
        ("words", "given"),
        [
            (["--strategy", "steps"], ("steps", None, None)),
            (["--more", '{"a": 1}'], ("no", '{"a": 1}', None)),
            (["--share", "none"], ("no", None, None)),
            (["--share", "NULL"], ("no", None, None)),
            (["--share", "0.5"], ("no", None, 0.5)),
        ],
    )
    def test_a_word_of_a_union(self, words, given):
        parsed = parse(Unions, "train", "Train.", words)
        assert (parsed.strategy, parsed.more, parsed.share) == given
        assert parsed.debug == []

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--share", "much"], "--share: invalid float value: 'much'"),
            (["--strategy", "never"], "--strategy: invalid choice: 'never'"),
            (["--debug", "1", "x"], "--debug: invalid int value: 'x'"),
        ],
    )
    def test_a_word_that_no_type_of_a_union_takes(self, words, message):
        with pytest.raises(InputError) as caught:
            parse(Unions, "train", "Train.", words)
        assert str(caught.value).startswith(message)

    def test_a_flag_that_is_neither_yes_nor_no(self):
        assert refusal("--model", "a", "--pmi=perhaps") == "--pmi: 'perhaps' is not yes or no"

    def test_no_option_is_abbreviated(self):
        assert refusal("--model", "a", "--prefix", "3").startswith("unknown option --prefix")


class TestConfig:
    def test_the_file_wins_over_the_defaults(self, config):
        path = config(
            "model: [a, b]\ndtype: bfloat16\ndecoding: greedy\nprefix_tokens: 3\nlimit: 7\n"
            "weight: 1e-3\nscorer: c\npmi: yes\nbars: false\n"
        )
        expected = Arguments(
            model=["a", "b"],
            dtype="bfloat16",
            decoding=["greedy"],
            prefix_tokens=3,
            limit=7,
            weight=0.001,
            scorer="c",
            pmi=True,
            bars=False,
        )
        assert read("--config", path) == expected
        assert read(f"--config={path}") == expected

    def test_the_command_line_wins_over_the_file(self, config):
        path = config("model: [a, b]\ndecoding: [greedy]\nprefix_tokens: 3\nlimit: 7\npmi: yes\n")
        given = read(
            *("--model", "c", "--decoding", "x", "--config", path, "--decoding", "y", "z"),
            *("--prefix_tokens", "5", "--limit", "none", "--pmi", "no"),
        )
        assert given == Arguments(model=["c"], decoding=["x", "y", "z"], prefix_tokens=5, limit=None, pmi=False)

    def test_null_where_the_type_admits_it(self, config):
        given = read("--model", "a", "--config", config("limit: null\nscorer: null\n"))
        assert given == Arguments(model=["a"])

    def test_an_empty_list_and_an_empty_file(self, config):
        assert read("--model", "a", "--config", config("decoding: []")).decoding == []
        assert read("--model", "a", "--config", config("# nothing yet")) == Arguments(model=["a"])

    def test_a_number_in_quotes_is_a_number(self, config):
        assert read("--model", "a", "--config", config('prefix_tokens: "12"')).prefix_tokens == 12

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("modle: a", "unknown option 'modle'; did you mean model?"),
            ("config: other.yaml", "unknown option 'config'"),
            ("1: a", "unknown option 1"),
            ("prefix_tokens: twelve", "prefix_tokens: 'twelve' is not a whole number"),
            ("prefix_tokens: 1.5", "prefix_tokens: 1.5 is not a whole number"),
            ("prefix_tokens: true", "prefix_tokens: True is not a whole number"),
            ("prefix_tokens: [1, 2]", "prefix_tokens: [1, 2] is not one value"),
            ("prefix_tokens: null", "prefix_tokens: None is not one value"),
            ("weight: heavy", "weight: 'heavy' is not a number"),
            ("pmi: perhaps", "pmi: 'perhaps' is not yes or no"),
            ("dtype: float8", "dtype: 'float8' is none of float32, bfloat16"),
            ("scorer: no", "scorer: False is not text: put it in quotes"),
            ("model: [a, 1]", "model: 1 is not text: put it in quotes"),
            ("model: {a: b}", "model: {'a': 'b'} is not one value"),
            ("model: []", "model: needs a value"),
            ("- model", "must hold options as `name: value`"),
            ("model: [", "line 1: not YAML: expected the node content, but found '<stream end>'"),
            ("limit: !!python/name:os.system", "line 1: not YAML: could not determine a constructor for the tag"),
            (b"\xff", "not UTF-8 text: invalid start byte at byte 0"),
            ("limit: 2026-02-30", "not YAML: day is out of range for month"),
            ("limit: !!int abc", "not YAML: invalid literal for int()"),
            ("limit: " + "9" * 5000, "not YAML: Exceeds the limit (4300 digits)"),
            ("limit: 0x" + "f" * 5000, "a whole number of more than 1024 bits"),
            ("model: " + "[" * 50_000, "not YAML that can be read: it is nested too deeply"),
            ("model: " + "a" * 2**20, "larger than 1 MB, which no options are"),
            (BOMB, "more than 100,000 values, which no options are"),
            ("model: &a [*a]", "more than 100,000 values, which no options are"),
            ('model: "a\\0b"', "a text with a NUL byte at character 2"),
            ('model: "\\ud800"', "a text with a lone surrogate (U+D800) at character 1"),
            ("? [a, b]\n: c", "line 1: not YAML: found unhashable key"),
            (b"model: \x00", "not YAML: unacceptable character #x0000"),
        ],
    )
    def test_refusals(self, config, text, message):
        path = config(text)
        assert refusal("--model", "a", "--config", path).startswith(f"{path}: {message}")

    def test_a_required_option_is_still_required(self, config):
        assert "--model" in refusal("--config", config("limit: 3"))

    def test_a_missing_file_and_a_folder(self, tmp_path):
        missing = tmp_path / "no.yaml"
        assert refusal("--config", str(missing)) == f"{missing}: no such file"
        assert refusal("--config", str(tmp_path)) == f"{tmp_path}: a folder, not a file"

    @pytest.mark.skipif(os.name == "nt", reason="there are no such pipes on Windows")
    def test_a_pipe_and_a_device(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        assert refusal("--config", str(tmp_path / "pipe")) == f"{tmp_path / 'pipe'}: a pipe, not a regular file"
        assert refusal("--config", "/dev/zero") == "/dev/zero: a device, not a regular file"
        assert refusal("--config", "") == "--config: '' names no file"


class TestHelp:
    @pytest.fixture
    def text(self, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "120")
        with pytest.raises(SystemExit) as end:
            parse(Arguments, "measure", "Measure the gap.\n\nexample:\n  ugap measure --model a", ["--help"])
        assert end.value.code == 0
        return capsys.readouterr().out

    def test_head(self, text):
        assert text.splitlines()[0] == "usage: ugap measure [--config FILE] --model NAME [options]"
        assert "\nexample:\n  ugap measure --model a\n" in text

    def test_every_option_has_one_line_with_its_help_and_default(self, text):
        for pieces in [
            ("--model NAME [NAME ...]", "models to look at"),
            ("--dtype {float32,bfloat16}", "precision of the weights (default: float32)"),
            ("--decoding NAME [NAME ...]", "decodings to try (default: ancestral top-p)"),
            ("--prefix_tokens N", "100% of them human (default: 64)"),
            ("--limit N", "at most so many texts"),
            ("--weight X", "weight of the marginal (default: 0.5)"),
            ("--scorer TEXT", "one scorer for all"),
            ("--pmi [yes|no]", "also score without the prefix"),
            ("--bars [yes|no]", "show progress (default: yes)"),
            ("--config FILE", "a YAML file"),
        ]:
            lines = [line for line in text.splitlines() if line.startswith(f"  {pieces[0]} ")]
            assert len(lines) == 1
            assert pieces[1] in lines[0]

    def test_sections_stand_in_the_order_of_the_fields(self, text):
        sections = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
        assert sections == ["example:", "models:", "study:", "options:", "general:"]

    def test_nothing_is_there_that_only_a_programmer_reads(self, text):
        assert not [
            noise for noise in ("None", "null", "False", "Arguments(", "--no", "prefix-tokens") if noise in text
        ]

    def test_a_wrong_config_does_not_hide_the_help(self, capsys):
        with pytest.raises(SystemExit):
            parse(Arguments, "measure", "Measure the gap.", ["--config", "no.yaml", "--help"])
        assert capsys.readouterr().out.startswith("usage: ugap measure")
