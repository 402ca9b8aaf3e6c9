"""Samplers of others: those that transformers lacks, from their papers, and the setting of each that is tuned."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

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


class AdaptivePLogitsProcessor(LogitsProcessor):
    """Adaptive-p (llama.cpp): prefer tokens whose probability is near a target.

    The logit of a token becomes `-10 d^2 / (1 + d)`, where `d` is 5 times the distance of its probability from the
    target. The target of a step makes up for the mean probability of what was drawn before. Put it last; tokens that
    are far from likely have to be cut before it (min-p), as so many of them are near a small target.

    Args:
        target (`float`): Mean probability of the drawn tokens, in [0, 1].
        decay (`float`, *optional*, defaults to 0.9): Weight of each earlier draw in that mean.
    """

    def __init__(self, target: float, decay: float = 0.9):
        self.target, self.decay = target, decay
        self._ids: Tensor | None = None
        self._p = self._mean = torch.empty(0)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `(B, V)` by nearness to the target; what was ruled out stays so."""
        p = scores.float().softmax(-1)
        before = self._ids
        # A processor is not told of a new batch: ids that do not extend the last ones begin one.
        if before is not None and torch.equal(input_ids[:, :-1], before):
            drawn = self._p.gather(1, input_ids[:, -1:])
            # The weights of all draws sum to 1 / (1 - decay), as if draws at the target had gone before.
            self._mean = self.decay * self._mean + (1 - self.decay) * drawn
        else:
            self._mean = torch.full((len(scores), 1), self.target, device=scores.device)
        self._ids, self._p = input_ids, p
        distance = 5 * (p - (2 * self.target - self._mean).clamp(0, 1)).abs()
        return torch.where(scores > -math.inf, -10 * distance.square() / (1 + distance), -math.inf)


class XTCLogitsProcessor(LogitsProcessor):
    """XTC, exclude top choices (text-generation-webui, llama.cpp): now and then, only the least of the likely tokens.

    Args:
        probability (`float`): How often a step excludes, in [0, 1].
        threshold (`float`, *optional*, defaults to 0.1): Probability from which a token is a top choice. All top
            choices but the least probable one are cut.
        seed (`int`, *optional*, defaults to 0): Seed of which steps exclude.
    """

    def __init__(self, probability: float, threshold: float = 0.1, seed: int = 0):
        self.probability, self.threshold = probability, threshold
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `(B, V)` with the top choices cut in the rows that exclude."""
        p = scores.float().softmax(-1)
        top = p >= self.threshold
        least = torch.where(top, p, math.inf).amin(-1, keepdim=True)
        excludes = torch.rand(len(scores), 1, generator=self._generator).to(scores.device) < self.probability
        return scores.masked_fill(excludes & top & (p > least), -math.inf)


class PLessLogitsProcessor(LogitsProcessor):
    """P-less sampling (Tan et al., 2025, arXiv 2509.23234): keep tokens at least as probable as `sum p^2`.

    That is the probability that two draws are the same token. It has no setting.
    """

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `(B, V)` with the tokens cut that are less probable."""
        p = scores.float().softmax(-1)
        return scores.masked_fill(p < p.square().sum(-1, keepdim=True), -math.inf)


class DynamicTemperatureLogitsProcessor(LogitsProcessor):
    """EDT, entropy-based dynamic temperature (Zhang et al., 2024, arXiv 2403.14541): `T = T0 N^(theta / H)`.

    Args:
        highest (`float`): `T0`, which the temperature nears where the entropy `H` is high.
        base (`float`, *optional*, defaults to 0.8): `N`.
        theta (`float`, *optional*, defaults to 1.0): In nats.
    """

    def __init__(self, highest: float, base: float = 0.8, theta: float = 1.0):
        self.highest, self.base, self.theta = highest, base, theta

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `(B, V)` divided by the temperature of their entropy."""
        log_p = scores.float().log_softmax(-1)
        entropy = -(log_p.exp() * log_p.clamp(min=-1e4)).sum(-1, keepdim=True)
        # Where one token is certain, any temperature above 0 draws it.
        temperature = self.highest * self.base ** (self.theta / entropy.clamp(min=0.01))
        return scores / temperature.clamp(min=1e-3)


def _same(u: float) -> float:
    return u


def _near_one(u: float) -> float:
    return 1 - 10**-u


def _small(u: float) -> float:
    return 10**-u


@dataclass(frozen=True)
class Tuned:
    """A sampler with one setting, which is tuned so that texts have people's mean surprisal.

    Args:
        setting (`str`): Its name.
        first (`tuple[float, ...]`): Where the search looks first, on a scale on which surprisal rises.
        bounds (`tuple[float, float]`): Bounds of the search on that scale.
        value (`Callable[[float], float]`): The setting at a place of the scale.
        generate (`bool`, *optional*, defaults to `True`): Whether `generate()` has the setting.
        processors (`Callable[[float, int], list[LogitsProcessor]]`, *optional*): Further processors for the setting and
            a seed.
        others (`Mapping[str, Any]`, *optional*): Further settings of `generate()`.
    """

    setting: str
    first: tuple[float, ...]
    bounds: tuple[float, float]
    value: Callable[[float], float] = _same
    generate: bool = True
    processors: Callable[[float, int], list[LogitsProcessor]] = lambda _value, _seed: []
    others: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, value: float) -> dict[str, Any]:
        """The settings of `generate()`."""
        return {**({self.setting: value} if self.generate else {}), **self.others}


# By the name of the sampler. Where a setting can be tuned both up and down, people's level lies between its ends.
TUNED = {
    "temperature": Tuned("temperature", (0.9, 1.0, 1.1), (0.5, 2.0)),
    "top-p": Tuned("top_p", (1.0, 1.5, 2.0), (0.3, 5.0), _near_one),
    "top-k": Tuned("top_k", (2.0, 2.7, 3.4), (0.5, 5.0), lambda u: round(10**u)),
    "min-p": Tuned("min_p", (1.0, 2.0, 3.0), (0.3, 6.0), _small),
    "typical-p": Tuned("typical_p", (1.0, 1.5, 2.0), (0.3, 5.0), _near_one),
    "eta": Tuned("eta_cutoff", (2.0, 3.0, 4.0), (1.0, 7.0), _small),
    "top-h": Tuned("top_h", (0.4, 0.7, 0.9), (0.1, 1.0)),
    "top-n-sigma": Tuned(
        "n", (1.0, 1.5, 2.0), (0.3, 8.0), generate=False, processors=lambda n, seed: [TopNSigmaLogitsProcessor(n)]
    ),
    "mirostat-2": Tuned(
        "surprisal",
        (2.5, 3.0, 3.5),
        (0.5, 8.0),
        generate=False,
        processors=lambda surprisal, seed: [MirostatLogitsProcessor(surprisal)],
    ),
    "adaptive-p": Tuned(
        "target",
        (0.5, 0.7, 0.9),
        (0.05, 1.0),
        lambda u: 1 - u,
        generate=False,
        processors=lambda target, seed: [AdaptivePLogitsProcessor(target)],
        others={"min_p": 0.03},
    ),
    "xtc": Tuned(
        "probability",
        (0.0, 0.3, 0.6),
        (0.0, 1.0),
        generate=False,
        processors=lambda probability, seed: [XTCLogitsProcessor(probability, seed=seed)],
    ),
    "p-less": Tuned("temperature", (1.0, 1.5, 2.0), (0.5, 6.0), processors=lambda t, seed: [PLessLogitsProcessor()]),
    "edt": Tuned(
        "T0",
        (1.0, 1.2, 1.4),
        (0.5, 4.0),
        generate=False,
        processors=lambda highest, seed: [DynamicTemperatureLogitsProcessor(highest)],
    ),
}
