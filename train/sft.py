"""Supervised fine-tuning toward human uncertainty on human texts, or on a model's own samples."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from ugap.cli.arguments import option
from ugap.cli.main import main
from ugap.cli.reward import frozen_scorer
from ugap.cli.training import (
    DataOptions,
    EvaluationOptions,
    PolicyOptions,
    check_trackers,
    data_of,
    decoding_of,
    in_one_line,
    policy_of,
    say,
    settings_of,
    train,
)
from ugap.data import TextRow
from ugap.data.domain import CREATIVE
from ugap.errors import InputError
from ugap.progress import progress_bar
from ugap.study.excerpts import cut_excerpts
from ugap.training import UncertaintySFTConfig, UncertaintySFTTrainer, sft_dataset
from ugap.training.policy import Policy
from ugap.training.run_folder import made_once, note_run, open_run
from ugap.training.samples import sample_continuations

DESCRIPTION = """\
Fine-tune a model toward human uncertainty on human texts (SFT).

On creative texts, the model's entropy moves to the surprisal of the texts. On functional texts and facts, the model
stays near its base.

examples:
  ugap train sft --model smollm2-135m-instruct --data stories.jsonl --mode balanced --constraint_limit 0.02
  ugap train sft --config sft_smollm2.yaml --data stories.jsonl --output_dir runs/sft
  ugap train sft --config sft_smollm2.yaml --data stories.jsonl --output_dir runs/sft --resume_from_checkpoint yes
  ugap train sft --accelerate multi_gpu --num_processes 8 --model NAME --data stories.jsonl

Options come from the command line or from a YAML file (--config). The output folder gets the adapter, checkpoints, a
model card with the gap before and after, ugap_gap.jsonl (every evaluation of the gap) and ugap_run.json (all settings).

With --self_samples, the model trains on its own continuations at --self_decoding instead of human texts. That can make
a collapsed model for comparison. There is then no constraint, and there are no functional rows."""

NAME = "sft"
CONFIG = UncertaintySFTConfig
DEFAULTS: dict[str, Any] = {}
SAMPLES = "self_samples.jsonl"


@dataclass(kw_only=True)
class Arguments(EvaluationOptions, DataOptions, PolicyOptions):
    """Arguments of `ugap train sft`, in addition to those of the trainer's config."""

    piece_tokens: int = option("longest piece of a text, in tokens", default=256, group="data")
    self_samples: int = option(
        "train on N continuations by the model itself instead of the texts", default=0, group="data"
    )
    self_decoding: str = option(
        "their decoding: see ugap measure --help, or setting:value,...", default="ancestral", group="data"
    )
    self_tokens: int = option("longest self-written continuation, in tokens", default=128, group="data")


def run(arguments: Arguments, config: UncertaintySFTConfig) -> None:
    """Train.

    Raises:
        InputError: The input is bad.
    """
    settings = settings_of(NAME, arguments)
    # Before anything is loaded: a folder with another run is refused at once.
    checkpoint = open_run(config.output_dir, config.resume_from_checkpoint, settings)
    evaluated_by, writes = decoding_of(arguments.eval_decoding, {}), decoding_of(arguments.self_decoding, {})
    if arguments.self_samples < 0:
        raise InputError(f"self_samples is {arguments.self_samples}, a negative number")
    if arguments.self_samples and config.constrained:
        raise InputError("self_samples has no functional rows, and the constraint needs them: choose one")
    check_trackers(config)
    policy = policy_of(arguments, config)
    data = data_of(arguments, policy.tokenizer)
    if arguments.self_samples:
        # Recorded before the samples, so that a run that ends while drawing them can resume.
        note_run(config.output_dir, settings)
        rows = made_once(
            Path(config.output_dir) / SAMPLES, lambda: own_samples(arguments, config, policy, data.texts, writes)
        )
        # The file also has the texts, for people.
        keys = ("input_ids", "labels", "domain")
        dataset = Dataset.from_list([{key: row[key] for key in keys} for row in rows])
    else:
        dataset = sft_dataset(
            data.texts,
            data.facts,
            policy.tokenizer,
            max_tokens=arguments.piece_tokens,
            functional_share=arguments.functional_share,
            seed=config.seed,
        )
    domains = list(dataset["domain"])
    say(f"rows: {', '.join(f'{domains.count(domain)} {domain}' for domain in sorted(set(domains)))}")
    with in_one_line():
        trainer = UncertaintySFTTrainer(
            policy.model,
            config,
            train_dataset=dataset,
            processing_class=policy.tokenizer,
            peft_config=policy.lora,
        )
    scorer = frozen_scorer(arguments, config)
    train(NAME, trainer, arguments, data, checkpoint=checkpoint, scorer=scorer, decoding=evaluated_by)


def own_samples(
    arguments: Arguments, config: Any, policy: Policy, texts: Sequence[TextRow], decoding: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Rows of the policy's own continuations of the starts of creative texts; the starts are not learned."""
    excerpts = cut_excerpts(
        [text for text in texts if text.domain == CREATIVE],
        policy.tokenizer,
        prefix_tokens=arguments.prefix_tokens,
        max_new_tokens=arguments.self_tokens,
        min_new_tokens=1,
        limit=arguments.self_samples,
        per_text=arguments.self_samples,
    )
    n = len(excerpts)
    # Where there are too few starts, they repeat with other continuations.
    prompts = [excerpts[number % n].prefix for number in range(arguments.self_samples)]
    with progress_bar(disable=config.disable_tqdm) as bar:
        task = bar.add_task("own samples", total=len(prompts) // config.world_size)
        samples = sample_continuations(
            policy.model,
            policy.tokenizer,
            prompts,
            decoding,
            max_new_tokens=arguments.self_tokens,
            seed=config.seed,
            advance=lambda n: bar.advance(task, n),
        )
    return [
        {
            "prompt": sample.prompt,
            "completion": sample.text,
            "domain": CREATIVE,
            "input_ids": sample.prompt_ids + sample.ids,
            "labels": [-100] * len(sample.prompt_ids) + sample.ids,
        }
        for (sample,) in samples
    ]


if __name__ == "__main__":
    sys.exit(main(["train", "sft", *sys.argv[1:]]))
