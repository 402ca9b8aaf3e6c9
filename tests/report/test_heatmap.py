"""Texts in the colours of their surprisal: what is shown, in which tint, and that nothing steers the terminal."""

import io
import re

import pytest
from rich.console import Console

from ugap.report.heatmap import NEWLINE, STEPS, heat_map, legend, token_strings

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def shown(text, **options) -> str:
    """What a terminal is sent."""
    file = io.StringIO()
    options = {"force_terminal": True, "color_system": "truecolor", "legacy_windows": False, **options}
    Console(file=file, width=200, highlight=False, soft_wrap=True, **options).print(text, end="")
    return file.getvalue()


def tints(strings, surprisal) -> list[str]:
    """The style of each piece of text, in order."""
    text = heat_map(strings, surprisal)
    styles = [""] * len(text.plain)
    for span in text.spans:
        styles[span.start : span.end] = [str(span.style)] * (span.end - span.start)
    return styles


class TestHeatMap:
    def test_a_tint_for_every_step(self):
        starts = [start for start, _ in STEPS]
        assert starts == sorted(starts)
        below, *on = tints("abcdef", [starts[0] - 1e-6, *starts])
        assert below == ""
        assert on == [f"black on {colour}" for _, colour in STEPS]
        assert tints("ab", [1e9, 0.0]) == [f"black on {STEPS[-1][1]}", ""]

    def test_what_is_not_known_has_no_tint(self):
        assert tints("ab", [float("nan"), 9.0])[0] == ""

    def test_it_is_the_text(self):
        strings = ["Once", " upon", "", " 東", "!"]
        text = heat_map(strings, [0.1, 2.5, 9.0, 0.2, 4.0])
        assert text.plain == "Once upon 東!"
        assert ESCAPES.sub("", shown(text)) == text.plain

    def test_a_character_of_several_tokens_has_the_highest_of_their_tints(self):
        strong, weak = (f"black on {STEPS[i][1]}" for i in (4, 0))
        assert tints(["", "", "東", "a"], [1.5, 8.5, 0.1, 1.5]) == [strong, weak]
        assert tints(["", "東"], [float("nan"), 8.5]) == [strong]
        assert tints(["", "東"], [8.5, float("nan")]) == [strong]

    def test_markup_is_text(self):
        text = heat_map(["[red]", " [/red]", " [link=x]"], [0.0, 3.0, 0.0])
        assert ESCAPES.sub("", shown(text)) == "[red] [/red] [link=x]"

    def test_a_newline_is_seen(self):
        text = heat_map(["a", "\n\n", "b"], [0.0, 6.0, 0.0])
        assert text.plain == f"a{NEWLINE}\n{NEWLINE}\nb"
        lines = shown(text).split("\n")
        assert len(lines) == 3
        # No tint reaches over the end of its line.
        assert all(line.endswith("\x1b[0m") for line in lines[:2])
        assert lines[2] == "b"

    def test_nothing_steers_the_terminal(self):
        text = heat_map(["\x1b[2J", "\x1b]0;title\x07", "\r\b\x9b31m"], [0.0, 4.0, 9.0])
        sent = ESCAPES.sub("", shown(text))
        assert sent == r"\x1b[2J\x1b]0;title\x07\r\x08\x9b31m"

    def test_without_colours_there_are_none(self):
        assert shown(heat_map(["a", " b"], [0.0, 9.0]), force_terminal=False, color_system=None) == "a b"

    def test_strings_and_figures_belong_together(self):
        with pytest.raises(ValueError, match="zip"):
            heat_map(["a", "b"], [1.0])

    def test_nothing(self):
        assert heat_map([], []).plain == ""


def test_the_legend_names_every_tint():
    text = legend()
    assert text.plain.startswith("surprisal in nats:")
    assert len(text.spans) == len(STEPS)
    for (start, colour), span in zip(STEPS, text.spans, strict=True):
        assert span.style == f"black on {colour}"
        assert text.plain[span.start : span.end].strip() == f"from {start:g}"


class TestTokenStrings:
    @pytest.mark.parametrize("text", ["Once upon a time", "naß 東京の夜 🦊🌲!", "être\n\nou  ne\tpas", "🦊" * 30])
    def test_they_make_up_the_text(self, tokenizer, text):
        ids = tokenizer(text)["input_ids"]
        strings = token_strings(tokenizer, ids)
        assert len(strings) == len(ids)
        assert "".join(strings) == text
        # Behind a context, too, of which a token may be cut.
        before = tokenizer("東京 Once upon a time 🦊")["input_ids"]
        assert "".join(token_strings(tokenizer, ids, before)) == text

    def test_a_character_of_several_tokens_comes_with_its_last(self, tokenizer):
        ids = tokenizer("a🌊b")["input_ids"]
        assert len(ids) > 3
        assert token_strings(tokenizer, ids) == ["a", *[""] * (len(ids) - 3), "🌊", "b"]

    def test_a_character_that_is_cut_at_the_end_is_left_out(self, tokenizer):
        ids = tokenizer("a🌊")["input_ids"]
        assert token_strings(tokenizer, ids[:-1]) == ["a", *[""] * (len(ids) - 2)]

    def test_special_tokens_add_nothing(self, tokenizer):
        ids = [tokenizer.eos_token_id, *tokenizer("a b")["input_ids"], tokenizer.eos_token_id]
        strings = token_strings(tokenizer, ids, [tokenizer.bos_token_id])
        assert strings[0] == strings[-1] == ""
        assert "".join(strings) == "a b"

    def test_bytes_that_are_no_text_do_not_stop_it(self, tokenizer):
        """A lone continuation byte, as a random model writes it."""
        lone = tokenizer("🌊")["input_ids"][-1]
        ids = [*tokenizer("a")["input_ids"], lone, lone, *tokenizer("b")["input_ids"]]
        assert "".join(token_strings(tokenizer, ids)) == tokenizer.decode(ids)
