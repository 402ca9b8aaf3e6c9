"""A batch of contexts through `model.generate()` and back to text, for every way of generating."""

import codecs
import re
from collections.abc import Sequence

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ugap.errors import InputError
from ugap.sampling.portable.params_processor import ALONE
from ugap.sampling.portable.special import end_tokens, suppressed_tokens

__all__ = ["continue_contexts", "decode_after", "drawn_config", "end_tokens", "suppressed_tokens"]

_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}


@torch.no_grad()
def continue_contexts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[Sequence[int]],
    config: GenerationConfig,
    processors: Sequence[LogitsProcessor],
    *,
    keep_end: bool = False,
) -> list[list[int]]:
    """Token ids that continue each context, up to the model's end token.

    Args:
        model (`PreTrainedModel`): A causal language model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer, for the special tokens.
        contexts (`Sequence[Sequence[int]]`): Token ids to continue, BOS included; of any lengths.
        config (`GenerationConfig`): How to generate; the special tokens are set here.
        processors (`Sequence[LogitsProcessor]`): Processors of the scores, in this order.
        keep_end (`bool`, *optional*, defaults to `False`): Whether to keep the end token.

    Raises:
        InputError: If a context is empty.
    """
    if any(not context for context in contexts):
        raise InputError("there is nothing to continue: no prefix, and the tokenizer has no BOS")
    ends = end_tokens(model)
    pad = padding_token(tokenizer)
    width = max(map(len, contexts))
    ids = torch.tensor([[pad] * (width - len(c)) + list(c) for c in contexts], device=model.device)
    mask = torch.tensor([[0] * (width - len(c)) + [1] * len(c) for c in contexts], device=model.device)
    config.num_return_sequences, config.return_dict_in_generate = 1, False
    config.eos_token_id, config.pad_token_id, config.bos_token_id = sorted(ends) or None, pad, tokenizer.bos_token_id
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=config,
        logits_processor=LogitsProcessorList(processors),
    )
    new = out[:, width:].tolist()
    return [row[: next((i + keep_end for i, token in enumerate(row) if token in ends), len(row))] for row in new]


def padding_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that pads prompts: the tokenizer's, or the first of the vocabulary."""
    return 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def drawn_config(max_new_tokens: int) -> GenerationConfig:
    """The config under which processors alone decide the draw, whatever the model's own config holds."""
    # The assistant is an argument of generate(), not a setting.
    alone = {name: value for name, value in ALONE.items() if name != "assistant_model"}
    return GenerationConfig(max_new_tokens=max_new_tokens, **alone)


def decode_after(tokenizer: PreTrainedTokenizerBase, context: Sequence[int], new: Sequence[int]) -> str:
    """The text of `new` tokens, decoded behind their context, without a character that is cut at the end.

    A character that the context begins and `new` completes belongs to the text.
    """
    # Decoded with the context, as a tokenizer may drop a space at the start of a text.
    before, whole = (_decoded_whole(tokenizer, ids) for ids in (list(context), [*context, *new]))
    # The common start, not len(before): invalid bytes in `new` may turn the bytes before them into U+FFFD too.
    same = next((i for i, (one, other) in enumerate(zip(before, whole, strict=False)) if one != other), len(before))
    return whole[same:]


def _decoded_whole(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The text of the complete characters, without the bytes of an unfinished one at the end."""
    n_bytes = _unfinished(tokenizer, ids)
    # A byte of an unfinished character would turn the bytes next to it into U+FFFD.
    while n_bytes and len(_token_bytes(tokenizer, ids[-1])) <= n_bytes:
        n_bytes -= len(_token_bytes(tokenizer, ids[-1]))
        ids = ids[:-1]
    text = _decoded(tokenizer, ids)
    return text[:-1] if n_bytes else text  # the rest of the bytes, in its last token, is one U+FFFD


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _unfinished(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> int:
    """The number of bytes at the end that begin a character without completing it."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    # UTF-8 takes at most 4 bytes for a character, and a token has at least one.
    decoder.decode(b"".join(_token_bytes(tokenizer, token) for token in ids[-4:]))
    return len(decoder.getstate()[0])


def _token_bytes(tokenizer: PreTrainedTokenizerBase, token: int) -> bytes:
    """The bytes of a token, which may be a part of a character that decodes to U+FFFD alone."""
    text, piece = _decoded(tokenizer, [token]), str(tokenizer.convert_ids_to_tokens(token))
    if "\ufffd" not in text or "\ufffd" in piece:
        return text.encode()
    if re.fullmatch("<0x[0-9A-F]{2}>", piece):  # byte fallback of SentencePiece vocabularies
        return bytes([int(piece[3:5], 16)])
    return bytes(_BYTES[c] for c in piece) if _BYTES.keys() >= set(piece) else text.encode()
