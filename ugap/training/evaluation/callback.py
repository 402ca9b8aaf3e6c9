"""The gap while a model trains: measured on held-out prefixes at the start, every so many steps, and at the end.

Design choices:

- Scalars go through `transformers.Trainer.log`, past the `log` of TRL's trainers. TRL's `log` adds what it gathered
  since the last log, and empties it. An evaluation between two logs would cut those windows in pieces.
- An evaluation runs when a step ends, the last one too: at the end of training most trackers have closed their run.
- An evaluation does not change the training. It restores the state of the random generators, the mode of the model and
  the flag that a log is due. Runs with and without evaluations end with the same weights.
- The log history holds the evaluations of a run, and every checkpoint holds the log history. A resumed run finds the
  first gap there, and reports what share of it is closed.
"""

import json
import logging
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl.models import unwrap_model_for_generation

from ugap.data.domain import CREATIVE
from ugap.data.facts import Fact
from ugap.errors import InputError
from ugap.files import replacing
from ugap.profile import HumanProfile, KindProfile
from ugap.profile.fitting import known_profile
from ugap.profile.profile import Selection
from ugap.progress import progress_bar
from ugap.scoring import Scorer, SharedScorer
from ugap.scoring.shared import evaluating
from ugap.study.decodings import Settings, generation_config, is_human
from ugap.study.excerpts import Excerpt
from ugap.study.pairs import MIN_TOKENS
from ugap.training.evaluation.evaluate import Evaluation, HeldOut
from ugap.training.evaluation.wandb_log import wandb_media

logger = logging.getLogger(__name__)

EVALUATIONS_FILE = "ugap_gap.jsonl"
PREFIX = "ugap/"


class UncertaintyGapCallback(TrainerCallback):
    """Logs the policy's distance from human uncertainty, by domain.

    At every evaluation the policy continues the prefixes, and a frozen scorer reads its texts and those of people. The
    log gets these numbers (gaps are human less policy, paired by prefix, with 95% intervals):

    | name | meaning |
    |---|---|
    | `ugap/{domain}/{measure}_gap`, `_gap_low`, `_gap_high` | the gap in `nll`, `entropy`, `pmi` and `deviation` |
    | `ugap/{domain}/{measure}_wasserstein` | distance between the distributions of the tokens |
    | `ugap/{domain}/distinct_2`, `distinct_4`, `repetition` | of the policy; of people with the ending `_human` |
    | `ugap/{domain}/closeness` | mean closeness of the texts to people, in [0, 1]; of people with `_human` |
    | `ugap/{domain}/energy_distance` | of the policy's texts from people's, all together: 0 where they are alike |
    | `ugap/{domain}/gap_closed` | 1 less the ratio of the NLL gap's size to that at the first evaluation |
    | `ugap/{domain}/n_dropped` | excerpts left out because a text is too short |
    | `ugap/facts/accuracy`, `accuracy_low`, `accuracy_high` | share of right answers to the facts |

    A number that cannot be estimated, such as an interval from a single source, is not logged. Transformers puts
    `train/` before the names for wandb and TensorBoard. wandb also gets `ugap/calibration`, `ugap/distributions` and
    `ugap/completions`, and `{output_dir}/ugap_gap.jsonl` holds a line for every evaluation.

    Args:
        trainer (`Trainer`): The trainer; add the callback to it by `trainer.add_callback(callback)`.
        excerpts (`Sequence[Excerpt]`): Held-out prefixes with their human continuations, of any number of domains,
            as `ugap.study.excerpts.cut_excerpts` cuts them.
        scorer (`Scorer`, *optional*): The frozen scorer; by default the policy's base with the adapter disabled. Full
            fine-tuning leaves no base and needs a scorer.
        profile (`HumanProfile`, *optional*): The scorer's human profile, by default that in its folder, the shipped
            one, or one that was fitted before. Without one, closeness and energy distance are not logged.
        kind (`str` or `Mapping[str, float]`, *optional*): The human texts that creative excerpts are compared with. By
            default those of the excerpt's own kind, or of its domain where the profile lacks the kind. A domain with an
            excerpt that has neither has no closeness.
        facts (`Sequence[Fact]`, *optional*): Facts for the factual probe.
        decoding (`Mapping[str, Any]`, *optional*): Decoding of the policy, see `ugap.study.decodings.DECODINGS`; by
            default ancestral sampling.
        max_new_tokens (`int`, *optional*, defaults to `64`): Longest continuation in tokens.
        eval_every (`int`, *optional*, defaults to `50`): Optimiser steps between evaluations; 0 means at the start and
            at the end alone.
        batch_size (`int`, *optional*, defaults to `16`): Prefixes continued at once. Several processes share the
            batches, so a domain should have several.
        seed (`int`, *optional*, defaults to `0`): Seed of draws and bootstrap, the same at every evaluation.
        table_rows (`int`, *optional*, defaults to `8`): Completions of each domain in the table for wandb.

    Attributes:
        evaluations (`list[dict[str, float]]`): The evaluations of this run: `step` and the logged numbers by name.

    Raises:
        InputError: If there is no frozen scorer, there are no excerpts or two with one id, or a setting is out of
            range. When training begins: if the policy's base cannot be the scorer, or a human continuation cannot be
            scored. At any evaluation: if logits are not finite.

    Example:
        ```python
        trainer = SFTTrainer(model, args=config, train_dataset=data, peft_config=LoraConfig())
        excerpts = cut_excerpts(load_texts("held_out.jsonl"), tokenizer, prefix_tokens=64, max_new_tokens=64)
        callback = UncertaintyGapCallback(trainer, excerpts, facts=load_facts(limit=100))
        trainer.add_callback(callback)
        trainer.train()
        print(callback.evaluations[-1]["ugap/creative/gap_closed"])
        ```
    """

    def __init__(
        self,
        trainer: Trainer,
        excerpts: Sequence[Excerpt],
        *,
        scorer: Scorer | None = None,
        profile: HumanProfile | None = None,
        kind: Selection | None = None,
        facts: Sequence[Fact] = (),
        decoding: Settings | None = None,
        max_new_tokens: int = 64,
        eval_every: int = 50,
        batch_size: int = 16,
        seed: int = 0,
        table_rows: int = 8,
    ):
        for name, value, least in (
            ("max_new_tokens", max_new_tokens, MIN_TOKENS),
            ("eval_every", eval_every, 0),
            ("batch_size", batch_size, 1),
            ("table_rows", table_rows, 0),
        ):
            if value < least:
                raise InputError(f"{name} is {value}, and at least {least} is needed")
        self.trainer, self.excerpts, self.facts = trainer, list(excerpts), list(facts)
        self.decoding: Settings = dict(decoding or {})
        self.max_new_tokens, self.eval_every, self.batch_size = max_new_tokens, eval_every, batch_size
        self.seed, self.table_rows = seed, table_rows
        self.evaluations: list[dict[str, float]] = []
        self._scorer, self._profile, self._kind = scorer, profile, kind
        self._held_out: HeldOut | None = None
        _check_ids(self.excerpts, self.facts)
        # A bad decoding should fail here, not after the first steps.
        generation_config(self.decoding, max_new_tokens=max_new_tokens)
        self._check_policy()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Score the human texts, and evaluate for the first time unless the run is resumed."""
        tokenizer = self._tokenizer()
        with self._undisturbed():
            scorer = SharedScorer(self.trainer.model, tokenizer) if self._scorer is None else self._scorer
            self._held_out = HeldOut(
                self.excerpts,
                scorer,
                tokenizer,
                facts=self.facts,
                decoding=self.decoding,
                max_new_tokens=self.max_new_tokens,
                batch_size=self.batch_size,
                seed=self.seed,
                people=self._people(scorer),
            )
        self.evaluations = _evaluations_of(state.log_history)
        if self.evaluations:
            self._write(state)
        else:
            if state.global_step:
                logger.warning("no evaluation in the run so far: the gap at step %d is the first", state.global_step)
            self._evaluate(args, state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Evaluate every `eval_every` steps, and at the last step."""
        if control.should_training_stop or (self.eval_every and state.global_step % self.eval_every == 0):
            self._evaluate(args, state)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Evaluate for the last time if an evaluation or a log of the trainer has stopped the run."""
        if control.should_training_stop:
            self._evaluate(args, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Evaluate once more if the last step was not evaluated, or if the weights of another step were loaded."""
        best = state.best_global_step if args.load_best_model_at_end else None
        self._evaluate(args, state, again=best not in (None, state.global_step))

    def _evaluate(self, args: TrainingArguments, state: TrainerState, *, again: bool = False) -> None:
        if self.evaluations and self.evaluations[-1]["step"] == state.global_step and not again:
            return
        assert self._held_out is not None  # on_train_begin came first
        held_out, trainer = self._held_out, self.trainer
        with (
            self._undisturbed(),
            progress_bar(disable=args.disable_tqdm or not state.is_world_process_zero) as bar,
            unwrap_model_for_generation(
                trainer.model_wrapped,
                trainer.accelerator,
                gather_deepspeed3_params=getattr(args, "ds3_gather_for_generation", True),
                gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,
            ) as unwrapped,
            evaluating(unwrapped),
        ):
            task = bar.add_task(f"gap at step {state.global_step}", total=held_out.n_local)
            # generate() of PEFT adds nothing: the adapter layers are in the base.
            policy = unwrapped.get_base_model() if isinstance(unwrapped, PeftModel) else unwrapped
            evaluation = held_out.evaluation(policy, lambda n: bar.advance(task, n))
        scalars = evaluation.scalars(self.seed)
        first = self.evaluations[0] if self.evaluations else scalars
        for domain in held_out.domains:
            name = f"{PREFIX}{domain}/nll_gap"
            # A first gap of 0 leaves no share to close.
            if first.get(name) and name in scalars:
                scalars[f"{PREFIX}{domain}/gap_closed"] = 1 - abs(scalars[name]) / abs(first[name])
        earlier = [one for one in self.evaluations if one["step"] < state.global_step]
        self.evaluations = [*earlier, {"step": state.global_step, **scalars}]
        due = trainer.control.should_log  # Trainer.log clears it, and the trainer's own log has not come yet
        Trainer.log(trainer, dict(scalars))
        trainer.control.should_log = due
        self._write(state)
        if "wandb" in args.report_to and state.is_world_process_zero:
            self._show(evaluation, state)

    def _write(self, state: TrainerState) -> None:
        if state.is_world_process_zero:
            lines = [json.dumps(evaluation, allow_nan=False) + "\n" for evaluation in self.evaluations]
            # All lines anew: a resumed run drops evaluations after its checkpoint.
            with replacing(Path(self.trainer.args.output_dir) / EVALUATIONS_FILE) as temporary:
                temporary.write_text("".join(lines), encoding="utf-8")

    def _show(self, evaluation: Evaluation, state: TrainerState) -> None:
        """Log plots and table to wandb. If they fail, the training goes on."""
        import wandb

        if wandb.run is None or wandb.run.disabled or self._held_out is None:
            return
        try:
            with self._undisturbed(), tempfile.TemporaryDirectory() as folder:
                media = wandb_media(evaluation.texts, self._held_out.human, evaluation.cells, self.table_rows, folder)
                wandb.log({**media, "train/global_step": state.global_step})
        # matplotlib and wandb raise errors of many kinds.
        except Exception as error:
            logger.warning("wandb has no plots of step %d: %s", state.global_step, error)

    def _people(self, scorer: Scorer) -> dict[str, KindProfile]:
        """The human texts that an excerpt is compared with, by its source."""
        profile = known_profile(scorer.name, scorer.id, scorer.tokenizer) if self._profile is None else self._profile
        if profile is None:
            return {}
        profile.check(scorer.id)
        selections: dict[str, Selection] = {}
        for excerpt in self.excerpts:
            known = [name for name in (excerpt.kind, excerpt.domain) if name in (*profile.kinds, *profile.domains)]
            if self._kind is not None and excerpt.domain == CREATIVE:
                selections[excerpt.source] = self._kind
            elif known:
                selections[excerpt.source] = known[0]
        # A mixture of kinds takes milliseconds.
        kinds = {repr(selection): profile.kind(selection) for selection in selections.values()}
        people = {source: kinds[repr(selection)] for source, selection in selections.items()}
        return {source: kind for source, kind in people.items() if kind.texts is not None}

    def _tokenizer(self) -> Any:
        # A multimodal processor holds the tokenizer.
        return getattr(self.trainer.processing_class, "tokenizer", self.trainer.processing_class)

    def _check_policy(self) -> None:
        policy = self.trainer.model
        sharded = self.trainer.is_fsdp_enabled
        if self._tokenizer() is None:
            raise InputError("the trainer has no tokenizer: give it a processing_class")
        if not isinstance(policy, PeftModel):
            if self._scorer is None:
                raise InputError(
                    "full fine-tuning changes the weights of the policy, so the gap needs a frozen scorer of its own: "
                    "name a scorer, or train an adapter"
                )
            if is_human(self.decoding):
                raise InputError(
                    "decoding at human uncertainty needs the human profile of the policy, and full fine-tuning changes "
                    "its weights: choose another decoding, or train an adapter"
                )
        elif self._scorer is None and sharded:
            raise InputError("the policy is sharded over processes (FSDP): name a separate scorer for the gap")
        trained = policy.get_base_model() if isinstance(policy, PeftModel) else policy
        if self._scorer is not None and self._scorer.model is trained and not isinstance(self._scorer, SharedScorer):
            raise InputError(f"scorer {self._scorer.name} is the policy itself, which training changes")
        if self.facts and sharded:
            raise InputError(
                "the policy is sharded over processes (FSDP): the factual probe cannot read it, drop facts"
            )

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Restore the random generators of Python, NumPy and torch after the block."""
        # fork_rng restores the CPU generator and that of the listed devices.
        device = self.trainer.args.device
        python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002  (the state that others draw from)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            try:
                yield
            finally:
                random.setstate(python)
                np.random.set_state(legacy)  # noqa: NPY002


def _check_ids(excerpts: Sequence[Excerpt], facts: Sequence[Fact]) -> None:
    if not excerpts:
        raise InputError("there are no held-out excerpts to evaluate on")
    for kind, ids in (("excerpt", [excerpt.id for excerpt in excerpts]), ("fact", [fact.id for fact in facts])):
        twice = next((name for i, name in enumerate(ids) if name in ids[:i]), None)
        if twice is not None:
            raise InputError(f"{kind} {twice!r} is there twice: each needs its own id")


def _evaluations_of(log_history: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """The evaluations in the log history of a resumed run; of two at one step, the later one."""
    evaluations: dict[int, dict[str, float]] = {}
    for log in log_history:
        numbers = {name: value for name, value in log.items() if name.startswith(PREFIX)}
        if any(name.endswith("/n_dropped") for name in numbers):  # every evaluation has it
            evaluations[log["step"]] = {"step": log["step"], **numbers}
    return list(evaluations.values())
