"""From a prompt to the human text that follows: how surprising it is, and of which kind.

The mean surprisal of the next tokens is a linear regression on four features of the prompt's tokens: mean surprisal and
mean entropy of their first and of their second half, each token divided by the common ratio of its position. It is
fitted on the human texts of all kinds, every kind with the same weight, at several lengths of the prompt; between two
lengths the coefficients are interpolated in the logarithm. So it holds for kinds that no profile knows.

Each kind gets a probability, with equal priors. It rests on the features, by a normal distribution for each kind with
one covariance. It also rests on how often the prompt has each of the most frequent tokens, by naive Bayes. What a kind
differs by from the regression is added to the prediction, times its probability.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ugap.profile.calibration import figures
from ugap.profile.plain import FloatArray, array, member, plain
from ugap.profile.positions import BANDS, SKIPPED, Positions, TextTokens, band, common_ratios

LENGTHS = (16, 24, 32, 48, 64, 96, 128)
SPAN = 64  # tokens after the prompt whose mean surprisal is predicted
FEWEST_TOKENS = 16  # of a span
FEWEST_TEXTS = 8  # of a kind at a length
FEWEST_KINDS = 3  # at a length
KIND_TOKENS = 48  # a shorter prompt does not decide on the kinds
RIDGE = 1e-3
N_TOKENS = 128  # most frequent tokens whose counts tell kinds apart
PRIOR = 200  # tokens of all kinds that are added to the counts of each
# A token makes others likely that the same kind has: their log-likelihoods do not add up in full.
TEMPERING = 0.5
# Squared Mahalanobis distance over the features from the nearest kind; 1 of 10^5 human prompts is farther away.
STRANGE = 7.0
_FIELDS = ("lengths", "gram", "cross", "kind_deviation", "covariance", "ratios", "tokens", "counts")


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
        kind_deviation (`np.ndarray` of shape `(L,)`): Root mean square error of the mean of a kind that was left out.
        covariance (`np.ndarray` of shape `(L, 4, 4)`): Covariance of the features within a kind.
        ratios (`np.ndarray` of shape `(2, P)`): Common ratios of surprisal and entropy by band of positions.
        tokens (`np.ndarray` of shape `(V,)`): The most frequent token ids, ascending.
        counts (`np.ndarray` of shape `(K, V + 1)`): How often each kind has them; last, all other tokens.

    Raises:
        ValueError: If the shapes do not fit together, or a figure that must be finite is not.
    """

    kinds: tuple[str, ...]
    lengths: FloatArray
    gram: FloatArray
    cross: FloatArray
    kind_deviation: FloatArray
    covariance: FloatArray
    ratios: FloatArray
    tokens: FloatArray
    counts: FloatArray

    def __post_init__(self) -> None:
        n = len(self.lengths)
        n_kinds = self.gram.shape[1] if self.gram.ndim == 4 else 0
        shapes = {
            "gram": (n, n_kinds, 5, 5),
            "cross": (n, n_kinds, 5),
            "kind_deviation": (n,),
            "covariance": (n, 4, 4),
            "ratios": (2, len(BANDS) + 1),
            "tokens": (self.tokens.size,),
            "counts": (n_kinds, self.tokens.size + 1),
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
        if not ((np.diff(self.tokens, prepend=-1) > 0).all() and (self.counts >= 0).all()):
            raise ValueError("the prompt model's tokens must rise, and have counts from 0")

    @cached_property
    def coefficients(self) -> FloatArray:
        """Intercept and weights of the four features at each length, shape `(L, 5)`; every kind counts the same."""
        return np.array([_solved(gram, cross) for gram, cross in zip(self.gram, self.cross, strict=True)])

    @cached_property
    def offsets(self) -> FloatArray:
        """Mean surprisal of each kind less what the regression says of its prompts, shape `(L, K)`."""
        return np.array(list(map(_offsets, self.gram, self.cross, self.coefficients)))

    @cached_property
    def log_shares(self) -> FloatArray:
        """Logarithm of the share of each token in each kind, shape `(K, V + 1)`."""
        return _log_shares(self.counts)

    @classmethod
    def fit(cls, texts: Mapping[str, Sequence[TextTokens]], positions: Mapping[str, Positions]) -> "PromptModel | None":
        """Fit to whole human texts by kind; `None` where fewer than three kinds allow it.

        Args:
            texts (`Mapping[str, Sequence[TextTokens]]`): Each text from its start.
            positions (`Mapping[str, Positions]`): Means by position of the same kinds.
        """
        ratios = np.array(common_ratios(positions))
        tokens = _most_frequent([[text.token_ids[: LENGTHS[-1]] for text in column] for column in texts.values()])
        counts = np.array(
            [
                sum(_counted(text.token_ids[: LENGTHS[-1]], tokens) for text in column) + np.zeros(len(tokens) + 1)
                for column in texts.values()
            ]
        )
        log_shares = _log_shares(counts)
        rows = []
        for length in LENGTHS:
            gram, cross = np.full((len(texts), 5, 5), np.nan), np.full((len(texts), 5), np.nan)
            tables = {}
            for kind, column in enumerate(texts.values()):
                long = [text for text in column if len(text.token_ids) >= length + FEWEST_TOKENS]
                pairs = [(text, _pair(text, length, ratios)) for text in long]
                pairs = [(text, pair) for text, pair in pairs if np.isfinite(pair).all()]
                if len(pairs) >= FEWEST_TEXTS:
                    table = np.array([pair for _, pair in pairs])
                    design = _with_intercept(table[:, :-1])
                    gram[kind], cross[kind] = design.T @ design / len(table), design.T @ table[:, -1] / len(table)
                    tables[kind] = table, np.array([_counted(text.token_ids[:length], tokens) for text, _ in pairs])
            if len(tables) < FEWEST_KINDS:
                continue
            covariance = np.mean([np.cov(table[:, :-1], rowvar=False) for table, _ in tables.values()], axis=0)
            covariance += 1e-3 * np.trace(covariance) / 4 * np.eye(4)
            left_out = []
            for kind, (table, counted) in tables.items():
                others = [other for other in tables if other != kind]
                coefficients = _solved(gram[others], cross[others])
                probability = _probabilities(
                    _distances(table[:, :-1], gram[others, 0, 1:], covariance), counted @ log_shares[others].T
                )
                predicted = _with_intercept(table[:, :-1]) @ coefficients
                predicted += probability @ _offsets(gram[others], cross[others], coefficients)
                left_out.append((predicted - table[:, -1]).mean())
            rows.append((length, gram, cross, np.sqrt(np.mean(np.square(left_out))), covariance))
        if not rows:
            return None
        lengths, gram, cross, kind_deviation, covariance = map(figures, zip(*rows, strict=True))
        return cls(
            tuple(texts),
            lengths,
            gram,
            cross,
            kind_deviation,
            covariance,
            figures(ratios),
            tokens.astype(np.float64),
            counts,
        )

    def read(self, prompt: TextTokens) -> PromptReading | None:
        """Predict level and kinds from the tokens of a prompt; `None` for a prompt below the shortest length.

        Where surprisal and entropy are not known, the token ids alone tell the kinds, and these the level. A model that
        knows no kinds then tells nothing.
        """
        n = len(prompt.token_ids)
        if n < self.lengths[0]:
            return None
        first = max(0, n - int(self.lengths[-1]))
        features = _features(prompt, self.ratios, first)
        scored = bool(np.isfinite(features).all())
        if not scored and not (self.kinds and self.tokens.size):
            return None
        at = float(np.interp(np.log(n), np.log(self.lengths), np.arange(len(self.lengths))))
        low, share = int(at), at - int(at)
        high = min(low + 1, len(self.lengths) - 1)
        # The first row of the mean products, with 1, holds the mean features.
        means, covariance, coefficients, offsets, levels = (
            (1 - share) * values[low] + share * values[high]
            for values in (
                self.gram[:, :, 0, 1:],
                self.covariance,
                self.coefficients,
                self.offsets,
                self.cross[:, :, 0],
            )
        )
        regressed = float(coefficients @ np.append(1.0, features))
        if not self.kinds:
            return PromptReading(regressed, {}, strange=False)
        known = np.isfinite(means).all(1)
        distance = _distances(features[None], means[known], covariance) if scored else np.zeros((1, known.sum()))
        likelihood = self.log_shares[known] @ _counted(prompt.token_ids[first:], self.tokens)
        probability = np.zeros(len(self.kinds))
        probability[known] = _probabilities(distance, likelihood[None])[0]
        level = regressed + probability[known] @ offsets[known] if scored else probability[known] @ levels[known]
        return PromptReading(
            float(level),
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
        return replace(self, kinds=names, gram=gram, cross=cross, counts=self.counts[kept])

    def without_names(self) -> "PromptModel":
        """The regression alone, for a scorer of other kinds and tokens."""
        return replace(self, kinds=(), tokens=np.empty(0), counts=self.counts.sum(1, keepdims=True))

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


def _features(prompt: TextTokens, ratios: FloatArray, first: int = 0) -> FloatArray:
    """The four features `(4,)` of a prompt's tokens from `first` on, the very first ones of the text left out."""
    bands = band(np.arange(len(prompt.surprisal)))
    start = max(first, SKIPPED)
    middle = start + (len(prompt.surprisal) - start) // 2
    out = []
    for values, ratio in zip((prompt.surprisal, prompt.entropy), ratios, strict=True):
        level = np.asarray(values, dtype=np.float64) / ratio[bands]
        out += [level[start:middle].mean(), level[middle:].mean()]
    return np.array(out)


def _pair(text: TextTokens, length: int, ratios: FloatArray) -> FloatArray:
    """Features of the first `length` tokens, and the mean surprisal of the next ones: shape `(5,)`."""
    target = np.mean(text.surprisal[length : length + SPAN], dtype=np.float64)
    return np.append(_features(text.first(length), ratios), target)


def _solved(gram: FloatArray, cross: FloatArray) -> FloatArray:
    """Least squares with a small ridge from the moments of kinds `(K, 5, 5)` and `(K, 5)`: shape `(5,)`."""
    ridge = RIDGE * np.diag([0.0] + [1.0] * 4)
    return np.asarray(np.linalg.solve(np.nansum(gram, axis=0) + ridge, np.nansum(cross, axis=0)))


def _offsets(gram: FloatArray, cross: FloatArray, coefficients: FloatArray) -> FloatArray:
    """What the mean surprisal of each kind has above the regression, shape `(K,)`."""
    # The first row of the mean products is of 1.
    return np.asarray(cross[:, 0] - gram[:, 0] @ coefficients)


def _most_frequent(kinds: Sequence[Sequence[NDArray[np.int64]]]) -> NDArray[np.int64]:
    """The token ids with the largest mean share over kinds, ascending."""
    shares: dict[int, float] = {}
    for column in kinds:
        found, n = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *column]), return_counts=True)
        for token, share in zip(found.tolist(), (n / n.sum()).tolist(), strict=True):
            shares[token] = shares.get(token, 0.0) + share
    ranked = sorted(shares, key=lambda token: (-shares[token], token))
    return np.array(sorted(ranked[:N_TOKENS]), dtype=np.int64)


def _counted(ids: NDArray[np.int64], tokens: NDArray[Any]) -> NDArray[np.int64]:
    """How often `ids` has each of the `V` tokens; last, all others: shape `(V + 1,)`."""
    at = np.searchsorted(tokens, ids)
    others = len(tokens)
    at[np.append(tokens, -1)[at] != ids] = others
    return np.bincount(at, minlength=others + 1)


def _log_shares(counts: FloatArray) -> FloatArray:
    """Logarithm of the share of each token in each kind `(K, V + 1)`, drawn toward the share in all kinds."""
    of_all = counts.sum(0) + 1
    drawn = counts + PRIOR * of_all / of_all.sum()
    return np.asarray(np.log(drawn / drawn.sum(1, keepdims=True)))


def _distances(features: FloatArray, means: FloatArray, covariance: FloatArray) -> FloatArray:
    """Squared Mahalanobis distance of `n` prompts from `K` kinds: shape `(n, K)`."""
    off = features[:, None] - means
    return np.asarray(np.einsum("nki,ij,nkj->nk", off, np.linalg.inv(covariance), off))


def _probabilities(distances: FloatArray, likelihoods: FloatArray) -> FloatArray:
    """Probability of each kind for each prompt, shape `(n, K)`."""
    logits = TEMPERING * likelihoods - distances / 2
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(odds / odds.sum(1, keepdims=True))


def _with_intercept(features: FloatArray) -> FloatArray:
    return np.concatenate([np.ones((len(features), 1)), features], axis=1)
