"""Continuations of a policy before its training, with their token ids; processes share the work."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ugap.data.domain import CREATIVE
from ugap.sampling.batch import continue_contexts, decode_after
from ugap.scoring.tokenise import bos_ids
from ugap.study.decodings import decoder
from ugap.study.generation import seed_of

T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """One continuation.

    Args:
        prompt (`str`): The prompt.
        text (`str`): The continuation.
        prompt_ids (`list[int]`): Token ids of the prompt, BOS included.
        ids (`list[int]`): Drawn token ids, with the end token where the policy ended the text.
    """

    prompt: str
    text: str
    prompt_ids: list[int]
    ids: list[int]


@torch.no_grad()
def sample_continuations(
    policy: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    settings: Mapping[str, Any],
    *,
    max_new_tokens: int,
    per_prompt: int = 1,
    batch_size: int = 16,
    domain: str = CREATIVE,
    seed: int = 0,
    advance: Callable[[int], object] | None = None,
) -> list[list[Sample]]:
    """Continue each prompt several times. Every process gets all samples.

    Args:
        policy (`PreTrainedModel` or `PeftModel`): The policy in eval mode, not sharded.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts (`Sequence[str]`): The prompts.
        settings (`Mapping[str, Any]`): A decoding of `ugap.study.decodings.DECODINGS` or like it.
        max_new_tokens (`int`): Longest continuation in tokens.
        per_prompt (`int`, *optional*, defaults to `1`): Continuations of each prompt.
        batch_size (`int`, *optional*, defaults to `16`): Continuations drawn at once.
        domain (`str`, *optional*, defaults to `"creative"`): Domain for decodings that aim at a human level.
        seed (`int`, *optional*, defaults to `0`): Seed; the samples do not depend on the number of processes.
        advance (`Callable[[int], object]`, *optional*): Called with the number of samples that this process drew since
            the last call.

    Returns:
        `list[list[Sample]]`: The continuations of each prompt.

    Raises:
        InputError: If `generate()` refuses the settings, or there is no human profile where they need one.
    """
    # The base of a PEFT model has the adapter layers in place.
    model: PreTrainedModel = policy.get_base_model() if isinstance(policy, PeftModel) else policy
    bos = bos_ids(tokenizer)
    plain = tokenizer(list(prompts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    contexts = [(prompt, bos + ids) for prompt, ids in zip(prompts, plain, strict=True) for _ in range(per_prompt)]

    def work(number: int) -> list[Sample]:
        batch = contexts[number * batch_size : (number + 1) * batch_size]
        # By the batch, so that the samples do not depend on which process draws them.
        generator = torch.Generator(model.device).manual_seed(seed_of(seed, "samples", number))
        config, drawn = decoder(
            settings,
            model,
            domain,
            generator=generator,
            tokenizer=tokenizer,
            max_new_tokens=max_new_tokens,
        )
        new_ids = continue_contexts(model, tokenizer, [ids for _, ids in batch], config, drawn, keep_end=True)
        if advance is not None:
            advance(len(batch))
        return [
            Sample(prompt, decode_after(tokenizer, ids, new), ids, new)
            for (prompt, ids), new in zip(batch, new_ids, strict=True)
        ]

    # Rounded up: the last batch may be smaller.
    batches = over_processes(-(-len(contexts) // batch_size), work)
    flat = [sample for batch in batches for sample in batch]
    return [flat[begin : begin + per_prompt] for begin in range(0, len(flat), per_prompt)]


def over_processes(n: int, work: Callable[[int], T]) -> list[T]:
    """`[work(0), ..., work(n - 1)]` in every process; each process does its share of the work."""
    state = PartialState()
    local = [(number, work(number)) for number in range(state.process_index, n, state.num_processes)]
    return [result for _, result in sorted(gather_object(local), key=lambda pair: pair[0])]
