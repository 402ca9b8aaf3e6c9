"""PEFT adapters from a folder: put on a model, and known by the hash of their files.

An adapter with tokens of its own holds the whole embeddings. They take the place of the base's, so the base notes its
weight hash before: an adapted model has the human profile of its base.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import safe_open

from ugap.errors import InputError, reading
from ugap.files import regular_file
from ugap.models.hub import is_local

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NOTE = "_ugap_adapter"


class Adapter(NamedTuple):
    """An adapter that was put on a model.

    Args:
        folder (`Path`): Its folder.
        base_hash (`str`): The weight hash of the base without the adapter.
        has_embeddings (`bool`): Whether its embeddings took the place of the base's.
    """

    folder: Path
    base_hash: str
    has_embeddings: bool


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

    nameless = f"{folder}: {_CONFIG} names no base model: give the base and --adapter {folder}"
    try:
        config: Any = json.loads((Path(folder) / _CONFIG).read_text(encoding="utf-8"))
        name, revision = config["base_model_name_or_path"], config.get("revision")
        is_here = Path(name).exists()  # raises for what is no text, and for a text that no file can be named by
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise InputError(nameless) from error
    if not name or not isinstance(revision, str | None):
        raise InputError(nameless)
    adapter_hash(folder)
    beside = Path(folder) / name
    if not is_here:
        name = str(beside) if beside.is_dir() else asset_of(name) or name
    if is_adapter(name):
        raise InputError(f"{folder}: its base {name} is an adapter, too: merge that one first")
    # A trainer may note the default revision for a base that has none.
    return name, None if is_local(name) else revision


def adapted_name(base: str, adapter: str | Path) -> str:
    """How a model with an adapter is called.

    Example:
        >>> adapted_name("gemma-3-270m", "runs/sft")
        'gemma-3-270m + sft'
    """
    return f"{base} + {Path(adapter).name}"


def without_wrapper(model: Any) -> "PreTrainedModel":
    """The model of transformers inside one of PEFT, with its adapters in their places; any other as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def has_adapters(model: "PreTrainedModel") -> bool:
    """Whether adapters of PEFT sit in the layers of a model."""
    return any(".base_layer." in name or ".original_module." in name for name, _ in model.named_parameters())


def adapter_of(model: Any) -> Adapter | None:
    """The adapter that `with_adapter` put on a model; `None` if it has been merged since, or there was none."""
    base = without_wrapper(model)
    return getattr(base, _NOTE, None) if has_adapters(base) else None


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


def with_adapter(model: "PreTrainedModel", folder: str | Path, name: str, *, n_tokens: int = 0) -> "PeftModel":
    """Put an adapter on a model, and make sure that all of it found its place.

    The embeddings get as many rows as those that the adapter holds, if it holds any.

    Args:
        model (`PreTrainedModel`): The base model; it is changed in place.
        folder (`str` or `Path`): Folder of the adapter.
        name (`str`): How errors name the model.
        n_tokens (`int`, *optional*, defaults to `0`): Tokens of the adapter's own tokenizer.

    Raises:
        InputError: If the adapter does not fit the model, is one that adds a prompt, or has tokens without embeddings.
    """
    from peft import PeftModel, get_peft_model_state_dict

    from ugap.models.fingerprint import weight_hash  # it asks this module for the base

    adapter_hash(folder)
    base_hash = weight_hash(model)
    with reading(f"{folder}: the adapter does not fit {name}"):
        with safe_open(Path(folder) / _WEIGHTS, "pt") as file:
            names = file.keys()
            stored = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        rows = _make_room(model, stored)
    if n_tokens > rows:
        raise InputError(
            f"{folder}: its tokenizer has {n_tokens} tokens, {name} has embeddings of {rows}, and the adapter has none "
            "of the others: save it with save_embedding_layers=True"
        )
    with reading(f"{folder}: the adapter does not fit {name}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # missing weights are found below
        adapted = PeftModel.from_pretrained(model, str(folder), torch_device=str(model.device))
        # PEFT loads with strict=False: a weight without a place would be dropped in silence.
        placed = [set(get_peft_model_state_dict(adapted, save_embedding_layers=one)) for one in (False, True)]
    if stored.keys() not in placed:
        lacking = min(placed[0] ^ stored.keys())
        raise InputError(f"{folder}: the adapter does not fit {name}: one of them lacks {lacking}")
    note = Adapter(Path(folder), base_hash, has_embeddings=stored.keys() != placed[0])
    setattr(without_wrapper(adapted), _NOTE, note)
    return adapted


def _make_room(model: "PreTrainedModel", stored: Mapping[str, tuple[int, ...]]) -> int:
    """Give the embeddings of a model as many rows as those in an adapter have; the number of rows.

    Nothing is done where the adapter lacks an embedding: rows that it does not hold would be made up.
    """
    ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    before = ends[0].weight.shape[0]
    rows: dict[int, int] = {}
    for path, module in model.named_modules():
        if module in ends:
            whole = re.compile(rf"(.*\.)?{re.escape(path)}(\.base_layer|\.token_adapter\.base_layer)?\.weight")
            rows |= {id(module.weight): shape[0] for name, shape in stored.items() if whole.fullmatch(name)}
    n = rows.get(id(ends[0].weight), before)
    if n != before and {id(end.weight) for end in ends} == rows.keys():
        model.resize_token_embeddings(n, mean_resizing=False)
        # The base without the adapter reads with these rows: a random one would take probability from the others.
        for end in (model.get_input_embeddings(), model.get_output_embeddings()):
            weight: Any = end.weight
            weight.data[before:] = weight.data[:before].mean(0)
    return int(model.get_input_embeddings().weight.shape[0])
