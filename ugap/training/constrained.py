"""What every constrained trainer shares: its settings, the step of the multiplier, and its state in the checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ugap.errors import InputError
from ugap.training.constraint import LagrangianConstraint
from ugap.training.model_card import MeasuredCard


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
    """A mixin for TRL's trainers: `self.constraint` moves once an optimiser step and is saved with checkpoints."""

    constraint: LagrangianConstraint | None

    def _watch_constraint(self, constraint: LagrangianConstraint | None) -> None:
        """Take charge of a constraint; called once, when the trainer is built."""
        self.constraint = constraint
        if constraint is not None:
            self.add_callback(_DualStep(self))  # type: ignore[attr-defined]

    def _reduced(self, sums: torch.Tensor) -> torch.Tensor:
        """The sum over processes."""
        accelerator = self.accelerator  # type: ignore[attr-defined]
        if accelerator.num_processes == 1:
            return sums
        return accelerator.reduce(sums.to(accelerator.device), reduction="sum")

    def _log_means(self, mode: str, means: Mapping[str, tuple[float | torch.Tensor, float]]) -> None:
        """Keep means for the next log, each given as sum and count in this process."""
        flat = torch.stack([torch.as_tensor(x).detach().float().cpu() for pair in means.values() for x in pair])
        sums = self._reduced(flat).view(-1, 2).tolist()
        for name, (total, count) in zip(means, sums, strict=True):
            if count:
                self._metrics[mode][name].append(total / count)  # type: ignore[attr-defined]

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        if self.constraint is not None and self.args.should_save:  # type: ignore[attr-defined]
            folder = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"  # type: ignore[attr-defined]
            self.constraint.save(Path(self._get_output_dir(trial=trial)) / folder)  # type: ignore[attr-defined]

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
