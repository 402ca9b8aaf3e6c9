"""Human surprisal and entropy by position: a text is more surprising near its start.

The mean of a kind in a band of positions is shrunk toward an additive model of the logarithms that all kinds share: a
term for the kind and a term for the band, fitted by least squares weighted by tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ugap.profile.calibration import figures
from ugap.profile.plain import FloatArray, array, member, plain

if TYPE_CHECKING:
    from ugap.scoring.records import TokenScores

BANDS = (8, 16, 32, 64, 128, 256)  # borders of the bands, in tokens before a token; the last band has no end
REFERENCE = 64  # the position of a continuation whose prefix is not known
SKIPPED = 4  # the first tokens of a text show no kind yet, and their surprisal is extreme
POOLED_TOKENS = 400  # what the model of all kinds counts as in a band, in tokens
_FIELDS = ("n_tokens", "surprisal", "entropy")


class TextTokens(NamedTuple):
    """The tokens of a text as a model reads them, from the start.

    Args:
        token_ids (`np.ndarray` of shape `(T,)`): Token ids, without BOS.
        surprisal (`np.ndarray` of shape `(T,)`): Surprisal in nats; NaN where it is not known.
        entropy (`np.ndarray` of shape `(T,)`): Entropy in nats; NaN where it is not known.
    """

    token_ids: NDArray[np.int64]
    surprisal: FloatArray
    entropy: FloatArray

    @classmethod
    def of(cls, *parts: "TokenScores") -> "TextTokens":
        """The scored parts of a text, one after another."""
        return cls(
            np.concatenate([part.token_ids for part in parts]).astype(np.int64),
            np.concatenate([part.surprisal for part in parts]).astype(np.float64),
            np.concatenate([part.entropy for part in parts]).astype(np.float64),
        )

    def first(self, n: int) -> "TextTokens":
        """The first `n` tokens."""
        return TextTokens(self.token_ids[:n], self.surprisal[:n], self.entropy[:n])


class PlacedTokens(NamedTuple):
    """Tokens of human texts with their positions, `N` of them.

    Args:
        position (`np.ndarray` of shape `(N,)`): Tokens before each token, from the start of its text.
        surprisal (`np.ndarray` of shape `(N,)`): Surprisal in nats, finite.
        entropy (`np.ndarray` of shape `(N,)`): Entropy in nats, finite.
    """

    position: FloatArray
    surprisal: FloatArray
    entropy: FloatArray

    @classmethod
    def of(cls, texts: Sequence["TokenScores"], prefixes: Sequence["TokenScores | None"]) -> "PlacedTokens":
        """All scored tokens of texts; a text without a known prefix is taken to be deep in its text."""
        positions, surprisals, entropies = [], [], []
        for scores, before in zip(texts, prefixes, strict=True):
            text = TextTokens.of(scores) if before is None else TextTokens.of(before, scores)
            position = np.arange(len(text.surprisal), dtype=np.float64) + (REFERENCE if before is None else 0)
            scored = np.isfinite(text.surprisal) & np.isfinite(text.entropy)
            positions.append(position[scored])
            surprisals.append(text.surprisal[scored])
            entropies.append(text.entropy[scored])
        return cls(*(np.concatenate(parts) for parts in (positions, surprisals, entropies)))


@dataclass(frozen=True, eq=False)
class Positions:
    """Mean human surprisal and entropy of one kind in the `P` bands of positions.

    Args:
        n_tokens (`np.ndarray` of shape `(P,)`): Tokens seen in each band; 0 where the means come from other kinds.
        surprisal (`np.ndarray` of shape `(P,)`): Mean surprisal in nats.
        entropy (`np.ndarray` of shape `(P,)`): Mean entropy in nats.

    Raises:
        ValueError: If an array has another length, or a mean is not above 0.

    Example:
        >>> flat = Positions(np.zeros(7), np.full(7, 3.0), np.full(7, 2.5))
        >>> flat.mean_surprisal(0, 64)
        3.0
    """

    n_tokens: FloatArray
    surprisal: FloatArray
    entropy: FloatArray

    def __post_init__(self) -> None:
        for name in _FIELDS:
            values = getattr(self, name)
            if values.shape != (len(BANDS) + 1,) or not np.isfinite(values).all() or (values < 0).any():
                raise ValueError(f"the positions' {name} must be {len(BANDS) + 1} finite numbers from 0")
        if not (self.surprisal > 0).all() or not (self.entropy > 0).all():
            raise ValueError("the positions' surprisal and entropy must be above 0")

    def mean_surprisal(self, position: int, n_tokens: int) -> float:
        """Mean human surprisal, in nats, of `n_tokens` tokens from a position on."""
        return float(self.surprisal[band(np.arange(position, position + max(n_tokens, 1)))].mean())

    def to_dict(self) -> dict[str, Any]:
        """The means in the types of JSON."""
        return {name: plain(getattr(self, name)) for name in _FIELDS} | {"bands": list(BANDS)}

    @classmethod
    def from_dict(cls, entry: Any) -> "Positions":
        """The means that `to_dict` wrote.

        Raises:
            ValueError: If `entry` is not of that form; the message names the field.
        """
        if member(entry, "bands") != list(BANDS):
            raise ValueError(f"the positions have other bands than {', '.join(map(str, BANDS))}")
        return cls(**{name: array(member(entry, name), name) for name in _FIELDS})


def band(position: Any) -> Any:
    """The band, 0 to 6, of each position."""
    return np.searchsorted(BANDS, position, side="right")


def fit_positions(kinds: Mapping[str, PlacedTokens]) -> dict[str, Positions]:
    """Fit the means by band of every kind, shrunk toward those of all kinds.

    Args:
        kinds (`Mapping[str, PlacedTokens]`): Placed tokens by kind, at least one of each.
    """
    names, n_bands = list(kinds), len(BANDS) + 1
    counts = np.zeros((len(names), n_bands))
    means = np.full((2, len(names), n_bands), np.nan)
    for row, name in enumerate(names):
        position, surprisal, entropy = kinds[name]
        kept = position >= SKIPPED
        if not kept.any():
            kept = np.ones(len(position), dtype=bool)
        bands = band(position[kept])
        counts[row] = np.bincount(bands, minlength=n_bands)
        for which, values in enumerate((surprisal[kept], entropy[kept])):
            sums = np.bincount(bands, weights=values, minlength=n_bands)
            np.divide(sums, counts[row], out=means[which, row], where=counts[row] > 0)
    surprisal, entropy = (_shrunk(np.maximum(table, 1e-3), counts) for table in means)
    return {
        name: Positions(figures(counts[row]), figures(surprisal[row]), figures(entropy[row]))
        for row, name in enumerate(names)
    }


def common_ratios(positions: Mapping[str, Positions]) -> tuple[FloatArray, FloatArray]:
    """Ratio of surprisal and of entropy in each band to the last band, the geometric mean over kinds: `(P,)` each."""
    out = []
    for name in ("surprisal", "entropy"):
        logs = np.log([getattr(one, name) for one in positions.values()])
        out.append(np.exp((logs - logs[:, -1:]).mean(0)))
    return out[0], out[1]


def fit_held(tokens: PlacedTokens, ratios: tuple[FloatArray, FloatArray]) -> Positions:
    """The means by band of one kind, shrunk toward the common ratios of a profile times the kind's own mean.

    Args:
        tokens (`PlacedTokens`): Placed tokens of the kind.
        ratios (`tuple[np.ndarray, np.ndarray]`): Of `common_ratios`.
    """
    n_bands = len(BANDS) + 1
    bands = band(tokens.position)
    counts = np.bincount(bands, minlength=n_bands).astype(np.float64)
    out = []
    for values, ratio in zip((tokens.surprisal, tokens.entropy), ratios, strict=True):
        sums = np.bincount(bands, weights=values, minlength=n_bands)
        model = ratio * sums.sum() / (counts @ ratio)
        own = np.divide(sums, counts, out=model.copy(), where=counts > 0)
        out.append((counts * own + POOLED_TOKENS * model) / (counts + POOLED_TOKENS))
    return Positions(figures(counts), *(figures(np.maximum(values, 1e-3)) for values in out))


def _shrunk(means: FloatArray, counts: FloatArray) -> FloatArray:
    """Means by kind and band `(K, P)`, shrunk toward the additive model of their logarithms, by tokens."""
    n_kinds, n_bands = means.shape
    seen = np.flatnonzero(counts.any(0))
    # A term for each kind, and one for each band that was seen but the last of them, which is the reference.
    rows, columns = np.nonzero(counts)
    design = np.zeros((len(rows), n_kinds + len(seen) - 1))
    design[np.arange(len(rows)), rows] = 1
    place = np.searchsorted(seen, columns)
    inner = place < len(seen) - 1
    design[np.flatnonzero(inner), n_kinds + place[inner]] = 1
    logs, weight = np.log(means[rows, columns]), np.sqrt(counts[rows, columns])
    solution = np.linalg.lstsq(design * weight[:, None], logs * weight, rcond=None)[0]
    effect = np.append(solution[n_kinds:], 0.0)
    # A band that no kind has seen is as the nearest one that was seen.
    nearest = np.abs(np.arange(n_bands)[:, None] - seen).argmin(1)
    model = solution[:n_kinds, None] + effect[nearest]
    own = np.where(counts > 0, np.log(np.where(counts > 0, means, 1.0)), model)
    return np.exp((counts * own + POOLED_TOKENS * model) / (counts + POOLED_TOKENS))
