"""vLLM as the engine of a study (`pip install "ugap[vllm]"`): token ids go in, token ids come back.

Design choices:

- Every request has a seed of its own, from that of its batch.
- The contexts are the token ids that transformers continues, so no tokenizer of vLLM's adds or drops a BOS.
- A decoding that vLLM draws from another distribution is refused, before a model is loaded.
- The sampler at human uncertainty takes its parameters from the request: the prompts are read here, by the model that
  also scores, and nothing is read from a file in the engine.
- vLLM has the weights once more. It reads them from the folder or repository, in the type of the model that scores.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from ugap.errors import InputError, reading
from ugap.models.adapter import has_adapters, without_wrapper
from ugap.models.assets import ASSETS, asset_path
from ugap.models.gguf import converted
from ugap.sampling.portable.special import end_tokens
from ugap.study.decodings import NO_WARPERS, Settings, human_processor, is_human, parse_value
from ugap.study.generation import seed_of

PROCESSOR = "ugap.sampling.engines.vllm:HumanEntropyProcessor"

# Settings of generate() that vLLM has under the same name, with the same meaning.
_SHARED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
# vLLM raises a temperature below this one to it.
_LEAST_TEMPERATURE = 0.01
# Options of vLLM that follow from the model, or would change the distribution. A token comes from the environment: a
# study keeps its settings in files.
_OURS = (
    *("model", "tokenizer", "revision", "tokenizer_revision", "trust_remote_code", "skip_tokenizer_init", "hf_token"),
    *("generation_config", "override_generation_config", "logits_processors"),
)


def sampling_settings(settings: Settings) -> dict[str, Any]:
    """The arguments of vLLM's `SamplingParams` that draw from the distribution of a decoding.

    Raises:
        InputError: If vLLM draws from another distribution; the message names the setting.

    Example:
        >>> sampling_settings({"temperature": 0.7}), sampling_settings({"do_sample": False})
        ({'temperature': 0.7}, {'temperature': 0.0})
    """
    given = {name: value for name, value in settings.items() if name not in NO_WARPERS or value != NO_WARPERS[name]}
    if is_human(settings):
        others = [name for name in given if not name.startswith("human_")]
        if others:
            raise InputError(f"vLLM has no {others[0]} before the sampler at human uncertainty")
        return {"temperature": 1.0}  # the processor draws at a temperature of its own
    others = [name for name in given if name not in (*_SHARED, "do_sample")]
    if others:
        raise InputError(f"vLLM has no {others[0]}")
    shared = {name: given[name] for name in _SHARED if name in given}
    if not settings.get("do_sample", True):
        return {**shared, "temperature": 0.0}
    if shared.get("temperature", 1.0) < _LEAST_TEMPERATURE:
        raise InputError(f"vLLM draws at no temperature below {_LEAST_TEMPERATURE}")
    if "min_p" in shared and "top_p" in shared:
        raise InputError("vLLM cuts by min_p before top_p, and transformers after it")
    return shared


def has_decoding(settings: Settings) -> bool:
    """Whether vLLM draws from the distribution of a decoding."""
    try:
        sampling_settings(settings)
    except InputError:
        return False
    return True


def check_decodings(decodings: Mapping[str, Settings]) -> None:
    """Refuse decodings that vLLM does not have.

    Raises:
        InputError: The message names all of them, each with its reason.
    """
    refused = []
    for name, settings in decodings.items():
        try:
            sampling_settings(settings)
        except InputError as error:
            refused.append(f"{name} ({error})")
    if refused:
        raise InputError(f"not with --engine vllm: {', '.join(refused)}; leave out these decodings")


def parse_engine_args(words: Sequence[str]) -> dict[str, Any]:
    """Options of `vllm.LLM` from `KEY=VALUE` words, with the types of YAML.

    Raises:
        InputError: If a word has no `=`, vLLM has no such option, or the option follows from the model.
    """
    out: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals) or name in out:
            raise InputError(f"--engine_args {word}: give KEY=VALUE, every key once")
        if name in _OURS:
            raise InputError(f"--engine_args {word}: {name} is not yours to set: it follows from the model")
        out[name] = parse_value(value, f"--engine_args {name}")
    if out:
        known = _options()
        for name in out:
            if name not in known:
                raise InputError(f"--engine_args {name}={out[name]}: vLLM has no option {name}")
    return out


class VllmEngine:
    """vLLM with the weights of one model; it starts with the first batch.

    Args:
        model (`PreTrainedModel`): The model, which reads prompts for the sampler at human uncertainty.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        name (`str`): The name that it was loaded by.
        args (`Sequence[str]`, *optional*): Options of `vllm.LLM` as `KEY=VALUE`. `gpu_memory_utilization` is 0.5 unless
            given, as the model that scores shares the device; `dtype` is that of the model.
        revision (`str`, *optional*): Branch, tag or commit of a Hub id.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Run the code that a repository brings along.

    Raises:
        InputError: If the model has an adapter, or an option is wrong.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        args: Sequence[str] = (),
        *,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ):
        options = parse_engine_args(args)
        self._model, self._tokenizer, self._name = without_wrapper(model), tokenizer, name
        if has_adapters(self._model):
            raise InputError(f"{name}: --engine vllm takes no adapter: merge it into its base first")
        self._options = {
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "gpu_memory_utilization": 0.5,
            "revision": revision,
            "tokenizer_revision": revision,
            "trust_remote_code": trust_remote_code,
            **options,
        }
        self.made_of: tuple[Any, ...] = ("vllm", sorted(args))
        self._llm: Any = None

    def continue_contexts(
        self,
        contexts: Sequence[Sequence[int]],
        settings: Settings,
        *,
        max_new_tokens: int,
        seed: int,
        domain: str | None = None,
        processors: Sequence[LogitsProcessor] = (),
        names: Sequence[str] = (),
        skip_bad: bool = False,
    ) -> list[list[int]]:
        """As `ugap.study.generation.Engine.continue_contexts`.

        vLLM does not say whether logits are finite. The scorer does, when it reads the texts.
        """
        if processors:
            raise InputError(f"vLLM cannot run {type(processors[0]).__name__}")
        if any(not context for context in contexts):
            raise InputError("there is nothing to continue: no prefix, and the tokenizer has no BOS")
        shared = sampling_settings(settings)
        extras: list[dict[str, Any] | None] = [None] * len(contexts)
        if is_human(settings):
            human = human_processor(settings, self._model, domain, tokenizer=self._tokenizer)
            extras = [{"ugap_params": json.dumps(human.prompts(ids)), "ugap_weight": human.weight} for ids in contexts]
        if self._llm is None:
            self._llm = self._start()
        from vllm import SamplingParams

        ends = end_tokens(self._model)
        params = [
            SamplingParams(
                **shared,
                seed=seed_of(seed, i),
                max_tokens=max_new_tokens,
                # The end tokens of the model's generation config, as in transformers, and not those of the tokenizer.
                ignore_eos=True,
                stop_token_ids=sorted(ends),
                detokenize=False,
                extra_args=extra,
            )
            for i, extra in enumerate(extras)
        ]
        try:
            outputs = self._llm.generate(
                [{"prompt_token_ids": list(context)} for context in contexts], params, use_tqdm=False
            )
        except ValueError as error:  # such as a context that is too long
            raise InputError(f"{self._name}: vLLM: {' '.join(str(error).split())}") from error
        new = [list(output.outputs[0].token_ids) for output in outputs]
        return [row[: next((i for i, token in enumerate(row) if token in ends), len(row))] for row in new]

    def close(self) -> None:
        """End the processes of vLLM."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None

    def _start(self) -> Any:
        _quiet()
        from vllm import LLM

        source = str(asset_path(self._name)) if self._name in ASSETS else self._name
        if source.endswith(".gguf"):
            source = str(converted(Path(source)))
        with reading(f"{self._name}: vLLM cannot be started"):
            # "vllm": without the temperature and top-p that a repository may ask for.
            return LLM(model=source, generation_config="vllm", logits_processors=[PROCESSOR], **self._options)


def _options() -> set[str]:
    _quiet()
    from vllm import EngineArgs

    return {one.name for one in dataclasses.fields(EngineArgs)}


def _quiet() -> None:
    """Keep the messages of vLLM, which is not imported yet, out of what a command prints."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
