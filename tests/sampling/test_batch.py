"""From tokens back to text behind a context: nothing that is whole is lost, whatever bytes the tokens are."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ugap.sampling.batch import decode_after

CONTEXTS = ["", "Once upon a time", "ꦮꦲꦢ", "東京の夜", "end\ufffd", "🦊"]
TEXTS = [
    "ꦮꦲꦢ",
    " ꀀꀁ and so",
    "\u1b05\u1b13",
    "𠮷野家",
    "end\ufffd",
    "\ufffd\ufffd",
    " went",
    "\n\nThe  old ' s . n't",
    "naß 🦊🌲",
]


@pytest.fixture(scope="module")
def fallback_tokenizer():
    """As Gemma's: characters, and bytes for those that are no token; U+FFFD is one."""
    characters = [chr(code) for code in range(32, 127) if chr(code) != " "]
    tokens = ["<unk>", "<bos>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "\n", "\ufffd", *characters]
    core = Tokenizer(
        models.BPE(
            {token: i for i, token in enumerate(tokens)}, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True
        )
    )
    core.normalizer = normalizers.Replace(" ", "▁")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", unk_token="<unk>")


@pytest.fixture(params=["bytes as characters", "bytes for want of a token"])
def own(request, tokenizer, fallback_tokenizer):
    return tokenizer if request.param == "bytes as characters" else fallback_tokenizer


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_text_comes_back_as_it_is(own, context):
    before = [own.bos_token_id, *ids_of(own, context)]
    assert [decode_after(own, before, ids_of(own, text)) for text in TEXTS] == TEXTS


@pytest.mark.parametrize("text", TEXTS)
def test_a_character_that_is_cut_is_left_out(own, text):
    """Of every part of a text, all characters that are whole stay."""
    context = [own.bos_token_id, *ids_of(own, "Once")]
    ids = ids_of(own, text)
    for length in range(len(ids) + 1):
        whole = b"".join(map(raw(own), ids[:length])).decode(errors="ignore")
        assert decode_after(own, context, ids[:length]) == whole
    assert whole == text


def raw(tokenizer):
    """What gives the bytes of a token."""
    alphabet = {character: byte for byte, character in bytes_to_unicode().items()}

    def run(token: int) -> bytes:
        piece = tokenizer.convert_ids_to_tokens(token)
        if piece.startswith("<0x"):
            return bytes([int(piece[3:5], 16)])
        fallback = "<0x00>" in tokenizer.get_vocab()
        return piece.replace("▁", " ").encode() if fallback else bytes(alphabet[character] for character in piece)

    return run


@pytest.mark.parametrize("text", TEXTS)
def test_a_character_that_the_context_begins(own, text):
    """It belongs to the text that completes it; the rest of the context does not."""
    ids = ids_of(own, text)
    for length in range(len(ids) + 1):
        context = [own.bos_token_id, *ids[:length]]
        assert decode_after(own, [own.bos_token_id], ids[:length]) + decode_after(own, context, ids[length:]) == text


def test_bytes_that_are_no_characters_stay(own):
    """They are U+FFFD: only the beginning of a character at the very end may yet become one."""
    e, a = (own.convert_tokens_to_ids(piece) for piece in (("ê", "a") if "ê" in own.get_vocab() else ("<0xEA>", "a")))
    assert decode_after(own, [own.bos_token_id], [e, a, e]) == "\ufffda"
    assert decode_after(own, [own.bos_token_id], [e]) == ""
    assert decode_after(own, [own.bos_token_id], []) == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma", "smollm2"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_of_the_real_models(request, name, context):
    own = request.getfixturevalue(name).tokenizer
    before = ids_of(own, f"So: {context}")
    assert [decode_after(own, before, ids_of(own, text)) for text in TEXTS] == TEXTS
