"""Continuations of a batch of prefixes by one model: raw or through its chat template, each with a seed of its own."""

import hashlib
import logging
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from ugap.errors import InputError
from ugap.models import chat_ids
from ugap.sampling.batch import continue_contexts, decode_after
from ugap.study.decodings import Settings, decoder

logger = logging.getLogger(__name__)

REQUEST = "Continue the following text. Write only the continuation, in the same style.\n\n{prefix}"


def seed_of(*parts: str | int) -> int:
    """A seed in `[0, 2**63)` from the labels of a unit of work, which then gives the same text whenever it is run."""
    # Not hash(): Python salts it by process.
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def chat_context(tokenizer: PreTrainedTokenizerBase, prefix: str, name: str) -> list[int]:
    """Token ids of the request to continue `prefix`, in the model's chat template.

    Raises:
        InputError: If the tokenizer has no chat template, or one that fails.
    """
    if tokenizer.chat_template is None:
        raise InputError(f"{name} has no chat template: use --prompting raw")
    return chat_ids(tokenizer, [{"role": "user", "content": REQUEST.format(prefix=prefix)}], name)


class Engine(Protocol):
    """What continues token ids: transformers, or an engine of its own. It belongs to one model.

    Args:
        made_of (`tuple`): What the texts depend on beyond the weights, the contexts and the decoding.
    """

    made_of: tuple[Any, ...]

    def continue_contexts(
        self,
        contexts: Sequence[Sequence[int]],
        settings: Settings,
        *,
        max_new_tokens: int,
        seed: int,
        domain: str | None = None,
        processors: Sequence[LogitsProcessor] = (),
        names: Sequence[str] = (),
        skip_bad: bool = False,
    ) -> list[list[int]]:
        """Token ids that continue each context, before the model's end token.

        Arguments and errors are those of `generate_continuations`.
        """
        ...

    def close(self) -> None:
        """Give back memory and processes; the engine is not used again."""
        ...


class TransformersEngine:
    """`model.generate()`: the rows of a batch share one seed.

    Args:
        model (`PreTrainedModel`): A causal language model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
    """

    made_of: tuple[Any, ...] = ()

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self._model, self._tokenizer = model, tokenizer

    @torch.no_grad()
    def continue_contexts(
        self,
        contexts: Sequence[Sequence[int]],
        settings: Settings,
        *,
        max_new_tokens: int,
        seed: int,
        domain: str | None = None,
        processors: Sequence[LogitsProcessor] = (),
        names: Sequence[str] = (),
        skip_bad: bool = False,
    ) -> list[list[int]]:
        """As `ugap.study.generation.Engine.continue_contexts`."""
        model = self._model
        finite = _Finite(names, model.config.name_or_path, skip_bad)
        generator = torch.Generator(model.device).manual_seed(seed)
        config, drawn = decoder(
            settings,
            model,
            domain,
            processors,
            generator=generator,
            tokenizer=self._tokenizer,
            max_new_tokens=max_new_tokens,
        )
        # fork_rng saves the state of every GPU by default: seconds on a machine with eight.
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)  # for sampling with beams, which is left to generate()
            try:
                new = continue_contexts(model, self._tokenizer, contexts, config, [finite, *drawn])
            # An InputError is a ValueError too, and names its text already.
            except InputError:
                raise
            except (ValueError, TypeError) as error:
                raise InputError(f"decoding settings {dict(settings)}: {' '.join(str(error).split())}") from error
        return [[] if i in finite.skipped else row for i, row in enumerate(new)]

    def close(self) -> None:
        """Nothing to give back: the model is the caller's."""


def generate_continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[Sequence[int]],
    settings: Settings,
    *,
    max_new_tokens: int,
    seed: int,
    domain: str | None = None,
    processors: Sequence[LogitsProcessor] = (),
    names: Sequence[str] | None = None,
    skip_bad: bool = False,
    engine: Engine | None = None,
) -> list[str]:
    """Continue a batch of contexts; the texts end before the model's end token.

    Args:
        model (`PreTrainedModel`): A causal language model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        contexts (`Sequence[Sequence[int]]`): Token ids to continue, BOS included; of any lengths.
        settings (`Mapping[str, Any]`): A decoding of `ugap.study.decodings.DECODINGS` or like it.
        max_new_tokens (`int`): Longest continuation in tokens.
        seed (`int`): Seed of this batch; the state of torch's generators is left as it was.
        domain (`str`, *optional*): Domain of the contexts, for the decodings that aim at the human level of one.
        processors (`Sequence[LogitsProcessor]`, *optional*): What else shapes the distribution, before a token is
            drawn from it.
        names (`Sequence[str]`, *optional*): How errors name the texts; by default `text 0`, `text 1`, ...
        skip_bad (`bool`, *optional*, defaults to `False`): Where the logits of a text are not finite, log it and give
            an empty continuation, instead of raising.
        engine (`Engine`, *optional*): What generates; by default transformers.

    Raises:
        InputError: If a context is empty, the logits of a text are not finite (the message names it), there is no human
            profile of the model where the settings need one, or the engine refuses the settings.
    """
    new = (engine or TransformersEngine(model, tokenizer)).continue_contexts(
        contexts,
        settings,
        max_new_tokens=max_new_tokens,
        seed=seed,
        domain=domain,
        processors=processors,
        names=[f"text {i}" for i in range(len(contexts))] if names is None else names,
        skip_bad=skip_bad,
    )
    return [decode_after(tokenizer, context, row) for context, row in zip(contexts, new, strict=True)]


class _Finite(LogitsProcessor):
    """Refuses, or skips, texts whose logits are NaN or infinite (`-inf` is a token that is ruled out)."""

    def __init__(self, names: Sequence[str], model: str, skip_bad: bool):
        self.names, self.model, self.skip_bad = names, model, skip_bad
        self.skipped: set[int] = set()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> Any:
        # The maximum is NaN where any logit is NaN, inf where one is inf, and -inf where all tokens are ruled out.
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
