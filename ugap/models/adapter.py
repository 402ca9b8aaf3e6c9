"""PEFT adapters from a folder: put on a model, and known by the hash of their files."""

import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from ugap.errors import InputError, reading
from ugap.files import regular_file
from ugap.models.hub import is_local

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def adapter_hash(folder: str | Path) -> str:
    """A fingerprint of an adapter's files, 16 hexadecimal digits.

    Raises:
        InputError: If the folder holds no adapter in safetensors (pickled weights are none), or one that adds a prompt.
    """
    from peft import PeftConfig  # takes seconds, and most models have no adapter

    digest = hashlib.sha256()
    for name in (_CONFIG, _WEIGHTS):
        path = Path(folder) / name
        if not path.exists():
            raise InputError(f"{folder}: not the folder of a PEFT adapter: it has no {name}")
        regular_file(path)
        digest.update(path.read_bytes())
    with reading(f"{folder}: not the folder of a PEFT adapter"):
        adds_prompt = PeftConfig.from_pretrained(str(folder)).is_prompt_learning
    if adds_prompt:
        raise InputError(f"{folder}: the adapter adds a prompt; only those that change layers, like LoRA, can be used")
    return digest.hexdigest()[:16]


def is_adapter(name: str | Path) -> bool:
    """Whether a name is that of a folder with an adapter, and without a whole model."""
    return (Path(name) / _CONFIG).is_file() and not (Path(name) / "config.json").exists()


def base_of(folder: str | Path) -> tuple[str, str | None]:
    """Name and revision of the model that an adapter was trained on.

    A relative path is looked for from the current folder, then from the adapter's. The cache folder of an asset counts
    as the asset, also one of another machine.

    Raises:
        InputError: If the folder holds no adapter, or its config names no model or another adapter.
    """
    from ugap.models.assets import asset_of  # imports torch

    try:
        config: Any = json.loads((Path(folder) / _CONFIG).read_text(encoding="utf-8"))
        name, revision = config["base_model_name_or_path"], config.get("revision")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder}: {_CONFIG} names no base model: give the base and --adapter {folder}") from error
    if not isinstance(name, str) or not name or not isinstance(revision, str | None):
        raise InputError(f"{folder}: {_CONFIG} names no base model: give the base and --adapter {folder}")
    adapter_hash(folder)
    beside = Path(folder) / name
    if not Path(name).exists():
        name = str(beside) if beside.is_dir() else asset_of(name) or name
    if is_adapter(name):
        raise InputError(f"{folder}: its base {name} is an adapter, too: merge that one first")
    # A trainer may note the default revision for a base that has none.
    return name, None if is_local(name) else revision


def without_wrapper(model: Any) -> "PreTrainedModel":
    """The model of transformers inside one of PEFT, with its adapters in their places; any other as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def has_adapters(model: "PreTrainedModel") -> bool:
    """Whether adapters of PEFT sit in the layers of a model."""
    return any(".base_layer." in name or ".original_module." in name for name, _ in model.named_parameters())


@contextmanager
def adapters_off(model: "PreTrainedModel") -> Iterator[None]:
    """The model without what its adapters add; afterwards it is as it was. One without adapters is left alone."""
    layers: list[Any] = []
    if has_adapters(model):
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import AuxiliaryTrainingWrapper

        wrappers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper)]
        layers = [layer for layer in wrappers if not layer.disable_adapters]
    # PEFT switches gradients off and on together with the adapter.
    with_gradients = [(one, one.requires_grad) for layer in layers for one in layer.parameters()]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, before in with_gradients:
            parameter.requires_grad_(before)


def with_adapter(model: "PreTrainedModel", folder: str | Path, name: str) -> "PeftModel":
    """Put an adapter on a model, and make sure that all of it found its place.

    Args:
        model (`PreTrainedModel`): The base model; it is changed in place.
        folder (`str` or `Path`): Folder of the adapter.
        name (`str`): How errors name the model.

    Raises:
        InputError: If the adapter does not fit the model, or is one that adds a prompt.
    """
    from peft import PeftModel, get_peft_model_state_dict

    adapter_hash(folder)
    with reading(f"{folder}: the adapter does not fit {name}"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # missing weights are found below
            adapted = PeftModel.from_pretrained(model, str(folder), torch_device=str(model.device))
            # PEFT loads with strict=False: a weight without a place would be dropped in silence.
            placed = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
        with safe_open(Path(folder) / _WEIGHTS, "pt") as file:
            stored = set(file.keys())
    if placed != stored:
        raise InputError(f"{folder}: the adapter does not fit {name}: one of them lacks {min(placed ^ stored)}")
    return adapted
