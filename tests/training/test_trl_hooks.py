"""The private hooks of TRL that our trainers rely on, by name and arguments: a hook that moves fails here."""

import inspect

import pytest
from transformers import Trainer
from trl import DPOTrainer, GRPOConfig, GRPOTrainer, RLOOTrainer, SFTConfig, SFTTrainer
from trl.extras.profiling import profiling_context
from trl.generation import vllm_generation
from trl.generation.vllm_client import VLLMClient
from trl.models import unwrap_model_for_generation

HOOKS = [
    (GRPOTrainer, "__init__", ["model", "reward_funcs", "args", "train_dataset", "eval_dataset"]),
    (GRPOTrainer, "_calculate_rewards", ["inputs", "prompts", "completions", "completion_ids_list"]),
    (GRPOTrainer, "_generate_and_score_completions", ["inputs"]),
    (GRPOTrainer, "_compute_loss", ["model", "inputs"]),
    (
        GRPOTrainer,
        "_get_per_token_logps_and_entropies",
        ["model", "input_ids", "attention_mask", "logits_to_keep", "compute_entropy"],
    ),
    (GRPOTrainer, "_tokenize_prompts", ["prompts"]),
    (GRPOTrainer, "_log_metric", ["name", "value"]),
    (GRPOTrainer, "_log_completion_extra", ["column", "values"]),
    (GRPOTrainer, "_save_checkpoint", ["model", "trial"]),
    (GRPOTrainer, "_load_optimizer_and_scheduler", ["checkpoint"]),
    (SFTTrainer, "_set_signature_columns_if_needed", []),
    (SFTTrainer, "_save_checkpoint", ["model", "trial"]),
    (SFTTrainer, "compute_loss", ["model", "inputs", "return_outputs", "num_items_in_batch"]),
    (SFTTrainer, "_prepare_dataset", ["dataset", "processing_class"]),
    (DPOTrainer, "_prepare_dataset", ["dataset", "processing_class"]),
    (RLOOTrainer, "_tokenize_prompts", ["prompts"]),
    (GRPOTrainer, "log", ["logs", "start_time"]),
    (Trainer, "get_batch_samples", ["epoch_iterator", "num_batches", "device"]),
    (Trainer, "_get_num_items_in_batch", ["batch_samples", "device"]),
    (
        Trainer,
        "evaluation_loop",
        ["dataloader", "description", "prediction_loss_only", "ignore_keys", "metric_key_prefix"],
    ),
    (Trainer, "_load_optimizer_and_scheduler", ["checkpoint"]),
    (Trainer, "_get_output_dir", ["trial"]),
]


@pytest.mark.parametrize(("trainer", "name", "arguments"), HOOKS, ids=[f"{t.__name__}.{n}" for t, n, _ in HOOKS])
def test_the_hook_is_there(trainer, name, arguments):
    parameters = list(inspect.signature(getattr(trainer, name)).parameters)
    assert [argument for argument in arguments if argument not in parameters] == []


def test_the_settings_are_there():
    fields = GRPOConfig.__dataclass_fields__
    for name in ("multi_objective_aggregation", "entropy_coef", "use_adaptive_entropy", "steps_per_generation"):
        assert name in fields
    for name in ("ds3_gather_for_generation", "chat_template_kwargs"):
        assert name in fields
    assert (fields["scale_rewards"].default, fields["use_vllm"].default) == ("group", False)
    assert SFTConfig.__dataclass_fields__["loss_type"].default == "nll"
    names = inspect.signature(unwrap_model_for_generation).parameters
    assert {"gather_deepspeed3_params", "gradient_checkpointing_kwargs"} <= set(names)


def test_grpo_scales_its_own_loss_and_sft_leaves_it_to_the_trainer():
    assert GRPOTrainer.loss_is_scaled_for_ga is True
    assert "loss_is_scaled_for_ga" in inspect.getsource(Trainer.training_step)
    source = inspect.getsource(GRPOTrainer.__init__)
    for name in ("reward_funcs", "reward_func_names", "reward_weights", "environments", "eos_token_ids", "_logs"):
        assert f"self.{name} = " in source
    # Our trainer calls the rewards itself, with what TRL's own method hands over.
    source = inspect.getsource(GRPOTrainer._calculate_rewards)
    for name in (
        "prompts",
        "completions",
        "completion_ids",
        "trainer_state",
        "log_extra",
        "log_metric",
        "environments",
    ):
        assert f"{name}=" in source or f'["{name}"]' in source
    assert list(inspect.signature(profiling_context).parameters)[:2] == ["trainer", "name"]


def test_the_vllm_backend_takes_our_processor_and_requests():
    source = inspect.getsource(vllm_generation.VLLMGeneration)
    # `colocated_engine` stands in for LLM, and adds options that are not among these.
    assert source.count("self.llm = LLM(") == 1
    assert 'logprobs_mode="processed_logprobs"' in source
    assert "logits_processors" not in source
    assert "dtype=" not in inspect.getsource(vllm_generation.VLLMGeneration._init_vllm)
    # Requests arrive as they are where vLLM is called, in the engine and in the client of a server.
    assert '[{"prompt_token_ids": ids} for ids in all_prompts]' in source
    assert "self.llm.generate(vllm_prompts, sampling_params=sampling_params, use_tqdm=False)" in source
    assert "ordered_set_of_prompt_ids = all_prompts[::num_generations]" in source
    assert "self.vllm_client.generate(" in source
    names = list(inspect.signature(vllm_generation.VLLMGeneration.generate).parameters)
    assert names[:4] == ["self", "prompts", "images", "num_generations"]
    assert {"prompts", "generation_kwargs"} <= inspect.signature(VLLMClient.generate).parameters.keys()
    assert "sampling_params.update(generation_kwargs or {})" in inspect.getsource(VLLMClient.generate)
    assert inspect.signature(VLLMClient.get_server_info).parameters.keys() == {"self"}
    # The correction can be switched off after the trainer was made.
    for method in (GRPOTrainer._generate_and_score_completions, GRPOTrainer._compute_loss):
        source = inspect.getsource(method)
        assert "self.vllm_importance_sampling_correction" in source
        assert "args.vllm_importance_sampling_correction" not in source
