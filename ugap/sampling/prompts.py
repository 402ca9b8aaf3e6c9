"""From a prompt to the sampler's parameters for its continuation."""

import inspect
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ugap.profile import HumanProfile, Target
from ugap.profile.positions import TextTokens
from ugap.profile.profile import AUTO, Selection
from ugap.sampling.params import TAIL, target_params

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

MOST_TOKENS = 192  # of a prompt, from its end: more add nothing to the prediction
_MOST_TARGETS = 256  # prompts that are remembered
_ROWS = 16  # logits of this many tokens at a time are turned into float32


class PromptParams:
    """Parameters for each prompt: of one kind, or of the kinds and the level that are read off the prompt.

    Args:
        profile (`HumanProfile`): The human profile of the model.
        kind (`str` or `Mapping[str, float]`, *optional*, defaults to `"auto"`): The selection; see
            [`HumanProfile.target`][ugap.HumanProfile.target].
        tail (`float`, *optional*, defaults to `0.999`): Where the human tail is cut; `None` cuts nothing.
        model (`PreTrainedModel`, *optional*): The model, which reads the prompts where the kind is `auto`. Without it
            the words of a prompt alone tell its kind and level.
        special (`Sequence[int]`, *optional*): Tokens that no person writes. A prompt with one of them after its first
            token counts as a chat, and is not read.
        otherwise (`str` or `Mapping[str, float]`, *optional*): With `auto`, the kinds of a prompt that does not
            decide on them; by default the creative kinds.

    Raises:
        InputError: If the profile lacks the kind or the tail.
    """

    def __init__(
        self,
        profile: HumanProfile,
        kind: Selection = AUTO,
        tail: float | None = TAIL,
        *,
        model: "PreTrainedModel | None" = None,
        special: Sequence[int] = (),
        otherwise: Selection | None = None,
    ):
        self.profile, self.kind, self.tail, self._model = profile, kind, tail, model
        self._otherwise = otherwise
        self._special = frozenset(special)
        self._bos = None if model is None else model.config.get_text_config().bos_token_id
        self._targets: dict[tuple[int, ...], Target] = {}
        # Of the kind itself, mixed once; also checks kind and tail before anything is generated.
        self._kind = profile.target(kind, otherwise=otherwise)
        self._static = target_params(self._kind, tail)

    def __call__(self, ids: Sequence[int]) -> dict[str, Any]:
        """The parameters for the token ids of a prompt."""
        target = self.target(ids)
        return self._static if target.factor == 1 else target_params(target, self.tail)

    def target(self, ids: Sequence[int]) -> Target:
        """The human text that a prompt calls for; one warning for a prompt unlike all that the profile knows."""
        key = tuple(ids)
        if key not in self._targets:
            if len(self._targets) >= _MOST_TARGETS:  # a training asks for other prompts in every step
                self._targets.clear()
            skipped = int(bool(ids) and (ids[0] == self._bos or ids[0] in self._special))
            # A named kind is not moved by its prompt, so nothing is read for it.
            if self.kind == AUTO and not self._special.intersection(ids[1:]):
                unknown = np.full((2, len(ids)), np.nan)
                surprisal, entropy = unknown if self._model is None else read_prompt(self._model, ids)
                prompt = TextTokens(np.array(ids[skipped:]), surprisal[skipped:], entropy[skipped:])
                target = self.profile.target(
                    self.kind, position=len(ids) - skipped, prompt=prompt, otherwise=self._otherwise
                )
            else:
                target = self._kind.at(len(ids) - skipped)
            if target.strange:
                logger.warning(
                    "a prompt is unlike every kind of text that the human profile knows: its level is a guess"
                )
            self._targets[key] = target
        return self._targets[key]


@torch.no_grad()
def read_prompt(model: "PreTrainedModel", ids: Sequence[int], most: int = MOST_TOKENS) -> tuple[np.ndarray, np.ndarray]:
    """Surprisal and entropy of the tokens of a prompt under the model, in nats: shape `(T,)` each.

    The first token has none, and of a long prompt only the last `most` tokens do: the others are NaN.

    Args:
        model (`PreTrainedModel`): A causal language model.
        ids (`Sequence[int]`): Token ids of the prompt, BOS included.
        most (`int`, *optional*, defaults to `192`): Tokens that are read, from the end.
    """
    surprisal, entropy = np.full((2, len(ids)), np.nan)
    row = torch.tensor([list(ids)], device=model.device)
    kept = min(len(ids), most + 1)
    # Not every architecture takes these, and all logits of a long prompt are large.
    options = {"use_cache": False, "logits_to_keep": kept}
    taken = inspect.signature(model.forward).parameters
    logits = model(input_ids=row, **{name: options[name] for name in options if name in taken}).logits[0, -kept:-1]
    for start in range(0, len(logits), _ROWS):
        log_p = logits[start : start + _ROWS].float().log_softmax(-1)
        at = len(ids) - kept + 1 + start
        tokens = row[0, at : at + len(log_p)]
        surprisal[at : at + len(log_p)] = -log_p.gather(1, tokens.unsqueeze(1)).squeeze(1).cpu().numpy()
        entropy[at : at + len(log_p)] = -(log_p.exp() * log_p).nansum(-1).cpu().numpy()
    return surprisal, entropy
