"""A batch of contexts through `model.generate()` and back to text: what every way of generating shares."""

from collections.abc import Sequence

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ugap.errors import InputError
from ugap.sampling.figures_processor import ALONE


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
        processors (`Sequence[LogitsProcessor]`): What acts on the scores, in this order.
        keep_end (`bool`, *optional*, defaults to `False`): Whether the end token is one of them.

    Raises:
        InputError: If a context is empty.
    """
    if any(not context for context in contexts):
        raise InputError("there is nothing to continue: no prefix, and the tokenizer has no BOS")
    ends = end_tokens(model)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
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


def drawn_config(max_new_tokens: int) -> GenerationConfig:
    """The config under which processors alone say what is drawn, whatever the model's own config says."""
    # The assistant is an argument of generate(), not a setting.
    alone = {name: value for name, value in ALONE.items() if name != "assistant_model"}
    return GenerationConfig(max_new_tokens=max_new_tokens, **alone)


def end_tokens(model: PreTrainedModel) -> set[int]:
    """Ids of the tokens that end a text."""
    ends = model.generation_config.eos_token_id
    return set(ends if isinstance(ends, list) else [ends]) - {None}


def never_written(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the special tokens that do not end a text: no person writes them."""
    return sorted(set(tokenizer.all_special_ids) - end_tokens(model))


def decode_after(tokenizer: PreTrainedTokenizerBase, context: Sequence[int], new: Sequence[int]) -> str:
    """The text of `new` tokens, decoded behind their context; characters that are cut at the end are left out."""
    # A tokenizer may drop the space that a text starts with.
    before = tokenizer.decode(list(context)[-8:], skip_special_tokens=True)
    text = tokenizer.decode([*list(context)[-8:], *new], skip_special_tokens=True)[len(before) :]
    return text.rstrip("\ufffd")
