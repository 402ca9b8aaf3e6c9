"""A fingerprint of a model's weights that does not depend on the dtype or device that they are loaded in."""

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import torch

from ugap.models.adapter import adapter_of

SAMPLES = 4096
# PEFT moves an adapted layer one level down, to `q_proj.base_layer.weight`, and adds `q_proj.lora_A...` next to it. It
# keeps both states of a layer that is trained as a whole, and the change of tokens that are.
_MOVED = re.compile(r"(\.token_adapter)?\.base_layer\.|\.original_module\.")
_WHOLE = ".modules_to_save."


@torch.no_grad()
def weight_hash(model: torch.nn.Module, *, adapters: bool = False) -> str:
    """SHA-256 over the name, shape and up to 4,096 evenly spaced values of every parameter; 16 hexadecimal digits.

    Values are rounded to bfloat16 first, so a float32 and a bfloat16 load of one checkpoint have the same hash. A
    sample of each tensor is cheap and distinguishes checkpoints; it does not detect tampering. A base model inside a
    PEFT model has the hash of the base model alone, or with `adapters` that of both. Offloading does not change it.
    """
    from accelerate.utils import align_module_device

    adapter = adapter_of(model)
    if adapter is not None and not adapters:
        return adapter.base_hash

    digest = hashlib.sha256()
    parameters = dict(_base_parameters(model))
    if adapters:
        parameters |= {name: name for name, _ in model.named_parameters() if name not in parameters.values()}
    for name, path in sorted(parameters.items()):
        owner, _, leaf = path.rpartition(".")
        module = model.get_submodule(owner)
        with align_module_device(module):  # fetches what is offloaded
            flat = getattr(module, leaf).detach()
            shape, flat = tuple(flat.shape), flat.reshape(-1)
            steps = min(SAMPLES, flat.numel())
            index = torch.linspace(0, flat.numel() - 1, steps, dtype=torch.float64, device=flat.device)
            values = flat[index.long()].to(torch.bfloat16).cpu().view(torch.int16).numpy()
        digest.update(f"{name}{shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()[:16]


def _base_parameters(model: Any) -> Iterator[tuple[str, str]]:
    """Names of the model's parameters without those of adapters: as they are without adapters, and as they are."""
    parameters = dict(model.named_parameters())
    adapted = {name[: place.start()] for name in parameters if (place := _MOVED.search(name))}
    tied = getattr(model, "all_tied_weights_keys", ())
    for name, parameter in parameters.items():
        if parameter.is_meta and name in tied:
            continue  # offloaded, it is no longer the same parameter as the one that it is tied to
        if _MOVED.search(name):
            yield _MOVED.sub(".", name), name
        elif _WHOLE not in name and not any(name.startswith(f"{layer}.") for layer in adapted):
            yield name, name
