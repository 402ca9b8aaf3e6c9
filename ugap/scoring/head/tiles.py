"""Tiles of logits, and the sums over the vocabulary behind all four statistics: shared by all implementations.

Design choices:
- Products and sums are float32 whatever the dtype of the weights (float64 for float64 inputs). Half-precision inputs
  are multiplied exactly: bfloat16 units where the CPU has them (with a float32 accumulator and a float32 result), plain
  float32 products of the upcast tile where it has none, `out_dtype=float32` on CUDA.
- The vocabulary is the outer loop, so that half-precision weights are upcast once for all tokens.
- All tiles share one memory. Fresh memory costs a CPU more than the numbers that are written there: the system has to
  clear its pages first.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ugap.scoring.head.bfloat16 import bfloat16_units, has_bfloat16_units, is_bfloat16_exact, split_bfloat16

Precision = Literal["exact", "split"]
# Upper and lower end `(n,)` of where each target's logit lies.
Window = tuple[Tensor, Tensor]
# Words of the window that are counted: all of them, or those before the target.
Count = Literal["window", "earlier"]
# The gradient of a logit is `e^z (constant + per_z z)`, less `by_surprisal` for the target: these three, each `(n,)`.
Factors = tuple[Tensor, Tensor, Tensor]

# Wide tiles are multiples of this, so that every row of a product begins where vector loads can.
ALIGNED = 64
# Logits this far below the maximum have probability zero in float32.
FLOOR = -80.0


class Tile(NamedTuple):
    """The product `(n, t)` of some tokens with some words; weight `(H, t)` and bias `(t,)` are ready to multiply."""

    tokens: slice
    words: slice
    weight: Tensor
    bias: Tensor | None
    product: Tensor


class Projection:
    """`softcap(scale * (hidden @ weight.T + bias))` in the accumulation dtype.

    Args:
        weight (`Tensor` of shape `(V, H)`): Weight.
        bias (`Tensor` of shape `(V,)`, *optional*): Bias.
        softcap (`float`, *optional*): Soft cap of the logits.
        scale (`float`, *optional*, defaults to `1.0`): Factor on the logits, before the cap.
        precision (`str`, *optional*, defaults to `"exact"`): See [`head_statistics`][ugap.scoring.head_statistics].
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        softcap: float | None,
        scale: float,
        precision: Precision = "exact",
    ):
        # The kernels read along a row.
        self.weight = weight if weight.stride(-1) == 1 else weight.contiguous()
        self.bias, self.softcap, self.scale = None if bias is None else bias.contiguous(), softcap, scale
        self.accumulate = torch.promote_types(weight.dtype, torch.float32)
        half = weight.dtype in (torch.bfloat16, torch.float16)
        self.native = half and weight.device.type == "cuda"
        on_units = weight.device.type == "cpu" and has_bfloat16_units()
        self.split = precision == "split" and on_units and weight.dtype == torch.float32
        self.units = self.split or (on_units and weight.dtype == torch.bfloat16)
        # float16 has too small a range for the gradients of improbable words.
        rounded = self.native and weight.dtype == torch.bfloat16
        self.gradient_dtype = weight.dtype if rounded else self.accumulate

    def logits(self, tile: Tile) -> Tensor:
        """Logits of a tile; they overwrite its product."""
        out = tile.product
        if tile.bias is not None:
            out += tile.bias
        if self.scale != 1.0:
            out *= self.scale
        if self.softcap is not None:
            out.div_(self.softcap).tanh_().mul_(self.softcap)
        return out

    def gradient(self, logits: Tensor | None, grad: Tensor) -> Tensor:
        """Gradient of the product where that of the logits is `grad`, which is overwritten.

        The logits are only needed where there is a soft cap.
        """
        if self.softcap is not None:
            assert logits is not None
            grad *= 1 - (logits / self.softcap).square_()
        if self.scale != 1.0:
            grad *= self.scale
        return grad

    def rows(self, words: Tensor) -> "Projection":
        """The projection to some words `(n,)` alone."""
        bias = None if self.bias is None else self.bias[words]
        return Projection(self.weight[words], bias, self.softcap, self.scale, "split" if self.split else "exact")

    def parts(self, hidden: Tensor) -> list[Tensor]:
        """The summands of the hidden states: one, or two of bfloat16 numbers where the product is split."""
        if self.native:
            return [hidden]
        hidden = hidden.to(self.accumulate)
        return split_bfloat16(hidden) if self.split else [hidden]

    def multiply(self, left: Sequence[Tensor], right: Sequence[Tensor], out: Tensor) -> Tensor:
        """The product of two matrices, each given by its summands, written to `out`."""
        if self.native:
            return torch.mm(left[0], right[0], out_dtype=self.accumulate, out=out)
        with bfloat16_units() if self.units else nullcontext():
            for index, (a, b) in enumerate(itertools.product(left, right)):
                torch.addmm(out, a, b, beta=min(index, 1), out=out)
        return out

    def weights(self, n_words: int) -> Iterator[tuple[slice, Tensor]]:
        """Words in turn, at most `n_words` at a time, and their weight `(t, H)`, ready to multiply.

        A weight that had to be converted shares its memory with the next.
        """
        vocabulary = len(self.weight)
        # Of about one width: a sliver at the end would be multiplied in another order, breaking ties.
        width = math.ceil(vocabulary / math.ceil(vocabulary / n_words))
        if width > 8 * ALIGNED:
            width = math.ceil(width / ALIGNED) * ALIGNED
        ready = self.native or self.weight.dtype == self.accumulate
        memory = self.weight.new_empty(0 if ready else width, self.weight.shape[1], dtype=self.accumulate)
        for begin in range(0, vocabulary, width):
            words = slice(begin, min(begin + width, vocabulary))
            weight = self.weight[words]
            yield words, weight if ready else memory[: len(weight)].copy_(weight)

    def tiles(self, hidden: Tensor, n_tokens: int, n_words: int) -> Iterator[Tile]:
        """Tiles of some size at most that cover all tokens `(N, H)` and all words, each made when it is asked for.

        They share their memory: a tile is no longer good when the next is asked for.
        """
        blocks = [slice(i, min(i + n_tokens, len(hidden))) for i in range(0, len(hidden), n_tokens)]
        rows = [self.parts(hidden[block]) for block in blocks]
        memory = self.weight.new_empty(0, dtype=self.accumulate)
        for words, weight in self.weights(n_words):
            bias = None if self.bias is None else self.bias[words].to(self.accumulate)
            if not len(memory):  # the first words are as many as any
                memory = memory.new_empty(min(n_tokens, len(hidden)) * len(weight))
            for block, part in zip(blocks, rows, strict=True):
                n, t = len(part[0]), len(weight)
                product = self.multiply(part, [weight.T], memory[: n * t].view(n, t))
                yield Tile(block, words, weight.T, bias, product)


class Sums(NamedTuple):
    """Sums over the vocabulary for `n` tokens, each `(n,)` in the accumulation dtype.

    Args:
        maximum (`Tensor`): Largest logit.
        s0 (`Tensor`): Sum of `exp(z)`, with `z` the logit less the maximum.
        s1 (`Tensor`): Sum of `z exp(z)`.
        s2 (`Tensor`): Sum of `z² exp(z)`.
        above (`Tensor`): Number of logits above the window.
        within (`Tensor`): Number of logits in the window.
        own (`Tensor`): Logit of the target.
    """

    maximum: Tensor
    s0: Tensor
    s1: Tensor
    s2: Tensor
    above: Tensor
    within: Tensor
    target_logit: Tensor


def empty_sums(parts: int, n: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Tensor:
    """Sums `(parts, 7, n)` over no words, the fields of `Sums` in order."""
    sums = torch.zeros(parts, len(Sums._fields), n, dtype=dtype, device=device)
    sums[:, 0] = -math.inf
    return sums


def merged_sums(parts: Tensor) -> Sums:
    """The sums over all words from those over parts of them.

    A part has a maximum of its own. Relative to the common maximum its `z` moves by `shift`, so that its sums become
    `d s0`, `d (s1 + shift s0)` and `d (s2 + 2 shift s1 + shift² s0)` with `d = exp(shift)`.

    Args:
        parts (`Tensor` of shape `(parts, 7, n)`): The fields of `Sums` in order, for each part; `target_logit` is 0 in
            parts without the target.

    Example:
        >>> logits = torch.tensor([1.0, 2.0, 4.0])
        >>> each = [[x, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0] for x in logits.tolist()]  # a word is its own maximum
        >>> sums = merged_sums(torch.tensor(each).unsqueeze(2))
        >>> bool(torch.isclose(sums.maximum + sums.s0.log(), logits.logsumexp(0)))
        True
    """
    maxima, s0, s1, s2, above, within, target_logit = parts.unbind(1)
    maximum = maxima.amax(0)
    # Where all logits are -inf, the difference would be NaN.
    shift = (maxima - maximum.clamp(min=torch.finfo(maximum.dtype).min)).clamp(min=FLOOR)
    decay = shift.exp()
    return Sums(
        maximum,
        (decay * s0).sum(0),
        (decay * (s1 + shift * s0)).sum(0),
        (decay * (s2 + 2 * shift * s1 + shift.square() * s0)).sum(0),
        above.sum(0),
        within.sum(0),
        target_logit.sum(0),
    )


def check_arguments(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    logit_scale: float,
    precision: Precision = "exact",
) -> None:
    """Refuse arguments of a head that do not fit together with a `ValueError` that names one."""
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} are not (N, H) and (V, H)")
    if not hidden.is_floating_point() or hidden.dtype != weight.dtype:
        raise ValueError(f"hidden is {hidden.dtype} and weight is {weight.dtype}: both must be of one floating dtype")
    if targets.shape != hidden.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(f"targets are {tuple(targets.shape)} of {targets.dtype}, not ({hidden.shape[0]},) of int64")
    if bias is not None and (bias.shape != weight.shape[:1] or not bias.is_floating_point()):
        raise ValueError(f"bias is {tuple(bias.shape)} of {bias.dtype}, not ({weight.shape[0]},) of a floating dtype")
    if bias is not None and bias.device != weight.device:
        raise ValueError(f"bias is on {bias.device}, weight on {weight.device}")
    if hidden.device != weight.device or targets.device != weight.device:
        raise ValueError(f"hidden is on {hidden.device}, weight on {weight.device}, targets on {targets.device}")
    wrong = (targets != -100) & ((targets < 0) | (targets >= weight.shape[0]))
    if wrong.any():
        raise ValueError(f"targets holds {int(targets[wrong][0])}, outside the vocabulary of {weight.shape[0]}")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap is {softcap}, not a positive number")
    if not math.isfinite(logit_scale):
        raise ValueError(f"logit_scale is {logit_scale}, not a finite number")
    if precision not in ("exact", "split"):
        raise ValueError(f"precision is {precision!r}, not 'exact' or 'split'")
    splits = precision == "split" and weight.dtype == torch.float32 and has_bfloat16_units()
    if splits and not is_bfloat16_exact(weight):
        raise ValueError("precision 'split' needs a weight whose values are bfloat16 numbers")
