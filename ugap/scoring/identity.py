"""A fingerprint of a model's weights that does not depend on the dtype or device that they are loaded in."""

import hashlib
from collections.abc import Iterator

import torch

SAMPLES = 4096
# Where PEFT puts the layer that an adapter stands beside: `q_proj.base_layer.weight`, and `q_proj.lora_A...` beside it.
_BASE = ".base_layer."


@torch.no_grad()
def weight_hash(model: torch.nn.Module) -> str:
    """SHA-256 over the name, shape and up to 4,096 evenly spaced values of every parameter; 16 hexadecimal digits.

    Values are rounded to bfloat16 first, so a float32 and a bfloat16 load of one checkpoint have one hash. A sample of
    each tensor tells checkpoints apart at no cost; it is no proof against tampering. A base model inside a PEFT model
    has the hash of the base model alone.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(_own_parameters(model)):
        flat = parameter.detach().reshape(-1)
        index = torch.linspace(0, flat.numel() - 1, min(SAMPLES, flat.numel()), dtype=torch.float64, device=flat.device)
        values = flat[index.long()].to(torch.bfloat16).cpu().view(torch.int16).numpy()
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()[:16]


def _own_parameters(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """The parameters of the model without those of adapters, by the names that they have without adapters."""
    adapted = {name.partition(_BASE)[0] for name, _ in model.named_parameters() if _BASE in name}
    for name, parameter in model.named_parameters():
        if _BASE in name:
            yield name.replace(_BASE, "."), parameter
        elif not any(name.startswith(f"{layer}.") for layer in adapted):
            yield name, parameter
