"""One domain of a human profile: fitted from scored texts, and to and from JSON.

Design choices:

- Means pool tokens (sums over counts), so long texts count for more; tokens without a score are left out.
- Deviation has a count of its own, as it is undefined where the scorer is certain; so has PMI, which is there only
  where marginals were scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ugap.errors import InputError
from ugap.profile.calibration import CalibrationCurve, EntropyBins, FloatArray, check_levels, figures, fit_calibration
from ugap.profile.plain import array, count, member, plain
from ugap.profile.texts import TextReference, text_features

if TYPE_CHECKING:
    from ugap.scoring.records import TokenScores

LEVELS = (0.001, 0.005, *(i / 100 for i in range(1, 100)), 0.995, 0.999)
QUARTILES = (0.25, 0.75)
_CURVE = ("h", "g", "low", "high")
_ALWAYS = ("surprisal", "entropy", "rank")  # measures that every profile has, none of them negative
_BINS = ("edges", "n_tokens", "surprisal_levels", "surprisal", "rank_levels", "rank")


@dataclass(frozen=True, eq=False)
class DomainProfile:
    """What human text of one domain looks like to the scorer.

    Args:
        n_texts (`int`): Texts with a scored token.
        n_tokens (`int`): Scored tokens.
        means (`dict[str, float]`): Means over tokens of `surprisal`, `entropy`, `varentropy`, `deviation` and, where
            marginals were scored, `pmi`; and `bits_per_byte`, all bits over all bytes.
        levels (`np.ndarray` of shape `(Q,)`): Levels of the quantiles.
        quantiles (`dict[str, np.ndarray]`): Values of shape `(Q,)` by measure: `surprisal`, `entropy`, `deviation`,
            `rank` and, where marginals were scored, `pmi`.
        curve (`CalibrationCurve`): Mean surprisal given entropy.
        bins (`EntropyBins`): Quantiles of surprisal and rank given entropy.
        texts (`TextReference`, *optional*): Features of whole texts by length; `None` where too few texts were fitted.

    Raises:
        ValueError: If levels are no rising shares, or quantiles do not fit their levels, fall or are not finite.
    """

    n_texts: int
    n_tokens: int
    means: dict[str, float]
    levels: FloatArray
    quantiles: dict[str, FloatArray]
    curve: CalibrationCurve
    bins: EntropyBins
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
    def fit(cls, domain: str, texts: Sequence["TokenScores"], *, resamples: int, seed: int) -> "DomainProfile":
        """Fit the profile of `domain` to scored human texts.

        Raises:
            InputError: If no token of `texts` has a score; the message names the domain.
        """
        columns: dict[str, list[FloatArray]] = {
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
                columns[name].append(row[scored].astype(np.float64))
            n_texts += 1
            if scores.bits_per_byte > 0:  # False for NaN: the scored tokens hold no byte
                text_bits = float(s[np.isfinite(s)].sum(dtype=np.float64) / np.log(2))
                bits, n_bytes = bits + text_bits, n_bytes + text_bits / scores.bits_per_byte
        if not n_texts:
            raise InputError(f"domain {domain!r}: no scored token to fit a human profile on")
        tokens = {name: np.concatenate(parts) for name, parts in columns.items() if parts}
        text = tokens.pop("text").astype(np.intp)
        curve, bins = fit_calibration(
            tokens["entropy"],
            tokens["surprisal"],
            tokens["rank"],
            text,
            resamples=resamples,
            rng=np.random.default_rng(seed),
        )
        finite = {name: values[np.isfinite(values)] for name, values in tokens.items()}
        finite = {name: values for name, values in finite.items() if values.size}
        means = {name: float(figures(values.mean())) for name, values in finite.items() if name != "rank"}
        means["bits_per_byte"] = float(figures(bits / n_bytes if n_bytes else np.nan))
        low, high = figures(np.quantile(finite["surprisal"], QUARTILES))
        return cls(
            n_texts=n_texts,
            n_tokens=len(text),
            means=means,
            levels=np.array(LEVELS),
            quantiles={
                name: figures(np.quantile(values, LEVELS)) for name, values in finite.items() if name != "varentropy"
            },
            curve=curve,
            bins=bins,
            texts=TextReference.fit(texts, (low, high), bins),
        )

    def text_features(self, scores: "TokenScores") -> FloatArray:
        """The features of one text, in the order of `ugap.profile.texts.FEATURES`; NaN where one cannot be told."""
        surprisal = self.quantiles["surprisal"]
        low, high = (float(surprisal[int(np.argmin(np.abs(self.levels - level)))]) for level in QUARTILES)
        return text_features(scores, (low, high), self.bins)

    def to_dict(self) -> dict[str, Any]:
        """The profile in the types of JSON, NaN as None."""
        return {
            "n_texts": self.n_texts,
            "n_tokens": self.n_tokens,
            "means": {name: plain(value) for name, value in self.means.items()},
            "levels": plain(self.levels),
            "quantiles": {measure: plain(values) for measure, values in self.quantiles.items()},
            "curve": {name: plain(getattr(self.curve, name)) for name in _CURVE},
            "bins": {name: plain(getattr(self.bins, name)) for name in _BINS},
            "texts": None if self.texts is None else self.texts.to_dict(),
        }

    @classmethod
    def from_dict(cls, entry: Any) -> "DomainProfile":
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
            n_texts=count(member(entry, "n_texts"), "n_texts"),
            n_tokens=count(member(entry, "n_tokens"), "n_tokens"),
            means={name: float(array([mean], name)[0]) for name, mean in means.items()},
            levels=array(member(entry, "levels"), "levels"),
            quantiles={measure: array(values, measure) for measure, values in quantiles.items()},
            curve=CalibrationCurve(**{name: array(member(curve, name), name) for name in _CURVE}),
            bins=EntropyBins(**{name: array(member(bins, name), name) for name in _BINS}),
            texts=None if texts is None else TextReference.from_dict(texts),
        )
