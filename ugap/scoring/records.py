"""What the scorer knows about every token of one text.

A plain record of NumPy arrays: no torch here, so that profiles, statistics and reports read scores without a model.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

# Defaults of CPMI, van der Poel, Cotterell and Meister (2022), arXiv 2210.13210.
CPMI_TAU = 3.5987
CPMI_LAMBDA = 0.0656
# The fields of `TokenScores` that the output head computes, in the order of `HeadStatistics`.
STATISTICS = ("surprisal", "entropy", "varentropy", "rank")


class ScorerId(NamedTuple):
    """Which frozen model made the numbers.

    Args:
        name (`str`): Name or path that the model was loaded by.
        weight_hash (`str`): Fingerprint of its weights, the same for every dtype that the weights are loaded in.
    """

    name: str
    weight_hash: str


@dataclass(frozen=True, eq=False)
class TokenScores:
    """Per-token scores of one text of `T` tokens under one scorer; natural logarithms.

    Args:
        text (`str`): The text whose tokens were scored (without its prefix).
        token_ids (`np.ndarray` of shape `(T,)`, int32): Tokens of the text.
        offsets (`np.ndarray` of shape `(T, 2)`, int32): Start and end of each token as character positions in `text`.
        surprisal (`np.ndarray` of shape `(T,)`, float32): `-log p(y_t | x, y_<t)` in nats. NaN where there is nothing
            to condition on: the first token of a text without a prefix, where the tokenizer has no BOS.
        entropy (`np.ndarray` of shape `(T,)`, float32): Entropy in nats of the full next-token distribution.
        varentropy (`np.ndarray` of shape `(T,)`, float32): Variance in nats² of the surprisal under that distribution.
        rank (`np.ndarray` of shape `(T,)`, float32): 1 + number of tokens with a higher logit (ties: lower id first).
        marginal_surprisal (`np.ndarray` of shape `(T,)`, float32, *optional*): `-log p(y_t | y_<t)`: the same token
            without the prefix. None where there is no prefix, or the text was scored without `pmi=True`.
        scorer (`ScorerId`): The model that made the numbers.
        straddles (`bool`): Whether a token crossed the border between prefix and text. Such a token belongs to the
            prefix, so the first characters of the text are then not among the scored tokens.

    Example:
        >>> row = np.array([1.0, 3.0], dtype=np.float32)
        >>> ids, offsets = np.array([1, 2], np.int32), np.array([[0, 2], [2, 5]], np.int32)
        >>> scores = TokenScores("so it", ids, offsets, row, row, row, row, None, ScorerId("tiny", "0"), False)
        >>> scores.nll
        2.0
    """

    text: str
    token_ids: np.ndarray
    offsets: np.ndarray
    surprisal: np.ndarray
    entropy: np.ndarray
    varentropy: np.ndarray
    rank: np.ndarray
    marginal_surprisal: np.ndarray | None
    scorer: ScorerId
    straddles: bool

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def nll(self) -> float:
        """Mean surprisal in nats per token."""
        return _mean(self.surprisal)

    @property
    def perplexity(self) -> float:
        """`exp` of the mean surprisal."""
        return float(np.exp(self.nll))

    @property
    def bits_per_byte(self) -> float:
        """Total surprisal in bits over the UTF-8 bytes of the scored tokens: comparable between tokenizers."""
        # Without BOS the first token has no surprisal: its bytes do not count either.
        scored = np.isfinite(self.surprisal)
        if not scored.any():
            return float("nan")
        begin, end = int(self.offsets[scored, 0].min()), int(self.offsets[scored, 1].max())
        n_bytes = len(self.text[begin:end].encode("utf-8"))
        return float(self.surprisal[scored].sum(dtype=np.float64) / np.log(2) / n_bytes) if n_bytes else float("nan")

    @property
    def deviation(self) -> np.ndarray:
        """`(s - h) / sqrt(v)`, shape `(T,)`: more or less surprising than the model expected to be surprised.

        NaN where the model is certain (`v = 0`): there the deviation has no scale.
        """
        spread = np.sqrt(self.varentropy)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(spread > 0, (self.surprisal - self.entropy) / spread, np.float32("nan")).astype(np.float32)

    @property
    def pmi(self) -> np.ndarray:
        """Pointwise mutual information with the prefix, `m - s` in nats, shape `(T,)`.

        Raises:
            ValueError: If the text has no prefix, or was scored without `pmi=True`.
        """
        return self._marginal() - self.surprisal

    def cpmi(self, tau: float = CPMI_TAU, lam: float = CPMI_LAMBDA) -> np.ndarray:
        """Conditional PMI, `s - lam * 1[h >= tau] * m` in nats, shape `(T,)` (arXiv 2210.13210).

        Args:
            tau (`float`, *optional*, defaults to `3.5987`): Entropy in nats from which the marginal counts.
            lam (`float`, *optional*, defaults to `0.0656`): Weight of the marginal surprisal.

        Raises:
            ValueError: If the text has no prefix, or was scored without `pmi=True`.
        """
        return self.surprisal - np.float32(lam) * np.where(self.entropy >= tau, self._marginal(), np.float32(0))

    def first(self, n: int) -> "TokenScores":
        """The same scores cut to the first `n` tokens."""
        return self._cut(slice(None, n))

    def after(self, n: int) -> "TokenScores":
        """The same scores without the first `n` tokens."""
        return self._cut(slice(n, None))

    def _cut(self, part: slice) -> "TokenScores":
        columns = ("token_ids", "offsets", "surprisal", "entropy", "varentropy", "rank")
        marginal = None if self.marginal_surprisal is None else self.marginal_surprisal[part]
        return replace(self, marginal_surprisal=marginal, **{name: getattr(self, name)[part] for name in columns})

    def _marginal(self) -> np.ndarray:
        if self.marginal_surprisal is None:
            raise ValueError("the marginal surprisal is missing: score the text after a prefix, with pmi=True")
        return self.marginal_surprisal


def _mean(values: np.ndarray) -> float:
    # Summed in float64: thousands of float32 tokens would lose digits.
    finite = values[np.isfinite(values)]
    return float(finite.mean(dtype=np.float64)) if finite.size else float("nan")
