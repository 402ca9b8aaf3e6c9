"""GRPO rollouts through our samplers, with the right importance ratios.

TRL's trainer assumes that rollouts are drawn from the policy at `temperature`. The ratio of its loss compares the
policy now with the policy then, and both come from the untouched logits. A sampler that cuts or re-tempers draws from
another distribution `q`, and the right ratio is that to `q`. So:

- a plain draw comes from the policy itself and works with any trainer. It is faster than `torch.multinomial`;
- the sampler at human uncertainty needs a [`SampledGRPOTrainer`][], which replaces the old policy's log-probabilities
  by `log q` of the drawn tokens. Any other trainer is refused.

With `use_vllm` the same draws come from vLLM, with vLLM's own `log q`. The distributions of vLLM and of the policy
differ by rounding. For plain draws, TRL corrects the difference by a ratio of its own. Beside the ratio to `q`, TRL's
would count twice, so the sampler switches it off, and with it the modes that mask whole texts.
"""

import json
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, TemperatureLogitsWarper
from trl import GRPOConfig, GRPOTrainer
from trl.models import unwrap_model_for_generation

from ugap.errors import InputError, require
from ugap.sampling import DrawLogitsProcessor, HumanEntropyLogitsProcessor
from ugap.sampling.batch import continue_contexts, drawn_config, end_tokens

# Settings of GRPOConfig that change the distribution of the draws, with the values that leave it alone.
_UNTOUCHED = {"top_p": (1.0,), "top_k": (0, None), "min_p": (None, 0.0), "repetition_penalty": (1.0,)}


class SampledRollouts:
    """A `rollout_func` for TRL's GRPO trainer that draws with our samplers, through transformers or vLLM.

    Args:
        processor (`HumanEntropyLogitsProcessor`, *optional*):
            The sampler; by default a plain draw from the policy at the trainer's temperature. A trainer that knows
            functional rows draws those plainly.
        seed (`int`, *optional*): Seed of the draws; by default torch's own generator is used.

    Raises:
        InputError: When called, if the trainer's log-probabilities would not be those of the draws: the sampler at
            human uncertainty without a [`SampledGRPOTrainer`][], or `top_p`, `top_k`, `min_p` or
            `repetition_penalty` in the trainer's config. Or if vLLM refuses a prompt.

    Example:
        ```python
        processor = HumanEntropyLogitsProcessor("gemma-3-270m", "creative", draw=True)
        trainer = SampledGRPOTrainer(model, reward, args=config, rollout_func=SampledRollouts(processor), ...)
        ```
    """

    def __init__(self, processor: HumanEntropyLogitsProcessor | None = None, *, seed: int | None = None):
        if processor is not None and not processor.draw:
            raise InputError("rollouts need a processor that draws: HumanEntropyLogitsProcessor(..., draw=True)")
        if processor is not None and processor.weight == 0:
            raise InputError("weight 0 is greedy: all completions of a prompt would be one, and GRPO compares them")
        self.processor, self.seed = processor, seed
        self._generator: torch.Generator | None = None

    def __call__(self, prompts: list[Any], trainer: GRPOTrainer) -> dict[str, Any]:
        """Complete each prompt once. Returns prompt ids, completion ids, and log-probabilities or `None`."""
        self._check(trainer)
        if self.seed is not None and self._generator is None:
            # Processes complete copies of one prompt, so each needs draws of its own.
            seed = self.seed + trainer.accelerator.process_index
            self._generator = torch.Generator(trainer.accelerator.device).manual_seed(seed)
        prompt_ids = trainer._tokenize_prompts(prompts)[0]
        human = [False] * len(prompts)
        if self.processor is not None and isinstance(trainer, SampledGRPOTrainer):
            human = trainer.human_rows(len(prompts))
        draw = self._with_vllm if trainer.use_vllm else self._with_transformers
        completion_ids, logprobs = draw(prompt_ids, human, trainer)
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": logprobs}

    def _with_transformers(
        self, prompt_ids: list[list[int]], human: list[bool], trainer: GRPOTrainer
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        processors: list[LogitsProcessor] = []
        if trainer.temperature != 1:
            processors.append(TemperatureLogitsWarper(trainer.temperature))
        processors.append(DrawLogitsProcessor(self._generator))
        by_row = None
        if self.processor is not None:
            # The processor follows the steps of one batch of texts.
            self.processor.reset()
            self.processor.generator = self._generator
            by_row = DrawsByRow(self.processor, processors, human)
            processors = [by_row]
        with unwrap_model_for_generation(
            trainer.model_wrapped,
            trainer.accelerator,
            gather_deepspeed3_params=trainer.args.ds3_gather_for_generation,
            gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
        ) as model:
            completion_ids = continue_contexts(
                model,
                trainer.processing_class,
                prompt_ids,
                drawn_config(trainer.max_completion_length),
                processors,
                keep_end=True,
            )
        if by_row is None:
            return completion_ids, None
        # The draws go on until the longest text of the batch ends.
        logprobs = torch.stack(by_row.log_probabilities, 1).tolist()
        return completion_ids, [row[: len(ids)] for row, ids in zip(logprobs, completion_ids, strict=True)]

    def _with_vllm(
        self, prompt_ids: list[list[int]], human: list[bool], trainer: GRPOTrainer
    ) -> tuple[list[list[int]], list[list[float]]]:
        from ugap.training.vllm_rollouts import Request, complete

        # Seeds from torch, whose state a checkpoint holds. The engine's own draws begin anew in a resumed run.
        device = "cpu" if self._generator is None else self._generator.device
        seeds = torch.randint(2**31, (len(prompt_ids),), generator=self._generator, device=device).tolist()
        policy: PreTrainedModel = trainer.accelerator.unwrap_model(trainer.model)
        # The texts end where those of transformers end, whatever the engine takes for the end.
        shared = {"ignore_eos": True, "stop_token_ids": sorted(end_tokens(policy))}
        requests = []
        for ids, seed, is_human in zip(prompt_ids, seeds, human, strict=True):
            params = {**shared, "seed": seed}
            if is_human:
                assert self.processor is not None
                level = {"ugap_params": json.dumps(self.processor.prompts(ids)), "ugap_weight": self.processor.weight}
                params |= {"temperature": 1.0, "extra_args": level}
            requests.append(Request(ids, params))
        n = trainer.num_generations if trainer.model.training else trainer.num_generations_eval
        return complete(trainer.vllm_generation, requests, n)

    def _check(self, trainer: GRPOTrainer) -> None:
        if self.processor is not None and not isinstance(trainer, SampledGRPOTrainer):
            raise InputError(
                f"{type(trainer).__name__} would compare with log-probabilities of the untouched policy, and the "
                "sampler draws from another distribution: use ugap.training.SampledGRPOTrainer"
            )
        for name, untouched in _UNTOUCHED.items():
            value = getattr(trainer.args, name)
            if value not in untouched:
                raise InputError(
                    f"{name}={value} changes what is drawn from, and the log-probabilities of the loss would not be its"
                )


class DrawsByRow(LogitsProcessor):
    """Draws some rows with the sampler at human uncertainty and the others plainly, in one `generate()` call.

    Args:
        human (`HumanEntropyLogitsProcessor`): The sampler, with `draw=True`.
        plain (`Sequence[LogitsProcessor]`): Warpers, then a processor that draws.
        is_human (`Sequence[bool]`): For each row, whether the sampler draws it.

    Attributes:
        log_probabilities (`list[Tensor]`): For each step, `log q` `(B,)` of the drawn tokens.
    """

    supports_continuous_batching = False  # a row keeps its place

    def __init__(self, human: HumanEntropyLogitsProcessor, plain: Sequence[LogitsProcessor], is_human: Sequence[bool]):
        self.human, self.plain = human, plain
        self.is_human = torch.tensor(is_human)
        self.log_probabilities: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `(B, V)` of which one per row is finite: that of its token."""
        is_human = self.is_human.to(scores.device)
        out, log_q = torch.empty_like(scores), scores.new_empty(len(scores))
        if self.is_human.any():
            out[is_human] = self.human(input_ids[is_human], scores[is_human])
            assert self.human.drawn is not None
            log_q[is_human] = self.human.drawn.log_probability.to(log_q)
        if not self.is_human.all():
            rows, ids = scores[~is_human], input_ids[~is_human]
            *warpers, draw = self.plain
            for warper in warpers:
                rows = warper(ids, rows)
            drawn = draw(ids, rows)
            out[~is_human] = drawn
            log_q[~is_human] = rows.log_softmax(-1).gather(1, drawn.argmax(1, keepdim=True)).squeeze(1)
        self.log_probabilities.append(log_q)
        return out


class SampledGRPOTrainer(GRPOTrainer):
    """TRL's `GRPOTrainer` with the importance ratio of the policy to the distribution of the draws.

    Log-probabilities from a rollout function are the denominator of the ratio. The loss clips the ratio as always, so a
    token with a ratio far from 1 teaches nothing. Widen `epsilon` or use `loss_type="cispo"` where the sampler's
    temperatures are far from 1.

    With `use_vllm`, plain draws have TRL's correction for vLLM instead, unless
    `vllm_importance_sampling_correction=False`. For the sampler at human uncertainty it is switched off. `colocate`
    starts vLLM with our processor, in the type that the policy computes in. A `server` has to have it.

    Raises:
        InputError: Before training, if a vLLM server lacks the processor, or returns other log-probabilities than those
            of the draws.
    """

    _tag_names = ["trl", "grpo", "ugap"]  # noqa: RUF012  (as TRL declares it)

    def __init__(
        self, model: Any, reward_funcs: Any = None, args: GRPOConfig | None = None, *others: Any, **kwargs: Any
    ):
        with ExitStack() as stack:
            # TRL calls rollout_func experimental on every construction.
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "You are using 'rollout_func'")
            if args is not None and args.use_vllm:
                require("vllm")
                from ugap.training.vllm_rollouts import colocated_engine

                stack.enter_context(colocated_engine(_dtype(model, args)))
            super().__init__(model, reward_funcs, args, *others, **kwargs)
        if self.use_vllm:
            from ugap.training.vllm_rollouts import keep_base

            keep_base(self.vllm_generation)
        if self.use_vllm and isinstance(self.rollout_func, SampledRollouts) and self.rollout_func.processor is not None:
            self.vllm_importance_sampling_correction = False
            if self.vllm_mode == "server":
                self._check_server()

    def human_rows(self, n: int) -> list[bool]:
        """Which of the `n` prompts that are completed together the sampler at human uncertainty completes."""
        return [True] * n

    def end_vllm(self) -> None:
        """End a colocated vLLM; call it before the process groups end, which vLLM uses."""
        if self.use_vllm and self.vllm_mode == "colocate":
            self.vllm_generation.llm.llm_engine.engine_core.shutdown()

    def _check_server(self) -> None:
        from ugap.training.vllm_rollouts import server_fault

        fault: list[str | None] = [None]
        if self.accelerator.is_main_process:  # which alone has a client
            fault = [server_fault(self.vllm_generation.vllm_client.get_server_info())]
        broadcast_object_list(fault)
        if fault[0] is not None:
            raise InputError(fault[0])

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        # TRL uses these for its vLLM correction alone. Without that, they are the log q of the loss's own ratio.
        corrected = self.use_vllm and self.vllm_importance_sampling_correction
        if output.get("sampling_per_token_logps") is not None and not corrected:
            output["old_per_token_logps"] = output["sampling_per_token_logps"]
        return output


def _dtype(model: Any, args: GRPOConfig) -> str:
    """The type that the policy computes in, as vLLM names it."""
    if args.bf16 or args.fp16:
        return "bfloat16" if args.bf16 else "float16"
    return "auto" if isinstance(model, str) else str(model.dtype).removeprefix("torch.")
