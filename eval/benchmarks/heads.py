"""The heads that `bench_scoring` compares: hidden states and a weight to surprisals, and back to gradients.

Design choices:
- The inputs look like a language model's. A logit is `-ln(id + 1)`, the bias of Zipf's law towards frequent words (ids
  of byte-pair encodings come roughly in order of frequency), plus a normal part with a standard deviation of 2.8; both
  come out of the product itself, and together their standard deviation is 3. Targets are drawn from the resulting
  distribution: surprisal is entropy on average (4 to 5 nats), and ranks run from 1 to the tens of thousands. A flat
  distribution would time heads that skip negligible words, or count close ranks again, on what is no text.
- Every head gets the same tensors and is called as its users call it. Forward is without gradients; backward is forward
  and backward with upstream gradients for surprisal and, where the head has it, entropy.
- The reference is float64 on the same (rounded) numbers, on tokens spread over the whole text.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Literal, NamedTuple, TypeVar
from unittest.mock import patch

import torch
from torch import Tensor

STANDARD_DEVIATION = 2.8
REFERENCE_TOKENS = 256
TILE = 8192
ONE, TWO = "surprisal", "surprisal, entropy"
FOUR = "surprisal, entropy, varentropy, rank"
GRADIENT = {ONE: "surprisal and its gradient", TWO: "surprisal, entropy and their gradient"}
# Rows of logits that the bare product writes at a time: about the fastest on either device.
GEMM_ROWS = {"cpu": 512, "cuda": 4096}


class Shape(NamedTuple):
    """The head of a model."""

    name: str
    hidden: int
    vocabulary: int


@dataclass(frozen=True, eq=False)
class Case:
    """What every head works on.

    Args:
        hidden (`Tensor` of shape `(N, H)`): Hidden states.
        weight (`Tensor` of shape `(V, H)`): The head, of the same dtype; its gradient is wanted if it requires one.
        targets (`Tensor` of shape `(N,)`, int64): Token ids.
        upstream (`tuple[Tensor, Tensor]`): Gradients `(N,)`, float32, of surprisal and of entropy.
        softcap (`float`, *optional*): Final-logit soft-capping.
    """

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    upstream: tuple[Tensor, Tensor]
    softcap: float | None

    @classmethod
    def draw(
        cls,
        shape: Shape,
        tokens: int,
        dtype: torch.dtype,
        device: str,
        *,
        softcap: float | None = None,
        trained_head: bool = False,
        seed: int = 0,
    ) -> "Case":
        """Draw inputs; the same on the same device."""
        generator = torch.Generator(device).manual_seed(seed)
        weight = torch.empty(shape.vocabulary, shape.hidden, dtype=dtype, device=device)
        weight.normal_(std=STANDARD_DEVIATION / math.sqrt(max(1, shape.hidden - 1)), generator=generator)
        hidden = torch.empty(tokens, shape.hidden, dtype=dtype, device=device).normal_(generator=generator)
        # One unit carries the bias, spread evenly over both factors.
        hidden[:, 0] = math.sqrt(shape.hidden)
        weight[:, 0] = torch.arange(1, shape.vocabulary + 1, device=device).log() / -math.sqrt(shape.hidden)
        upstream = torch.empty(2, tokens, device=device).normal_(generator=generator)
        targets = torch.zeros(tokens, dtype=torch.int64, device=device)
        case = cls(hidden, weight.requires_grad_(trained_head), targets, (upstream[0], upstream[1]), softcap)
        # The largest of the logits less the logarithm of exponential noise is drawn from their softmax.
        best = torch.full((tokens,), -math.inf, device=device)
        with torch.no_grad():
            for begin, _, logits in _tiled(case, torch.float32):
                noise = torch.empty_like(logits).exponential_(generator=generator)
                value, word = (logits - noise.log_()).max(-1)
                targets[value > best] = begin + word[value > best]
                torch.maximum(best, value, out=best)
        return case

    def part(self, index: Tensor) -> "Case":
        """The case of some tokens `(n,)`."""
        upstream = (self.upstream[0][index], self.upstream[1][index])
        return replace(self, hidden=self.hidden[index], targets=self.targets[index], upstream=upstream)

    def checked(self) -> Tensor:
        """Which tokens `(n,)` are compared with the reference."""
        n = min(REFERENCE_TOKENS, len(self.targets))
        return torch.linspace(0, len(self.targets) - 1, n, device=self.targets.device).round().long()


class Computed(NamedTuple):
    """What a head computed, for the comparison; nothing for the bare product.

    Args:
        surprisal (`Tensor` of shape `(N,)`, *optional*): In nats.
        gradients (`tuple[Tensor, ...]`): Those of the hidden states `(N, H)` and, if wanted, of the weight `(V, H)`.
    """

    surprisal: Tensor | None = None
    gradients: tuple[Tensor, ...] = ()


class Reference(NamedTuple):
    """What is right for the checked tokens: surprisal `(n,)`, and gradients `(n, H)` by surprisal and by entropy."""

    surprisal: Tensor
    by_surprisal: Tensor | None = None
    by_entropy: Tensor | None = None


def _tiled(case: Case, dtype: torch.dtype) -> Iterator[tuple[int, Tensor, Tensor]]:
    """First word, weight `(t, H)` and logits `(N, t)` of the tiles of a vocabulary."""
    hidden = case.hidden.to(dtype)
    for begin in range(0, len(case.weight), TILE):
        weight = case.weight[begin : begin + TILE].to(dtype)
        logits = hidden @ weight.T
        if case.softcap is not None:
            logits = case.softcap * torch.tanh(logits / case.softcap)
        yield begin, weight, logits


@torch.no_grad()
def reference(whole: Case, *, gradients: bool) -> Reference:
    """Surprisal in float64 and, where asked for, the gradients of the hidden states."""
    case = whole.part(whole.checked())
    log_total = torch.full(case.targets.shape, -math.inf, dtype=torch.float64, device=case.targets.device)
    target_logit = torch.zeros_like(log_total)
    for begin, _, logits in _tiled(case, torch.float64):
        log_total = torch.logaddexp(log_total, logits.logsumexp(-1))
        here = (case.targets >= begin) & (case.targets < begin + TILE)
        target_logit[here] = logits[here, case.targets[here] - begin]
    surprisal = log_total - target_logit
    if not gradients:
        return Reference(surprisal)
    # With w the weight of a word, times what the cap lets through: sums of p w and p (log p) w, and w of the target.
    plain, by_log, at_target = torch.zeros(3, *case.hidden.shape, dtype=torch.float64, device=target_logit.device)
    entropy = torch.zeros_like(target_logit)
    for begin, weight, logits in _tiled(case, torch.float64):
        log_p = logits - log_total[:, None]
        p = log_p.exp()
        entropy -= (p * log_p).sum(-1)
        passed = torch.ones_like(logits) if case.softcap is None else 1 - (logits / case.softcap) ** 2
        plain += (p * passed) @ weight
        by_log += (p * log_p * passed) @ weight
        here = (case.targets >= begin) & (case.targets < begin + TILE)
        column = case.targets[here] - begin
        at_target[here] = passed[here, column][:, None] * weight[column]
    by_surprisal, by_entropy = (one.double()[:, None] for one in case.upstream)
    return Reference(surprisal, by_surprisal * (plain - at_target), -by_entropy * (by_log + entropy[:, None] * plain))


Pass = Literal["forward", "backward"]
Result = TypeVar("Result")
Run = Callable[[Case], Computed]
Values = Callable[[Case], tuple[Tensor, ...]]
Needs = Callable[[Case, Pass], str | None]


def _always(case: Case, which: Pass) -> None:
    return None


@dataclass(frozen=True)
class Head:
    """One way to do it.

    Args:
        computes (`str`): What a forward pass gives.
        forward (`Callable[[Case], Computed]`): The forward pass; called without gradients.
        backward (`Callable[[Case], Computed]`): Forward and backward.
        differentiates (`str`): What a backward pass gives.
        has_entropy (`bool`): Whether the backward pass has a gradient by entropy.
        recomputes (`bool`): Whether the backward pass makes the logits again.
        needs (`Callable[[Case, Pass], str | None]`): Loads what it needs; why it cannot run here, or `None`.
    """

    computes: str
    forward: Run
    backward: Run
    differentiates: str
    has_entropy: bool = True
    recomputes: bool = True
    needs: Needs = _always

    def run(self, case: Case, which: Pass) -> Computed:
        """One pass."""
        if which == "backward":
            return self.backward(case)
        with torch.no_grad():
            return self.forward(replace(case, weight=case.weight.detach()))

    def operations(self, case: Case, which: Pass) -> int:
        """Floating-point operations of the products that a pass makes."""
        backward = 1 + self.recomputes + case.weight.requires_grad if which == "backward" else 0
        return 2 * case.hidden.numel() * len(case.weight) * (1 + backward)

    def differences(self, case: Case, computed: Computed, right: Reference) -> tuple[float | None, float | None]:
        """Largest difference of a surprisal, and the relative one of the gradients of the hidden states."""
        if computed.surprisal is None:
            return None, None
        index = case.checked()
        surprisal = float((computed.surprisal[index].double() - right.surprisal).abs().max())
        if not computed.gradients or right.by_surprisal is None or right.by_entropy is None:
            return surprisal, None
        expected = right.by_surprisal + right.by_entropy if self.has_entropy else right.by_surprisal
        return surprisal, float((computed.gradients[0][index].double() - expected).norm() / expected.norm())


def seconds_of(work: Callable[[], object], device: str) -> float:
    """Seconds of one call."""
    if device == "cpu":
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    # A call for which memory had to be fetched from the device would be timed with that: it is repeated, once.
    for _ in range(2):
        fetched = torch.cuda.memory_stats().get("num_device_alloc", 0)
        torch.cuda.synchronize()
        start.record()
        work()
        end.record()
        end.synchronize()
        if torch.cuda.memory_stats().get("num_device_alloc", 0) == fetched:
            break
    return start.elapsed_time(end) / 1e3


def _differentiated(values: Values, case: Case) -> Computed:
    hidden = case.hidden.detach().requires_grad_()
    results = values(replace(case, hidden=hidden))
    wanted = (hidden, case.weight) if case.weight.requires_grad else (hidden,)
    gradients = torch.autograd.grad(results, wanted, case.upstream[: len(results)])
    return Computed(results[0].detach(), gradients)


def _of_values(values: Values, computes: str, needs: Needs) -> Head:
    """A head whose forward pass is that of its backward pass."""

    def forward(case: Case) -> Computed:
        return Computed(values(case)[0])

    backward = partial(_differentiated, values)
    return Head(computes, forward, backward, GRADIENT[computes], has_entropy=computes == TWO, needs=needs)


def _products(case: Case, *, backward: bool) -> Computed:
    rows = min(GEMM_ROWS[case.hidden.device.type], len(case.hidden))
    weight = case.weight.detach()
    buffer = torch.empty(rows, len(weight), dtype=weight.dtype, device=weight.device)
    of_hidden = torch.empty_like(case.hidden) if backward else None
    of_weight = torch.zeros_like(weight) if backward and case.weight.requires_grad else None
    for begin in range(0, len(case.hidden), rows):
        block = case.hidden[begin : begin + rows]
        logits = torch.mm(block, weight.T, out=buffer[: len(block)])
        if of_hidden is not None:  # the logits stand for their gradient: a product costs the same
            torch.mm(logits, weight, out=of_hidden[begin : begin + rows])
        if of_weight is not None:  # summed over blocks, as a trained head does
            of_weight.addmm_(logits.T, block)
    return Computed()


def _log_p(case: Case) -> Tensor:
    logits = (case.hidden @ case.weight.T).float()
    if case.softcap is not None:
        logits = case.softcap * torch.tanh(logits / case.softcap)
    return logits.log_softmax(-1)


def _naive(case: Case) -> Computed:
    log_p = _log_p(case)
    target_log_p = log_p.gather(1, case.targets[:, None])
    p = log_p.exp()
    entropy = -(p * log_p).sum(-1)
    # Computed and dropped: the timing is that of all four statistics.
    (p * (log_p + entropy[:, None]) ** 2).sum(-1)
    (log_p > target_log_p).sum(-1)
    return Computed(-target_log_p.squeeze(1))


def _naive_values(case: Case) -> tuple[Tensor, ...]:
    log_p = _log_p(case)
    return -log_p.gather(1, case.targets[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(-1)


def _trl(case: Case) -> tuple[Tensor, ...]:
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as WORDS

    outputs = ("log_probs", "entropy")
    options = (1.0, WORDS, case.softcap, 1.0, outputs)  # temperature, words of a tile, soft cap, logit scale
    log_p, entropy, *_ = ChunkedLogProbFunction.apply(case.hidden, case.weight, None, case.targets, *options)
    return -log_p, entropy


def _liger(case: Case) -> tuple[Tensor, ...]:
    head = import_module("liger_kernel.ops").LigerFusedLinearScaledCrossEntropyFunction
    surprisal, entropy = head.apply(case.hidden, case.weight, case.targets, return_entropy=True)
    return surprisal, entropy.float()


def _needs_liger(case: Case, which: Pass) -> str | None:
    if case.softcap is not None:
        return "it has no soft cap"
    return _peer("liger_kernel.ops", "liger-kernel", cuda=False)(case, which)


def _cce(case: Case) -> tuple[Tensor, ...]:
    head = import_module("cut_cross_entropy").linear_cross_entropy
    return (head(case.hidden, case.weight, case.targets, softcap=case.softcap, reduction="none"),)


def _peer(module: str, package: str, *, cuda: bool) -> Needs:
    def needs(case: Case, which: Pass) -> str | None:
        if cuda and case.hidden.device.type != "cuda":
            return "its Triton kernels need a GPU"
        try:
            import_module(module)
        except ImportError as error:
            return f"this needs {package} ({error})"
        return None

    return needs


def _ours(case: Case, impl: Literal["torch", "compiled", "triton"]) -> Computed:
    from ugap.scoring.head.statistics import head_statistics

    statistics = head_statistics(case.hidden, case.weight, case.targets, None, case.softcap, impl=impl)
    return Computed(statistics.surprisal)


def _our_values(case: Case, impl: Literal["torch", "compiled", "triton"]) -> tuple[Tensor, ...]:
    from ugap.scoring.head.autograd import surprisal_entropy
    from ugap.scoring.head.lm_head import LMHead

    return surprisal_entropy(case.hidden, case.targets, LMHead(case.weight, None, case.softcap, 1.0), impl=impl)


def _compiled(case: Case, which: Pass) -> str | None:
    from ugap.scoring.head import cpu

    if case.hidden.device.type != "cpu":
        return "it is a kernel for CPUs"
    try:
        cpu.check()
    except (RuntimeError, OSError) as error:
        return f"its kernel cannot be compiled here ({error})"
    return None


def _kernels(case: Case, which: Pass, *, fused: bool) -> str | None:
    if case.hidden.device.type != "cuda":
        return "its Triton kernels need a GPU"
    if fused and case.hidden.dtype == torch.float32:
        return "float32 takes the tiles at any hidden size"
    return _peer("triton", "Triton", cuda=True)(case, which)


def by_kernels(run: Callable[[Case], Result], *, fused: bool) -> Callable[[Case], Result]:
    """`run` on the fused kernel, or on tiles, at every hidden size; raises where torch steps in for the kernels."""

    def forced(case: Case) -> Result:
        from ugap.scoring.head import dispatch, triton_kernels

        given_up: dict[str, Exception] = {}
        with (
            patch.object(triton_kernels, "FUSED_UP_TO", sys.maxsize if fused else 0),
            patch.object(dispatch, "_given_up", given_up),
        ):
            result = run(case)
        for error in given_up.values():
            raise error
        return result

    return forced


def _our_head(impl: Literal["torch", "compiled"], needs: Needs) -> Head:
    backward = partial(_differentiated, partial(_our_values, impl=impl))
    return Head(FOUR, partial(_ours, impl=impl), backward, GRADIENT[TWO], needs=needs)


def _our_kernels(*, fused: bool) -> Head:
    forward = by_kernels(partial(_ours, impl="triton"), fused=fused)
    backward = by_kernels(partial(_differentiated, partial(_our_values, impl="triton")), fused=fused)
    return Head(FOUR, forward, backward, GRADIENT[TWO], needs=partial(_kernels, fused=fused))


HEADS = {
    "gemm": Head(
        "bare product: logits, some rows at a time",
        partial(_products, backward=False),
        partial(_products, backward=True),
        "bare products: logits, and the gradients that are wanted",
        recomputes=False,
    ),
    "naive": Head(FOUR, _naive, partial(_differentiated, _naive_values), GRADIENT[TWO], recomputes=False),
    "trl": _of_values(_trl, TWO, _peer("trl.trainer.utils", "TRL", cuda=False)),
    "liger": _of_values(_liger, TWO, _needs_liger),
    "cce": _of_values(_cce, ONE, _peer("cut_cross_entropy", "cut-cross-entropy", cuda=True)),
    "ours-torch": _our_head("torch", _always),
    "ours-compiled": _our_head("compiled", _compiled),
    "ours-triton-fused": _our_kernels(fused=True),
    "ours-triton-tiles": _our_kernels(fused=False),
}
