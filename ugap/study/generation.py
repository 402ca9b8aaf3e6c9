"""Continuations of a batch of prefixes by one model: raw or through its chat template, seeded by what is made."""

import hashlib
import logging
from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from ugap.errors import InputError
from ugap.study.decodings import Settings, generation_config

logger = logging.getLogger(__name__)

REQUEST = "Continue the following text. Write only the continuation, in the same style.\n\n{prefix}"


def seed_of(*parts: str | int) -> int:
    """A seed in `[0, 2**63)` from what is made, so that a unit of work gives the same text whenever it is run."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def chat_context(tokenizer: PreTrainedTokenizerBase, prefix: str, name: str) -> list[int]:
    """Token ids of the request to continue `prefix`, in the model's chat template.

    Raises:
        InputError: If the tokenizer has no chat template.
    """
    if tokenizer.chat_template is None:
        raise InputError(f"{name} has no chat template: use --prompting raw")
    messages = [{"role": "user", "content": REQUEST.format(prefix=prefix)}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(rendered, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def generate_continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[Sequence[int]],
    settings: Settings,
    *,
    max_new_tokens: int,
    seed: int,
    names: Sequence[str] | None = None,
    skip_bad: bool = False,
) -> list[str]:
    """Continue a batch of contexts; the texts end before the model's end token.

    Args:
        model (`PreTrainedModel`): A causal language model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        contexts (`Sequence[Sequence[int]]`): Token ids to continue, BOS included; of any lengths.
        settings (`Mapping[str, Any]`): A decoding of [`~ugap.study.decodings.DECODINGS`] or like it.
        max_new_tokens (`int`): Longest continuation in tokens.
        seed (`int`): Seed of this batch; the state of torch's generators is left as it was.
        names (`Sequence[str]`, *optional*): How errors name the texts; by default `text 0`, `text 1`, ...
        skip_bad (`bool`, *optional*, defaults to `False`): Where the logits of a text are not finite, log it and give
            an empty continuation, instead of raising.

    Raises:
        InputError: If a context is empty, the logits of a text are not finite (the message names it), or `generate()`
            refuses the settings.
    """
    names = [f"text {i}" for i in range(len(contexts))] if names is None else names
    if any(not context for context in contexts):
        raise InputError("there is nothing to continue: no prefix, and the tokenizer has no BOS")
    ends = model.generation_config.eos_token_id
    end_ids = set(ends if isinstance(ends, list) else [ends]) - {None}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    width = max(map(len, contexts))
    ids = torch.tensor([[pad] * (width - len(c)) + list(c) for c in contexts], device=model.device)
    mask = torch.tensor([[0] * (width - len(c)) + [1] * len(c) for c in contexts], device=model.device)
    config = generation_config(
        settings,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(end_ids) or None,
        pad_token_id=pad,
        bos_token_id=tokenizer.bos_token_id,
    )
    devices = [model.device] if model.device.type == "cuda" else []
    finite = _Finite(names, model.config.name_or_path, skip_bad)
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        try:
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                logits_processor=LogitsProcessorList([finite]),
            )
        except InputError:
            raise
        except (ValueError, TypeError) as error:
            raise InputError(f"decoding settings {dict(settings)}: {' '.join(str(error).split())}") from error
    return [
        "" if i in finite.skipped else _decoded(tokenizer, context, row[width:].tolist(), end_ids)
        for i, (context, row) in enumerate(zip(contexts, out, strict=True))
    ]


class _Finite(LogitsProcessor):
    """Refuses, or skips, texts whose logits are NaN or infinite (`-inf` is a token that is ruled out)."""

    def __init__(self, names: Sequence[str], model: str, skip_bad: bool):
        self.names, self.model, self.skip_bad = names, model, skip_bad
        self.skipped: set[int] = set()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> Any:
        wrong = ~(scores.amax(-1).isfinite())
        if not wrong.any():
            return scores
        for row in wrong.nonzero().squeeze(1).tolist():
            text = row * len(self.names) // len(wrong)  # beams of one text lie together
            message = f"{self.names[text]}: the logits of {self.model} are not finite"
            if not self.skip_bad:
                raise InputError(message)
            if text not in self.skipped:
                logger.warning("skipped: %s", message)
            self.skipped.add(text)
        return torch.where(wrong.unsqueeze(1), 0.0, scores)  # anything that can be drawn from


def _decoded(tokenizer: PreTrainedTokenizerBase, context: Sequence[int], new: list[int], end_ids: set[int]) -> str:
    end = next((i for i, token in enumerate(new) if token in end_ids), len(new))
    # Decoded behind its context: a tokenizer may drop the space that a text starts with. A last character may be cut.
    before = tokenizer.decode(list(context)[-8:], skip_special_tokens=True)
    text = tokenizer.decode([*list(context)[-8:], *new[:end]], skip_special_tokens=True)[len(before) :]
    return text.rstrip("\ufffd")
