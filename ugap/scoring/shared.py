"""Score with the frozen base of a PEFT policy: no second model is loaded.

The base judges the policy by the model that the policy came from. Report a scorer of another family too: it shows
whether other readers find the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from transformers import PreTrainedTokenizerBase

from ugap.errors import InputError
from ugap.scoring.batching import Batch
from ugap.scoring.scorer import Scorer


class SharedScorer(Scorer):
    """Scores with the base model of a PEFT policy. After every batch the policy is as it was.

    Args:
        policy (`PeftModel`): The policy, with adapters on its layers (LoRA and its like); the head may have one too.
        tokenizer (`PreTrainedTokenizerBase`): Its fast tokenizer.
        **kwargs: As in [`Scorer`][].

    Raises:
        InputError: If the adapter is a prompt or replaces the output head (`modules_to_save`), or the policy is sharded
            over processes (FSDP, DeepSpeed ZeRO-3): name a separate scorer there.

    Example:
        >>> scorer = SharedScorer(get_peft_model(model, LoraConfig()), tokenizer)  # doctest: +SKIP
        >>> scorer.id == Scorer(model, tokenizer).id  # doctest: +SKIP
        True
    """

    def __init__(self, policy: PeftModel, tokenizer: PreTrainedTokenizerBase, **kwargs: Any):
        base: Any = policy.get_base_model()
        name = kwargs.get("name") or base.config.name_or_path
        if policy.active_peft_config.is_prompt_learning:
            raise InputError(f"{name}: the adapter adds a prompt, so the policy's base is no scorer of its own")
        if isinstance(base.get_output_embeddings(), ModulesToSaveWrapper):
            raise InputError(f"{name}: the adapter replaces the output head, so the base cannot be shared as scorer")
        if any(hasattr(p, "ds_id") or hasattr(p, "placements") for p in policy.parameters()):
            raise InputError(f"{name}: its weights are sharded over processes: name a separate scorer")
        self.policy = policy
        with as_base(policy):
            super().__init__(base, tokenizer, **kwargs)

    @torch.no_grad()
    def _run(self, batch: Batch) -> list[np.ndarray]:
        with as_base(self.policy):
            return super()._run(batch)


@contextmanager
def as_base(policy: PeftModel) -> Iterator[None]:
    """The policy without its adapters, in eval mode."""
    with evaluating(policy), policy.disable_adapter():
        yield


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """The model in eval mode: no dropout."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
