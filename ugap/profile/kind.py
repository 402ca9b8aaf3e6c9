"""One kind of text in a human profile: fitted from scored texts, mixed with other kinds, and to and from JSON.

Design choices:

- Means pool tokens (sums over counts), so long texts count for more; tokens without a score are left out.
- Deviation has a count of its own, as it is undefined where the scorer is certain; so has PMI, which is there only
  where marginals were scored.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ugap.errors import InputError
from ugap.profile.calibration import (
    CalibrationCurve,
    EntropyBins,
    HumanTokens,
    Pooling,
    check_levels,
    figures,
    fit_calibration,
)
from ugap.profile.plain import FloatArray, array, count, member, number, plain, text
from ugap.profile.positions import Positions
from ugap.profile.texts import TextReference, text_features

if TYPE_CHECKING:
    from ugap.scoring.records import TokenScores

LEVELS = (0.001, 0.005, 0.01, *(i / 40 for i in range(1, 40)), 0.99, 0.995, 0.999)
QUARTILES = (0.25, 0.75)
_LEAST_TOKENS = 1e-3  # of a bin that none of the mixed kinds has a token in
_CURVE = ("h", "g", "low", "high")
_ALWAYS = ("surprisal", "entropy", "rank")  # measures that every profile has, none of them negative
_BINS = ("edges", "n_tokens", "surprisal_levels", "surprisal", "rank_levels", "rank")


class ScoredTokens(NamedTuple):
    """The scored tokens of the texts of one kind, `N` in all.

    Args:
        columns (`dict[str, np.ndarray]`): Arrays of shape `(N,)` by measure; `pmi` only where marginals were scored.
        text (`np.ndarray` of shape `(N,)`): Number of each token's text.
        bits_per_byte (`float`): All bits over all bytes; NaN where the tokens hold no byte.
    """

    columns: dict[str, FloatArray]
    text: NDArray[np.intp]
    bits_per_byte: float

    @property
    def human(self) -> HumanTokens:
        """The columns that the calibration curve is fitted to."""
        return HumanTokens(self.columns["entropy"], self.columns["surprisal"], self.columns["rank"], self.text)

    @property
    def error(self) -> float:
        """Standard error of the mean surprisal, nats: texts, not tokens, are independent. NaN of a single text."""
        counts = np.bincount(self.text)
        if len(counts) < 2:
            return float("nan")
        sums = np.bincount(self.text, weights=self.columns["surprisal"])
        off = sums - counts * sums.sum() / counts.sum()
        return float(np.sqrt((off**2).sum() * len(counts) / (len(counts) - 1)) / counts.sum())

    @classmethod
    def of(cls, kind: str, texts: Sequence["TokenScores"]) -> "ScoredTokens":
        """The scored tokens of texts of one kind.

        Raises:
            InputError: If no token of `texts` has a score; the message names the kind.
        """
        parts: dict[str, list[FloatArray]] = {
            name: [] for name in ("surprisal", "entropy", "varentropy", "rank", "deviation", "pmi", "text")
        }
        n_texts, bits, n_bytes = 0, 0.0, 0.0
        for scores in texts:
            s, h, v, rank = scores.surprisal, scores.entropy, scores.varentropy, scores.rank
            scored = np.isfinite(s) & np.isfinite(h) & np.isfinite(v) & np.isfinite(rank)
            if not scored.any():
                continue
            rows = {"surprisal": s, "entropy": h, "varentropy": v, "rank": rank, "deviation": scores.deviation}
            if scores.marginal_surprisal is not None:
                rows["pmi"] = scores.pmi
            rows["text"] = np.full(len(s), n_texts)
            for name, row in rows.items():
                parts[name].append(row[scored].astype(np.float64))
            n_texts += 1
            if scores.bits_per_byte > 0:  # False for NaN: the scored tokens hold no byte
                text_bits = float(s[np.isfinite(s)].sum(dtype=np.float64) / np.log(2))
                bits, n_bytes = bits + text_bits, n_bytes + text_bits / scores.bits_per_byte
        if not n_texts:
            raise InputError(f"kind {kind!r}: no scored token to fit a human profile on")
        columns = {name: np.concatenate(rows) for name, rows in parts.items() if rows}
        return cls(columns, columns.pop("text").astype(np.intp), bits / n_bytes if n_bytes else float("nan"))


@dataclass(frozen=True, eq=False)
class KindProfile:
    """What human text of one kind looks like to the scorer.

    Args:
        domain (`str`): The group that the kind belongs to, such as `creative` or `functional`.
        n_texts (`int`): Texts with a scored token.
        n_tokens (`int`): Scored tokens.
        means (`dict[str, float]`): Means over tokens of `surprisal`, `entropy`, `varentropy`, `deviation` and, where
            marginals were scored, `pmi`; and `bits_per_byte`, all bits over all bytes.
        levels (`np.ndarray` of shape `(Q,)`): Levels of the quantiles.
        quantiles (`dict[str, np.ndarray]`): Values of shape `(Q,)` by measure: `surprisal`, `entropy`, `deviation`,
            `rank` and, where marginals were scored, `pmi`.
        curve (`CalibrationCurve`): Mean surprisal given entropy.
        bins (`EntropyBins`): Quantiles of surprisal and rank given entropy.
        positions (`Positions`): Mean surprisal and entropy by position in the text.
        error (`float`): Standard error of the mean surprisal over texts, nats; NaN of a single text.
        texts (`TextReference`, *optional*): Features of whole texts by length; `None` where too few texts were fitted.

    Raises:
        ValueError: If levels are no rising shares, or quantiles do not fit their levels, fall or are not finite.
    """

    domain: str
    n_texts: int
    n_tokens: int
    means: dict[str, float]
    levels: FloatArray
    quantiles: dict[str, FloatArray]
    curve: CalibrationCurve
    bins: EntropyBins
    positions: Positions
    error: float
    texts: TextReference | None = None

    def __post_init__(self) -> None:
        check_levels(self.levels, "levels")
        for measure in _ALWAYS:
            if measure not in self.quantiles:
                raise ValueError(f"the quantiles of {measure} are missing")
        for measure, values in self.quantiles.items():
            if values.shape != self.levels.shape or not np.isfinite(values).all():
                raise ValueError(f"the quantiles of {measure} do not fit their levels")
            if (np.diff(values) < 0).any() or (measure in _ALWAYS and values[0] < 0):
                raise ValueError(f"the quantiles of {measure} fall or are negative")

    @classmethod
    def fit(
        cls,
        domain: str,
        texts: Sequence["TokenScores"],
        tokens: ScoredTokens,
        positions: Positions,
        pooling: Pooling,
        *,
        resamples: int,
        seed: int,
    ) -> "KindProfile":
        """Fit the profile of one kind.

        Args:
            domain (`str`): The group that the kind belongs to.
            texts (`Sequence[TokenScores]`): Scored human texts.
            tokens (`ScoredTokens`): Their tokens.
            positions (`Positions`): Means by position.
            pooling (`Pooling`): What all kinds of the profile share.
            resamples (`int`): Bootstrap resamples of the curve's band.
            seed (`int`): Seed of the bootstrap.
        """
        # The seed anew for each kind, so that another kind changes no band.
        curve, bins = fit_calibration(tokens.human, pooling, resamples=resamples, rng=np.random.default_rng(seed))
        finite = {name: values[np.isfinite(values)] for name, values in tokens.columns.items()}
        finite = {name: values for name, values in finite.items() if values.size}
        means = {name: float(figures(values.mean())) for name, values in finite.items() if name != "rank"}
        means["bits_per_byte"] = float(figures(tokens.bits_per_byte))
        low, high = figures(np.quantile(finite["surprisal"], QUARTILES))
        return cls(
            domain=domain,
            n_texts=int(tokens.text[-1]) + 1,
            n_tokens=len(tokens.text),
            means=means,
            levels=np.array(LEVELS),
            quantiles={
                name: figures(np.quantile(values, LEVELS)) for name, values in finite.items() if name != "varentropy"
            },
            curve=curve,
            bins=bins,
            positions=positions,
            error=float(figures(tokens.error)),
            texts=TextReference.fit(texts, (low, high), bins),
        )

    @property
    def texts_deviation(self) -> float:
        """Standard deviation of the mean surprisal between texts, nats; 0 of a single text."""
        return float(self.error * np.sqrt(self.n_texts)) if np.isfinite(self.error) else 0.0

    def scaled(self, ratio: float, error: float) -> "KindProfile":
        """The same kind with its mean surprisal, at every position, times `ratio`, and another standard error."""
        positions = replace(self.positions, surprisal=figures(self.positions.surprisal * ratio))
        means = {**self.means, "surprisal": float(figures(self.means["surprisal"] * ratio))}
        return replace(self, means=means, positions=positions, error=float(figures(error)))

    def text_features(self, scores: "TokenScores") -> FloatArray:
        """The features of one text, in the order of `ugap.profile.texts.FEATURES`; NaN where one cannot be computed."""
        surprisal = self.quantiles["surprisal"]
        low, high = (float(surprisal[int(np.argmin(np.abs(self.levels - level)))]) for level in QUARTILES)
        return text_features(scores, (low, high), self.bins)

    def to_dict(self) -> dict[str, Any]:
        """The profile in the types of JSON, NaN as None."""
        return {
            "domain": self.domain,
            "n_texts": self.n_texts,
            "n_tokens": self.n_tokens,
            "means": {name: plain(value) for name, value in self.means.items()},
            "levels": plain(self.levels),
            "quantiles": {measure: plain(values) for measure, values in self.quantiles.items()},
            "curve": {name: plain(getattr(self.curve, name)) for name in _CURVE},
            "bins": {name: plain(getattr(self.bins, name)) for name in _BINS},
            "positions": self.positions.to_dict(),
            "error": plain(self.error),
            "texts": None if self.texts is None else self.texts.to_dict(),
        }

    @classmethod
    def from_dict(cls, entry: Any) -> "KindProfile":
        """The profile that `to_dict` wrote.

        Raises:
            ValueError: If `entry` is not of that form, or its figures make no profile; the message names the field.
        """
        means, quantiles = member(entry, "means"), member(entry, "quantiles")
        curve, bins, texts = member(entry, "curve"), member(entry, "bins"), entry.get("texts")
        for name, fields in (("means", means), ("quantiles", quantiles)):
            if not isinstance(fields, dict):
                raise ValueError(f"{name!r} is no object")
        return cls(
            domain=text(member(entry, "domain"), "domain"),
            n_texts=count(member(entry, "n_texts"), "n_texts"),
            n_tokens=count(member(entry, "n_tokens"), "n_tokens"),
            means={name: number(mean, name) for name, mean in means.items()},
            levels=array(member(entry, "levels"), "levels"),
            quantiles={measure: array(values, measure) for measure, values in quantiles.items()},
            curve=CalibrationCurve(**{name: array(member(curve, name), name) for name in _CURVE}),
            bins=EntropyBins(**{name: array(member(bins, name), name) for name in _BINS}),
            positions=Positions.from_dict(member(entry, "positions")),
            error=number(member(entry, "error"), "error"),
            texts=None if texts is None else TextReference.from_dict(texts),
        )


_CURVES: tuple[Callable[[KindProfile], FloatArray], ...] = (
    lambda kind: kind.curve.g,
    lambda kind: kind.curve.low,
    lambda kind: kind.curve.high,
)


def mix(kinds: Sequence[KindProfile], weights: Sequence[float]) -> KindProfile:
    """The profile of text that is of one of several kinds, each with its probability.

    Quantiles are those of the mixed distribution. Curve and bins are weighted by the tokens that each kind has at an
    entropy. Features of whole texts have the covariance within kinds and that between them.

    Args:
        kinds (`Sequence[KindProfile]`): Kinds of one profile, which share their entropy bins.
        weights (`Sequence[float]`): Probability of each, not all 0.
    """
    share = np.asarray(weights, dtype=np.float64) / np.sum(weights)
    kept = np.flatnonzero(share > 0)
    kinds, share = [kinds[int(i)] for i in kept], share[kept]
    if len(kinds) == 1:
        return kinds[0]
    first = kinds[0]
    density = np.array([kind.bins.n_tokens / kind.n_tokens for kind in kinds]) * share[:, None]  # (kinds, B)
    # At an entropy where no kind has tokens, the probabilities of the kinds decide.
    empty = density.sum(0) <= 0
    density[:, empty] = share[:, None]
    density /= density.sum(0)
    measures = [name for name in first.quantiles if all(name in kind.quantiles for kind in kinds)]
    means = [name for name in first.means if all(name in kind.means for kind in kinds)]
    domains = {kind.domain for kind in kinds}

    def at_entropy(read: Callable[[KindProfile], FloatArray]) -> FloatArray:
        values = np.array([read(kind) for kind in kinds])
        return np.asarray(np.einsum("kb,kb...->b...", density, values))

    return KindProfile(
        domain=domains.pop() if len(domains) == 1 else "mixed",
        n_texts=sum(kind.n_texts for kind in kinds),
        n_tokens=sum(kind.n_tokens for kind in kinds),
        means={name: float(share @ [kind.means[name] for kind in kinds]) for name in means},
        levels=first.levels,
        quantiles={
            name: _mixed_quantiles([kind.quantiles[name] for kind in kinds], share, first.levels) for name in measures
        },
        curve=CalibrationCurve(first.curve.h, *(np.maximum.accumulate(at_entropy(read)) for read in _CURVES)),
        bins=EntropyBins(
            edges=first.bins.edges,
            n_tokens=np.maximum(share @ [kind.bins.n_tokens for kind in kinds], _LEAST_TOKENS),
            surprisal_levels=first.bins.surprisal_levels,
            surprisal=at_entropy(lambda kind: kind.bins.surprisal),
            rank_levels=first.bins.rank_levels,
            # Ranks span orders of magnitude: a mean of logarithms is not that of the largest alone.
            rank=np.exp(at_entropy(lambda kind: np.log(np.maximum(kind.bins.rank, 1)))),
        ),
        positions=Positions(
            np.sum([kind.positions.n_tokens for kind in kinds], axis=0),
            share @ [kind.positions.surprisal for kind in kinds],
            share @ [kind.positions.entropy for kind in kinds],
        ),
        error=float(np.sqrt(share**2 @ np.square([kind.error for kind in kinds]))),
        texts=TextReference.mixed([kind.texts for kind in kinds], share),
    )


def _mixed_quantiles(quantiles: Sequence[FloatArray], share: FloatArray, levels: FloatArray) -> FloatArray:
    """Quantiles of a mixture: the mean of the cumulative distributions, inverted."""
    grid = np.unique(np.concatenate(quantiles))
    # Two equal values leave a step in the distribution; the small slope makes it one to one.
    rising = [values + 1e-9 * np.arange(len(values)) for values in quantiles]
    cdf = share @ [np.interp(grid, values, levels, left=0.0, right=1.0) for values in rising]
    return np.asarray(np.interp(levels, np.maximum.accumulate(cdf) + 1e-12 * np.arange(len(grid)), grid))
