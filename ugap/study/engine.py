"""The engine that generates, by its name: transformers, or vLLM."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ugap.errors import InputError, require
from ugap.study.decodings import DECODINGS, STUDIED
from ugap.study.generation import Engine, TransformersEngine
from ugap.study.named import Settings


def default_decodings(name: str) -> list[str]:
    """Names of the decodings that a study has where none is named: those that the engine draws.

    Args:
        name (`str`): `"transformers"` or `"vllm"`.

    Example:
        >>> [one for one in default_decodings("transformers") if one not in default_decodings("vllm")]
        ['typical-p-0.95']
    """
    if name == "transformers":
        return list(STUDIED)
    from ugap.study.vllm_engine import has_decoding

    return [one for one in STUDIED if has_decoding(DECODINGS[one])]


def check_engine(name: str, args: Sequence[str], decodings: Mapping[str, Settings]) -> None:
    """Refuse, before a model is loaded, an engine that is not installed, wrong options, and decodings that it lacks.

    Args:
        name (`str`): `"transformers"` or `"vllm"`.
        args (`Sequence[str]`): Options of the engine as `KEY=VALUE`.
        decodings (`Mapping[str, Mapping[str, Any]]`): Settings by name.

    Raises:
        InputError: As said.
    """
    if name == "transformers":
        if args:
            raise InputError(f"--engine_args {args[0]}: these are options of vLLM: add --engine vllm")
        return
    require("vllm")
    from ugap.study.vllm_engine import check_decodings, parse_engine_args

    check_decodings(decodings)
    parse_engine_args(args)


def open_engine(
    name: str,
    args: Sequence[str],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    model_name: str,
    **options: Any,
) -> Engine:
    """The engine of a model; close it when the model has written.

    Args:
        name (`str`): `"transformers"` or `"vllm"`.
        args (`Sequence[str]`): Options of the engine as `KEY=VALUE`.
        model (`PreTrainedModel`): The model, as transformers loaded it.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        model_name (`str`): The name that it was loaded by.
        **options (`Any`): `revision` and `trust_remote_code` of its repository.

    Raises:
        InputError: If the engine cannot run the model.
    """
    if name == "transformers":
        return TransformersEngine(model, tokenizer)
    from ugap.study.vllm_engine import VllmEngine

    return VllmEngine(model, tokenizer, model_name, args, **options)
