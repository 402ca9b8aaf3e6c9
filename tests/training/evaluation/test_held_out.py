"""What is held out of a training: whole texts, the same ones always, and facts of every kind."""

import pytest

from ugap.data import TextRow
from ugap.data.facts import load_facts, split_facts
from ugap.errors import InputError
from ugap.training.evaluation.held_out import hold_out, read_texts, some_of_every_kind


@pytest.fixture
def texts(text_rows):
    rows = [{**row, "id": f"{row['id']}-{i}"} for i in range(5) for row in text_rows]
    return [TextRow(**row) for row in rows]


@pytest.fixture
def split(tokenizer):
    return lambda texts, **more: hold_out(texts, tokenizer, **{"prefix_tokens": 8, "max_new_tokens": 16, **more})


def test_a_text_is_on_one_side(split, texts):
    training, held = split(texts)
    assert sorted(row.id for row in [*training, *held]) == sorted(row.id for row in texts)
    assert [row.domain for row in held].count("creative") == 3
    assert [row.domain for row in held].count("functional") == 3
    assert split(texts)[1] == held
    assert len(split(texts, share=0.5)[1]) == 30


def test_only_texts_that_are_long_enough(split, texts):
    short = [TextRow(f"s{i}", "creative", "The old man.") for i in range(30)]
    training, held = split([*short, *texts])
    assert not {row.id for row in held} & {row.id for row in short}
    assert [row.domain for row in held].count("creative") == 6
    assert {row.id for row in short} <= {row.id for row in training}


def test_one_text_is_too_few(split, texts):
    with pytest.raises(InputError, match="domain 'creative': with one text there is none to hold out"):
        split([texts[0], *(row for row in texts if row.domain == "functional")])


def test_facts_are_of_every_kind():
    held = split_facts(load_facts())[1]
    kinds = list(dict.fromkeys(fact.kind for fact in held))
    some = some_of_every_kind(held, len(kinds) + 1)
    assert [fact.kind for fact in some] == [*kinds, kinds[0]]
    assert len(some_of_every_kind(held, 10**6)) == len(held)
    assert some_of_every_kind(held, 0) == []


def test_functional_texts_of_another_source(write_rows, text_rows):
    stories = write_rows([row for row in text_rows if row["domain"] == "creative"], "stories.jsonl")
    both = write_rows([{**row, "id": f"x{row['id']}"} for row in text_rows], "both.jsonl")
    rows = read_texts([stories], [both, stories], limit=2)
    assert [row.id for row in rows] == ["c0", "c1", "xf0", "xf1"]
