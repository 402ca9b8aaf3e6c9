"""GRPO rollouts through our samplers, with the right importance ratios.

TRL's trainer assumes that rollouts are drawn from the policy at `temperature`. The ratio of its loss compares the
policy now with the policy then, and both come from the untouched logits. A sampler that cuts or re-tempers draws from
another distribution `q`, and the right ratio is that to `q`. So:

- a plain draw comes from the policy itself and works with any trainer. It is faster than `torch.multinomial`;
- the sampler at human uncertainty needs a [`SampledGRPOTrainer`][], which replaces the old policy's log-probabilities
  by `log q` of the drawn tokens. Any other trainer is refused.
"""

import warnings
from typing import Any

import torch
from transformers import LogitsProcessor, TemperatureLogitsWarper
from trl import GRPOConfig, GRPOTrainer
from trl.models import unwrap_model_for_generation

from ugap.errors import InputError
from ugap.sampling import DrawLogitsProcessor, HumanEntropyLogitsProcessor
from ugap.sampling.batch import continue_contexts, drawn_config
from ugap.sampling.processor import DrawRecorder

# Settings of GRPOConfig that change the distribution of the draws, with the values that leave it alone.
_UNTOUCHED = {"top_p": (1.0,), "top_k": (0, None), "min_p": (None, 0.0), "repetition_penalty": (1.0,)}


class SampledRollouts:
    """A `rollout_func` for TRL's GRPO trainer that draws with our samplers, through transformers generation.

    Args:
        processor (`HumanEntropyLogitsProcessor`, *optional*):
            The sampler; by default a plain draw from the policy at the trainer's temperature.
        seed (`int`, *optional*): Seed of the draws; by default torch's own generator is used.

    Raises:
        InputError: When called, if the trainer's log-probabilities would not be those of the draws: the sampler at
            human uncertainty without a [`SampledGRPOTrainer`][], vLLM, or `top_p`, `top_k`, `min_p` or
            `repetition_penalty` in the trainer's config.

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
        device = trainer.accelerator.device
        if self.seed is not None and self._generator is None:
            # Processes complete copies of one prompt, so each needs draws of its own.
            self._generator = torch.Generator(device).manual_seed(self.seed + trainer.accelerator.process_index)
        prompt_ids = trainer._tokenize_prompts(prompts)[0]
        config = drawn_config(trainer.max_completion_length)
        recorder = None
        processors: list[LogitsProcessor]
        if self.processor is None:
            warpers = [TemperatureLogitsWarper(trainer.temperature)] if trainer.temperature != 1 else []
            processors = [*warpers, DrawLogitsProcessor(self._generator)]
        else:
            # The processor follows the steps of one batch of texts.
            self.processor.reset()
            self.processor.generator = self._generator
            recorder = DrawRecorder(self.processor)
            processors = [self.processor, recorder]
        with unwrap_model_for_generation(
            trainer.model_wrapped,
            trainer.accelerator,
            gather_deepspeed3_params=trainer.args.ds3_gather_for_generation,
            gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
        ) as model:
            completion_ids = continue_contexts(
                model, trainer.processing_class, prompt_ids, config, processors, keep_end=True
            )
        logprobs = None
        if recorder is not None:
            by_row = recorder.rows("log_probability")
            # The recorder goes on until the longest text of the batch ends.
            logprobs = [row[: len(ids)] for row, ids in zip(by_row, completion_ids, strict=True)]
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": logprobs}

    def _check(self, trainer: GRPOTrainer) -> None:
        if trainer.use_vllm:
            raise InputError("these rollouts go through transformers generation: set use_vllm=False")
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


class SampledGRPOTrainer(GRPOTrainer):
    """TRL's `GRPOTrainer` with the importance ratio of the policy to the distribution of the draws.

    Log-probabilities from a rollout function are the denominator of the ratio. The loss clips the ratio as always, so a
    token with a ratio far from 1 teaches nothing. Widen `epsilon` or use `loss_type="cispo"` where the sampler's
    temperatures are far from 1.

    Raises:
        InputError: Before training, if `use_vllm` is set.
    """

    _tag_names = ["trl", "grpo", "ugap"]  # noqa: RUF012  (as TRL declares it)

    def __init__(
        self, model: Any, reward_funcs: Any = None, args: GRPOConfig | None = None, *others: Any, **kwargs: Any
    ):
        if args is not None and args.use_vllm:
            raise InputError(
                "use_vllm=True: TRL corrects for vLLM by a ratio too, and the ratio would count twice: switch it off"
            )
        with warnings.catch_warnings():
            # TRL calls rollout_func experimental on every construction.
            warnings.filterwarnings("ignore", "You are using 'rollout_func'")
            super().__init__(model, reward_funcs, args, *others, **kwargs)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        # TRL uses these for its vLLM correction alone. In the loss, they are the log q of the ratio.
        if output.get("sampling_per_token_logps") is not None:
            output["old_per_token_logps"] = output["sampling_per_token_logps"]
        return output
