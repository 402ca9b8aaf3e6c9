"""Where a causal language model ends: its backbone and what turns the last hidden state into logits.

The recipe (projection, bias, scale, soft cap) is read off the model and its config, then checked on a probe against the
model's own logits, so an architecture with another ending is refused and never scored wrongly. The probe also changes
its last token: a model whose earlier states move is not causal.

The weight may be trained, sharded (FSDP2, ZeRO-3), offloaded, or carry a LoRA: inside `with head.live(model)` it is
whole and current, and gathered once however often it is read.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch.distributed.tensor import DTensor, Partial
from transformers import PreTrainedModel

from ugap.errors import InputError
from ugap.scoring.head.dispatch import Impl
from ugap.scoring.head.statistics import HeadStatistics, head_statistics
from ugap.scoring.head.tiles import Precision

# What the configs of transformers call the recipe of their logits.
_FACTORS = ("logit_scale", "lm_head_multiplier")
_DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


@dataclass(frozen=True, eq=False)
class LMHead:
    """The output projection of a model.

    Args:
        weight (`torch.Tensor` of shape `(V, H)`): Projection.
        bias (`torch.Tensor` of shape `(V,)`, *optional*): Its bias.
        softcap (`float`, *optional*): Final-logit soft-capping.
        logit_scale (`float`): Factor on the logits.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    softcap: float | None
    logit_scale: float

    @classmethod
    def of(cls, model: PreTrainedModel, name: str) -> "LMHead":
        """Read the head off a model.

        Raises:
            InputError: If the model has no causal head, or one that this recipe does not reproduce.
        """
        projection = model.get_output_embeddings()
        if projection is None or backbone(model) is model:
            raise InputError(f"{name}: {type(model).__name__} has no causal language-model head")
        config = model.config.get_text_config()
        scale = _named(config, _FACTORS, 1.0) / _named(config, _DIVISORS, 1.0)
        head = cls(projection.weight, getattr(projection, "bias", None), _named(config, _SOFTCAPS, None), scale)
        hidden, logits = _probe(model, name)
        with head.live(model) as live:
            if not live._makes(logits, hidden):
                raise InputError(f"{name}: the scorer does not know the kind of head of {type(model).__name__}")
            return live if hasattr(projection, "base_layer") else head

    @contextmanager
    def live(self, model: PreTrainedModel) -> Iterator["LMHead"]:
        """The head as `model` has it inside the block: its weight whole, with its LoRA, and read from memory once.

        A sharded weight is gathered, a collective operation: every process has to enter the block. An offloaded weight
        is fetched. Gradients flow to the parameters, except those that ZeRO-3 shards: ZeRO-3 prepares gradients around
        calls of the module that owns a weight alone (see `ugap.training.token_forward`).

        Args:
            model (`PreTrainedModel`): The model that the head was read off.

        Raises:
            InputError: If the head has an adapter of another kind than LoRA, or a LoRA with dropout in training.
        """
        projection: Any = model.get_output_embeddings()
        with ExitStack() as stack:
            stack.enter_context(align_module_device(projection))
            if hasattr(projection.weight, "ds_status") and not projection.weight.numel():
                # Between calls of its module, a parameter of ZeRO-3 is empty; DeepSpeed gives it these two methods.
                parameters = list(projection.parameters())
                projection.weight.all_gather(param_list=parameters)
                stack.callback(projection.weight.partition, param_list=parameters)
            weight, bias = projection.weight, getattr(projection, "bias", None)
            if isinstance(weight, DTensor):
                # Each process contributes the gradient of its own tokens; by default, a shard would get just that one.
                placements = [Partial("avg")] * weight.device_mesh.ndim
                weight = weight.full_tensor(grad_placements=placements)
                bias = None if bias is None else bias.full_tensor(grad_placements=placements)
            if hasattr(projection, "base_layer"):
                weight = _with_lora(projection, weight)
            yield replace(self, weight=weight, bias=bias)

    def statistics(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        *,
        impl: Impl = "auto",
        precision: Precision = "exact",
    ) -> HeadStatistics:
        """[`head_statistics`][] of hidden states `(N, H)` and targets `(N,)` under this head, on the head's device."""
        hidden, targets = hidden.to(self.weight.device, self.weight.dtype), targets.to(self.weight.device)
        return head_statistics(
            hidden, self.weight, targets, self.bias, self.softcap, self.logit_scale, impl=impl, precision=precision
        )

    @torch.no_grad()
    def _makes(self, logits: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Whether the head makes these logits, the model's own, of the hidden states: unknown if not finite."""
        ours = torch.nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias).float()
        ours = ours.to(logits.device) * self.logit_scale
        if self.softcap is not None:
            ours = self.softcap * torch.tanh(ours / self.softcap)
        largest = float(logits.abs().amax())
        tolerance = 0.03 * max(1.0, largest) if _is_half(hidden) else 1e-4 * largest
        if logits.shape != ours.shape:
            return torch.tensor(False)
        return ((logits - ours).abs().amax() <= tolerance) | ~logits.isfinite().all()


def _named(config: Any, names: Sequence[str], default: Any) -> Any:
    """The first of some settings that a config has and that is not 0, as a float."""
    values = (getattr(config, name, None) for name in names)
    return next((float(value) for value in values if value), default)


@torch.no_grad()
def _probe(model: PreTrainedModel, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states `(5, H)` and logits `(5, V)` of five tokens, of which the first four must not see the last."""
    vocabulary = model.config.get_text_config().vocab_size
    tokens = [(7 * i + 3) % vocabulary for i in range(5)]
    rows = [tokens, [*tokens[:-1], (tokens[-1] + 1) % vocabulary]]
    ids = torch.tensor(rows, device=input_device(model))
    hidden = backbone(model)(input_ids=ids, use_cache=False).last_hidden_state
    if not are_close(hidden[0, :-1], hidden[1, :-1]):
        if model.training:
            raise InputError(f"{name}: the model is in training mode, where dropout changes its states: call eval()")
        raise InputError(f"{name}: {type(model).__name__} is not causal, a later token changes an earlier state")
    return hidden[0], model(input_ids=ids[:1], use_cache=False).logits[0].float()


def _is_half(hidden: torch.Tensor) -> bool:
    return hidden.dtype in (torch.bfloat16, torch.float16)


def are_close(states: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether hidden states agree up to the rounding of their dtype, which a batch of another shape changes."""
    relative, absolute = (0.05, 0.1) if _is_half(states) else (1e-3, 1e-3)
    return states.shape == expected.shape and torch.allclose(states, expected, rtol=relative, atol=absolute)


def input_device(model: PreTrainedModel) -> torch.device:
    """Where token ids go: to the model, or anywhere where hooks fetch its weights and take the ids along."""
    return torch.device("cpu") if model.device.type == "meta" else model.device


def backbone(model: PreTrainedModel) -> torch.nn.Module:
    """The model without its head: token ids to the last hidden states, final norm included."""
    inner = model.base_model
    # The text part of a multimodal model, loaded alone, has its inner model where `base_model` does not look.
    return getattr(model, "model", model) if inner is model else inner


def _with_lora(projection: Any, weight: torch.Tensor) -> torch.Tensor:
    """The weight with its active LoRAs, in their dtype where that is wider: bfloat16 would swallow small updates."""
    from peft.tuners.lora import Linear

    if not isinstance(projection, Linear):
        raise InputError(f"the output head has an adapter of a kind that cannot be fused: {type(projection).__name__}")
    if projection.disable_adapters or projection.merged:
        return weight
    for name in projection.active_adapters:
        if name not in projection.lora_A:
            continue
        if name in projection.lora_variant or projection.lora_bias.get(name):
            raise InputError("the output head has a variant of LoRA (DoRA, bias, ...) that cannot be fused")
        if projection.training and getattr(projection.lora_dropout[name], "p", 0.0) > 0:
            raise InputError("lora_dropout cannot be fused into the output head: set it to 0, or leave the head alone")
        weight = weight + projection.get_delta_weight(name)
    return weight
