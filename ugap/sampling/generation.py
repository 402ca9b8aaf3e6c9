"""Text at human uncertainty from a model and prompts, and the arguments that make `model.generate()` write it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from ugap.errors import InputError
from ugap.models import chat_ids
from ugap.profile import HumanProfile, Target
from ugap.profile.fitting import check_like
from ugap.profile.profile import AUTO, LIKE, Selection
from ugap.sampling.batch import (
    continue_contexts,
    decode_after,
    drawn_config,
    end_tokens,
    padding_token,
    suppressed_tokens,
)
from ugap.sampling.params import TAIL, profile_of, weight_of
from ugap.sampling.portable.human import Drawn
from ugap.sampling.portable.params_processor import ALONE
from ugap.sampling.processor import DrawRecorder, HumanEntropyLogitsProcessor
from ugap.sampling.prompts import read_prompt
from ugap.scoring import Scorer
from ugap.scoring.tokenise import bos_ids

Prompt = str | Sequence[Mapping[str, str]]


@dataclass(frozen=True, eq=False)
class Generation:
    """One generated text, with the model's surprisal and entropy at each of its tokens.

    Args:
        prompt (`str` or `list[dict]`): The prompt.
        text (`str`): The text after the prompt.
        token_ids (`list[int]`): Its tokens, without the end token.
        surprisal (`list[float]`): `-log p` of each token under the model, nats.
        entropy (`list[float]`): Entropy of the model's distribution at each token, nats.
        target (`Target`): The human text that it should resemble: kinds, position, and human level in nats per token.
        weight (`float`, *optional*, defaults to `1.0`): The weight of the sampler: 0 is greedy.
    """

    prompt: Prompt
    text: str
    token_ids: list[int]
    surprisal: list[float]
    entropy: list[float]
    target: Target
    weight: float = 1.0

    @property
    def human_level(self) -> float:
        """Mean surprisal of human text of the kind under this model, in nats per token, at the text's positions."""
        positions, n = self.target.kind.positions, max(len(self.token_ids), 1)
        return self.target.factor * positions.mean_surprisal(self.target.position, n)

    @property
    def aim(self) -> float:
        """The mean surprisal that the sampler aims at, in nats per token: a share of `human_level`.

        For `creative` it is the share that is human to the profile's reader, or all without a reader; else the weight.
        """
        return self.weight * self.target.share * self.human_level

    @property
    def nll(self) -> float:
        """Mean surprisal in nats per token; NaN for an empty text."""
        return sum(self.surprisal) / len(self.surprisal) if self.surprisal else float("nan")


def generation_kwargs(
    model: PreTrainedModel,
    kind: Selection = AUTO,
    *,
    mode: str | None = None,
    weight: float | None = None,
    profile: HumanProfile | str | Path | None = None,
    like: Sequence[str] | None = None,
    reader: str | Scorer | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    tail: float | None = TAIL,
    seed: int | None = None,
) -> dict[str, Any]:
    """Arguments for `model.generate()` or `pipeline("text-generation")` to write at human uncertainty.

    The processor draws the tokens itself and `do_sample` is off, so no warper of the call or of the model's generation
    config can distort the distribution. For several texts of one prompt repeat the prompt: `num_return_sequences` needs
    sampling by `generate()`. The arguments serve one call after another.

    Args:
        model (`PreTrainedModel`): The model that will generate.
        kind (`str` or `Mapping[str, float]`, *optional*, defaults to `"auto"`): Kind, domain or mixture of kinds of
            the human profile; with `auto` the prompt decides.
        mode (`str`, *optional*): `"creative"` (the default), `"balanced"` or `"precise"`: see [`generate`][].
        weight (`float`, *optional*): Share of the model's own human level in [0, 1], instead of a mode.
        profile (`HumanProfile`, `str` or `Path`, *optional*): Human profile of the model. By default it is the
            shipped one; with a `tokenizer` it is that of [`profile_for`][ugap.profile.profile_for].
        like (`Sequence[str]`, *optional*): Texts to write like, instead of a kind; needs a `tokenizer`.
        reader (`str` or `Scorer`, *optional*): A model that the texts should be human to, instead of the one that the
            profile was calibrated for. A model that it was not calibrated for takes minutes, once.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): The model's. Its special tokens are not drawn, except for
            those that end a text. By default it is read from the model's folder or the local cache, which takes
            seconds. Without a tokenizer, only the special tokens that the model's configs name are not drawn.
        tail (`float`, *optional*, defaults to `0.999`): Where the human tail is cut; `None` cuts nothing.
        seed (`int`, *optional*): Seed of the draws; by default torch's own generator is used.

    Raises:
        InputError: If mode, weight, kind or tail is unknown or out of range, the profile is of another model, or
            there is none for this one. Also if `like` comes without a tokenizer, or its texts are too few.

    Example:
        ```python
        model.generate(**inputs, **generation_kwargs(model, mode="creative"), max_new_tokens=200)
        ```
    """
    processor = HumanEntropyLogitsProcessor(
        profile_of(model, profile, tokenizer, like=like, reader=reader),
        kind if like is None else LIKE,
        weight,
        mode=mode,
        tail=tail,
        draw=True,
        generator=_generator(model, seed),
        suppress_tokens=suppressed_tokens(model, tokenizer),
        pad_token_id=model.generation_config.pad_token_id if tokenizer is None else tokenizer.pad_token_id,
        model=model,
    )
    return {**ALONE, "logits_processor": LogitsProcessorList([processor])}


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompt | Sequence[Prompt],
    *,
    kind: Selection = AUTO,
    mode: str | None = None,
    weight: float | None = None,
    profile: HumanProfile | str | Path | None = None,
    like: Sequence[str] | None = None,
    reader: str | Scorer | None = None,
    tail: float | None = TAIL,
    max_new_tokens: int = 128,
    num_return_sequences: int = 1,
    batch_size: int = 16,
    seed: int | None = None,
) -> list[Generation]:
    """Continue prompts at human uncertainty.

    Args:
        model (`PreTrainedModel`): A causal language model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts (`str`, `list[dict]`, or a list of these): Texts to continue, or chats (lists of messages), which go
            through the tokenizer's chat template.
        kind (`str` or `Mapping[str, float]`, *optional*, defaults to `"auto"`): Kind, domain or mixture of kinds of
            the human profile; with `auto` the prompt decides.
        mode (`str`, *optional*): `"creative"` (the default: as uncertain as people), `"balanced"` (half the model's own
            human level, or as near as the likeliest tokens come) or `"precise"` (greedy). `creative` is as uncertain
            as people to the reader that the profile was calibrated for. Without a reader, it is so to the model itself.
        weight (`float`, *optional*): Share of the model's own human level in [0, 1], instead of a mode.
        profile (`HumanProfile`, `str` or `Path`, *optional*): Human profile of the model; by default that of
            [`profile_for`][ugap.profile.profile_for].
        like (`Sequence[str]`, *optional*): Texts to write like, instead of a kind.
        reader (`str` or `Scorer`, *optional*): A model that the texts should be human to, instead of the one that the
            profile was calibrated for. A model that it was not calibrated for takes minutes, once.
        tail (`float`, *optional*, defaults to `0.999`): Tokens beyond the rank that holds this share of human tokens
            are cut; `None` cuts nothing.
        max_new_tokens (`int`, *optional*, defaults to `128`): Longest text in tokens.
        num_return_sequences (`int`, *optional*, defaults to `1`): Texts for each prompt.
        batch_size (`int`, *optional*, defaults to `16`): Texts that are written together.
        seed (`int`, *optional*): Seed of the draws; by default torch's own generator is used. The rows of a batch share
            it, so another batch size gives other texts.

    Returns:
        `list[Generation]`: `num_return_sequences` for each prompt, in the order of the prompts.

    Raises:
        InputError: Before anything is generated, if a prompt is empty or a chat without a chat template, a number is
            less than 1, or every text of `like` is or holds a prompt; else see [`generation_kwargs`][].

    Example:
        ```python
        model, tokenizer = ugap.load_model("gemma-3-270m")
        for one in ugap.generate(model, tokenizer, "Once upon a time", mode="creative", seed=0):
            print(one.text, one.nll, one.human_level)
        ```
    """
    batches = generate_batches(
        model,
        tokenizer,
        prompts,
        kind=kind,
        mode=mode,
        weight=weight,
        profile=profile,
        like=like,
        reader=reader,
        tail=tail,
        max_new_tokens=max_new_tokens,
        num_return_sequences=num_return_sequences,
        batch_size=batch_size,
        seed=seed,
    )
    return [one for batch in batches for one in batch]


def generate_batches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompt | Sequence[Prompt],
    *,
    kind: Selection,
    mode: str | None,
    weight: float | None,
    profile: HumanProfile | str | Path | None,
    like: Sequence[str] | None = None,
    reader: str | Scorer | None = None,
    tail: float | None,
    max_new_tokens: int,
    num_return_sequences: int,
    batch_size: int,
    seed: int | None,
    write: Callable[[list[list[int]], int], list[list[int]]] | None = None,
    on_token: Callable[[int, float], None] | None = None,
) -> Iterator[list[Generation]]:
    """As [`generate`][], batch by batch. Wrong arguments raise here, before the first batch.

    `write` continues the contexts of a batch in place of transformers, from them and the number of the batch. The model
    then reads the token ids that come back for their surprisal and entropy.

    `on_token` is called with every token of a batch of one text and its surprisal in nats, as soon as it is drawn.
    """
    for name, number in (
        ("max_new_tokens", max_new_tokens),
        ("num_return_sequences", num_return_sequences),
        ("batch_size", batch_size),
    ):
        if number < 1:
            raise InputError(f"{name}: expected a positive number, got {number}")
    weight_of(mode, weight)  # checked before a profile is fitted
    listed = _listed(prompts)
    if like is not None:
        check_like(like, [prompt for prompt in listed if isinstance(prompt, str)])
    profile = profile_of(model, profile, tokenizer, like=like, reader=reader)
    # Ids beyond the embedding would end in an error deep inside torch.
    if len(tokenizer) > model.get_output_embeddings().weight.shape[0]:
        raise InputError(
            f"the tokenizer has {len(tokenizer)} tokens and the model {model.get_output_embeddings().weight.shape[0]}: "
            "they do not belong together"
        )
    requests = [(prompt, _context(tokenizer, prompt, i)) for i, prompt in enumerate(listed)]
    # The texts of a prompt follow each other, in the order of transformers.
    requests = [request for request in requests for _ in range(num_return_sequences)]
    generator = _generator(model, seed)
    processor = HumanEntropyLogitsProcessor(
        profile,
        kind if like is None else LIKE,
        weight,
        mode=mode,
        tail=tail,
        draw=True,
        generator=generator,
        suppress_tokens=suppressed_tokens(model, tokenizer),
        pad_token_id=padding_token(tokenizer),
        model=model,
    )

    ends = end_tokens(model)

    def told(drawn: Drawn) -> None:
        token = int(drawn.tokens[0])
        if on_token is not None and token not in ends:
            on_token(token, float(drawn.surprisal[0]))

    def draw(contexts: list[list[int]]) -> tuple[list[list[int]], list[list[float]], list[list[float]]]:
        """Token ids of the texts, and surprisal and entropy at each step."""
        # Its state is that of the rows of the batch before.
        processor.reset()
        recorder = DrawRecorder(processor, told if len(contexts) == 1 else None)
        try:
            rows = continue_contexts(model, tokenizer, contexts, drawn_config(max_new_tokens), [processor, recorder])
        except ValueError as error:
            raise InputError(f"{model.config.name_or_path}: {error}") from error
        return rows, recorder.rows("surprisal"), recorder.rows("entropy")

    def run() -> Iterator[list[Generation]]:
        for number, start in enumerate(range(0, len(requests), batch_size)):
            batch = requests[start : start + batch_size]
            contexts = [context for _, context in batch]
            if write is None:
                rows, surprisal, entropy = draw(contexts)
            else:
                rows = write(contexts, number)
                surprisal, entropy = _read(model, contexts, rows)
            yield [
                Generation(
                    prompt,
                    decode_after(tokenizer, context, row),
                    row,
                    surprisal[i][: len(row)],
                    entropy[i][: len(row)],
                    processor.prompts.target(context),
                    processor.weight,
                )
                for i, ((prompt, context), row) in enumerate(zip(batch, rows, strict=True))
            ]

    return run()


def _read(
    model: PreTrainedModel, contexts: Sequence[list[int]], rows: Sequence[list[int]]
) -> tuple[list[list[float]], list[list[float]]]:
    """Surprisal and entropy of the tokens of each text behind its context, in nats."""
    read = [read_prompt(model, [*context, *row], len(row)) for context, row in zip(contexts, rows, strict=True)]
    new = [[values[len(context) :].tolist() for values in one] for one, context in zip(read, contexts, strict=True)]
    return [surprisal for surprisal, _ in new], [entropy for _, entropy in new]


def _listed(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Prompts as a list: one text, or one chat (a list of messages), is a list of one prompt."""
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], Mapping)):
        return [cast(Prompt, prompts)]
    return list(cast(Sequence[Prompt], prompts))


def _context(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, number: int) -> list[int]:
    if isinstance(prompt, str):
        bos = bos_ids(tokenizer)
        # A string such as <bos> in a text is plain characters, as in scoring.
        ids = [*bos, *tokenizer(prompt, add_special_tokens=False, split_special_tokens=True)["input_ids"]]
    elif tokenizer.chat_template is None:
        raise InputError(f"prompt {number} is a chat, and the tokenizer has no chat template")
    else:
        ids = chat_ids(tokenizer, prompt, f"prompt {number}")
    if not ids:
        raise InputError(f"prompt {number} is empty, and the tokenizer has no BOS")
    return ids


def _generator(model: PreTrainedModel, seed: int | None) -> torch.Generator | None:
    return None if seed is None else torch.Generator(model.device).manual_seed(seed)
