"""Load a causal language model and its tokenizer, ready to measure with.

Design choices:
- A name is an asset's, else a path that exists, else a Hub id. Write `./name` for a folder named like an asset.
- Weights come from safetensors or GGUF; a pickle is never opened. Code of a repository runs only where asked for.
- What cannot be a causal language model is refused from its config and from the names of its weights, with one line.
- Whatever the libraries raise on the way becomes one line too: a damaged folder takes them to any of their lines.
- The model is in eval mode without gradients; its generation config keeps the token ids and otherwise
  samples from the model's own distribution, whatever the repository asked for.
"""

import re
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate.utils import get_cpu_distributed_information
from safetensors import safe_open
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from ugap.errors import InputError, reading
from ugap.files import regular_file
from ugap.models.adapter import adapter_hash, base_of, is_adapter, with_adapter
from ugap.models.assets import ASSETS, asset_path
from ugap.models.console import quiet_transformers
from ugap.models.gguf import check_cuts, converted
from ugap.models.hub import hub_folder, is_local
from ugap.models.sizes import HIDDEN, LAYERS, WIDTHS, check_sizes
from ugap.unicode import text_fault

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def load_model(
    name: str,
    *,
    adapter: str | Path | None = None,
    dtype: str | torch.dtype = "float32",
    device: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Load a model in eval mode, without gradients, and its tokenizer.

    `tokenizer.bos_token_id` is the token that a document starts with, or `None`; for the assets it was settled by
    measuring. `tokenizer.pad_token` always exists (it falls back on the end token) and padding is on the left.

    Args:
        name (`str`): An asset (`"gemma-3-270m"`, `"smollm2-135m-instruct"`), a folder with safetensors and a tokenizer,
            a `.gguf` file (converted once), or a Hub id. Also the folder or Hub id of a PEFT adapter, whose config
            names its base.
        adapter (`str` or `Path`, *optional*): Folder or Hub id of a PEFT adapter to put on the model. The model that is
            returned is then a `PeftModel`. A tokenizer of the adapter takes the place of the model's, and may have more
            tokens if the adapter holds the embeddings.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"float32"`): Type of the weights: `"float32"`,
            `"bfloat16"`, `"float16"`, or `"auto"` for the one they are stored in.
        device (`str`, *optional*): Where the model goes; by default the GPU where there is one, else the CPU.
        revision (`str`, *optional*): Branch, tag or commit of a Hub id.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Run the code that a repository brings along.

    Raises:
        InputError: There is no such model, it is not a causal language model, its weights are no safetensors, or it
            cannot be reached; one line that names it. Also if an adapter does not fit.

    Example:
        >>> model, tokenizer = load_model("gemma-3-270m")  # doctest: +SKIP
        >>> tokenizer.bos_token  # doctest: +SKIP
        '<bos>'
    """
    if not name or text_fault(name):
        raise InputError(f"{name!r} names no model")
    torch_dtype, torch_device = _dtype(dtype), _device(device)
    snapshot, whole = hub_folder(name, revision) if _is_hub_id(name) else (None, False)
    if name not in ASSETS and is_adapter(snapshot or name):
        if adapter is not None or (revision is not None and snapshot is None):
            raise InputError(f"{name}: an adapter, which takes neither another adapter nor a revision")
        adapter = snapshot or name
        name, revision = base_of(adapter)
    if adapter is not None:
        if _is_hub_id(str(adapter)):
            adapter, _ = hub_folder(str(adapter))
        # Before the base is loaded, which takes seconds to minutes.
        adapter_hash(adapter)
        model, tokenizer = load_model(
            name, dtype=dtype, device=device, revision=revision, trust_remote_code=trust_remote_code
        )
        return _adapted(model, tokenizer, adapter, name)
    path = asset_path(name) if name in ASSETS else Path(name)
    source: dict[str, Any]
    if revision is not None and (name in ASSETS or path.exists()):
        raise InputError(f"{name}: a revision can only be chosen for a Hub id")
    if path.suffix == ".gguf" and path.is_file():
        source = {"pretrained_model_name_or_path": str(converted(path)), "local_files_only": True}
        model, tokenizer = _from_pretrained(name, source, torch_dtype, trust_remote_code)
        check_cuts(path, tokenizer)
        # By its own name: the cache folder is of this machine.
        model.config.name_or_path = str(path)
    else:
        if path.is_dir():
            _check_folder(path)
            source = {"pretrained_model_name_or_path": str(path), "local_files_only": True}
        elif snapshot is None:
            raise InputError(
                f"{name}: neither a folder, nor a .gguf file, nor a Hub id, nor an asset ({', '.join(ASSETS)})"
            )
        elif whole:  # as a plain folder: by its id, transformers would ask for files that the cache lacks
            source = {"pretrained_model_name_or_path": str(snapshot), "local_files_only": True}
        else:
            source = {"pretrained_model_name_or_path": name, "revision": revision}
        model, tokenizer = _from_pretrained(name, source, torch_dtype, trust_remote_code)
    with reading(f"{name}: cannot be loaded"):
        return _ready_model(model, torch_device), _ready_tokenizer(name, tokenizer)


def _is_hub_id(name: str) -> bool:
    return not is_local(name) and _HUB_ID.fullmatch(name) is not None and not name.endswith(".gguf")


def _adapted(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, adapter: str | Path, name: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    n_tokens = 0
    if (Path(adapter) / "tokenizer_config.json").is_file():
        with reading(f"{adapter}: its tokenizer cannot be loaded"), quiet_transformers():
            own = AutoTokenizer.from_pretrained(str(adapter), local_files_only=True)
        own.bos_token = tokenizer.bos_token  # as a document starts for the base, by measurement or by its config
        tokenizer, n_tokens = _ready_tokenizer(str(adapter), own), len(own)
    adapted = with_adapter(model, adapter, name, n_tokens=n_tokens).eval().requires_grad_(False)
    return cast(PreTrainedModel, adapted), tokenizer


def _dtype(dtype: str | torch.dtype) -> torch.dtype | Literal["auto"]:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return "auto"
    if dtype not in _DTYPES:
        raise InputError(f"dtype {dtype!r}: not one of {', '.join(_DTYPES)}, auto")
    return _DTYPES[dtype]


def _device(device: str | None) -> torch.device:
    if device is None:
        # Every process of a launcher has a GPU of its own.
        local_rank = get_cpu_distributed_information().local_rank
        return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        line = str(error).strip().partition("\n")[0]
        raise InputError(f"device {device!r}: {line}") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {device!r}: torch finds no GPU here")
    return chosen


def _check_folder(path: Path) -> None:
    if not (path / "config.json").is_file():
        raise InputError(f"{path}: not a model folder: it has no config.json")
    if not any(path.glob("*.safetensors")):
        stored = "only pickled weights, which are never loaded" if any(path.glob("*.bin")) else "no weights"
        raise InputError(f"{path}: has {stored}; save the model as safetensors")
    for part in path.iterdir():
        if part.exists() and not part.is_dir():
            regular_file(part)  # a library would open a pipe, and wait for ever


def _from_pretrained(
    name: str, source: dict[str, Any], dtype: torch.dtype | str, trust_remote_code: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    source = {**source, "trust_remote_code": trust_remote_code}
    with reading(f"{name}: cannot be loaded"), quiet_transformers():
        config = AutoConfig.from_pretrained(**source)
        _check_causal(name, config)
        _check_config(name, config, Path(source["pretrained_model_name_or_path"]))
        tokenizer = AutoTokenizer.from_pretrained(**source)
        model, report = AutoModelForCausalLM.from_pretrained(
            **source, dtype=dtype, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True
        )
    # What the file lacks or holds in another shape was filled with random numbers.
    if report["mismatched_keys"]:
        raise InputError(f"{name}: its weights are of another shape than its config says")
    if report["missing_keys"]:
        raise InputError(f"{name}: not a causal language model: its weights lack {min(report['missing_keys'])}")
    return model, tokenizer


def _check_causal(name: str, config: PreTrainedConfig) -> None:
    """Refuse what transformers would accept as a causal model though it reads both ways or has no such head."""
    has_remote_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    is_causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    is_encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not config.to_dict().get("is_decoder")
    if not (is_causal or has_remote_code) or config.is_encoder_decoder or (is_encoder and not has_remote_code):
        raise InputError(f"{name}: not a causal language model: its type is {config.model_type!r}")


def _check_config(name: str, config: PreTrainedConfig, folder: Path) -> None:
    """Refuse a config that has nothing to do with the weights of its folder; a Hub id is no folder."""
    files = list(folder.glob("*.safetensors")) if folder.is_dir() else []
    n_tensors = 0
    for file in files:
        with safe_open(file, "pt") as weights:
            n_tensors += len(weights.keys())
    if files:
        text = config.get_text_config()
        sizes = {key: getattr(text, key, None) for key in (LAYERS, HIDDEN, *WIDTHS)}
        check_sizes(name, sizes, n_tensors=n_tensors, n_bytes=sum(file.stat().st_size for file in files))


def _ready_model(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    kept = model.generation_config
    # An unset top_k would be 50 in generate(); and transformers refuses to save a top_k without do_sample.
    model.generation_config = GenerationConfig(
        bos_token_id=kept.bos_token_id,
        eos_token_id=kept.eos_token_id,
        pad_token_id=kept.pad_token_id,
        do_sample=True,
        top_k=0,
    )
    return model.to(device).eval().requires_grad_(False)


def _ready_tokenizer(name: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    if not tokenizer.is_fast:
        raise InputError(f"{name}: its tokenizer gives no character offsets (there is no fast version of it)")
    if not isinstance(tokenizer.model_max_length, int | float):
        raise InputError(f"{name}: its tokenizer's model_max_length is {tokenizer.model_max_length!r}, not a number")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"  # generate() continues after the last column
    return tokenizer
