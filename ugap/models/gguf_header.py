"""The metadata of a GGUF file, walked once to see that all it announces is there.

The reader of the package `gguf` takes every count at its word: with one damaged number it loops past the end of the
file for as long as there is memory.
"""

import struct
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFValueType

_SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}


def read_numbers(path: Path) -> tuple[dict[str, Any], int]:
    """The single numbers of the metadata by their keys, and how many tensors the file says it has.

    Raises:
        ValueError: It is no GGUF file.
        struct.error: It ends before its metadata do.
    """
    walk, n_tensors, n_keys = _opened(path)
    entries = ((walk.string(), walk.value(walk.number("I"))) for _ in range(n_keys))
    return {key: value for key, value in entries if value is not None}, n_tensors


def read_pre_tokenizer(path: Path) -> str | None:
    """What the metadata call the way in which text is cut before it is tokenised (`tokenizer.ggml.pre`).

    Raises:
        ValueError: It is no GGUF file.
        struct.error: It ends before its metadata do.
    """
    walk, _, n_keys = _opened(path)
    for _ in range(n_keys):
        key, kind = walk.string(), walk.number("I")
        if key == "tokenizer.ggml.pre" and kind == GGUFValueType.STRING:
            return walk.string()
        walk.value(kind)
    return None


def _opened(path: Path) -> "tuple[_Walk, int, int]":
    """A walk that stands before the first key, the number of tensors, and that of keys."""
    walk = _Walk(np.memmap(path, mode="r").data if path.stat().st_size else memoryview(b""))
    if bytes(walk.data[:4]) != b"GGUF":
        raise ValueError("it does not begin as a GGUF file does")
    walk.at = 4
    if walk.number("I") & 0xFFFF == 0:  # the version, a small number
        walk.order = ">"
    n_tensors, n_keys = walk.number("Q"), walk.number("Q")
    return walk, n_tensors, n_keys


class _Walk:
    """A place in the file; every reading moves on, or raises where the file ends."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at, self.order = data, 0, "<"

    def number(self, kind: str) -> Any:
        form = self.order + kind
        (number,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return number

    def skip(self, n_bytes: int) -> None:
        if n_bytes > len(self.data) - self.at:
            raise struct.error("the file ends within its metadata")
        self.at += n_bytes

    def string(self) -> str:
        length = self.number("Q")
        self.skip(length)  # before the read, which would cut a damaged length short in silence
        return bytes(self.data[self.at - length : self.at]).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """A number; `None` of strings and arrays."""
        if kind in _SCALARS:
            return self.number(_SCALARS[GGUFValueType(kind)])
        if kind == GGUFValueType.STRING:
            self.skip(self.number("Q"))
            return None
        if kind != GGUFValueType.ARRAY:
            raise ValueError(f"its metadata have a value of the unknown kind {kind}")
        inner, length = self.number("I"), self.number("Q")
        if inner in _SCALARS:
            self.skip(length * struct.calcsize(self.order + _SCALARS[GGUFValueType(inner)]))
        else:
            for _ in range(length):
                self.value(inner)
        return None
