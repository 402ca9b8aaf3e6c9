"""Where a causal language model ends: its backbone and what turns the last hidden state into logits.

The recipe (projection, bias, scale, soft cap) is read off the model and its config, then checked on a probe against the
model's own logits, so an architecture with another ending is refused and never scored wrongly. The probe also changes
its last token: a model whose earlier states move is not causal.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedModel

from ugap.errors import InputError
from ugap.scoring.head import HeadStatistics, Precision, head_statistics


@dataclass(frozen=True, eq=False)
class OutputHead:
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
    def of(cls, model: PreTrainedModel, name: str) -> "OutputHead":
        """Read the head off a model.

        Raises:
            InputError: If the model has no causal head, or one that this recipe does not reproduce.
        """
        projection = model.get_output_embeddings()
        if projection is None or backbone(model) is model:
            raise InputError(f"{name}: {type(model).__name__} has no causal language-model head")
        config = model.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
        scale /= getattr(config, "logits_scaling", None) or 1.0
        softcap = getattr(config, "final_logit_softcapping", None)
        head = cls(projection.weight, getattr(projection, "bias", None), softcap, float(scale))
        head._probe(model, name)
        return head

    def statistics(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        *,
        impl: Literal["auto", "torch", "compiled"] = "auto",
        precision: Precision = "exact",
    ) -> HeadStatistics:
        """[`head_statistics`] of hidden states `(N, H)` and targets `(N,)` under this head."""
        hidden, targets = hidden.to(self.weight.device, self.weight.dtype), targets.to(self.weight.device)
        return head_statistics(
            hidden, self.weight, targets, self.bias, self.softcap, self.logit_scale, impl=impl, precision=precision
        )

    @torch.no_grad()
    def _probe(self, model: PreTrainedModel, name: str) -> None:
        tokens = [(7 * i + 3) % self.weight.shape[0] for i in range(5)]
        ids = torch.tensor([tokens, [*tokens[:-1], (tokens[-1] + 1) % self.weight.shape[0]]], device=model.device)
        hidden = backbone(model)(input_ids=ids, use_cache=False).last_hidden_state
        half = hidden.dtype in (torch.bfloat16, torch.float16)
        if not torch.allclose(hidden[0, :-1], hidden[1, :-1], rtol=0.05 if half else 1e-3, atol=0.1 if half else 1e-3):
            raise InputError(f"{name}: {type(model).__name__} is not causal, a later token changes an earlier state")
        theirs = model(input_ids=ids[:1], use_cache=False).logits[0].float()
        ours = torch.nn.functional.linear(hidden[0].to(self.weight.dtype), self.weight, self.bias).float()
        ours = ours.to(theirs.device) * self.logit_scale
        if self.softcap is not None:
            ours = self.softcap * torch.tanh(ours / self.softcap)
        tolerance = (0.03 if half else 1e-3) * max(1.0, float(theirs.abs().amax()))
        if theirs.isfinite().all() and (theirs.shape != ours.shape or float((theirs - ours).abs().amax()) > tolerance):
            raise InputError(f"{name}: the head of {type(model).__name__} is of a kind that the scorer does not know")


def backbone(model: PreTrainedModel) -> torch.nn.Module:
    """The model without its head: token ids to the last hidden states, final norm included."""
    return model.base_model
