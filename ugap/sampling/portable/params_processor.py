"""The sampler as a transformers logits processor, with its state kept in step with `generate()`.

It takes the figures of a human profile as plain lists and needs no more than transformers does, so that it runs
unchanged where `ugap` is not installed.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from .drawing import only
from .human import MODES, Drawn, HumanSampler, State, Step, checked_weight
from .steps import step_scores, taken_surprisal

# With the token drawn by the processor, and alone left in the scores, no warper can change it. These are the library's
# own values, of no use without sampling: those of a model's config would be warned of.
WITHOUT_EFFECT: dict[str, Any] = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0}
# What would act before the processor, or not call it once per token and row, is switched off.
ALONE: dict[str, Any] = {
    **WITHOUT_EFFECT,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "guidance_scale": None,
    "prompt_lookup_num_tokens": None,
    "assistant_early_exit": None,
    "assistant_model": None,
    "renormalize_logits": False,
}


def mode_weight(mode: str | None, weight: float | None) -> float:
    """The weight that a mode or a number stands for; 1 (`creative`) where neither is given.

    Raises:
        ValueError: If the mode is unknown, the weight is outside [0, 1], or both are given.

    Example:
        >>> mode_weight("balanced", None)
        0.5
    """
    if mode is None:
        return checked_weight(1.0 if weight is None else weight)
    if weight is not None:
        raise ValueError(f"give mode or weight, not both: mode={mode!r}, weight={weight!r}")
    if not isinstance(mode, str) or mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}: choose of {', '.join(MODES)}")
    return MODES[mode]


class ParamsLogitsProcessor(LogitsProcessor):
    """Decode at human uncertainty, from the figures of a human profile.

    This is the part of `HumanEntropyLogitsProcessor` that needs no profile.

    Args:
        params (`Mapping[str, Any]`): As of `human_params`.
        weight (`float`): Share of the human level in [0, 1].
        draw (`bool`, *optional*, defaults to `False`): Draw the token here and leave it alone in the scores.
        generator (`torch.Generator`, *optional*): Where the draw's randomness comes from, on the device of the scores;
            by default torch's own.
        suppress_tokens (`Sequence[int]`, *optional*): Tokens that no person writes, see
            `ugap.sampling.portable.special.unwritable_tokens`. They are drawn only where nothing else is left.

    Raises:
        ValueError: If the weight is outside [0, 1].

    Example:
        >>> curve, people = {"h": [0.0, 4.0], "g": [0.0, 4.0]}, {"entropies": [0.0, 4.0], "places": [0.0, 1.0]}
        >>> figures = {**curve, **people, "edges": [], "ranks": [], "level": 2.0}
        >>> processor = ParamsLogitsProcessor(figures, 0.0)
        >>> processor(torch.tensor([[2, 3]]), torch.tensor([[1.0, 3.0, 2.0]])).argmax().item()
        1
    """

    supports_continuous_batching = False  # the state follows the rows of one generate() call

    def __init__(
        self,
        params: Mapping[str, Any],
        weight: float,
        *,
        draw: bool = False,
        generator: torch.Generator | None = None,
        suppress_tokens: Sequence[int] = (),
    ):
        self.weight, self.draw, self.generator = checked_weight(weight), draw, generator
        self._figures, self._never = params, tuple(suppress_tokens)
        self.reset()

    def reset(self) -> None:
        """Forget the sequences: the next call is the first of a new `generate()`.

        Needed only to start a new `generate()` call from the very ids that the last one returned, or a part of them.
        """
        self._sampler: HumanSampler | None = None
        self._state = State.start(0)
        self._prompt = 0  # tokens of the prompt, padding included
        self._ids: Tensor | None = None
        self._step: Step | None = None
        self.drawn: Drawn | None = None  # in the last step

    def check_vocabulary(self, size: int) -> None:
        """Raise a ValueError if a vocabulary of `size` tokens is smaller than the ranks of the human profile."""
        deepest = max(self._figures["ranks"], default=1)
        if size < deepest:
            raise ValueError(
                f"the vocabulary has {size} tokens and the human profile ranks up to {deepest}: "
                "it was fitted with another model"
            )

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores of the distribution to sample from, or with `draw` of the token drawn from it.

        Args:
            input_ids (`Tensor` of shape `(B, T)`): The sequences so far.
            scores (`Tensor` of shape `(B, V)`): Logits of any floating type; `-inf` is a token that is ruled out.

        Returns:
            `Tensor` of shape `(B, V)`: `log p / temperature` for the tokens that may be drawn, `-inf` for the others.

        Raises:
            ValueError: If rows changed places, tokens were taken back since the last call, `generate()` decodes with an
                assistant, scores are not finite, or the vocabulary is smaller than the ranks of the profile.
        """
        if self._follows(input_ids):
            self._observe(input_ids[:, -1])
        else:
            self._begin(input_ids, scores)
        assert self._sampler is not None
        self._ids, self._step = input_ids, self._sampler.step(scores, self._state)
        if self.draw:
            self.drawn = self._step.draw(self.generator)
            return only(self.drawn.tokens, scores)
        return step_scores(self._step, scores)

    def _follows(self, input_ids: Tensor) -> bool:
        """Whether the call is the next step of the sequences of the last one; if not, it must be a new beginning."""
        before = self._ids
        if before is None or len(input_ids) != len(before) or input_ids.device != before.device:
            return False
        length, known = input_ids.shape[1], before.shape[1]
        shared = min(length, known)
        same = (input_ids[:, :shared] == before[:, :shared]).all(1)
        if length == known + 1 and same.all():
            return True
        if length == known + 1 and known > self._prompt:
            others = (input_ids[:, None, :known] == before[None]).all(2).any(1)
            if others.all():
                raise ValueError("rows changed places since the last step: beam search is not supported")
        if length > known + 1:
            return False  # the next turn: what was written and more is the prompt
        # The same prompts, with the same first token and no more after it, can only be the sequences of the last call,
        # changed as no state can follow.
        first = self._prompt + 1
        if min(length, known) >= first and torch.equal(input_ids[:, :first], before[:, :first]):
            raise ValueError(
                f"the sequences changed since the last step, from {known} to {length} tokens: assisted decoding is not "
                "supported (to start anew from a part of them call reset())"
            )
        return False

    def _begin(self, input_ids: Tensor, scores: Tensor) -> None:
        if _is_assisted():
            raise ValueError(
                "assisted decoding is not supported: every token is drawn at human uncertainty, one by one (leave out "
                "assistant_model and prompt_lookup_num_tokens)"
            )
        self.check_vocabulary(scores.shape[-1])
        self._sampler = HumanSampler.of(self._figures, self.weight, suppress_tokens=self._never, device=scores.device)
        self._state = State.start(len(input_ids), scores.device)
        self._prompt = input_ids.shape[1]

    def _observe(self, tokens: Tensor) -> None:
        """Take the tokens `(B,)` that were really added; of a row that took another (it has ended), nothing."""
        assert self._sampler is not None
        assert self._step is not None
        self._state = self._sampler.observe(self._state, self._step, taken_surprisal(self._step, tokens))


def _is_assisted() -> bool:
    """Whether `generate()` takes tokens from an assistant, which the ids alone do not always show."""
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_name != "_assisted_decoding":
        frame = frame.f_back
    return frame.f_code.co_name == "_assisted_decoding"
