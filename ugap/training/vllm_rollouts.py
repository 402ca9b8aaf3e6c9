"""What TRL's vLLM backend lacks for rollouts at human uncertainty: our processor, and settings for each prompt.

`trl.generation.vllm_generation.VLLMGeneration` carries the policy's weights to vLLM, gathers prompts over processes and
lets the engine sleep. But it starts an engine without logits processors, and has one set of sampling parameters for all
prompts. So:

- `colocated_engine` stands in for the `LLM` of TRL's module while a trainer starts its engine.
- A `Request` is the token ids of a prompt with sampling parameters. TRL hands it on as a list, also to other processes.
  `complete` reads the parameters where TRL calls vLLM.
- TRL merges an adapter into its base and takes it out again. `keep_base` undoes the rounding.
- A server is started by its user, so `server_fault` asks whether it runs the processor.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from torch.distributed.tensor import DTensor
from trl.generation import vllm_generation

from ugap.errors import InputError
from ugap.study.vllm_engine import PROCESSOR

_MOST_CONNECTIONS = 64  # to a server at once: as many as TRL's client keeps open


class Request(list[int]):
    """The token ids of a prompt, with sampling parameters in place of those of the trainer.

    Args:
        ids (`Sequence[int]`, *optional*): Token ids.
        params (`dict[str, Any]`, *optional*): Arguments of vLLM's `SamplingParams`.
    """

    def __init__(self, ids: Sequence[int] = (), params: dict[str, Any] | None = None):
        super().__init__(ids)
        self.params = params or {}


@contextmanager
def colocated_engine(dtype: str) -> Iterator[None]:
    """Within it, a trainer of TRL starts its engine with our processor, in the type that the policy computes in.

    Args:
        dtype (`str`): `"float32"`, `"bfloat16"`, `"float16"`, or `"auto"` for vLLM's choice. By itself vLLM runs
            float32 weights in bfloat16, and would draw from another distribution than that of the policy.
    """
    from vllm.platforms import current_platform

    llm = vllm_generation.LLM

    def start(**options: Any) -> Any:
        return llm(**options, dtype=dtype, logits_processors=[PROCESSOR])

    with _replaced(vllm_generation, "LLM", start):
        if current_platform.is_cpu():
            from vllm.model_executor.layers import utils

            # On a CPU, vLLM packs weights when it loads them, and packed weights take no new values.
            with _replaced(utils, "dispatch_cpu_unquantized_gemm", _keep_weights):
                yield
        else:
            yield


def _keep_weights(layer: Any, remove_weight: bool) -> None:
    layer.cpu_linear = torch.nn.functional.linear


def keep_base(generation: Any) -> None:
    """Give the frozen weights of an adapted policy their bits back whenever its weights have gone to vLLM.

    TRL merges the adapter into them and takes it out again, which rounds. Then the base of the policy is no longer the
    model that its human profile belongs to. The bits are kept in main memory. Sharded weights are left as they are.

    Args:
        generation (`VLLMGeneration`): The backend of a trainer.
    """
    sync = generation.sync_weights
    kept: list[Tensor] = []

    def sync_weights() -> None:
        frozen = [p for p in generation.model.parameters() if not (p.requires_grad or isinstance(p, DTensor))]
        if is_peft_model(generation.model) and not kept:
            kept.extend(p.detach().to("cpu", copy=True) for p in frozen)
        sync()
        for parameter, bits in zip(frozen, kept, strict=False):
            parameter.data.copy_(bits)

    generation.sync_weights = sync_weights


def complete(generation: Any, requests: Sequence[Request], n: int) -> tuple[list[list[int]], list[list[float]]]:
    """Complete each prompt once.

    Args:
        generation (`VLLMGeneration`): The backend of a trainer.
        requests (`Sequence[Request]`): Prompts; the `n` copies of one are neighbours.
        n (`int`): Completions of one prompt.

    Returns:
        Token ids of the completions, the end token included, and the log-probabilities of the distribution that each
        token was drawn from.

    Raises:
        InputError: If vLLM refuses a request.
    """
    if generation.mode == "colocate":
        place, with_params = generation.llm, _in_engine
    elif generation.accelerator.is_main_process:  # which alone asks the server
        place, with_params = generation.vllm_client, _on_server
    else:
        return _drawn(generation.generate(list(requests), None, n))
    with _replaced(place, "generate", with_params(place.generate)):
        try:
            return _drawn(generation.generate(list(requests), None, n))
        except ValueError as error:  # such as a prompt that is too long
            raise InputError(f"vLLM: {' '.join(str(error).split())}") from error


def _drawn(output: tuple[Any, ...]) -> tuple[list[list[int]], list[list[float]]]:
    _, ids, logprobs, _ = output
    # Of each token there is one, that of the token itself.
    return [list(row) for row in ids], [[step[0] for step in row] for row in logprobs]


def _in_engine(generate: Any) -> Any:
    """`LLM.generate` with the parameters of each prompt."""
    from vllm import SamplingParams

    def with_params(prompts: Sequence[dict[str, Any]], sampling_params: Any, **options: Any) -> Any:
        requests = [prompt["prompt_token_ids"] for prompt in prompts]
        names = [name for name in sampling_params.__struct_fields__ if not name.startswith("_")]
        params = []
        for request in requests:
            clone = sampling_params.clone()  # for each, as vLLM writes to its parameters
            params.append(SamplingParams(**{name: getattr(clone, name) for name in names} | request.params))
        return generate([{"prompt_token_ids": list(ids)} for ids in requests], sampling_params=params, **options)

    return with_params


def _on_server(generate: Any) -> Any:
    """`VLLMClient.generate` with the parameters of each prompt, in a request of its own."""

    def with_params(prompts: Sequence[Request], generation_kwargs: dict[str, Any], **options: Any) -> dict[str, Any]:
        def ask(request: Request) -> dict[str, Any]:
            # The server has the arguments of SamplingParams under their names, but for this one.
            params = {"vllm_xargs" if name == "extra_args" else name: value for name, value in request.params.items()}
            return generate([list(request)], generation_kwargs={**generation_kwargs, **params}, **options)

        with ThreadPoolExecutor(_MOST_CONNECTIONS) as threads:
            answers = list(threads.map(ask, prompts))
        return {name: [row for answer in answers for row in answer[name]] for name in answers[0]}

    return with_params


def server_fault(info: dict[str, Any]) -> str | None:
    """Why a server cannot complete prompts for a trainer; `None` if it can.

    Args:
        info (`dict[str, Any]`): What `VLLMClient.get_server_info` returns.
    """
    model = info["model_config"]
    if PROCESSOR not in (model["logits_processors"] or ()):
        return f"the vLLM server lacks our sampler: start it with --logits-processors {PROCESSOR}"
    if model["logprobs_mode"] != "processed_logprobs":
        return (
            f"the vLLM server has --logprobs-mode {model['logprobs_mode']}, and the ratio of the loss is to what was "
            "drawn: start it with --logprobs-mode processed_logprobs"
        )
    return None


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = vars(owner).get(name, _MISSING)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


_MISSING = object()
