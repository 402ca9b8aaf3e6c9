"""What the sampler follows: the human text that a continuation of one prompt should resemble."""

from typing import NamedTuple

from ugap.profile.kind import KindProfile
from ugap.profile.prompt import SPAN
from ugap.profile.reading import Reading

_SHOWN = 3  # kinds that are named
_LEAST_SHOWN = 0.05  # probability of a kind that is named


class Target(NamedTuple):
    """The human text that a continuation should resemble.

    Args:
        kind (`KindProfile`): Its profile, mixed where several kinds are possible.
        weights (`dict[str, float]`): Probability of each kind.
        position (`int`): Tokens before the continuation.
        mean_surprisal (`float`): Mean human surprisal of the next 64 tokens, nats per token.
        strange (`bool`): Whether the prompt is unlike the human texts of every kind.
        reading (`Reading`, *optional*): To whom the continuation should be human; by default to the scorer itself.
    """

    kind: KindProfile
    weights: dict[str, float]
    position: int
    mean_surprisal: float
    strange: bool = False
    reading: Reading | None = None

    @property
    def share(self) -> float:
        """The share of the human level to aim at, which is human to the reader."""
        return 1.0 if self.reading is None else self.reading.share(self.weights)

    @property
    def factor(self) -> float:
        """Ratio of the mean surprisal to that of the kind at the position: 1 where no prompt moved it."""
        return self.mean_surprisal / self.kind.positions.mean_surprisal(self.position, SPAN)

    def at(self, position: int) -> "Target":
        """The same kinds after another number of tokens, at the level of their mixture there."""
        return self._replace(position=position, mean_surprisal=self.kind.positions.mean_surprisal(position, SPAN))

    @property
    def named(self) -> str:
        """The kinds in words, with their probabilities where there are several."""
        ranked = sorted(self.weights.items(), key=lambda one: -one[1])
        if len(ranked) == 1:
            return ranked[0][0]
        # A tail of small probabilities says nothing.
        shown = [(name, weight) for name, weight in ranked[:_SHOWN] if weight >= _LEAST_SHOWN]
        return ", ".join(f"{name} {weight:.1f}" for name, weight in shown or ranked[:1])

    def __str__(self) -> str:
        aim = "" if self.reading is None else f"; {self.reading.reader} reads {self.share:.2f} of it as human"
        return f"kind: {self.named}; human level {self.mean_surprisal:.2f}{aim}"
