"""Texts to tokens: prefix and text tokenised together, with an explicit policy for BOS, borders and special tokens.

A token that straddles the border between prefix and text belongs to the prefix, and the record says so. Literal
special-token strings inside a text are plain characters unless asked otherwise. Offsets tile the text: where a
tokenizer trims the space off a token's span, the gap is given back to the token, or a straddling token would be missed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from ugap.errors import InputError
from ugap.unicode import text_fault

# A text of more is no text but a mistake, such as a whole corpus in one row: scoring it would take days.
MAX_CHARACTERS = 2_000_000


@dataclass(frozen=True, eq=False)
class Encoded:
    """Tokens of one text and of what comes before it.

    Args:
        text (`str`): The text.
        context (`list[int]`): Tokens before the text: BOS, if any, and the prefix.
        token_ids (`list[int]`): Tokens of the text.
        offsets (`np.ndarray` of shape `(T, 2)`, int32): Character positions of each token in `text`.
        bos (`list[int]`): What a text without a prefix starts with: one BOS token, or nothing.
        straddles (`bool`): Whether a token crossed the border and was given to the prefix.
    """

    text: str
    context: list[int]
    token_ids: list[int]
    offsets: np.ndarray
    bos: list[int]
    straddles: bool


def bos_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What a text without a prefix starts with: the BOS token, or nothing where the tokenizer has none."""
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    prefix: str | Sequence[int] = "",
    *,
    bos: list[int],
    special_tokens: bool = False,
    n_words: int | None = None,
    name: str = "text",
) -> Encoded:
    """Tokenise `prefix + text` as one string and split the tokens at the border.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): A fast tokenizer.
        text (`str`): The text to score.
        prefix (`str` or `Sequence[int]`, *optional*): What comes before it. Token ids (a rendered chat template, say)
            are taken as they are, and nothing is put in front of them.
        bos (`list[int]`): One BOS token, or an empty list.
        special_tokens (`bool`, *optional*, defaults to `False`): Whether strings such as `<bos>` inside the text mean
            the special token.
        n_words (`int`, *optional*): Size of the model's vocabulary, if token ids shall be checked against it.
        name (`str`, *optional*): How an error names the text.

    Raises:
        InputError: If the text is empty, has more than `MAX_CHARACTERS` with its prefix, cannot be encoded as UTF-8,
            holds a NUL byte, is a single token without a prefix, or has a token that the vocabulary lacks.
    """
    before = prefix if isinstance(prefix, str) else ""
    if len(before) + len(text) > MAX_CHARACTERS:
        raise InputError(
            f"{name}: the text has {len(before) + len(text):,} characters; cut it to at most {MAX_CHARACTERS:,}"
        )
    for part in (before, text):
        if fault := text_fault(part):
            raise InputError(f"{name}: {fault}")
    if not text:
        raise InputError(f"{name}: the text is empty")
    encoding = tokenizer(
        before + text,
        add_special_tokens=False,
        split_special_tokens=not special_tokens,
        return_offsets_mapping=True,
        return_attention_mask=False,
    )
    ids: list[int] = encoding["input_ids"]
    spans = np.asarray(encoding["offset_mapping"], dtype=np.int32).reshape(-1, 2)
    if len(spans):
        spans[1:, 0] = np.minimum(spans[1:, 0], np.maximum(spans[:-1, 1], spans[:-1, 0]))
        spans[0, 0], spans[-1, 1] = 0, len(before) + len(text)
    border = len(before)
    # Spans are ordered, so the tokens that start before the border come first.
    n_before = int((spans[:, 0] < border).sum())
    straddles = bool(n_before and spans[n_before - 1, 1] > border)
    context = bos + ids[:n_before] if isinstance(prefix, str) else list(prefix)
    token_ids = ids[n_before:]
    if not len(spans):
        raise InputError(f"{name}: the tokenizer makes no token of the text")
    if not token_ids:
        raise InputError(f"{name}: nothing is left to score, its only token also covers the end of the prefix")
    if len(token_ids) == 1 and len(context) <= len(bos):
        raise InputError(f"{name}: the text is a single token, there is nothing to measure")
    if n_words is not None:
        for ids in (context, token_ids):
            for extreme in (min(ids, default=0), max(ids, default=0)):
                if not 0 <= extreme < n_words:
                    raise InputError(f"{name}: token id {extreme} is outside the model's vocabulary of {n_words}")
    return Encoded(text, context, token_ids, spans[n_before:] - border, bos, straddles)
