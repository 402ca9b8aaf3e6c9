"""Samplers of others that transformers lacks, from their papers: what ours is compared with."""

import math

import torch
from torch import Tensor
from transformers import LogitsProcessor


class MirostatLogitsProcessor(LogitsProcessor):
    """Mirostat 2.0 (Basu et al., 2021, arXiv 2007.14966): hold the surprisal of what is drawn at one constant.

    Tokens more surprising than `mu` are cut; after each draw `mu` moves by `rate` times the surprisal that was missed.
    Put it before what draws; it reads the drawn token from the next call's ids, and starts anew where these do not go
    on from the last call's.

    Args:
        surprisal (`float`): The constant, in nats.
        rate (`float`, *optional*, defaults to 0.1): How fast `mu` follows.
    """

    def __init__(self, surprisal: float, rate: float = 0.1):
        self.surprisal, self.rate = surprisal, rate
        self._ids: Tensor | None = None
        self._log_p = self._mu = torch.empty(0)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `(B, V)` with the tokens cut that are more surprising than `mu`; the first always stays."""
        log_p = scores.float().log_softmax(-1)
        before = self._ids
        # A processor is not told of a new batch: ids that do not extend the last ones begin one.
        if before is not None and torch.equal(input_ids[:, :-1], before):
            drawn = -self._log_p.gather(1, input_ids[:, -1:]).squeeze(1)
            self._mu = self._mu - self.rate * (drawn - self.surprisal)
        else:
            # The authors' start: twice the target leaves the first draw nearly free.
            self._mu = torch.full((len(scores),), 2 * self.surprisal, device=scores.device)
        self._ids, self._log_p = input_ids, log_p
        # At least the likeliest token stays, or nothing could be drawn.
        floor = torch.minimum(-self._mu, log_p.amax(-1)).unsqueeze(1)
        return scores.masked_fill(log_p < floor, -math.inf)


class TopNSigmaLogitsProcessor(LogitsProcessor):
    """Top-n-sigma (Tang et al., 2024, arXiv 2411.07641): keep logits within `n` standard deviations of the highest.

    Args:
        n (`float`, *optional*, defaults to 1.0): Standard deviations of the logits that are not ruled out.
    """

    def __init__(self, n: float = 1.0):
        self.n = n

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `(B, V)` with the tokens cut that are further below the highest."""
        logits = scores.float()
        possible = logits > -math.inf
        count = possible.sum(-1, keepdim=True)
        # Ruled-out tokens are -inf and would make the mean so: they are left out of both moments.
        mean = logits.masked_fill(~possible, 0.0).sum(-1, keepdim=True) / count
        deviation = ((logits - mean).masked_fill(~possible, 0.0).square().sum(-1, keepdim=True) / count).sqrt()
        return scores.masked_fill(logits < logits.amax(-1, keepdim=True) - self.n * deviation, -math.inf)
