"""The measures of a study: one value per text for the estimates, and the per-token values behind it for distributions.

| measure | per text | pooled for the Wasserstein distance |
|---|---|---|
| `nll` | mean surprisal, nats per token | surprisal of every token |
| `ppl` | `exp(nll)` | one value per text |
| `entropy` | mean entropy, nats | entropy of every token |
| `pmi` | mean PMI with the prefix, nats; none without a prefix | PMI of every token |
| `cpmi` | mean CPMI, nats; none without a prefix | CPMI of every token |
| `bits_per_byte` | surprisal in bits over UTF-8 bytes | one value per text |
| `deviation` | mean of `(s - h) / sqrt(v)` | deviation of every token |
"""

from collections.abc import Callable

import numpy as np

from ugap.scoring import TokenScores

_TOKEN_VALUES: dict[str, Callable[[TokenScores], np.ndarray]] = {
    "nll": lambda scores: scores.surprisal,
    "ppl": lambda scores: np.array([scores.perplexity]),
    "entropy": lambda scores: scores.entropy,
    "pmi": lambda scores: scores.pmi,
    "cpmi": lambda scores: scores.cpmi(),
    "bits_per_byte": lambda scores: np.array([scores.bits_per_byte]),
    "deviation": lambda scores: scores.deviation,
}

MEASURES = tuple(_TOKEN_VALUES)
NEED_MARGINAL = ("pmi", "cpmi")


def token_values(scores: TokenScores, measure: str) -> np.ndarray:
    """Finite values of a measure, shape `(T,)` or less, or `(1,)` for a measure of the whole text.

    Empty for a measure that needs the marginal surprisal where the text has none.
    """
    # A study without the second pass has no marginal surprisal, and no rows of these measures.
    if measure in NEED_MARGINAL and scores.marginal_surprisal is None:
        return np.zeros(0)
    values = _TOKEN_VALUES[measure](scores)
    # float64: sums of thousands of float32 tokens lose the fourth decimal.
    return values[np.isfinite(values)].astype(np.float64)


def text_value(scores: TokenScores, measure: str) -> float:
    """The measure of one text; NaN where it has no such values."""
    values = token_values(scores, measure)
    return float(values.mean()) if values.size else float("nan")
