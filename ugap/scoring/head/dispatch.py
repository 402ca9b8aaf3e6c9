"""Which implementation of the head runs: plain torch, the kernel for CPUs, or the Triton kernels.

Design choices:
- An argument decides; where it says `"auto"`, the environment variable `UGAP_HEAD`; where that says nothing either, the
  device and the amount of work.
- On CUDA that is plain torch: the Triton kernels run when they are asked for, until they have been timed on a GPU.
- What cannot run on these tensors at all is refused. What should run, but cannot be compiled here, is replaced by torch
  with one warning: the results are the same.
"""

import functools
import logging
import os
import subprocess
from collections.abc import Callable
from types import ModuleType
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, cast, get_args

import torch
from torch import Tensor

from ugap.errors import InputError

logger = logging.getLogger(__name__)

Impl = Literal["auto", "torch", "compiled", "triton"]
VARIABLE = "UGAP_HEAD"
# Below this many logits the kernel for CPUs does not earn back the time to load it.
COMPILE_FROM = 2**24
KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Function = TypeVar("Function", bound=Callable[..., Any])


def no_compile(function: Function) -> Function:
    """`function`, left alone by `torch.compile` of a model around it: its graph would unroll the loops over tiles."""
    return cast(Function, torch.compiler.disable(function))


def choose(impl: Impl, weight: Tensor, n_logits: int) -> Impl:
    """`"torch"`, `"compiled"` or `"triton"` for a head of this weight.

    Raises:
        ValueError: If `impl` is unknown, or asks for kernels that do not take such a weight.
        InputError: If the environment variable `UGAP_HEAD` says such a thing.
    """
    if impl not in get_args(Impl):
        raise ValueError(f"impl is {impl!r}, not one of {', '.join(map(repr, get_args(Impl)))}")
    kind: type[ValueError] = ValueError
    name = "impl"
    if impl == "auto" and (asked := os.environ.get(VARIABLE, "auto")) != "auto":
        if asked not in get_args(Impl):
            raise InputError(f"{VARIABLE} is {asked!r}, not one of {', '.join(get_args(Impl))}")
        impl, kind, name = cast(Impl, asked), InputError, VARIABLE
    if impl in ("compiled", "triton") and weight.dtype not in KERNEL_DTYPES:
        raise kind(f"{name} is {impl!r}, which takes bfloat16, float16 and float32, not {weight.dtype}")
    if impl == "triton" and not _on_triton(weight):
        raise kind(f"{name} is 'triton', which needs tensors on CUDA and Triton installed; they are on {weight.device}")
    if impl == "compiled" and weight.device.type != "cpu":
        raise kind(f"{name} is 'compiled', which needs tensors on a CPU; they are on {weight.device}")
    if impl != "auto":
        return impl
    worth = weight.device.type == "cpu" and weight.dtype in KERNEL_DTYPES and n_logits >= COMPILE_FROM
    return "compiled" if worth else "torch"


def _on_triton(weight: Tensor) -> bool:
    """Whether the kernels can be tried: on CUDA, or anywhere under Triton's interpreter."""
    try:
        import triton
    except ImportError:
        return False
    return weight.device.type == "cuda" or bool(triton.knobs.runtime.interpret)


def run(
    chosen: Impl,
    weight: Tensor,
    compute: Callable[Concatenate[ModuleType, Arguments], Result],
    *arguments: Arguments.args,
    **options: Arguments.kwargs,
) -> Result:
    """`compute(module, *arguments)` with the module of an implementation, or with `torch_tiles` where it cannot run.

    Each module has `window`, `fold`, `gradient_tiles` and `product_gradient`.
    """
    if chosen != "torch" and chosen not in _given_up:
        try:
            with torch.cuda.device_of(weight):  # kernels run on the current device, wherever their arguments are
                return compute(_module(chosen), *arguments, **options)
        except Exception as error:
            if not _is_compilation(error):
                raise
            _give_up(chosen, error)
    from ugap.scoring.head import torch_tiles

    return compute(torch_tiles, *arguments, **options)


@functools.cache
def _module(chosen: Impl) -> ModuleType:
    if chosen == "triton":
        from ugap.scoring.head import triton_kernels

        return triton_kernels
    from ugap.scoring.head import cpu

    try:
        cpu.check()
    except Exception as error:  # inductor may fail in any way: the kernel is then not to be had
        raise _NoKernelError(error) from error
    return cpu


class _NoKernelError(Exception):
    """Why a kernel cannot be compiled here."""


# Implementations that have failed in this process.
_given_up: dict[Impl, Exception] = {}


def _give_up(chosen: Impl, error: Exception) -> None:
    _given_up[chosen] = error
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    names = {"compiled": "compiled", "triton": "Triton"}
    logger.warning(
        "the %s kernels of the scoring head cannot run here, torch does their work: %s", names[chosen], reason
    )


def _is_compilation(error: Exception) -> bool:
    """Whether an error says that a kernel cannot be built or launched here, and nothing about data or memory."""
    if isinstance(error, (ImportError, OSError, subprocess.SubprocessError, _NoKernelError)):
        return True
    if isinstance(error, (torch.OutOfMemoryError, torch.AcceleratorError)):
        return False
    # Its own errors (compilation, too few resources, the assembler), and the driver's that it does not wrap.
    return type(error).__module__.startswith("triton") or (
        isinstance(error, RuntimeError) and "triton" in str(error).lower()
    )
