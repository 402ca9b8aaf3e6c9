"""Measure peak memory in a process of its own, and record what the figures depend on."""

import ctypes
import datetime
import gc
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

EMULATED = "This CPU emulates bfloat16, slowly (no AVX512-BF16, no AMX): no ratio here holds for one that has them."

progress = partial(print, file=sys.stderr, flush=True)


def peak_extra(work: Callable[[], object]) -> dict[str, Any]:
    """Bytes that `work` adds at its peak to those resident before it; `why_not` where they cannot be measured."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # memory that is free but kept would hide as much of the peak
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _resident("VmRSS")
    except OSError as error:
        return {"why_not": f"that needs Linux with glibc ({error})"}
    work()
    return {"peak_extra_bytes": max(0, _resident("VmHWM") - before), "resident_bytes": before}


def peak_extra_on_gpu(work: Callable[[], object]) -> dict[str, Any]:
    """Bytes that `work` adds at its peak to what torch has allocated on the GPU before it."""
    import torch

    gc.collect()  # what is freed during the work would hide as much of the peak
    synchronize("cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    synchronize("cuda")
    return {"peak_extra_bytes": torch.cuda.max_memory_allocated() - before, "allocated_bytes": before}


def synchronize(device: str) -> None:
    """Wait for what a device (`"cpu"`, `"cuda"`) has still to do: a clock that is read earlier misses it."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _resident(field: str) -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[field].split()[0]) * 1024


def in_child(program: str, words: Sequence[object]) -> dict[str, Any]:
    """The JSON object in the last line of what a program prints; `why_not` and the `status` where it fails."""
    command = [sys.executable, program, *map(str, words)]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, encoding="utf-8")
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    killed = ", as one does that takes too much memory" if done.returncode == -9 else ""
    return {"why_not": f"its process ended with status {done.returncode}{killed}", "status": done.returncode}


def environment(packages: Sequence[str]) -> dict[str, Any]:
    """What the figures depend on; `None` for a package that is not installed."""
    import torch

    from ugap.scoring.head import bfloat16

    lines = cpuinfo.read_text().splitlines() if (cpuinfo := Path("/proc/cpuinfo")).exists() else []
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor()),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "bfloat16_units": bfloat16.has_bfloat16_units(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
