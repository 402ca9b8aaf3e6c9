"""Losses of fine-tuning toward human uncertainty, on per-token quantities of the fused head.

The trade-off follows Sinha, Song and Zhou (arXiv 2306.02295): a creativity loss against a reality loss, weighted, in
the modes creative, balanced and precise. Only their abstract could be read: the formulas are ours.

- Creativity: on human creative text, the model should be as uncertain as the text is surprising. Maximising entropy is
  wrong: where people are certain, the model should be certain too.
- Reality: on reference text cross-entropy, and on functional text the KL divergence from the base model.

All arguments are flat tensors of the tokens that count (see `ugap.scoring.head.autograd`): callers apply masks first.
An empty tensor, of a batch without such tokens, keeps the graph and gives 0. A mean over tokens divides by `n_tokens`
where it is given. So micro-batches and processes can divide by the tokens of the whole optimiser step, and add up to
its loss. The bins of the calibration are those of one call, unless the call gets the result of `bin_differences`.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ugap.sampling import weight_of

BINS = 8
# The mean surprisal of fewer tokens is mostly noise.
TOKENS_PER_BIN = 16
# Entropies that differ by less, in nats, go into one bin. The first tokens of all texts have the same entropy: their
# bins would depend on the order of the rows, and on rounding.
TIED = 1e-4


class Loss(NamedTuple):
    """A loss and its parts.

    Args:
        total (`Tensor` of shape `()`): The loss to minimise.
        parts (`dict[str, Tensor]`): `creativity` (nats²), `cross_entropy`, `kl` or `gem` (nats) before their weights,
            detached. A part without tokens is absent. Like the total, parts divide by `n_tokens` where it is given, and
            sum up over micro-batches then.
    """

    total: Tensor
    parts: dict[str, Tensor]


def bin_differences(surprisal: Tensor, entropy: Tensor, *, share: float = 1.0, bins: int = BINS) -> Tensor:
    """Distance of each token's entropy bin from calibration: `mean_b(entropy) - share * mean_b(surprisal)`.

    The loss of a bin is the square of its difference, so its gradient needs the bin of the whole optimiser step.
    Micro-batches that get their parts of these differences have the step's bins, loss and gradient.

    Args:
        surprisal (`Tensor` of shape `(N,)`): As in `creativity_loss`, of all micro-batches and processes.
        entropy (`Tensor` of shape `(N,)`): Likewise.
        share (`float`, *optional*, defaults to `1.0`): As in `creativity_loss`.
        bins (`int`, *optional*, defaults to `8`): As in `creativity_loss`.

    Returns:
        `Tensor` of shape `(N,)`: Nats, without gradient.

    Raises:
        ValueError: As in `creativity_loss`.

    Example:
        >>> surprisal, entropy = torch.arange(64.0) + 0.5, torch.arange(64.0, requires_grad=True)
        >>> differences = bin_differences(surprisal, entropy)
        >>> halves = [slice(0, 20), slice(20, 64)]
        >>> losses = [creativity_loss(surprisal[half], entropy[half], differences=differences[half], n_tokens=64)
        ...           for half in halves]
        >>> sum(loss.total.item() for loss in losses)
        0.25
    """
    _check_calibration(surprisal, entropy, share, bins)
    difference = (entropy - share * surprisal).detach()
    # Fewer bins for few tokens: a bin of a handful is noise.
    n = max(1, min(bins, len(entropy) // TOKENS_PER_BIN))
    # Equal entropies form a group, which goes as a whole to the bin of its middle.
    values, group, counts = (entropy.detach() / TIED).round().unique(return_inverse=True, return_counts=True)
    middle = counts.cumsum(0) - (counts + 1) / 2
    ends = torch.tensor([len(entropy) // n + (i < len(entropy) % n) for i in range(n)], device=values.device).cumsum(0)
    bin_of = torch.bucketize(middle, ends - 0.5)[group]  # (N,)
    sums, sizes = (difference.new_zeros(n).index_add(0, bin_of, x) for x in (difference, torch.ones_like(difference)))
    return (sums / sizes.clamp(min=1))[bin_of]


def creativity_loss(
    surprisal: Tensor,
    entropy: Tensor,
    *,
    share: float = 1.0,
    bins: int = BINS,
    differences: Tensor | None = None,
    n_tokens: int | Tensor | None = None,
) -> Loss:
    """Entropy calibration on human creative text: the distance of the model's entropy from the text's surprisal.

    The tokens are sorted by the model's entropy into `bins` bins of equal count; equal entropies share a bin. With
    `n_b` tokens in bin `b`,

        `loss = sum_b (n_b / N) (mean_b(entropy) - share * mean_b(surprisal))²`.

    The loss is two-sided, and a bin that is too certain does not make up for one that is too uncertain. The gradient
    flows through the entropy alone. Through the surprisal, the model would learn to find human text surprising: as good
    for the loss, and the opposite of modelling the text. Nothing here holds the surprisal itself, and both may meet
    away from the text's mean surprisal. To hold it, give the same text to `reality_loss`.

    The text of a calibrated model is still more surprising to a frozen scorer than people are: by the divergence of
    model and scorer, and by the model's own mistakes. A `share` below 1 leaves room for both.

    The bins depend on the entropy alone, so the gradient of a calibrated model is 0 in expectation. The loss is not 0:
    a mean of few tokens is noisy. Its floor is about the number of bins times the mean varentropy, divided by `N`.

    Args:
        surprisal (`Tensor` of shape `(N,)`): Surprisal of the human tokens under the model, nats.
        entropy (`Tensor` of shape `(N,)`): Entropy of the model there, nats, with gradient.
        share (`float`, *optional*, defaults to `1.0`): Target entropy per nat of surprisal; above 0.
        bins (`int`, *optional*, defaults to `8`): Number of bins; fewer where they would hold less than 16 tokens each.
        differences (`Tensor` of shape `(N,)`, *optional*): From `bin_differences`, if the tokens are a part of an
            optimiser step; by default they are all of the step.
        n_tokens (`int` or `Tensor`, *optional*): Creative tokens of the whole optimiser step, instead of `N`.

    Returns:
        `Loss`: With the part `creativity`, nats².

    Raises:
        ValueError: If the shapes differ, the share is not a positive number, or there is less than one bin.

    Example:
        >>> entropy = torch.arange(64.0, requires_grad=True)
        >>> loss = creativity_loss(torch.arange(64.0) + 0.5, entropy)
        >>> loss.total.item()
        0.25
        >>> loss.total.backward()
        >>> entropy.grad.unique().tolist()  # raise the entropy
        [-0.015625]
    """
    _check_calibration(surprisal, entropy, share, bins)
    if differences is None:
        differences = bin_differences(surprisal, entropy, share=share, bins=bins)
    elif differences.shape != entropy.shape:
        raise ValueError(f"differences holds {len(differences)} tokens, entropy {len(entropy)}")
    # Over a bin of difference D: D times the sum of (entropy - share * surprisal) is n_b D^2. Its gradient is 2 D.
    parts = differences * (2 * entropy - (entropy + share * surprisal).detach())
    return _loss("creativity", parts.sum() / _denominator(entropy, n_tokens), entropy)


def reality_loss(
    surprisal: Tensor | None = None,
    kl: Tensor | None = None,
    kl_weight: float = 1.0,
    *,
    n_tokens: int | Tensor | None = None,
    n_kl_tokens: int | Tensor | None = None,
) -> Loss:
    """Cross-entropy on reference text, and `kl_weight` times the KL divergence from the base model on functional text.

    Args:
        surprisal (`Tensor` of shape `(N,)`, *optional*): Surprisal of reference tokens, nats, with gradient.
        kl (`Tensor` of shape `(M,)`, *optional*): `KL(base || policy)` at functional tokens, nats, with gradient.
        kl_weight (`float`, *optional*, defaults to `1.0`): Weight of the divergence.
        n_tokens (`int` or `Tensor`, *optional*): Reference tokens of the whole optimiser step, instead of `N`.
        n_kl_tokens (`int` or `Tensor`, *optional*): Functional tokens of the step, instead of `M`.

    Returns:
        `Loss`: With the parts `cross_entropy` and `kl`, nats.

    Raises:
        ValueError: If neither is given, one is not flat, or the weight is negative or not finite.

    Example:
        >>> loss = reality_loss(torch.tensor([2.0, 4.0]), torch.tensor([0.1]), kl_weight=10.0)
        >>> round(loss.total.item(), 4), sorted(loss.parts)
        (4.0, ['cross_entropy', 'kl'])
    """
    if surprisal is None and kl is None:
        raise ValueError("surprisal and kl are both missing: there is no loss")
    if not 0 <= kl_weight < math.inf:
        raise ValueError(f"kl_weight is {kl_weight}, not a number of at least 0")
    terms = []
    if surprisal is not None:
        _check_flat("surprisal", surprisal)
        terms.append((1.0, _token_mean("cross_entropy", surprisal, n_tokens)))
    if kl is not None:
        _check_flat("kl", kl)
        terms.append((kl_weight, _token_mean("kl", kl, n_kl_tokens)))
    return _weighted(terms)


def creativity_reality_loss(weight: float | str, creativity: Loss | None = None, reality: Loss | None = None) -> Loss:
    """The trade-off `weight * creativity + (1 - weight) * reality`.

    A loss of weight 0 is logged and costs no backward pass. If it is the only loss, its gradient is 0.

    Args:
        weight (`float` or `str`): In [0, 1], or a mode: `creative` (1), `balanced` (0.5) or `precise` (0).
        creativity (`Loss`, *optional*): From `creativity_loss`; `None` if the batch has no creative text.
        reality (`Loss`, *optional*): From `reality_loss`; `None` if the batch has neither references nor functional
            text.

    Returns:
        `Loss`: With the parts of both.

    Raises:
        InputError: If the mode is unknown, or the weight is not in [0, 1].
        ValueError: If neither loss is given.

    Example:
        >>> creativity = creativity_loss(torch.tensor([1.0]), torch.tensor([3.0]))
        >>> reality = reality_loss(torch.tensor([2.0]))
        >>> creativity_reality_loss("balanced", creativity, reality).total.item()
        3.0
    """
    share = weight_of(weight, None) if isinstance(weight, str) else weight_of(None, weight)
    terms = [(w, loss) for w, loss in ((share, creativity), (1 - share, reality)) if loss is not None]
    if not terms:
        raise ValueError("creativity and reality are both missing: there is no loss")
    return _weighted(terms)


def gem_loss(gem: Tensor, *, n_tokens: int | Tensor | None = None) -> Loss:
    """The mean of GEM's loss (`ugap.scoring.head.autograd.gem`): fine-tuning that keeps diversity, as a baseline.

    Args:
        gem (`Tensor` of shape `(N,)`): GEM's loss at the tokens, nats, with gradient.
        n_tokens (`int` or `Tensor`, *optional*): Tokens of the whole optimiser step, instead of `N`.

    Returns:
        `Loss`: With the part `gem`, nats.

    Raises:
        ValueError: If the values are not flat.

    Example:
        >>> gem_loss(torch.tensor([1.0, 2.0]), n_tokens=4).total.item()
        0.75
    """
    _check_flat("gem", gem)
    return _token_mean("gem", gem, n_tokens)


def _token_mean(name: str, values: Tensor, n_tokens: int | Tensor | None) -> Loss:
    return _loss(name, values.sum() / _denominator(values, n_tokens), values)


def _loss(name: str, total: Tensor, values: Tensor) -> Loss:
    return Loss(total, {name: total.detach()} if len(values) else {})


def _weighted(terms: list[tuple[float, Loss]]) -> Loss:
    # A loss of weight 0 would still cost its backward pass.
    live = [(weight, loss) for weight, loss in terms if weight > 0] or terms
    total = torch.stack([weight * loss.total for weight, loss in live]).sum()
    return Loss(total, {name: value for _, loss in terms for name, value in loss.parts.items()})


def _denominator(values: Tensor, n_tokens: int | Tensor | None) -> int | Tensor:
    """At least 1: a step may hold no token of a kind."""
    if n_tokens is None:
        return max(1, len(values))
    # The counts come from the CPU.
    return n_tokens.to(values.device).clamp(min=1) if isinstance(n_tokens, Tensor) else max(1, n_tokens)


def _check_calibration(surprisal: Tensor, entropy: Tensor, share: float, bins: int) -> None:
    _check_flat("surprisal", surprisal)
    _check_flat("entropy", entropy)
    if entropy.shape != surprisal.shape:
        raise ValueError(f"entropy holds {len(entropy)} tokens, surprisal {len(surprisal)}")
    if bins < 1:
        raise ValueError(f"bins is {bins}, not at least 1")
    if not 0 < share < math.inf:
        raise ValueError(f"share is {share}, not a positive number")


def _check_flat(name: str, values: Tensor) -> None:
    if values.dim() != 1:
        raise ValueError(f"{name} is {tuple(values.shape)}, not flat")
