"""What the rewards cost a GRPO run: peak memory and time per step, beside a trivial reward."""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ugap.cli.arguments import option
from ugap.cli.main import main
from ugap.files import replacing

DESCRIPTION = """\
Measure what the uncertainty reward costs a GRPO run: peak memory and seconds per step beside a trivial reward.

examples:
  ugap eval bench_training --model smollm2-135m-instruct
  ugap eval bench_training --model gemma-3-270m --dtype bfloat16 --num_generations 16 --output runs/bench-training.json

Each variant trains LoRA for some steps in a process of its own, on the embedded tales. trivial: the length of a
completion is the reward, no entropy term. shared: the uncertainty reward under the policy's frozen base, with the
entropy term. separate: the same with a second copy of the model as scorer. Peak memory is the process's largest
resident set, on a GPU what torch allocated there at most. The first step is left out of the times."""

VARIANTS = ("trivial", "shared", "separate")


@dataclass(kw_only=True)
class Arguments:
    """Arguments of `ugap eval bench_training`."""

    model: str = option(
        "asset, folder or Hub id of the policy", default="smollm2-135m-instruct", group="model", metavar="NAME"
    )
    profile: str | None = option(
        "human profile of the model (default: the shipped one)", default=None, group="model", metavar="FILE"
    )
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = option(
        "type of the weights", default="float32", group="model"
    )
    data: str = option("texts that the prompts are cut from", default="demo", group="bench", metavar="FILE")
    steps: int = option("optimiser steps of each variant", default=4, group="bench")
    num_generations: int = option("completions of a prompt", default=8, group="bench")
    batch_size: int = option("completions in a step", default=16, group="bench")
    new_tokens: int = option("tokens of a completion", default=48, group="bench")
    variant: Literal["all", "trivial", "shared", "separate"] = option(
        "one variant alone, in this process", default="all", group="bench"
    )
    output: str | None = option("JSON file to write", default=None, group="output", metavar="FILE")


def run(arguments: Arguments) -> None:
    """Train each variant, print what it took and, where asked, write it.

    Raises:
        InputError: The model cannot be used or has no human profile, or a number is less than 1.
    """
    from ugap.errors import InputError
    from ugap.study.study import environment

    for name in ("steps", "num_generations", "batch_size", "new_tokens"):
        if getattr(arguments, name) < 1:
            raise InputError(f"{name}: expected a positive number, got {getattr(arguments, name)}")
    if arguments.variant != "all":
        print(json.dumps(train(arguments)))
        return
    found: dict[str, dict[str, float]] = {}
    for variant in VARIANTS:
        words = [f"--{name}={value}" for name, value in asdict(arguments).items() if value is not None]
        kept = [word for word in words if not word.startswith(("--variant=", "--output="))]
        done = subprocess.run(
            [sys.executable, __file__, *kept, f"--variant={variant}"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise InputError(f"{variant}: {done.stderr.strip().splitlines()[-1]}")
        found[variant] = json.loads(done.stdout.splitlines()[-1])
        print(f"{variant} is done", file=sys.stderr)
    trivial = found["trivial"]
    print(f"{arguments.model}: {arguments.batch_size} completions of {arguments.new_tokens} tokens a step\n")
    print(f"{'reward':<10} {'peak, GB':>9} {'of trivial':>11} {'s per step':>11} {'of trivial':>11}")
    for variant, one in found.items():
        cells = [f"{one['peak_bytes'] / 1e9:>9.2f}", f"{one['peak_bytes'] / trivial['peak_bytes']:>10.2f}x"]
        cells += [f"{one['step_seconds']:>11.2f}", f"{one['step_seconds'] / trivial['step_seconds']:>10.2f}x"]
        print(f"{variant:<10}", *cells)
    if arguments.output is not None:
        record = {"settings": {**asdict(arguments), "environment": environment()}, "variants": found}
        with replacing(Path(arguments.output)) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def train(arguments: Arguments) -> dict[str, float]:
    """One variant: `peak_bytes`, and `step_seconds` (the median, without the first)."""
    import torch
    from peft import LoraConfig

    from ugap.data import load_texts
    from ugap.models import load_model
    from ugap.scoring import Scorer
    from ugap.training import (
        SampledRollouts,
        UncertaintyGRPOConfig,
        UncertaintyGRPOTrainer,
        UncertaintyReward,
        grpo_dataset,
        start_with_bos,
    )

    model, tokenizer = load_model(arguments.model, dtype=arguments.dtype)
    start_with_bos(tokenizer)
    data = grpo_dataset(
        load_texts(arguments.data), [], tokenizer, functional_share=0.0, max_tokens=arguments.new_tokens
    )
    shared = arguments.variant == "shared"
    reward: Any = length_reward
    if arguments.variant != "trivial":
        reward = UncertaintyReward(arguments.profile, None if shared else Scorer.from_pretrained(arguments.model))
    cpu = model.device.type == "cpu"
    with tempfile.TemporaryDirectory() as folder:
        config = UncertaintyGRPOConfig(
            folder,
            use_cpu=cpu,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
            max_steps=arguments.steps,
            per_device_train_batch_size=arguments.batch_size,
            num_generations=arguments.num_generations,
            max_completion_length=arguments.new_tokens,
            target_entropy_coef=0.0 if arguments.variant == "trivial" else 0.1,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            top_k=0,
        )
        trainer = UncertaintyGRPOTrainer(
            model.requires_grad_(True),
            [reward],
            config,
            train_dataset=data,
            processing_class=tokenizer,
            peft_config=LoraConfig(target_modules="all-linear"),
            rollout_func=SampledRollouts(seed=0),
        )
        trainer.train()
    times = [log["step_time"] for log in trainer.state.log_history if "step_time" in log]
    # Linux counts kilobytes, macOS bytes.
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    peak = resident if cpu else torch.cuda.max_memory_allocated()
    return {"peak_bytes": float(peak), "step_seconds": statistics.median(times[1:] or times)}


def length_reward(completions: list[str], **columns: Any) -> list[float]:
    """Something that costs nothing and varies within a group."""
    return [float(len(completion) % 7) for completion in completions]


if __name__ == "__main__":
    sys.exit(main(["eval", "bench_training", *sys.argv[1:]]))
