"""How another model reads what the scorer writes: the share of its own human level that is human to the reader.

A small model at its own human level is more surprising to a stronger model than people are: part of what it takes for
human uncertainty is noise. So its text is written at a share of its level, at which people surprise the reader as much.
The share is calibrated once for a writer, a reader and a kind (`ugap profile --reader`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ugap.profile.plain import count, member, number, text


class Share(NamedTuple):
    """The share of the human level at which a writer is human to a reader, for one kind.

    Args:
        share (`float`): Of the writer's own human level.
        error (`float`): Standard error, by resampling texts.
        people (`float`): Mean surprisal of people's texts to the reader, in nats per token of the reader.
        n_texts (`int`): Texts that were continued.
    """

    share: float
    error: float
    people: float
    n_texts: int


@dataclass(frozen=True)
class Reading:
    """The shares of all kinds for one reader.

    Args:
        reader (`str`): Name of the reader.
        weight_hash (`str`): Fingerprint of its weights.
        shares (`Mapping[str, Share]`): By kind.

    Raises:
        ValueError: If there is no kind, or a share is not above 0.

    Example:
        >>> reading = Reading("reader", "", {"news": Share(0.8, 0.02, 2.5, 48), "letter": Share(0.7, 0.02, 2.1, 48)})
        >>> round(reading.share({"news": 0.5, "letter": 0.5}), 2), round(reading.share({"like": 1.0}), 2)
        (0.75, 0.75)
    """

    reader: str
    weight_hash: str
    shares: Mapping[str, Share]

    def __post_init__(self) -> None:
        if not self.shares:
            raise ValueError("a reading needs a kind")
        if any(not 0 < one.share < np.inf for one in self.shares.values()):
            raise ValueError("a share is not above 0")

    def share(self, weights: Mapping[str, float]) -> float:
        """The share for a mixture of kinds; a kind that was not calibrated has the mean of the others."""
        # Kinds differ little in their shares, so the mean serves for one that was not calibrated.
        mean = float(np.mean([one.share for one in self.shares.values()]))
        known = {kind: self.shares[kind].share if kind in self.shares else mean for kind in weights}
        return sum(weight * known[kind] for kind, weight in weights.items()) / sum(weights.values())

    def without(self, kind: str) -> "Reading | None":
        """The shares of the other kinds; `None` where there are none."""
        left = {name: one for name, one in self.shares.items() if name != kind}
        return replace(self, shares=left) if left else None

    def to_dict(self) -> dict[str, Any]:
        """The reading in the types of JSON."""
        return {
            "weight_hash": self.weight_hash,
            "shares": {kind: one._asdict() for kind, one in self.shares.items()},
        }

    @classmethod
    def from_dict(cls, reader: str, entry: Any) -> "Reading":
        """The reading that `to_dict` wrote.

        Raises:
            ValueError: If `entry` is not of that form; the message names the field.
        """
        shares = member(entry, "shares")
        if not isinstance(shares, dict):
            raise ValueError("'shares' is no object")
        return cls(
            reader,
            text(member(entry, "weight_hash"), "weight_hash"),
            {
                kind: Share(
                    number(member(one, "share"), "share"),
                    number(member(one, "error"), "error"),
                    number(member(one, "people"), "people"),
                    count(member(one, "n_texts"), "n_texts"),
                )
                for kind, one in shares.items()
            },
        )
