"""A forward pass that returns per-token quantities of the output head instead of logits.

The losses need them from inside `model(...)`. Distributed wrappers prepare gradients and gather sharded weights around
a call of the wrapped model, and nowhere else.
"""

import functools
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from ugap.scoring.head.autograd import gem, kl_divergence, surprisal_entropy
from ugap.scoring.head.dispatch import no_compile
from ugap.scoring.head.lm_head import LMHead, backbone


@dataclass(frozen=True)
class TokenRequest:
    """What a forward pass returns for the `N` label positions of its batch that are not -100.

    Args:
        hidden (`bool`): Hidden states `(N, H)` alone, for a reference.
        head (`bool`): With the hidden states, a copy of the head in that forward pass.
        gem_beta (`float`, *optional*): Also GEM's loss of every token, with this temperature of its target.
    """

    hidden: bool = False
    head: bool = False
    gem_beta: float | None = None


def add_token_forward(model: PreTrainedModel, name: str) -> LMHead:
    """Let `model(..., labels=labels, tokens=TokenRequest())` return tensors of `N` tokens instead of logits.

    The tensors are `surprisal` and `entropy` (nats, differentiable), with a reference also `kl`, with `gem_beta` also
    `gem`. The reference is `base_hidden` `(M, H)`, for the tokens of the rows in the mask `compared` `(B,)`. If the
    reference has another head, `within_base(compute, hidden)` calls `compute(head, hidden)` with that head. Without
    `tokens`, the forward pass does not change. A deep copy of the model runs its own weights.

    Args:
        model (`PreTrainedModel`): A causal language model; under PEFT the base model. Changed in place.
        name (`str`): Name in errors.

    Returns:
        `LMHead`: The model's output head.

    Raises:
        InputError: If the kind of the model's output head is unknown.
    """
    recipe = LMHead.of(model, name)
    original = model.forward

    @functools.wraps(type(model).forward)  # generate() looks at the signature
    def forward(
        self: PreTrainedModel,
        *args: Any,
        tokens: TokenRequest | None = None,
        base_hidden: torch.Tensor | None = None,
        within_base: Callable[..., Any] | None = None,
        compared: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if tokens is None:
            # In a deep copy, `original` is still bound to the model that was copied.
            return original(*args, **kwargs) if self is model else type(self).forward(self, *args, **kwargs)
        labels = kwargs.pop("labels")[:, 1:]
        hidden = backbone(self)(*args, **{**kwargs, "use_cache": False}).last_hidden_state[:, :-1]
        keep = labels != -100
        hidden, targets = hidden[keep], labels[keep]
        if tokens.hidden:
            if not tokens.head:
                return {"hidden": hidden}
            with recipe.live(self) as head:  # a weight that is gathered or fetched is gone after the block
                bias = None if head.bias is None else head.bias.detach().clone()
                return {"hidden": hidden, "head": replace(head, weight=head.weight.detach().clone(), bias=bias)}

        def compute(head: LMHead, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
            surprisal, entropy = surprisal_entropy(hidden, targets, head)
            out = {"surprisal": surprisal, "entropy": entropy}
            if base_hidden is not None and compared is not None:
                rows = compared.unsqueeze(1).expand_as(keep)[keep]
                policy = hidden[rows]
                if within_base is None:
                    out["kl"] = kl_divergence(policy, base_hidden, head)
                else:
                    out["kl"] = within_base(lambda base, states: kl_divergence(policy, states, head, base), base_hidden)
            if tokens.gem_beta is not None:
                out["gem"] = gem(hidden, targets, head, beta=tokens.gem_beta)
            return out

        return with_live_head(recipe, self, compute, hidden)

    model.forward = types.MethodType(forward, model)
    return recipe


@no_compile
def with_live_head(recipe: LMHead, model: PreTrainedModel, compute: Callable[..., Any], hidden: torch.Tensor) -> Any:
    """`compute(head, hidden)` with the head as `model` has it, in a way that gives gradients under ZeRO-3 too.

    Args:
        recipe (`LMHead`): The head that was read off the model.
        model (`PreTrainedModel`): The model.
        compute (`Callable`): Returns a tensor of a head and hidden states, or a container of tensors.
        hidden (`Tensor` of shape `(N, H)`): Hidden states of the model.
    """

    def forward(states: torch.Tensor) -> Any:
        with recipe.live(model) as head:
            return compute(head, states)

    projection = model.get_output_embeddings()
    if not hasattr(projection.weight, "ds_status"):
        return forward(hidden)
    # ZeRO-3 gathers a weight, and in the backward pass its gradient, around calls of the module that owns it.
    projection.forward = forward
    try:
        return projection(hidden)
    finally:
        del projection.forward
