"""PEFT adapters from a folder: put on a model, and known by the hash of their files."""

import hashlib
import warnings
from pathlib import Path

from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import PreTrainedModel

from ugap.errors import InputError, reading
from ugap.files import regular_file

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def adapter_hash(folder: str | Path) -> str:
    """A fingerprint of an adapter's files, 16 hexadecimal digits.

    Raises:
        InputError: If the folder holds no adapter in safetensors; pickled weights are none.
    """
    digest = hashlib.sha256()
    for name in (_CONFIG, _WEIGHTS):
        path = Path(folder) / name
        if not path.exists():
            raise InputError(f"{folder}: not the folder of a PEFT adapter: it has no {name}")
        regular_file(path)
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def with_adapter(model: PreTrainedModel, folder: str | Path, name: str) -> PeftModel:
    """Put an adapter on a model, and make sure that all of it found its place.

    Args:
        model (`PreTrainedModel`): The base model; it is changed in place.
        folder (`str` or `Path`): Folder of the adapter.
        name (`str`): How errors name the model.

    Raises:
        InputError: If the adapter does not fit the model, or is one that adds a prompt.
    """
    with reading(f"{folder}: the adapter does not fit {name}"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # missing weights are found below
            adapted = PeftModel.from_pretrained(model, str(folder), torch_device=str(model.device))
            # PEFT loads with strict=False: a weight without a place would be dropped in silence.
            placed = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
        with safe_open(Path(folder) / _WEIGHTS, "pt") as file:
            stored = set(file.keys())
    if adapted.active_peft_config.is_prompt_learning:
        raise InputError(f"{folder}: the adapter adds a prompt; only those that change layers, like LoRA, can be used")
    if placed != stored:
        raise InputError(f"{folder}: the adapter does not fit {name}: one of them lacks {min(placed ^ stored)}")
    return adapted
