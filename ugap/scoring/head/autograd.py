"""What training needs of the output head, with gradients and without logits.

Surprisal and entropy, the KL divergence from a base model, and GEM's loss, per token. Each is folded over tiles of the
vocabulary as in `ugap.scoring.head.statistics`. The backward pass computes every tile of logits again and turns it into
gradients at once. So `[tokens, vocabulary]` is built in neither direction. Between them the arguments are kept, and a
few numbers per token.

Design choices:
- Logits are `softcap(scale * (hidden @ weight.T + bias)) / temperature`. The temperature divides the scale and the cap,
  which is the same.
- Products and sums are float32 whatever the dtype of the weight (float64 for float64), also under autocast. In the
  backward pass the gradient of the logits is rounded to bfloat16 where the weight is bfloat16, as autograd would round
  it, and multiplied with a float32 accumulator.
- A head whose weight and bias are frozen costs one product a tile in the backward pass, a trained one two.
- Surprisal and entropy run on any implementation of the head, the rest in torch. A second derivative is refused.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ugap.scoring.head.bfloat16 import bfloat16_units
from ugap.scoring.head.dispatch import Impl, choose, no_compile, run
from ugap.scoring.head.lm_head import LMHead
from ugap.scoring.head.tiles import FLOOR, Factors, Projection, Sums, Tile, check_arguments
from ugap.scoring.head.torch_tiles import below, tiles_for

# Of hidden states, weight and bias.
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


@no_compile
def surprisal_entropy(
    hidden: Tensor, targets: Tensor, head: LMHead, *, temperature: float = 1.0, impl: Impl = "auto"
) -> tuple[Tensor, Tensor]:
    """Surprisal of the targets and entropy of their distributions, differentiable.

    With `p` the distribution and `z` its logits, the gradients are `ds/dz_j = p_j - 1[j = y]` and
    `dh/dz_j = -p_j (log p_j + h)`. They flow into `hidden`, and into the head's weight and bias where they are trained.

    Args:
        hidden (`Tensor` of shape `(N, H)`): Final hidden states; moved to the device and dtype of the head's weight.
        targets (`Tensor` of shape `(N,)`, int64): Token ids in `[0, V)`; -100 is skipped: both values are 0 there, and
            so are their gradients.
        head (`LMHead`): The head, holding the live parameters of the model that is trained.
        temperature (`float`, *optional*, defaults to `1.0`): Divides the logits.
        impl (`str`, *optional*, defaults to `"auto"`): As in [`head_statistics`][ugap.scoring.head_statistics].

    Returns:
        `tuple[Tensor, Tensor]`: Surprisal `(N,)` and entropy `(N,)` in nats; float32 (float64 for a float64 weight).

    Raises:
        ValueError: If shapes or dtypes do not fit together, or an argument is out of range.

    Example:
        >>> hidden = torch.eye(3, requires_grad=True)
        >>> head = LMHead(torch.eye(3), None, None, 2.0)
        >>> surprisal, entropy = surprisal_entropy(hidden, torch.tensor([0, 1, -100]), head)
        >>> [round(s, 3) for s in surprisal.tolist()], [round(h, 3) for h in entropy.tolist()]
        ([0.24, 0.24, 0.0], [0.666, 0.666, 0.0])
        >>> surprisal.sum().backward()
        >>> [round(g, 3) for g in hidden.grad[0].tolist()]
        [-0.426, 0.213, 0.213]
    """
    hidden, targets = hidden.to(head.weight.device, head.weight.dtype), targets.to(head.weight.device)
    recipe = _Recipe.of(head, temperature)
    check_arguments(hidden, head.weight, targets, head.bias, head.softcap, head.logit_scale)
    keep = (targets != -100).nonzero().squeeze(1)
    chosen = choose(impl, head.weight, len(keep) * len(head.weight))
    if len(keep) == len(targets):  # nothing is copied where nothing is skipped
        surprisal, entropy = _SurprisalEntropy.apply(hidden, head.weight, head.bias, targets, recipe, chosen)
        return surprisal, entropy
    values = _SurprisalEntropy.apply(hidden[keep], head.weight, head.bias, targets[keep], recipe, chosen)
    surprisal, entropy = (value.new_zeros(len(targets)).index_copy(0, keep, value) for value in values)
    return surprisal, entropy


@no_compile
def kl_divergence(
    hidden: Tensor,
    base_hidden: Tensor,
    head: LMHead,
    base_head: LMHead | None = None,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """KL divergence of the policy from the base model, `KL(base || policy)`, per token and over the whole vocabulary.

    The gradient of the policy's logits is `p - p_base`; the base side has none. Equal arguments give exactly 0.

    Args:
        hidden (`Tensor` of shape `(N, H)`): Final hidden states of the policy.
        base_hidden (`Tensor` of shape `(N, H')`): Those of the base model on the same tokens.
        head (`LMHead`): The policy's head, holding the live parameters of the model that is trained.
        base_head (`LMHead`, *optional*): The base model's head, of the same vocabulary; by default `head`, which is
            right where the head is not trained (LoRA).
        temperature (`float`, *optional*, defaults to `1.0`): Divides the logits of both.

    Returns:
        `Tensor` of shape `(N,)`: Nats, not negative; float32 (float64 for a float64 weight).

    Raises:
        ValueError: If shapes or dtypes do not fit together, or an argument is out of range.

    Example:
        >>> head = LMHead(torch.eye(2), None, None, 1.0)
        >>> hidden, base = torch.tensor([[0.0, 0.0], [1.0, 3.0]]), torch.tensor([[0.0, 1.0], [1.0, 3.0]])
        >>> [round(x, 4) for x in kl_divergence(hidden, base, head).tolist()]
        [0.1109, 0.0]
    """
    base_head = base_head or head
    hidden = hidden.to(head.weight.device, head.weight.dtype)
    base_hidden = base_hidden.detach().to(base_head.weight.device, base_head.weight.dtype)
    recipe, base_recipe = _Recipe.of(head, temperature), _Recipe.of(base_head, temperature)
    nothing = torch.full(hidden.shape[:1], -100, device=hidden.device)
    check_arguments(hidden, head.weight, nothing, head.bias, head.softcap, head.logit_scale)
    if base_hidden.shape != (len(hidden), base_head.weight.shape[1]):
        expected = (len(hidden), base_head.weight.shape[1])
        raise ValueError(f"base_hidden is {tuple(base_hidden.shape)}, not {expected}")
    if len(head.weight) != len(base_head.weight):
        raise ValueError(f"base_head has a vocabulary of {len(base_head.weight)}, head one of {len(head.weight)}")
    base_weight, base_bias = base_head.weight.detach(), None if base_head.bias is None else base_head.bias.detach()
    return _Divergence.apply(hidden, head.weight, head.bias, base_hidden, base_weight, base_bias, recipe, base_recipe)


def gem(hidden: Tensor, targets: Tensor, head: LMHead, *, beta: float = 0.7) -> Tensor:
    """GEM's entropic loss for fine-tuning, per token (Li et al., arXiv 2408.16673): a baseline that keeps diversity.

    `L = -sum_v q_v (log p_y - log p_v)` with `q = softmax(z / beta)` held constant: its weights `w_v` are 1. That is
    `E_q[z] - z_y`, with the gradient `q - 1[j = y]` of the logits. With `s` and `h` the surprisal and the entropy at
    temperature `beta` it is `beta (s - h)` with `h` held constant, which is how it is computed.

    Args:
        hidden (`Tensor` of shape `(N, H)`): Final hidden states.
        targets (`Tensor` of shape `(N,)`, int64): Token ids in `[0, V)`; -100 is skipped: value and gradient are 0.
        head (`LMHead`): The head, holding the live parameters of the model that is trained.
        beta (`float`, *optional*, defaults to `0.7`): Temperature of `q`; 1 has the gradient of cross-entropy.

    Returns:
        `Tensor` of shape `(N,)`: Nats; negative where the target is more probable than `q` expects.

    Raises:
        ValueError: If shapes or dtypes do not fit together, or an argument is out of range.

    Example:
        >>> head = LMHead(torch.eye(2), None, None, 1.0)
        >>> round(gem(torch.tensor([[0.0, 1.0]]), torch.tensor([0]), head, beta=1.0).item(), 4)
        0.7311
    """
    if not 0 < beta < math.inf:
        raise ValueError(f"beta is {beta}, not a positive number")
    surprisal, entropy = surprisal_entropy(hidden, targets, head, temperature=beta)
    return beta * (surprisal - entropy.detach())


class _Recipe(NamedTuple):
    """`logits = softcap(scale * product)`, the temperature included."""

    softcap: float | None
    scale: float

    @classmethod
    def of(cls, head: LMHead, temperature: float) -> "_Recipe":
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature is {temperature}, not a positive number")
        return cls(None if head.softcap is None else head.softcap / temperature, head.logit_scale / temperature)

    def projection(self, weight: Tensor, bias: Tensor | None) -> Projection:
        return Projection(weight, bias, self.softcap, self.scale)


def _risen(logits: Tensor, maximum: Tensor) -> tuple[Tensor, Tensor]:
    """The new running maximum `(n,)`, and the old one less the new."""
    new = torch.maximum(maximum, logits.amax(-1))
    return new, (maximum - new).clamp(min=FLOOR).nan_to_num(nan=FLOOR)


class _Gradients:
    """Gradients of hidden states, weight and bias, summed tile by tile; those that nobody wants are left out."""

    def __init__(self, project: Projection, hidden: Tensor, wanted: Sequence[bool]):
        self.project, self.states = project, hidden
        self.hidden = torch.zeros_like(hidden, dtype=project.accumulate) if wanted[0] else None
        self.weight = torch.zeros_like(project.weight) if wanted[1] else None
        self.bias = None if project.bias is None or not wanted[2] else torch.zeros_like(project.bias)
        self.part: tuple[Tensor | None, Tensor | None] = (None, None)

    def add(self, tile: Tile, grad: Tensor) -> None:
        """Take the gradient `(n, t)` of the product of a tile."""
        if self.hidden is not None:
            self._add_product(self.hidden[tile.tokens], grad, tile.weight.T)
        (weight, bias), dtype = self.part, self.project.accumulate
        if tile.tokens.start == 0:
            size = tile.words.stop - tile.words.start
            weight = None if self.weight is None else self.states.new_zeros(size, self.states.shape[1], dtype=dtype)
            bias = None if self.bias is None else self.states.new_zeros(size, dtype=dtype)
        if weight is not None:
            self._add_product(weight, grad.T, self.states[tile.tokens])
        if bias is not None:
            bias += grad.sum(0, dtype=dtype)
        self.part = weight, bias
        # Half-precision gradients are rounded once, after the last tokens.
        if tile.tokens.stop == len(self.states):
            for whole, new in zip((self.weight, self.bias), self.part, strict=True):
                if whole is not None and new is not None:
                    whole[tile.words] = new

    def _add_product(self, out: Tensor, grad: Tensor, other: Tensor) -> None:
        if self.project.gradient_dtype != self.project.accumulate:
            torch.addmm(out, grad.to(other.dtype), other, out_dtype=self.project.accumulate, out=out)
        else:
            with bfloat16_units() if self.project.units else nullcontext():
                out.addmm_(grad, other.to(self.project.accumulate))

    def result(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        hidden = None if self.hidden is None else self.hidden.to(self.states.dtype)
        return hidden, self.weight, self.bias


class _SurprisalEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, recipe: _Recipe, impl: Impl
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(hidden.device.type, enabled=False):
            project = recipe.projection(weight, bias)
            sums = run(impl, weight, _sums, project, hidden.contiguous(), targets.contiguous())
        maximum, s0, s1, target_logit = sums.maximum, sums.s0, sums.s1, sums.target_logit
        log_s0, mean = s0.log(), s1 / s0
        surprisal = (maximum - target_logit + log_s0).clamp_(min=0)
        entropy = (log_s0 - mean).clamp_(min=0, max=math.log(len(weight)))
        ctx.recipe, ctx.impl = recipe, impl
        ctx.save_for_backward(hidden, weight, bias, targets, maximum, s0, mean)
        ctx.set_materialize_grads(False)
        return surprisal, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        by_surprisal, by_entropy = grads
        hidden, weight, bias, targets, maximum, s0, mean = ctx.saved_tensors
        if by_surprisal is None and by_entropy is None:
            return (None,) * 6
        # With z the logit below the maximum, p = e^z / s0 and log p + h = z - mean, so that the gradient of a logit is
        # e^z (constant + per_z * z), and less by_surprisal for the target.
        zeros = torch.zeros_like(s0)
        by_surprisal = zeros if by_surprisal is None else by_surprisal
        per_z = zeros if by_entropy is None else -by_entropy / s0
        factors = (by_surprisal / s0 - per_z * mean, per_z, by_surprisal.contiguous())  # that of a sum is expanded
        with torch.autocast(hidden.device.type, enabled=False):
            project = ctx.recipe.projection(weight, bias)
            wanted = ctx.needs_input_grad
            out = run(ctx.impl, weight, _gradients, project, hidden, targets, maximum, factors, wanted)
        return (*out, None, None, None)


def _sums(kernels: ModuleType, project: Projection, hidden: Tensor, targets: Tensor) -> Sums:
    return kernels.fold(project, hidden, targets)


def _gradients(
    kernels: ModuleType,
    project: Projection,
    hidden: Tensor,
    targets: Tensor,
    maximum: Tensor,
    factors: Factors,
    wanted: Sequence[bool],
) -> Gradients:
    out = _Gradients(project, hidden, wanted)
    for tile in project.tiles(hidden, *kernels.gradient_tiles(project.weight)):
        out.add(tile, kernels.product_gradient(project, tile, targets, maximum, factors))
    return out.result()


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        base_hidden: Tensor,
        base_weight: Tensor,
        base_bias: Tensor | None,
        recipe: _Recipe,
        base_recipe: _Recipe,
    ) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            project, base = recipe.projection(weight, bias), base_recipe.projection(base_weight, base_bias)
            size = tiles_for(weight)
            # Sums of e for the policy and for the base, and of the base's e times the difference of their logits.
            s0, base_s0, difference = torch.zeros(3, len(hidden), dtype=project.accumulate, device=hidden.device)
            maximum, base_maximum = torch.full_like(s0, -math.inf), torch.full_like(s0, -math.inf)
            for tile, base_tile in zip(project.tiles(hidden, *size), base.tiles(base_hidden, *size), strict=True):
                tokens, logits, base_logits = tile.tokens, project.logits(tile), base.logits(base_tile)
                maximum[tokens], shift = _risen(logits, maximum[tokens])
                between = base_logits - logits
                s0[tokens] = shift.exp() * s0[tokens] + below(logits, maximum[tokens]).exp_().sum(-1)
                base_maximum[tokens], shift = _risen(base_logits, base_maximum[tokens])
                z = below(base_logits, base_maximum[tokens])
                # What the base rules out counts nothing, also where the policy rules it out.
                between.masked_fill_(z <= FLOOR, 0.0)
                e, decay = z.exp_(), shift.exp()
                base_s0[tokens] = decay * base_s0[tokens] + e.sum(-1)
                difference[tokens] = decay * difference[tokens] + between.mul_(e).sum(-1)
        ctx.recipes = recipe, base_recipe
        scalars = (maximum, s0, base_maximum, base_s0)
        ctx.save_for_backward(hidden, weight, bias, base_hidden, base_weight, base_bias, *scalars)
        return (difference / base_s0 + (maximum - base_maximum) + (s0.log() - base_s0.log())).clamp_(min=0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, base_hidden, base_weight, base_bias, *scalars = ctx.saved_tensors
        maximum, s0, base_maximum, base_s0 = scalars
        per_p, per_base = ((grads[0] / s).unsqueeze(1) for s in (s0, base_s0))
        with torch.autocast(hidden.device.type, enabled=False):
            project, base = ctx.recipes[0].projection(weight, bias), ctx.recipes[1].projection(base_weight, base_bias)
            out, size = _Gradients(project, hidden, ctx.needs_input_grad), tiles_for(weight)
            for tile, base_tile in zip(project.tiles(hidden, *size), base.tiles(base_hidden, *size), strict=True):
                tokens, logits, base_logits = tile.tokens, project.logits(tile), base.logits(base_tile)
                capped = None if project.softcap is None else logits.clone()
                grad = below(logits, maximum[tokens]).exp_().mul_(per_p[tokens])
                grad -= below(base_logits, base_maximum[tokens]).exp_().mul_(per_base[tokens])
                out.add(tile, project.gradient(capped, grad))
        return (*out.result(), *(None,) * 5)
