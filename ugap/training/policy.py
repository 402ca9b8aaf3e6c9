"""The policy of a training: a model with a new adapter, with an adapter to continue, or with all of its weights.

The policy is loaded as every model of this package is, and its tokenizer starts texts with BOS. TRL would load a folder
or a Hub id alone, and leave the tokenizer as it is.
"""

import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ugap.errors import InputError
from ugap.models import load_model
from ugap.models.adapter import without_wrapper
from ugap.models.console import quiet_transformers
from ugap.models.fingerprint import weight_hash
from ugap.profile import HumanProfile
from ugap.profile.fitting import BESIDE, adapter_profile, known_profile
from ugap.scoring import ScorerId
from ugap.training.data import start_with_bos

logger = logging.getLogger(__name__)

ALL_LINEAR = "all-linear"
MERGED = "merged"  # folder of the merged model in that of its run


@dataclass(frozen=True)
class Policy:
    """A policy as the trainers take it.

    Args:
        model (`PreTrainedModel` or `PeftModel`): The model; with its adapter, where that one is trained further.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer, which starts a text with BOS.
        lora (`LoraConfig`, *optional*): The new adapter that the trainer puts on it.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    lora: LoraConfig | None


def load_policy(
    name: str,
    *,
    lora: LoraConfig | None = None,
    adapter: str | Path | None = None,
    dtype: str = "float32",
    device: str | None = None,
    trust_remote_code: bool = False,
) -> Policy:
    """Load a model for training: with a new adapter, with one that exists, or (with neither) all of its weights.

    Args:
        name (`str`): Asset, folder, `.gguf` file or Hub id.
        lora (`LoraConfig`, *optional*): The new adapter; `target_modules` has to fit the model.
        adapter (`str` or `Path`, *optional*): Folder of the adapter to train further.
        dtype (`str`, *optional*, defaults to `"float32"`): Type of the weights.
        device (`str`, *optional*): Where the model goes; by default this process's GPU if there is one.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Run the code of the model's repository.

    Raises:
        InputError: If the model cannot be loaded, an adapter does not fit it, or its tokenizer cannot start with BOS.
        ValueError: If both `lora` and `adapter` are given.
    """
    if lora is not None and adapter is not None:
        raise ValueError("lora asks for a new adapter, and adapter names one to train further: give one of them")
    model, tokenizer = load_model(
        name, adapter=adapter, dtype=dtype, device=device, trust_remote_code=trust_remote_code
    )
    start_with_bos(tokenizer)
    if adapter is not None:
        adapted = cast(PeftModel, model)
        # PEFT loads adapters for inference: saved again, this one would say so.
        adapted.active_peft_config.inference_mode = False
        adapted.set_adapter(adapted.active_adapter)  # trainable again
        return Policy(adapted, tokenizer, None)
    if lora is None:
        model.requires_grad_(True)
    else:
        _check_targets(model, lora, name)
    return Policy(model, tokenizer, lora)


def _check_targets(model: PreTrainedModel, lora: LoraConfig, name: str) -> None:
    # PEFT finds the layers itself, and leaves out the output head.
    if lora.target_modules == ALL_LINEAR:
        return
    layers = {module.rpartition(".")[2] for module, _ in model.named_modules()} - {""}
    embedding = next(path for path, module in model.named_modules() if module is model.get_input_embeddings())
    for target in lora.target_modules or ():
        if f".{embedding}".endswith(f".{target}"):
            raise InputError(
                f"lora_target_modules: {target!r} is the embedding of {name}, and PEFT would save all of it with the "
                "adapter, which then fits no base: leave it out"
            )
        if target.rpartition(".")[2] not in layers:
            named = ", ".join(sorted(layer for layer in layers if layer.endswith("_proj"))) or ", ".join(sorted(layers))
            raise InputError(f"lora_target_modules: {name} has no layer {target!r}; it has {named}")


def switch_off_dropout(policy: torch.nn.Module) -> None:
    """Set every dropout of a policy to 0, with a warning, where the policy is compared with its base.

    The base has no dropout. The noise of the policy's dropout would count as divergence from the base.
    """
    switched_off = False
    for module in policy.modules():
        # Models keep rates as numbers of their own modules too: attention_dropout and its like.
        rates = [name for name, value in vars(module).items() if "drop" in name and _is_rate(value)]
        if isinstance(module, torch.nn.modules.dropout._DropoutNd) and _is_rate(module.p):
            rates.append("p")
        for name in rates:
            setattr(module, name, 0.0)
            switched_off = True
    if switched_off:
        logger.warning("the policy is compared with its base: its dropout is switched off")


def _is_rate(value: object) -> bool:
    return isinstance(value, float) and value > 0


def leave_profile(people: HumanProfile | None, weights: str, folder: Path) -> None:
    """Put the human profile of the base next to the weights of a trained model.

    As with an adapter, the model aims at what its base reads as human. Without a profile of the base, nothing is done.
    """
    if people is not None:
        replace(people, weight_hash=weights).save(folder / BESIDE)


def save_merged(
    base: str, adapter: str | Path, folder: str | Path, *, dtype: str = "float32", trust_remote_code: bool = False
) -> None:
    """Write a model with an adapter merged into its weights, and its tokenizer. The folder is whole or as it was.

    The tokenizer is the adapter's own, if it has one.

    Args:
        base (`str`): Name of the model.
        adapter (`str` or `Path`): Folder of the adapter.
        folder (`str` or `Path`): Folder to write; one that is there is replaced.
        dtype (`str`, *optional*, defaults to `"float32"`): Type of the weights.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Run the code of the model's repository.

    Raises:
        InputError: If the model or the adapter cannot be loaded, or the adapter cannot be merged.
    """
    model, tokenizer = load_model(base, adapter=adapter, dtype=dtype, device="cpu", trust_remote_code=trust_remote_code)
    start_with_bos(tokenizer)
    people = adapter_profile(model) or known_profile(base, ScorerId(base, weight_hash(model)), tokenizer)
    adapted = without_wrapper(model)
    ends = (adapted.get_input_embeddings(), adapted.get_output_embeddings())
    if adapted.config.get_text_config().tie_word_embeddings and any(isinstance(end, BaseTunerLayer) for end in ends):
        # One tensor would take the changes of both.
        raise InputError(
            f"{adapter}: cannot be merged: it changes an embedding that {base} shares with its output head"
        )
    # safe_merge refuses weights that become NaN.
    merged = cast(PeftModel, model).merge_and_unload(safe_merge=True)
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with quiet_transformers():
        merged.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    leave_profile(people, weight_hash(merged), temporary)
    # A folder cannot be replaced by a rename, so the old one goes first.
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
