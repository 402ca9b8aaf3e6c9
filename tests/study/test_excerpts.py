"""Excerpts: where texts are cut, which excerpts are taken, and what becomes of prompts and candidates."""

import re

import pytest

from ugap.data import TextRow
from ugap.errors import InputError
from ugap.study.excerpts import cut_excerpts

PREFIX, NEW = 10, 14


def n_tokens(tokenizer, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.fixture
def rows(text_rows) -> list[TextRow]:
    return [TextRow(**row) for row in text_rows]


@pytest.fixture
def cut(tokenizer):
    def run(rows, **settings):
        return cut_excerpts(rows, tokenizer, **{"prefix_tokens": PREFIX, "max_new_tokens": NEW, **settings})

    return run


def test_prefix_and_continuation_are_a_piece_of_the_source(cut, rows, tokenizer):
    source = {row.id: row for row in rows}
    excerpts = cut(rows)
    assert len(excerpts) > len(rows)
    for excerpt in excerpts:
        row = source[excerpt.source]
        assert excerpt.prefix + excerpt.human in row.text
        assert excerpt.domain == row.domain
        assert n_tokens(tokenizer, excerpt.prefix) == PREFIX
        assert n_tokens(tokenizer, excerpt.prefix + excerpt.human) == PREFIX + NEW
    assert len({excerpt.id for excerpt in excerpts}) == len(excerpts)


def test_further_excerpts_start_at_a_sentence_and_do_not_overlap(cut, rows):
    text = rows[0].text
    excerpts = cut(rows[:1], per_text=9)
    assert [excerpt.id for excerpt in excerpts] == [rows[0].id, *(f"{rows[0].id}#{k}" for k in range(1, len(excerpts)))]
    assert len(excerpts) >= 3
    assert text.startswith(excerpts[0].prefix)
    end = 0
    for k, excerpt in enumerate(excerpts):
        begin = text.index(excerpt.prefix + excerpt.human)
        assert begin >= end
        if k:
            assert re.search(r"\. $", text[:begin])
            assert excerpt.prefix[0].isupper()
        end = begin + len(excerpt.prefix + excerpt.human)


def test_the_first_of_every_text_comes_before_the_second_of_any(cut, rows):
    creative = [row for row in rows if row.domain == "creative"]
    ids = [excerpt.id for excerpt in cut(creative, limit=8)]
    assert ids == ["c0", "c1", "c2", "c3", "c4", "c5", "c0#1", "c1#1"]


def test_the_limit_holds_for_each_domain(cut, rows):
    excerpts = cut(rows, limit=7)
    for domain in ("creative", "functional"):
        assert sum(excerpt.domain == domain for excerpt in excerpts) == 7
    assert [excerpt.id for excerpt in cut(rows, limit=2)] == ["c0", "c1", "f0", "f1"]


@pytest.mark.parametrize("per_text", [1, 2, 3])
def test_excerpts_of_one_text(cut, rows, per_text):
    excerpts = cut(rows, per_text=per_text)
    counts = [sum(excerpt.source == row.id for excerpt in excerpts) for row in rows]
    assert max(counts) == per_text


def test_a_text_that_is_too_short_is_left_out(cut, rows):
    short = TextRow("short", "creative", "The old man said.")
    assert "short" not in [excerpt.source for excerpt in cut([short, *rows])]


def test_a_domain_of_texts_that_are_too_short(cut, rows):
    short = TextRow("short", "letters", "The old man said.")
    with pytest.raises(InputError, match=r"domain 'letters': no text has the 24 tokens of a prefix"):
        cut([*rows, short])


def test_a_shorter_continuation_where_it_is_enough(cut, tokenizer, rows):
    text = rows[0].text[:60]
    have = n_tokens(tokenizer, text)
    row = TextRow("a", "creative", text)
    (excerpt,) = cut([row], max_new_tokens=500, min_new_tokens=5)
    assert excerpt.prefix + excerpt.human == text
    assert n_tokens(tokenizer, excerpt.prefix) == PREFIX
    with pytest.raises(InputError, match=f"the {have + 1} tokens"):
        cut([row], max_new_tokens=500, min_new_tokens=have - PREFIX + 1)


def test_without_a_prefix(cut, rows, tokenizer):
    (excerpt,) = cut(rows[:1], prefix_tokens=0, per_text=1)
    assert excerpt.prefix == ""
    assert rows[0].text.startswith(excerpt.human)
    assert n_tokens(tokenizer, excerpt.human) == NEW


@pytest.mark.parametrize(
    ("prompt", "prefix"),
    [("Tell me a tale.", "Tell me a tale.\n\n"), ("Tell me a tale.\n", "Tell me a tale.\n"), ("Q: ", "Q: ")],
)
def test_a_prompt_is_the_prefix(cut, rows, tokenizer, prompt, prefix):
    row = TextRow("a", "creative", rows[0].text, prompt)
    (excerpt,) = cut([row])
    assert (excerpt.id, excerpt.prefix) == ("a", prefix)
    assert rows[0].text.startswith(excerpt.human)
    assert n_tokens(tokenizer, excerpt.human) == NEW
    (short,) = cut([TextRow("b", "creative", "The old man said.", prompt)])
    assert short.human == "The old man said."


def test_candidates_come_along_once(cut, rows):
    row = TextRow("a", "creative", rows[0].text, candidates={"gpt": "A tale."})
    (excerpt,) = cut([row])
    assert excerpt.candidates == {"gpt": "A tale."}
    # A given continuation is compared with what there is of the human one.
    (short,) = cut(
        [TextRow("b", "creative", "The old man said to him.", candidates={"gpt": "A tale."})], prefix_tokens=3
    )
    assert (short.prefix + short.human) == "The old man said to him."


def test_borders_do_not_split_a_character(cut, tokenizer):
    text = "東京の夜 🦊🌲 " * 30
    for prefix_tokens in range(1, 12):
        (excerpt,) = cut([TextRow("a", "creative", text)], prefix_tokens=prefix_tokens, per_text=1)
        assert text.startswith(excerpt.prefix + excerpt.human)
        assert n_tokens(tokenizer, excerpt.prefix) >= prefix_tokens
