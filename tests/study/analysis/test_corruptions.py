import random

import pytest

from ugap.errors import InputError
from ugap.study.analysis.corruptions import (
    looped,
    of_other_sources,
    random_tokens,
    rare_and_common,
    replaced_words,
    shuffled_sentences,
    shuffled_words,
)
from ugap.study.excerpts import Excerpt
from ugap.unicode import text_fault

TEXT = "  once upon a time\nthere was a tailor who had three sons and the youngest was called Simpleton"


def excerpts(*sources):
    return [Excerpt(f"{s}{i}", s, "creative", "prefix", f" text {i} of {s}") for i, s in enumerate(sources)]


def test_shuffled_words():
    made = shuffled_words(TEXT, random.Random(0))
    assert sorted(made.split()) == sorted(TEXT.split())
    assert made.split() != TEXT.split()
    assert made.startswith("  ")
    assert made == shuffled_words(TEXT, random.Random(0)) != shuffled_words(TEXT, random.Random(1))


def test_shuffled_sentences():
    text = '  He left. "Why?" she asked. “So be it.” It rained!'
    for seed in range(8):
        made = shuffled_sentences(text, random.Random(seed))
        assert made.startswith("  ")
        assert sorted(made.split()) == sorted(text.split())
        assert made.split() != text.split()
        assert "He left." in made
    assert shuffled_sentences(" One sentence.", random.Random(0)) == " One sentence."


def test_words_are_replaced_by_a_share():
    rare, common = rare_and_common([TEXT, "the tailor and the king"], 2)
    assert common[0] == "the"
    assert "Simpleton" in rare
    assert "was" not in rare
    made = replaced_words(TEXT, common, 0.3, random.Random(0))
    changed = [(old, new) for old, new in zip(TEXT.split(), made.split(), strict=True) if old != new]
    assert 0 < len(changed) <= round(0.3 * len(TEXT.split()))
    assert {new for _, new in changed} <= set(common)
    assert made.startswith("  ")


@pytest.mark.parametrize("n", [1, 3, 8, 100])
def test_loops(n):
    words, made = TEXT.split(), looped(TEXT, n)
    assert len(made.split()) == len(words)
    assert made.startswith("  once")
    assert made.split()[:n] == words[:n]
    assert len(set(made.split())) <= n
    assert looped(" ", 3) == " "


def test_random_tokens(tokenizer):
    made = random_tokens(tokenizer, 60, random.Random(0))
    assert made == random_tokens(tokenizer, 60, random.Random(0)) != random_tokens(tokenizer, 60, random.Random(1))
    texts = [random_tokens(tokenizer, 60, random.Random(seed)) for seed in range(200)]
    assert all(text_fault(text) is None for text in texts)  # NUL is one of the 400 tokens
    assert not any(token in text for text in texts for token in tokenizer.all_special_tokens)


def test_the_text_of_another_source():
    made = excerpts(*"aabbbc")
    others = of_other_sources(made)
    for excerpt, text in zip(made, others, strict=True):
        assert text[-1] != excerpt.source
        assert text in {other.human for other in made}
    many = of_other_sources(excerpts(*"abcdefgh"))
    assert len(set(many)) == 8
    with pytest.raises(InputError, match="all prefixes are of one text"):
        of_other_sources(excerpts("a", "a"))
