"""What every constrained trainer shares: its settings, the step of the multiplier, and its state in the checkpoint."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ugap.errors import InputError
from ugap.training.constraint import LagrangianConstraint
from ugap.training.evaluation.card import MeasuredCard


@dataclass
class ConstrainedConfig:
    """The settings of the constraint; a mixin for TRL's config dataclasses."""

    constraint_limit: float | None = field(
        default=None,
        metadata={
            "help": "The most that the functional cost may be; unset, there is no constraint. SFT: KL(base || policy) "
            "in nats per token of functional text. GRPO: share of functional completions that are wrong."
        },
    )
    constraint_metric: str = field(default="factuality", metadata={"help": "Name of the cost in the log."})
    constraint_learning_rate: float = field(
        default=1.0, metadata={"help": "Step of the multiplier's logarithm, per unit of cost above the limit."}
    )
    constraint_initial: float = field(default=1.0, metadata={"help": "The multiplier at the start."})
    constraint_minimum: float = field(default=0.01, metadata={"help": "The least it can be; above 0."})
    constraint_maximum: float = field(default=100.0, metadata={"help": "The most it can be."})
    constraint_window: int = field(default=10, metadata={"help": "Steps of which the cost is the mean."})
    constraint_warmup: int = field(default=10, metadata={"help": "First steps, in which the multiplier stays."})
    constraint_damping: float = field(
        default=0.0, metadata={"help": "Gain of a proportional term, per unit of cost: damps oscillation."}
    )

    @property
    def constrained(self) -> bool:
        """Whether there is a constraint."""
        return self.constraint_limit is not None or getattr(self, "constraint_margin", None) is not None

    def constraint(self) -> LagrangianConstraint | None:
        """The constraint that the settings ask for; its limit may be set later.

        Raises:
            InputError: If a setting is out of its range.
        """
        if not self.constrained:
            return None
        try:
            return LagrangianConstraint(
                self.constraint_metric,
                self.constraint_limit,
                learning_rate=self.constraint_learning_rate,
                initial=self.constraint_initial,
                minimum=self.constraint_minimum,
                maximum=self.constraint_maximum,
                window=self.constraint_window,
                warmup=self.constraint_warmup,
                damping=self.constraint_damping,
            )
        except ValueError as error:
            raise InputError(f"constraint_{error}") from error


class ConstrainedTrainer(MeasuredCard):
    """A mixin for TRL's trainers: `self.constraint` moves once an optimiser step and is saved with checkpoints.

    What is logged is a mean over tokens or rows, however they are spread over micro-batches, steps and processes.
    """

    constraint: LagrangianConstraint | None
    # By mode and name, the sum and the count in this process since the last log.
    _sums: defaultdict[str, dict[str, Tensor]]

    def _watch_constraint(self, constraint: LagrangianConstraint | None) -> None:
        """Take charge of a constraint; called once, when the trainer is built."""
        self.constraint = constraint
        self._sums = defaultdict(dict)
        if constraint is not None:
            self.add_callback(_DualStep(self))  # type: ignore[attr-defined]

    def _reduced(self, sums: Tensor) -> Tensor:
        """The sum over processes."""
        accelerator = self.accelerator  # type: ignore[attr-defined]
        if accelerator.num_processes == 1:
            return sums
        return accelerator.reduce(sums.to(accelerator.device), reduction="sum")

    def _add_to_log(self, mode: str, figures: Mapping[str, tuple[float | Tensor, float]]) -> None:
        """Add to sums and counts whose quotient is logged next; every process adds the same names."""
        flat = torch.stack([torch.as_tensor(x).detach().cpu().double() for pair in figures.values() for x in pair])
        for name, pair in zip(figures, flat.view(-1, 2), strict=True):
            self._sums[mode][name] = self._sums[mode].get(name, 0) + pair

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, as TRL does, with the means over everything since the last log and over all processes."""
        mode = "train" if self.model.training else "eval"  # type: ignore[attr-defined]
        sums = self._sums.pop(mode, {})
        if sums:
            for name, (total, count) in zip(sums, self._reduced(torch.stack([*sums.values()])).tolist(), strict=True):
                if count:
                    self._metrics[mode][name] = [total / count]  # type: ignore[attr-defined]
        super().log(logs, start_time)  # type: ignore[misc]

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        # Before the rest: a checkpoint that is whole, which its trainer_state.json says, has the multiplier.
        if self.constraint is not None and self.args.should_save:  # type: ignore[attr-defined]
            folder = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"  # type: ignore[attr-defined]
            self.constraint.save(Path(self._get_output_dir(trial=trial)) / folder)  # type: ignore[attr-defined]
        super()._save_checkpoint(model, trial)  # type: ignore[misc]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if self.constraint is not None and checkpoint is not None:
            self.constraint.load(checkpoint)


class _DualStep(TrainerCallback):
    """One step of the multiplier behind every step of the optimiser."""

    def __init__(self, trainer: ConstrainedTrainer):
        self.trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Update the multiplier and keep its figures for the log."""
        constraint = self.trainer.constraint
        assert constraint is not None
        constraint.update(self.trainer._reduced)
        for name, value in constraint.metrics().items():
            self.trainer._metrics["train"][name].append(value)  # type: ignore[attr-defined]
