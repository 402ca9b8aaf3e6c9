"""The tokens of a micro-batch, a step or an evaluation: what a forward pass tells of each, and their figures."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from ugap.training.domains import CREATIVE, FUNCTIONAL
from ugap.training.losses import bin_differences

Figures = dict[str, tuple[Tensor, int]]


@dataclass(frozen=True, eq=False)
class StepTokens:
    """Per-token quantities, flat.

    Args:
        surprisal (`Tensor` of shape `(N,)`): Of all tokens that are learned, nats.
        entropy (`Tensor` of shape `(N,)`): Of the policy there, nats.
        creative (`Tensor` of shape `(N,)`, bool): Which of them are of creative rows.
        kl (`Tensor` of shape `(M,)`): `KL(base || policy)` at functional tokens, nats; empty where there is no base.
        gem (`Tensor` of shape `(N,)` or `(0,)`): GEM's loss, nats; empty where it is not asked for.
        differences (`Tensor` of shape `(K,)`): Of the creative tokens, see `ugap.training.losses.bin_differences`.
    """

    surprisal: Tensor
    entropy: Tensor
    creative: Tensor
    kl: Tensor
    gem: Tensor
    differences: Tensor

    @classmethod
    def joined(cls, parts: Sequence["StepTokens"]) -> "StepTokens":
        """All tokens of several micro-batches, one after another, without gradient."""
        named = {field.name: [getattr(part, field.name).detach() for part in parts] for field in fields(cls)}
        return cls(**{name: torch.cat(values) for name, values in named.items()})

    def figures(self) -> Figures:
        """What is logged of them, by name: sums and counts in this process."""
        found: Figures = {
            "entropy": (self.entropy.sum(), len(self.entropy)),
            "functional/kl": (self.kl.sum(), len(self.kl)),
        }
        for domain, own in ((CREATIVE, self.creative), (FUNCTIONAL, ~self.creative)):
            surprisal, entropy = self.surprisal[own], self.entropy[own]
            found[f"{domain}/nll"] = (surprisal.sum(), len(surprisal))
            found[f"{domain}/entropy"] = (entropy.sum(), len(entropy))
        # Over a bin of difference D this is n_b D^2.
        found["creative/calibration"] = (self.differences.square().sum(), len(self.differences))
        return found


def differences_of_step(
    surprisal: Sequence[Tensor], entropy: Sequence[Tensor], *, share: float, bins: int
) -> list[Tensor]:
    """`ugap.training.losses.bin_differences` of each micro-batch, in bins of all of them and of all processes.

    Every process has to call it, those without creative tokens too.

    Args:
        surprisal (`Sequence[Tensor]`): Surprisal of the creative tokens of each micro-batch `(K,)`, nats.
        entropy (`Sequence[Tensor]`): Their entropy.
        share (`float`): As in `ugap.training.losses.bin_differences`.
        bins (`int`): Likewise.
    """
    own = torch.stack([torch.cat([part.detach() for part in parts]) for parts in (surprisal, entropy)])
    everywhere: list[Tensor] = gather_object([own.cpu()])
    s, h = torch.cat(everywhere, 1)
    before = sum(part.shape[1] for part in everywhere[: PartialState().process_index])
    found = bin_differences(s, h, share=share, bins=bins)[before : before + own.shape[1]]
    return list(found.to(own.device).split([len(part) for part in surprisal]))
