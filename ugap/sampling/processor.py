"""The sampler as a transformers logits processor, made from a human profile."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import LogitsProcessor

from ugap.profile import HumanProfile
from ugap.profile.profile import AUTO, Selection
from ugap.sampling.params import TAIL, aimed
from ugap.sampling.portable.human import Drawn
from ugap.sampling.portable.params_processor import ParamsLogitsProcessor
from ugap.sampling.prompts import PromptParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class HumanEntropyLogitsProcessor(ParamsLogitsProcessor):
    r"""Decode at human uncertainty: every step is as surprising as people are at the model's entropy.

    Where the model's entropy is `h`, people are `g(h)` nats surprising on average: the calibration curve of a human
    profile. At each step the temperature is the one at which the expected surprisal under the model is `weight * g(h)`
    plus a correction. The correction holds the mean over the continuation at the human level. Tokens beyond the rank
    that people reach at this entropy are cut. See `ugap.sampling.portable.human` for the formula.

    The processor keeps a state per row, from the first step of a `generate()` call to its last. It takes one
    sequence per row: no beams, no assisted decoding. [`generation_kwargs`][ugap.sampling.generation_kwargs] sets
    everything else right.

    Args:
        profile (`HumanProfile`, `str` or `Path`):
            Human profile of the model that generates, its file, or the name of a shipped one.
        kind (`str` or `Mapping[str, float]`, *optional*, defaults to `"auto"`):
            Kind of text to write, domain or mixture of kinds of the profile. With `auto` the prompt decides: by its
            words, and by how the `model` reads it, which is more exact.
        weight (`float`, *optional*):
            Share in [0, 1] of the model's own human level, instead of a mode: 0 is exactly greedy.
        mode (`str`, *optional*):
            `"creative"`: the level that is human to the reader that the profile was calibrated for; without a reader it
            is the model's own. `"balanced"` and `"precise"`: 0.5 and 0 times the model's own level.
        tail (`float`, *optional*, defaults to 0.999):
            Tokens beyond the rank that holds this share of human tokens at the entropy are cut; `None` cuts nothing.
        draw (`bool`, *optional*, defaults to `False`):
            Draw the token here and leave it alone in the scores: faster, and no setting of `generate()` can change the
            distribution any more. If false, scores of the solved distribution are returned, for `do_sample=True`.
        generator (`torch.Generator`, *optional*):
            Source of randomness for the draw, on the device of the scores; by default torch's own.
        suppress_tokens (`Sequence[int]`, *optional*):
            Tokens that no person writes, see `ugap.sampling.portable.special.suppressed_tokens`. They are drawn only
            where nothing else is left.
        pad_token_id (`int`, *optional*):
            Token that pads prompts on their left, so that their lengths are known; by default none does.
        model (`PreTrainedModel`, *optional*):
            The model that generates. With `kind="auto"` it also reads each prompt once, for the kinds and the level.
        otherwise (`str` or `Mapping[str, float]`, *optional*):
            With `kind="auto"`, the kinds of a prompt that does not decide on them; by default the creative kinds.

    Raises:
        InputError: If mode, weight, kind or tail is unknown or out of range, or the profile cannot be read.

    Example:
        >>> processor = HumanEntropyLogitsProcessor("gemma-3-270m", "creative")
        >>> ids, scores = torch.tensor([[2, 3]]), torch.tensor([[9.0, 8.0, -torch.inf] + [-9.0] * 262141])
        >>> new = processor(ids, scores)
        >>> new.shape == scores.shape, new[0, 2].item()
        (True, -inf)
    """

    def __init__(
        self,
        profile: HumanProfile | str | Path,
        kind: Selection = AUTO,
        weight: float | None = None,
        *,
        mode: str | None = None,
        tail: float | None = TAIL,
        draw: bool = False,
        generator: torch.Generator | None = None,
        suppress_tokens: Sequence[int] = (),
        pad_token_id: int | None = None,
        model: "PreTrainedModel | None" = None,
        otherwise: Selection | None = None,
    ):
        loaded = profile if isinstance(profile, HumanProfile) else HumanProfile.load(profile)
        # Not the weight alone: creative may aim at another reader than the model itself.
        loaded, weight = aimed(loaded, mode, weight)
        self.prompts = PromptParams(loaded, kind, tail, model=model, special=suppress_tokens, otherwise=otherwise)
        super().__init__(
            self.prompts,
            weight,
            draw=draw,
            generator=generator,
            suppress_tokens=suppress_tokens,
            pad_token_id=pad_token_id,
        )


class DrawRecorder(LogitsProcessor):
    """Records the draws of a processor with `draw=True`; put it directly behind, for one `generate()` call.

    Args:
        processor (`ParamsLogitsProcessor`): The processor, with `draw=True`.
        on_draw (`Callable[[Drawn], None]`, *optional*): Called with every draw.
    """

    supports_continuous_batching = False

    def __init__(self, processor: ParamsLogitsProcessor, on_draw: Callable[[Drawn], None] | None = None):
        self.processor, self._on_draw = processor, on_draw
        self.steps: list[Drawn] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Record the draw, and return `scores` unchanged."""
        # It comes directly behind the processor, which has just drawn.
        assert self.processor.drawn is not None
        self.steps.append(self.processor.drawn)
        if self._on_draw is not None:
            self._on_draw(self.processor.drawn)
        return scores

    def rows(self, name: str) -> list[list[float]]:
        """A field of `Drawn` by row and step; ignore the steps after the end of a row's text."""
        return torch.stack([getattr(step, name) for step in self.steps], 1).tolist() if self.steps else []
