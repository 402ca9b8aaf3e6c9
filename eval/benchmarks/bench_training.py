"""Compare our trainers with TRL's own: peak memory, seconds per step, and the part of a step that takes them."""

import itertools
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ugap.cli.arguments import option
from ugap.cli.main import main
from ugap.cli.suggest import did_you_mean
from ugap.errors import InputError
from ugap.files import write_json

if TYPE_CHECKING:
    from ugap.data import TextRow
    from ugap.training.policy import Policy

DESCRIPTION = """\
Compare our trainers with TRL's own: peak memory, seconds per step, and which part of a step takes them.

examples:
  ugap eval bench_training --model smollm2-135m-instruct
  ugap eval bench_training --model gemma-3-270m --dtype bfloat16 --num_generations 16 --output runs/bench-training.json
  ugap eval bench_training --variants sft-trl sft-ours --batch_size 4

Each variant trains LoRA for some steps in a process of its own, on the embedded tales.

GRPO:
  trl       TRL's GRPOTrainer and generation; the length of a completion is the reward
  trivial   our trainer and rollouts with that reward, without the entropy term
  shared    the uncertainty reward under the policy's frozen base, with the entropy term
  separate  the same, with a second copy of the model as scorer
SFT:
  sft-trl   TRL's SFTTrainer
  sft-ours  our trainer with its losses, without a constraint

Peak memory is the process's largest resident set, on a GPU what torch allocated there at most. Seconds are medians over
steps, without the first. Parts: generate is completions from prompts, reward the reward functions, loss the forward
pass of the loss, backward the gradients. other is the rest: the entropy term's targets, the optimiser, the data."""

# Each variant, and the one of TRL that it is compared with; these come first.
VARIANTS = {
    "trl": "trl",
    "trivial": "trl",
    "shared": "trl",
    "separate": "trl",
    "sft-trl": "sft-trl",
    "sft-ours": "sft-trl",
}
PARTS = ("generate", "reward", "loss", "backward", "other")
# What of a trainer is timed. TRL calls a rollout function in `_generate`, and tokenises and decodes there in any case.
METHODS = {
    "generate": "_generate",
    "reward": "_calculate_rewards",
    "loss": "compute_loss",
    "backward": "accelerator.backward",
}

progress = partial(print, file=sys.stderr, flush=True)


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
    device: Literal["cpu", "cuda"] | None = option(
        "where the model runs (default: the GPU if there is one)", default=None, group="model"
    )
    data: str = option("texts to train on", default="demo", group="bench", metavar="FILE")
    steps: int = option("optimiser steps of each variant", default=4, group="bench")
    batch_size: int = option("completions in a step of GRPO, texts in a step of SFT", default=16, group="bench")
    num_generations: int = option("completions of a prompt", default=8, group="bench")
    new_tokens: int = option("tokens of a completion", default=64, group="bench")
    text_tokens: int = option("tokens of a text of SFT", default=128, group="bench")
    variants: list[str] = option("variants to compare (default: all)", default=[], group="bench", metavar="NAME")
    only: str | None = option(
        "measure this variant in this process, and print its figures as JSON",
        default=None,
        group="bench",
        metavar="NAME",
    )
    output: str | None = option(
        "JSON file to write, anew after each variant", default=None, group="output", metavar="FILE"
    )


def run(arguments: Arguments) -> None:
    """Train each variant; print the table and, where asked, write the figures.

    Raises:
        InputError: A number, a variant or the device is of no use here, or no variant could be measured.
    """
    check(arguments)
    if arguments.only is not None:
        print(json.dumps(measure(arguments, arguments.only)))
        return
    record: dict[str, Any] = {"settings": settings_of(arguments), "variants": {}, "failed": {}}
    measured, failed = record["variants"], record["failed"]
    print(heading(arguments, record["settings"]["environment"]["machine"]), flush=True)
    for variant in VARIANTS:
        if arguments.variants and variant not in arguments.variants:
            continue
        begin = time.perf_counter()
        figures, reason = in_child(arguments, variant)
        if figures is None:
            failed[variant] = reason
        else:
            measured[variant] = figures
            # At once: whoever ends this program early has what was measured.
            print(table_row(variant, measured), flush=True)
        progress(f"{variant}: {'failed' if figures is None else 'done'} in {time.perf_counter() - begin:.0f} s")
        if arguments.output is not None:
            write_json(Path(arguments.output), record)
    if failed:
        print("", *(f"- `{variant}` was not measured: {reason}" for variant, reason in failed.items()), sep="\n")
    if not measured:
        first = next(iter(failed))
        raise InputError(f"no variant was measured; {first}: {failed[first]}")


def settings_of(arguments: Arguments) -> dict[str, Any]:
    """The arguments, with versions and machine."""
    from ugap.environment import environment

    versions = {**environment(), **{name: version(name) for name in ("trl", "peft")}}
    if arguments.device == "cpu":
        versions["machine"] = platform.machine()  # not the GPU beside it
    return {**asdict(arguments), "environment": versions}


def check(arguments: Arguments) -> None:
    """Refuse what no variant could run with."""
    for name in ("steps", "num_generations", "batch_size", "new_tokens", "text_tokens"):
        if getattr(arguments, name) < 1:
            raise InputError(f"{name}: expected a positive number, got {getattr(arguments, name)}")
    if arguments.num_generations < 2 or arguments.batch_size % arguments.num_generations:
        raise InputError(
            f"num_generations: {arguments.num_generations} does not part a batch of {arguments.batch_size} "
            "into groups of at least 2"
        )
    for name in (*arguments.variants, *([] if arguments.only is None else [arguments.only])):
        if name not in VARIANTS:
            guess = did_you_mean(name, VARIANTS) or f" (there are {', '.join(VARIANTS)})"
            raise InputError(f"unknown variant {name!r}{guess}")
    if arguments.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise InputError("device: torch finds no CUDA device here")


def in_child(arguments: Arguments, variant: str) -> tuple[dict[str, Any] | None, str]:
    """The figures of a variant from a process of its own; or None, and why there are none."""
    passed = {name: value for name, value in asdict(arguments).items() if name not in ("variants", "only", "output")}
    words = [f"--{name}={value}" for name, value in passed.items() if value is not None]
    # TRL's trainers would tell the Hub that they are used.
    environment = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, __file__, *words, f"--only={variant}"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, env=environment)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1]), ""
    ended = f"its process ended with status {done.returncode}"
    # What is killed has no last words: the last line is about something else.
    lines = done.stderr.strip().splitlines() if done.returncode > 0 else []
    return None, lines[-1].removeprefix("ugap: error: ") if lines else ended


def heading(arguments: Arguments, machine: str) -> str:
    """What is measured, and the head of the table."""
    a = arguments
    columns = ["variant", "peak GB", "of trl's", "s per step", "of trl's", *PARTS]
    return (
        f"{a.model}, {a.dtype}, on {machine}: {a.steps} steps of {a.batch_size} completions of {a.new_tokens} tokens "
        f"(GRPO) or {a.batch_size} texts of {a.text_tokens} (SFT); parts are in seconds per step.\n\n"
        f"| {' | '.join(columns)} |\n|---|{'---:|' * (len(columns) - 1)}"
    )


def table_row(variant: str, measured: dict[str, dict[str, Any]]) -> str:
    """A variant's row of the table; blank where TRL's or a part is missing."""
    one, trl = measured[variant], measured.get(VARIANTS[variant])
    cells = [f"`{variant}`"]
    for name, shown in (
        ("peak_bytes", f"{one['peak_bytes'] / 1e9:.2f}"),
        ("step_seconds", f"{one['step_seconds']:.3f}"),
    ):
        cells += [shown, "" if trl is None else f"{one[name] / trl[name]:.2f}"]
    cells += [f"{one['parts'][part]:.3f}" if part in one["parts"] else "" for part in PARTS]
    return f"| {' | '.join(cells)} |"


def measure(arguments: Arguments, variant: str) -> dict[str, Any]:
    """Train one variant: its `peak_bytes`, and medians over steps of `step_seconds` and of the seconds of its `parts`.

    Raises:
        InputError: The model, its profile or the texts cannot be used.
        RuntimeError: Not every step was made, or a part was not seen in one.
    """
    import torch

    parts = PARTS[2:] if variant.startswith("sft") else PARTS
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(arguments, variant, folder)
        cpu = trainer.accelerator.device.type == "cpu"
        watch = Stopwatch((lambda: None) if cpu else torch.cuda.synchronize)
        attach(watch, trainer, parts)
        trainer.train()
    if len(watch.steps) != arguments.steps:
        raise RuntimeError(f"{len(watch.steps)} of {arguments.steps} steps were made")
    for part in parts:
        if any(part not in step for step in watch.steps):
            raise RuntimeError(f"{part}: what is timed for it did not run in every step")
    steps = watch.steps[1:] or watch.steps  # the first one compiles kernels and allocates the optimiser's state
    # Linux counts kilobytes, macOS bytes.
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "peak_bytes": float(resident if cpu else torch.cuda.max_memory_allocated()),
        "step_seconds": statistics.median(sum(step.values()) for step in steps),
        "parts": {part: statistics.median(step[part] for step in steps) for part in parts},
    }


def build(arguments: Arguments, variant: str, folder: str) -> Any:
    """The trainer of a variant, with the policy on its device."""
    from peft import LoraConfig

    from ugap.data import load_texts
    from ugap.training.policy import ALL_LINEAR, load_policy

    lora = LoraConfig(target_modules=ALL_LINEAR, task_type="CAUSAL_LM")
    policy = load_policy(arguments.model, lora=lora, dtype=arguments.dtype, device=arguments.device)
    settings = {
        "output_dir": folder,
        "use_cpu": policy.model.device.type == "cpu",
        "bf16": False,  # no autocast: the weights have their type already
        "report_to": "none",
        "disable_tqdm": True,
        "max_steps": arguments.steps,
        "per_device_train_batch_size": arguments.batch_size,
        "gradient_checkpointing": False,
        "logging_strategy": "no",
        "save_strategy": "no",
    }
    make = sft_trainer if variant.startswith("sft") else grpo_trainer
    return make(arguments, variant, policy, load_texts(arguments.data), settings)


class Stopwatch:
    """Seconds of every step by part. Each moment counts once: for the innermost part that runs, or else for `other`.

    Args:
        synchronize (`Callable`): Waits until the device has done what it was given.
    """

    def __init__(self, synchronize: Callable[[], object]):
        self.steps: list[dict[str, float]] = []
        self._synchronize = synchronize
        self._step: dict[str, float] = {}
        self._running = ["other"]
        self._since = 0.0

    def time(self, owner: Any, method: str, part: str) -> None:
        """Count what a method of `owner` takes for a part.

        Raises:
            AttributeError: If there is no such method.
        """
        work = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._switch()
            self._running.append(part)
            try:
                return work(*args, **kwargs)
            finally:
                self._switch()
                self._running.pop()

        setattr(owner, method, timed)

    def start(self) -> None:
        """Begin the first step."""
        self._synchronize()
        self._since = time.perf_counter()

    def lap(self) -> None:
        """End a step, and begin the next."""
        self._switch()
        self.steps.append(self._step)
        self._step = {}

    def _switch(self) -> None:
        """Count the time since the last call for the part that has run since."""
        self._synchronize()  # else a kernel would count for the part that happens to wait for it
        now, part = time.perf_counter(), self._running[-1]
        self._step[part] = self._step.get(part, 0.0) + now - self._since
        self._since = now


def attach(watch: Stopwatch, trainer: Any, parts: Sequence[str]) -> None:
    """Let a stopwatch time the parts of a trainer's steps, which go from the end of one to the end of the next.

    Raises:
        AttributeError: If the trainer lacks a method that is timed.
    """
    from transformers import PrinterCallback, TrainerCallback

    class Laps(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            watch.start()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            watch.lap()

    trainer.remove_callback(PrinterCallback)  # it prints to stdout, whatever is logged
    trainer.add_callback(Laps)
    for part in parts:
        if part in METHODS:
            path, _, method = METHODS[part].rpartition(".")
            watch.time(getattr(trainer, path) if path else trainer, method, part)


def grpo_trainer(
    arguments: Arguments, variant: str, policy: "Policy", texts: "Sequence[TextRow]", settings: dict[str, Any]
) -> Any:
    """The trainer of a GRPO variant."""
    from trl import GRPOConfig, GRPOTrainer

    from ugap.scoring import Scorer
    from ugap.training import (
        SampledRollouts,
        UncertaintyGRPOConfig,
        UncertaintyGRPOTrainer,
        UncertaintyReward,
        grpo_dataset,
    )

    data = grpo_dataset(texts, [], policy.tokenizer, functional_share=0.0, max_tokens=arguments.new_tokens)
    prompts = arguments.batch_size // arguments.num_generations
    if len(data) < prompts:
        raise InputError(f"{arguments.data}: its texts give {len(data)} prompts, and a step has {prompts}")
    settings = {
        **settings,
        "num_generations": arguments.num_generations,
        "max_completion_length": arguments.new_tokens,
        "temperature": 1.0,
        "top_k": 0,  # transformers fills in 50 where it is unset
    }
    given = {"train_dataset": data, "processing_class": policy.tokenizer, "peft_config": policy.lora}
    if variant == "trl":
        return GRPOTrainer(policy.model, length_reward, GRPOConfig(**settings), **given)
    trivial = variant == "trivial"
    reward: Any = length_reward
    if not trivial:
        scorer = None
        if variant == "separate":
            scorer = Scorer.from_pretrained(arguments.model, dtype=arguments.dtype, device=arguments.device)
        reward = UncertaintyReward(arguments.profile, scorer)
    config = UncertaintyGRPOConfig(**settings, target_entropy_coef=0.0 if trivial else 0.1)
    return UncertaintyGRPOTrainer(policy.model, [reward], config, rollout_func=SampledRollouts(seed=0), **given)


def length_reward(completions: list[str], **columns: Any) -> list[float]:
    """Something that costs nothing and varies within a group."""
    return [float(len(completion) % 7) for completion in completions]  # equal rewards would have no advantage


def sft_trainer(
    arguments: Arguments, variant: str, policy: "Policy", texts: "Sequence[TextRow]", settings: dict[str, Any]
) -> Any:
    """The trainer of an SFT variant; both have the same rows in the same order."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from ugap.training import UncertaintySFTConfig, UncertaintySFTTrainer

    rows = sft_rows(arguments, texts, policy.tokenizer)
    # As many as are needed: a batch at the end of an epoch would have fewer.
    data = Dataset.from_list(list(itertools.islice(itertools.cycle(rows), arguments.steps * arguments.batch_size)))
    settings = {**settings, "max_length": None}
    given = {"processing_class": policy.tokenizer, "peft_config": policy.lora}
    if variant == "sft-trl":
        return SFTTrainer(policy.model, SFTConfig(**settings), train_dataset=data.remove_columns("domain"), **given)
    return UncertaintySFTTrainer(policy.model, UncertaintySFTConfig(**settings), train_dataset=data, **given)


def sft_rows(arguments: Arguments, texts: "Sequence[TextRow]", tokenizer: Any) -> list[dict[str, Any]]:
    """Pieces of the texts, of `text_tokens` each, in random order."""
    n, rows = arguments.text_tokens, []
    for text in texts:
        ids = tokenizer(text.text, split_special_tokens=True)["input_ids"]
        for begin in range(0, len(ids) - n + 1, n):  # whole pieces alone: padding would be timed as well
            piece = ids[begin : begin + n]
            rows.append({"input_ids": piece, "labels": piece, "domain": text.domain})
    if not rows:
        raise InputError(f"{arguments.data}: no text has {n} tokens")
    random.Random(0).shuffle(rows)
    return rows


if __name__ == "__main__":
    sys.exit(main(["eval", "bench_training", *sys.argv[1:]]))
