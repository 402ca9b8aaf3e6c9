"""From a prompt to the human text that follows: how surprising it is, and of which kind.

The mean surprisal of the next tokens is a linear regression on four features of the prompt's tokens: mean surprisal and
mean entropy of their first and of their second half, each token divided by the common ratio of its position. It is
fitted on the human texts of all kinds, every kind with the same weight, at several lengths of the prompt; between two
lengths the coefficients are interpolated in the logarithm. So it holds for kinds that no profile knows.

The same features give each kind a probability: a normal distribution for each kind, with one covariance, and equal
priors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ugap.profile.calibration import figures
from ugap.profile.plain import FloatArray, array, member, plain
from ugap.profile.positions import BANDS, SKIPPED, Positions, band, common_ratios

LENGTHS = (16, 24, 32, 48, 64, 96, 128)
SPAN = 64  # tokens after the prompt whose mean surprisal is predicted
FEWEST_TOKENS = 16  # of a span
FEWEST_TEXTS = 8  # of a kind at a length
FEWEST_KINDS = 3  # at a length
KIND_TOKENS = 48  # a shorter prompt does not decide on the kinds
RIDGE = 1e-3
# Squared Mahalanobis distance over the features from the nearest kind; 1 of 10^5 human prompts is farther away.
STRANGE = 7.0
_FIELDS = ("lengths", "gram", "cross", "deviation", "kind_deviation", "covariance", "ratios")


class PromptReading(NamedTuple):
    """Predictions from a prompt.

    Args:
        mean_surprisal (`float`): Predicted mean human surprisal of the next 64 tokens, nats.
        kinds (`dict[str, float]`): Probability of each kind; they add up to 1. Empty where no kind is known.
        strange (`bool`): Whether the prompt is unlike the human texts of every kind.
    """

    mean_surprisal: float
    kinds: dict[str, float]
    strange: bool


@dataclass(frozen=True, eq=False)
class PromptModel:
    """The regression and the distributions of this module, fitted on `K` kinds at `L` lengths of a prompt.

    The moments of each kind are kept, so that a kind can be left out afterwards.

    Args:
        kinds (`tuple[str, ...]`): Names of the kinds; none where only the regression is known.
        lengths (`np.ndarray` of shape `(L,)`): Tokens of a prompt, ascending.
        gram (`np.ndarray` of shape `(L, K, 5, 5)`): Mean products of 1 and the four features, by kind; NaN where a kind
            has too few texts.
        cross (`np.ndarray` of shape `(L, K, 5)`): Mean products with the surprisal that follows, in nats.
        deviation (`np.ndarray` of shape `(L,)`): Standard deviation of a text's mean surprisal around the prediction.
        kind_deviation (`np.ndarray` of shape `(L,)`): Root mean square error of the mean of a kind that was left out.
        covariance (`np.ndarray` of shape `(L, 4, 4)`): Covariance of the features within a kind.
        ratios (`np.ndarray` of shape `(2, P)`): Common ratios of surprisal and entropy by band of positions.

    Raises:
        ValueError: If the shapes do not fit together, or a figure that must be finite is not.
    """

    kinds: tuple[str, ...]
    lengths: FloatArray
    gram: FloatArray
    cross: FloatArray
    deviation: FloatArray
    kind_deviation: FloatArray
    covariance: FloatArray
    ratios: FloatArray

    def __post_init__(self) -> None:
        n = len(self.lengths)
        n_kinds = self.gram.shape[1] if self.gram.ndim == 4 else 0
        shapes = {
            "gram": (n, n_kinds, 5, 5),
            "cross": (n, n_kinds, 5),
            "deviation": (n,),
            "kind_deviation": (n,),
            "covariance": (n, 4, 4),
            "ratios": (2, len(BANDS) + 1),
        }
        rising = np.diff(self.lengths, prepend=SKIPPED + 1.0) > 0
        if not n or not rising.all():
            raise ValueError("the prompt model's lengths must rise")
        for name, shape in shapes.items():
            values = getattr(self, name)
            # The moments of a kind with too few texts at a length are NaN.
            finite = not np.isinf(values).any() if name in ("gram", "cross") else np.isfinite(values).all()
            if values.shape != shape or not finite:
                raise ValueError(f"the prompt model's {name} do not fit its lengths and kinds, or are not finite")
        seen = np.isfinite(self.gram.sum(axis=(2, 3))) & np.isfinite(self.cross.sum(axis=2))  # (L, K)
        if len(self.kinds) not in (0, n_kinds) or not seen.any(axis=1).all():
            raise ValueError("the prompt model needs the moments of a kind at every length, and names for all or none")
        if not (self.ratios > 0).all():
            raise ValueError("the prompt model's ratios must be above 0")
        if not (np.linalg.eigvalsh(self.covariance) > 0).all():
            raise ValueError("the prompt model's covariance is none")

    @cached_property
    def coefficients(self) -> FloatArray:
        """Intercept and weights of the four features at each length, shape `(L, 5)`; every kind counts the same."""
        return np.array([_solved(gram, cross) for gram, cross in zip(self.gram, self.cross, strict=True)])

    @classmethod
    def fit(
        cls, texts: Mapping[str, Sequence[tuple[FloatArray, FloatArray]]], positions: Mapping[str, Positions]
    ) -> "PromptModel | None":
        """Fit to the surprisal and entropy of whole human texts by kind; `None` where fewer than three kinds allow it.

        Args:
            texts (`Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]]`): Surprisal and entropy of every token of
                each text from its start, in nats.
            positions (`Mapping[str, Positions]`): Means by position of the same kinds.
        """
        ratios = np.array(common_ratios(positions))
        rows = []
        for length in LENGTHS:
            gram, cross = np.full((len(texts), 5, 5), np.nan), np.full((len(texts), 5), np.nan)
            tables = {}
            for kind, column in enumerate(texts.values()):
                pairs = [_pair(s, h, length, ratios) for s, h in column if len(s) >= length + FEWEST_TOKENS]
                pairs = [pair for pair in pairs if np.isfinite(pair).all()]
                if len(pairs) >= FEWEST_TEXTS:
                    table = np.array(pairs)
                    design = _with_intercept(table[:, :-1])
                    gram[kind], cross[kind] = design.T @ design / len(table), design.T @ table[:, -1] / len(table)
                    tables[kind] = table
            if len(tables) < FEWEST_KINDS:
                continue
            own = _solved(gram, cross)
            residual = [_with_intercept(table[:, :-1]) @ own - table[:, -1] for table in tables.values()]
            left_out = []
            for kind, table in tables.items():
                others = np.arange(len(texts)) != kind
                predicted = _with_intercept(table[:, :-1]) @ _solved(gram[others], cross[others])
                left_out.append((predicted - table[:, -1]).mean())
            covariance = np.mean([np.cov(table[:, :-1], rowvar=False) for table in tables.values()], axis=0)
            covariance += 1e-3 * np.trace(covariance) / 4 * np.eye(4)
            deviations = np.concatenate(residual).std(), np.sqrt(np.mean(np.square(left_out)))
            rows.append((length, gram, cross, *deviations, covariance))
        if not rows:
            return None
        lengths, gram, cross, deviation, kind_deviation, covariance = map(figures, zip(*rows, strict=True))
        return cls(tuple(texts), lengths, gram, cross, deviation, kind_deviation, covariance, figures(ratios))

    def read(self, surprisal: FloatArray, entropy: FloatArray) -> PromptReading | None:
        """Predict level and kinds from the tokens of a prompt; `None` for a prompt below the shortest length.

        Args:
            surprisal (`np.ndarray` of shape `(T,)`): Surprisal of every token from the start, in nats.
            entropy (`np.ndarray` of shape `(T,)`): Entropy there, in nats.
        """
        n = len(surprisal)
        if n < self.lengths[0]:
            return None
        first = max(0, n - int(self.lengths[-1]))
        features = _features(surprisal, entropy, self.ratios, first)
        if not np.isfinite(features).all():
            return None
        at = float(np.interp(np.log(n), np.log(self.lengths), np.arange(len(self.lengths))))
        low, share = int(at), at - int(at)
        high = min(low + 1, len(self.lengths) - 1)
        # The first row of the mean products, with 1, holds the mean features.
        means, covariance, coefficients = (
            (1 - share) * values[low] + share * values[high]
            for values in (self.gram[:, :, 0, 1:], self.covariance, self.coefficients)
        )
        level = float(coefficients @ np.append(1.0, features))
        if not self.kinds:
            return PromptReading(level, {}, strange=False)
        known = np.isfinite(means).all(1)
        off = features - means[known]
        distance = np.einsum("ki,ij,kj->k", off, np.linalg.inv(covariance), off)
        posterior = np.exp(-(distance - distance.min()) / 2)
        probability = np.zeros(len(self.kinds))
        probability[known] = posterior / posterior.sum()
        return PromptReading(
            level,
            dict(zip(self.kinds, probability.tolist(), strict=True)),
            bool(distance.min() / 4 > STRANGE),
        )

    def without(self, kind: str) -> "PromptModel | None":
        """The model as fitted without a kind; `None` where fewer than three are left at some length."""
        kept = [i for i, name in enumerate(self.kinds) if name != kind]
        names = tuple(self.kinds[i] for i in kept)
        gram, cross = self.gram[:, kept], self.cross[:, kept]
        if np.isfinite(gram[:, :, 0, 0]).sum(axis=1).min() < FEWEST_KINDS:
            return None
        return replace(self, kinds=names, gram=gram, cross=cross)

    def without_names(self) -> "PromptModel":
        """The regression alone, for a scorer whose kinds are not known."""
        return replace(self, kinds=())

    def to_dict(self) -> dict[str, Any]:
        """The model in the types of JSON, NaN as None."""
        return {"kinds": list(self.kinds)} | {name: plain(getattr(self, name)) for name in _FIELDS}

    @classmethod
    def from_dict(cls, entry: Any) -> "PromptModel":
        """The model that `to_dict` wrote.

        Raises:
            ValueError: If `entry` is not of that form; the message names the field.
        """
        kinds = member(entry, "kinds")
        if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
            raise ValueError("'kinds' is no list of names")
        return cls(tuple(kinds), **{name: array(member(entry, name), name) for name in _FIELDS})


def _features(surprisal: FloatArray, entropy: FloatArray, ratios: FloatArray, first: int = 0) -> FloatArray:
    """The four features `(4,)` of a prompt's tokens from `first` on, the very first ones of the text left out."""
    bands = band(np.arange(len(surprisal)))
    start = max(first, SKIPPED)
    middle = start + (len(surprisal) - start) // 2
    out = []
    for values, ratio in zip((surprisal, entropy), ratios, strict=True):
        level = np.asarray(values, dtype=np.float64) / ratio[bands]
        out += [level[start:middle].mean(), level[middle:].mean()]
    return np.array(out)


def _pair(surprisal: FloatArray, entropy: FloatArray, length: int, ratios: FloatArray) -> FloatArray:
    """Features of the first `length` tokens, and the mean surprisal of the next ones: shape `(5,)`."""
    target = np.mean(surprisal[length : length + SPAN], dtype=np.float64)
    return np.append(_features(surprisal[:length], entropy[:length], ratios), target)


def _solved(gram: FloatArray, cross: FloatArray) -> FloatArray:
    """Least squares with a small ridge from the moments of kinds `(K, 5, 5)` and `(K, 5)`: shape `(5,)`."""
    ridge = RIDGE * np.diag([0.0] + [1.0] * 4)
    return np.asarray(np.linalg.solve(np.nansum(gram, axis=0) + ridge, np.nansum(cross, axis=0)))


def _with_intercept(features: FloatArray) -> FloatArray:
    return np.concatenate([np.ones((len(features), 1)), features], axis=1)
