"""A step in the terms of an engine: the scores of its distribution, and the surprisal of the token that was taken.

This module needs torch and NumPy alone: every engine's adapter runs it.
"""

import torch
from torch import Tensor

from .human import Step
from .temperature import FAR


def step_scores(step: Step, like: Tensor) -> Tensor:
    """The distribution that a step draws from, as scores over the vocabulary.

    Args:
        step (`Step`): Of `B` sequences.
        like (`Tensor` of shape `(B, V)`): The scores that the step was solved for; left as they are.

    Returns:
        `Tensor` of shape `(B, V)`: `log p / temperature` for the tokens that may be drawn, `-inf` for the others, in
            the type of `like`.
    """
    ids, surprisal = step.candidates
    values = (-surprisal / step.temperature.unsqueeze(1)).masked_fill_(surprisal >= FAR, -torch.inf)
    out = torch.empty_like(like).fill_(-torch.inf)
    # Rows with fewer candidates are filled up with a token that may be one of theirs: the larger value is the true one.
    return out.scatter_reduce_(1, ids, values.to(like.dtype), "amax")


def taken_surprisal(step: Step, tokens: Tensor) -> Tensor:
    """Surprisal `(B,)` in nats of the tokens `(B,)` that were taken; infinite where a token could not be drawn."""
    ids, surprisal = step.candidates
    return torch.where((ids == tokens.unsqueeze(1)) & (surprisal < FAR), surprisal, torch.inf).amin(1)
