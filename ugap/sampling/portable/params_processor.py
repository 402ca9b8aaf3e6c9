"""The sampler as a transformers logits processor, with its state kept in step with `generate()`.

It takes the parameters of a human profile as plain lists. Like transformers it needs torch and NumPy alone, so it runs
unchanged where `ugap` is not installed.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from .drawing import only
from .human import MODES, Drawn, HumanSampler, State, Step, checked_weight

# The processor leaves the drawn token alone in the scores, so no warper can change it. These are the defaults of
# transformers: with sampling off, it warns of any other value that a model's config holds.
WITHOUT_EFFECT: dict[str, Any] = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0}
# Off: what acts on the scores before the processor, and what does not call it once per token and row.
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
    """The weight of a mode, or the weight itself, checked; 1 (`creative`) where neither is given.

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
    """Decode at human uncertainty, from the parameters of a human profile.

    This is the part of `HumanEntropyLogitsProcessor` that needs no profile.

    Args:
        params (`Mapping[str, Any]` or `Callable[[list[int]], Mapping[str, Any]]`): See `human_params`; or a function
            that returns them for the token ids of a prompt.
        weight (`float`): Share of the human level in [0, 1].
        draw (`bool`, *optional*, defaults to `False`): Draw the token here and leave it alone in the scores.
        generator (`torch.Generator`, *optional*): Source of randomness for the draw, on the device of the scores;
            by default torch's own.
        suppress_tokens (`Sequence[int]`, *optional*): Tokens that no person writes, see
            `ugap.sampling.portable.special.unwritable_tokens`. They are drawn only where nothing else is left.
        pad_token_id (`int`, *optional*): Token that pads prompts on their left; by default no prompt is padded.

    Raises:
        ValueError: If the weight is outside [0, 1].

    Example:
        >>> curve, cdf = {"h": [0.0, 4.0], "g": [0.0, 4.0]}, {"entropy_quantiles": [0.0, 4.0], "cdf": [0.0, 1.0]}
        >>> by_position = {"bands": [], "entropy_scale": [1.0], "gain": [1.0], "mean_surprisal": [2.0]}
        >>> params = {**curve, **cdf, **by_position, "edges": [], "ranks": []}
        >>> processor = ParamsLogitsProcessor(params, 0.0)
        >>> processor(torch.tensor([[2, 3]]), torch.tensor([[1.0, 3.0, 2.0]])).argmax().item()
        1
    """

    supports_continuous_batching = False  # the state is kept by row, and rows must not change between steps

    def __init__(
        self,
        params: Mapping[str, Any] | Callable[[list[int]], Mapping[str, Any]],
        weight: float,
        *,
        draw: bool = False,
        generator: torch.Generator | None = None,
        suppress_tokens: Sequence[int] = (),
        pad_token_id: int | None = None,
    ):
        self.weight, self.draw, self.generator = checked_weight(weight), draw, generator
        self._params, self._suppress_tokens, self._pad = params, tuple(suppress_tokens), pad_token_id
        self.reset()

    def reset(self) -> None:
        """Forget the sequences: the next call is the first of a new `generate()`.

        Needed only to start a new `generate()` call from the ids that the last one returned, or from a part of them.
        """
        self._sampler: HumanSampler | None = None
        self._state = State.start([])
        self._prompt_length = 0  # padding included
        self._ids: Tensor | None = None
        self._step: Step | None = None
        self.drawn: Drawn | None = None  # in the last step

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores of the distribution to sample from, or with `draw` of the token drawn from it.

        Args:
            input_ids (`Tensor` of shape `(B, T)`): The sequences so far.
            scores (`Tensor` of shape `(B, V)`): Logits of any floating type; `-inf` rules a token out.

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
        return self._step.scores(scores)

    def _follows(self, input_ids: Tensor) -> bool:
        """Whether the call is the next step of the last call's sequences; if not, it must be the first of new ones."""
        before = self._ids
        if before is None or len(input_ids) != len(before) or input_ids.device != before.device:
            return False
        length, old_length = input_ids.shape[1], before.shape[1]
        shared = min(length, old_length)
        same = (input_ids[:, :shared] == before[:, :shared]).all(1)
        if length == old_length + 1 and same.all():
            return True
        if length == old_length + 1 and old_length > self._prompt_length:
            others = (input_ids[:, None, :old_length] == before[None]).all(2).any(1)
            if others.all():
                raise ValueError("rows changed places since the last step: beam search is not supported")
        if length > old_length + 1:
            return False  # the next turn of a chat: its prompt holds the last text and more
        # The same prompt and first token without growth: the last call's sequences, changed in a way that no state can
        # follow.
        first = self._prompt_length + 1
        if min(length, old_length) >= first and torch.equal(input_ids[:, :first], before[:, :first]):
            raise ValueError(
                f"the sequences changed since the last step, from {old_length} to {length} tokens: assisted decoding "
                "is not supported (call reset() to start anew from a part of them)"
            )
        return False

    def _begin(self, input_ids: Tensor, scores: Tensor) -> None:
        if _is_assisted():
            raise ValueError(
                "assisted decoding is not supported: every token is drawn at human uncertainty, one by one (leave out "
                "assistant_model and prompt_lookup_num_tokens)"
            )
        prompts = [_without_padding(row, self._pad) for row in input_ids.tolist()]
        # One row of parameters for all, unless the prompts decide on them.
        params = [self._params] if isinstance(self._params, Mapping) else list(map(self._params, prompts))
        for row in params:
            check_vocabulary(row, scores.shape[-1])
        self._sampler = HumanSampler.of(
            params, self.weight, suppress_tokens=self._suppress_tokens, device=scores.device
        )
        self._state = State.start(list(map(len, prompts)), scores.device)
        self._prompt_length = input_ids.shape[1]

    def _observe(self, tokens: Tensor) -> None:
        """Add the tokens `(B,)` that the sequences took; a row that took a token outside of the step has ended."""
        assert self._sampler is not None
        assert self._step is not None
        self._state = self._sampler.observe(self._state, self._step, self._step.surprisal_of(tokens))


def check_vocabulary(params: Mapping[str, Any], size: int) -> None:
    """Raise a ValueError if a vocabulary of `size` tokens is smaller than the ranks of the human profile."""
    deepest = max(params["ranks"], default=1)
    if size < deepest:
        raise ValueError(
            f"the vocabulary has {size} tokens and the human profile ranks up to {deepest}: "
            "it was fitted with another model"
        )


def _without_padding(ids: list[int], pad: int | None) -> list[int]:
    start = next((i for i, token in enumerate(ids) if token != pad), len(ids))
    return ids[start:]


def _is_assisted() -> bool:
    """Whether `generate()` takes tokens from an assistant."""
    # The ids do not always show it, and generate() does not say it to processors: only the call stack does.
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_name != "_assisted_decoding":
        frame = frame.f_back
    return frame.f_code.co_name == "_assisted_decoding"
