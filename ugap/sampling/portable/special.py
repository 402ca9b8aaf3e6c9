"""The tokens that are never drawn, because no person writes them. Every adapter asks `unwritable_tokens`.

This module needs transformers alone: it is copied into exported folders.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Control tokens that some files, such as the shipped Gemma's, do not mark as special: `<start_of_image>`,
# `[multimodal]`, `<|fim_prefix|>`. Blanks and HTML tags are added tokens too, but people write them.
_CONTROL = re.compile(r"<\w+_of_\w+>|<[|｜].+[|｜]>|\[\w+\]")


def unwritable_tokens(tokenizer: Any, size: int, ends: Iterable[int], configs: Iterable[Any] = ()) -> list[int]:
    """Ids of the special tokens and of those without a string, except for the tokens that end a text.

    Args:
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Added tokens that it marks as special, or that look like
            control tokens, are special. If `None`, the configs name the special tokens that they know.
        size (`int`): Vocabulary size of the logits, which may exceed that of the tokenizer.
        ends (`Iterable[int]`): Tokens that end a text.
        configs (`Iterable[PretrainedConfig | GenerationConfig]`, *optional*): Read without a tokenizer: their entries
            `..._token_id` are special.
    """
    if tokenizer is None:
        special, strings = _named(configs), set(range(size))
    else:
        special, strings = special_tokens(tokenizer), set(tokenizer.get_vocab().values())
    ends = set(ends)
    return [token for token in range(size) if (token in special or token not in strings) and token not in ends]


def special_tokens(tokenizer: Any) -> set[int]:
    """Ids of the tokens that are no text: those marked as special, or that look like control tokens.

    `all_special_ids` of transformers has the named ones alone: BOS, end, padding and the like.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer.
    """
    added = tokenizer.added_tokens_decoder.items()
    control = {token for token, entry in added if entry.special or _CONTROL.fullmatch(entry.content)}
    return control | set(tokenizer.all_special_ids)


def suppressed_tokens(model: "PreTrainedModel", tokenizer: Any = None, ends: Any = None) -> list[int]:
    """Ids that are never drawn from a model.

    Args:
        model (`PreTrainedModel`): A causal language model.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Its tokenizer; by default the one in the model's folder or in
            the local cache of the Hub. The network is not asked. Without a tokenizer, the configs are read.
        ends (`int` or `list[int]`, *optional*): Tokens that end a text; by default those of the generation config.
    """
    size = model.config.get_text_config().vocab_size
    ends = end_tokens(model) if ends is None else _listed(ends)
    name = model.config.name_or_path
    if tokenizer is None and name:
        unwritable = _of_name(name, size, frozenset(ends))
        if unwritable is not None:
            return list(unwritable)
    configs = (model.config, model.config.get_text_config(), model.generation_config)
    return unwritable_tokens(tokenizer, size, ends, configs)


def end_tokens(model: "PreTrainedModel") -> set[int]:
    """Ids of the tokens that end a text."""
    return _listed(model.generation_config.eos_token_id)


def loaded_tokenizer(name: str, **options: Any) -> Any:
    """The tokenizer of a folder or of the Hub; `None` if there is none."""
    try:
        return AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError, ImportError):
        return None


@lru_cache(maxsize=8)
def _of_name(name: str, size: int, ends: frozenset[int]) -> tuple[int, ...] | None:
    # Cached, as an exported folder asks at every call, and reading a tokenizer takes seconds.
    tokenizer = loaded_tokenizer(name, local_files_only=True)
    return None if tokenizer is None else tuple(unwritable_tokens(tokenizer, size, ends))


def _named(configs: Iterable[Any]) -> set[int]:
    entries = [(name, value) for config in configs for name, value in config.to_dict().items()]
    return {token for name, value in entries if name.endswith("_token_id") for token in _listed(value)}


def _listed(tokens: Any) -> set[int]:
    """The ids of an entry of a config: one, several or none."""
    if tokens is None:
        return set()
    return {int(token) for token in (tokens if isinstance(tokens, list | tuple | set) else [tokens])}
