"""Which implementation of the head runs: plain torch, a compiled fold, or the Triton kernels.

Design choices:
- An argument decides; where it says `"auto"`, the environment variable `UGAP_HEAD`; where that says nothing either, the
  device and the amount of work.
- What cannot run on these tensors at all is refused. What should run, but cannot be compiled here, is replaced by torch
  with one warning: the results are the same.
"""

import functools
import logging
import os
import subprocess
from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal, TypeVar, cast, get_args

import torch
from torch import Tensor

from ugap.errors import InputError

logger = logging.getLogger(__name__)

Impl = Literal["auto", "torch", "compiled", "triton"]
VARIABLE = "UGAP_HEAD"
# Below this many logits a compiled fold does not earn back its compilation.
COMPILE_FROM = 2**26
TRITON_DTYPES = (torch.bfloat16, torch.float16, torch.float32)

Result = TypeVar("Result")
Function = TypeVar("Function", bound=Callable[..., Any])


def untraced(function: Function) -> Function:
    """`function`, left alone by `torch.compile` of a model around it: its graph would unroll the loops over tiles."""
    return cast(Function, torch.compiler.disable(function))


def choose(impl: Impl, weight: Tensor, n_logits: int) -> Impl:
    """`"torch"`, `"compiled"` or `"triton"` for a head of this weight.

    Raises:
        ValueError: If `impl` is unknown, or `"triton"` and the kernels do not take such a weight.
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
    if impl == "triton" and weight.dtype not in TRITON_DTYPES:
        raise kind(f"{name} is 'triton', which takes bfloat16, float16 and float32, not {weight.dtype}")
    if impl == "triton" and not _on_triton(weight):
        raise kind(f"{name} is 'triton', which needs tensors on CUDA and Triton installed; they are on {weight.device}")
    if impl != "auto":
        return impl
    if weight.device.type == "cuda":
        return "triton" if weight.dtype in TRITON_DTYPES and _on_triton(weight) else "torch"
    return "compiled" if weight.device.type == "cpu" and n_logits >= COMPILE_FROM else "torch"


def _on_triton(weight: Tensor) -> bool:
    """Whether the kernels can be tried: on CUDA, or anywhere under Triton's interpreter."""
    try:
        import triton
    except ImportError:
        return False
    return weight.device.type == "cuda" or bool(triton.knobs.runtime.interpret)


def with_kernels(weight: Tensor, run: Callable[[ModuleType], Result], instead: Callable[[], Result]) -> Result:
    """`run(ugap.scoring.triton_head)`, or `instead()` from the first time on that the kernels cannot be compiled."""
    if not _given_up:
        try:
            from ugap.scoring import triton_head

            with torch.cuda.device_of(weight):  # kernels run on the current device, wherever their arguments are
                return run(triton_head)
        except Exception as error:
            if not _is_compilation(error):
                raise
            _give_up(error)
    return instead()


# Not empty once the kernels of this process have failed.
_given_up: list[Exception] = []


def _give_up(error: Exception) -> None:
    _given_up.append(error)
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    logger.warning("the Triton kernels of the scoring head cannot run here, torch does their work: %s", reason)


def _is_compilation(error: Exception) -> bool:
    """Whether an error says that a kernel cannot be built or launched here, and nothing about data or memory."""
    if isinstance(error, (ImportError, OSError, subprocess.SubprocessError)):
        return True
    if isinstance(error, (torch.OutOfMemoryError, torch.AcceleratorError)):
        return False
    # Its own errors (compilation, too few resources, the assembler), and the driver's that it does not wrap.
    return type(error).__module__.startswith("triton") or (
        isinstance(error, RuntimeError) and "triton" in str(error).lower()
    )


@functools.cache
def compiled(fold: Callable[..., Any], *probe: tuple[int, ...]) -> Callable[..., Any]:
    """`fold` through inductor, or itself where it cannot be compiled; it is tried on zeros of the shapes of `probe`."""
    try:
        made = torch.compile(fold, dynamic=True)
        made(*(torch.zeros(shape) for shape in probe))
    except (RuntimeError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        logger.warning("the fold of the scoring head cannot be compiled here, it runs eagerly and slower: %s", reason)
        return fold
    return made
