"""A fingerprint of a model's weights that does not depend on the dtype or device that they are loaded in."""

import hashlib

import torch

SAMPLES = 4096


@torch.no_grad()
def weight_hash(model: torch.nn.Module) -> str:
    """SHA-256 over the name, shape and up to 4,096 evenly spaced values of every parameter; 16 hexadecimal digits.

    Values are rounded to bfloat16 first, so a float32 and a bfloat16 load of one checkpoint have one hash. A sample of
    each tensor tells checkpoints apart at no cost; it is no proof against tampering.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        flat = parameter.detach().reshape(-1)
        index = torch.linspace(0, flat.numel() - 1, min(SAMPLES, flat.numel()), dtype=torch.float64, device=flat.device)
        values = flat[index.long()].to(torch.bfloat16).cpu().view(torch.int16).numpy()
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()[:16]
