import copy
import logging

import numpy as np
import pytest
from tokenizers import processors

from ugap.errors import InputError
from ugap.scoring.tokenise import encode


@pytest.fixture(scope="session")
def trimming_tokenizer(tokenizer):
    """Like GPT-2's: spaces are trimmed off the offsets."""
    trimming = copy.deepcopy(tokenizer)
    trimming.backend_tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=True)
    assert trimming(" the youngest ", return_offsets_mapping=True)["offset_mapping"] == [(1, 4), (5, 13), (14, 14)]
    return trimming


@pytest.fixture(params=["plain", "trimming"])
def any_tokenizer(request, tokenizer, trimming_tokenizer):
    return tokenizer if request.param == "plain" else trimming_tokenizer


def pieces(encoded):
    return [encoded.text[begin:end] for begin, end in encoded.offsets]


@pytest.mark.parametrize(
    "text",
    [
        "Once upon a time.",
        "  two spaces before,  two between, two after  ",
        "\n\nnew lines\n\n",
        "naß, être, 東京の夜 🦊🌲",
        "🦊",
        "a\u0301 combining",
        "tab\tand\u00a0hard space \u2003 wide",
    ],
)
@pytest.mark.parametrize("prefix", ["", "The fox ", "夜", " "])
def test_offsets_tile_the_text(text, prefix, any_tokenizer):
    encoded = encode(any_tokenizer, text, prefix, bos=[2])
    offsets = encoded.offsets
    assert offsets.dtype == np.int32
    assert offsets.shape == (len(encoded.token_ids), 2)
    assert offsets[-1, 1] == len(text)
    assert (offsets[:, 0] <= offsets[:, 1]).all()
    # No gap; two tokens share a character only where each holds some of its bytes.
    assert (offsets[1:, 0] <= offsets[:-1, 1]).all()
    assert (offsets[1:, 0] >= offsets[:-1, 1] - 1).all()
    if not encoded.straddles:
        assert offsets[0, 0] == 0
        whole = [2, *any_tokenizer(prefix + text, add_special_tokens=False)["input_ids"]]
        assert encoded.context + encoded.token_ids == whole


def test_ascii_pieces_join_to_the_text(any_tokenizer):
    text = " the youngest  fox "
    assert "".join(pieces(encode(any_tokenizer, text, bos=[]))) == text


def test_prefix_and_text_are_tokenised_together(any_tokenizer):
    encoded = encode(any_tokenizer, " youngest son", "the", bos=[2])
    assert any_tokenizer.convert_ids_to_tokens(encoded.token_ids)[0] == "Ġyoungest"
    assert pieces(encoded)[0] == " youngest"
    assert encoded.context == [2, *any_tokenizer("the")["input_ids"]]
    assert not encoded.straddles


def test_a_straddling_token_belongs_to_the_prefix(any_tokenizer):
    encoded = encode(any_tokenizer, "youngest son", "the ", bos=[2])
    assert encoded.straddles
    assert encoded.context == [2, *any_tokenizer("the youngest")["input_ids"]]
    assert "".join(pieces(encoded)) == " son"


def test_a_border_inside_a_word(any_tokenizer):
    encoded = encode(any_tokenizer, "gest son", "the youn", bos=[])
    assert encoded.straddles
    assert "".join(pieces(encoded)) == " son"


def test_nothing_left_after_the_border(any_tokenizer):
    with pytest.raises(InputError, match=r"^row 3: .*covers the end of the prefix"):
        encode(any_tokenizer, "youngest", "the ", bos=[2], name="row 3")


def test_prefix_of_token_ids_is_taken_as_it_is(tokenizer):
    encoded = encode(tokenizer, "youngest son", [5, 9, 1], bos=[2])
    assert encoded.context == [5, 9, 1]
    assert encoded.token_ids == tokenizer("youngest son")["input_ids"]
    assert not encoded.straddles
    assert pieces(encoded)[0].startswith("y")


@pytest.mark.parametrize("mark", ["<bos>", "<eos>", "<|im_end|>"])
def test_special_strings_are_plain_characters(mark, tokenizer):
    special = tokenizer.convert_tokens_to_ids(mark)
    plain = encode(tokenizer, f"a {mark} b", bos=[2])
    assert special not in plain.token_ids
    assert "".join(pieces(plain)) == plain.text
    meant = encode(tokenizer, f"a {mark} b", bos=[2], special_tokens=True)
    assert special in meant.token_ids
    # One call leaves nothing behind for the next.
    assert encode(tokenizer, f"a {mark} b", bos=[2]).token_ids == plain.token_ids


@pytest.mark.parametrize(
    ("text", "prefix", "cause"),
    [
        ("", "", "the text is empty"),
        ("", "before", "the text is empty"),
        ("a", "", "a single token"),
        ("nul\0byte", "", "NUL byte at character 4"),
        ("half \ud83e pair", "", "lone surrogate (U+D83E) at character 6"),
        ("fine text", "bad\0prefix", "NUL byte at character 4"),
        ("fine text", "\udc00", "lone surrogate (U+DC00) at character 1"),
    ],
)
def test_bad_text_is_named(text, prefix, cause, tokenizer):
    with pytest.raises(InputError) as caught:
        encode(tokenizer, text, prefix, bos=[2], name="data.jsonl, row 7")
    message = str(caught.value)
    assert message.startswith("data.jsonl, row 7: ")
    assert cause in message
    assert "\n" not in message


def test_a_single_token_after_a_prefix_is_fine(tokenizer):
    assert encode(tokenizer, " youngest", "the", bos=[2]).token_ids == tokenizer(" youngest")["input_ids"]


def test_a_long_text_is_neither_cut_nor_warned_about(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        assert len(encode(tokenizer, "fox " * 3000, bos=[]).token_ids) > 6000
    assert not caplog.records


def test_a_text_that_would_take_days_is_refused(tokenizer, monkeypatch):
    monkeypatch.setattr("ugap.scoring.tokenise.MAX_CHARACTERS", 1000)
    assert encode(tokenizer, "a" * 990, "b" * 10, bos=[]).text
    with pytest.raises(InputError, match="row 7: the text has 1,001 characters; cut it to at most 1,000"):
        encode(tokenizer, "a" * 991, "b" * 10, bos=[], name="row 7")
