"""What the SFT and the GRPO trainer share: the constraint with its settings, and a log of means over steps."""

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
            "help": "Limit of the functional cost; without it there is no constraint. SFT: KL(base || policy) "
            "in nats per token of functional text. GRPO: share of functional completions that are wrong."
        },
    )
    constraint_metric: str = field(default="factuality", metadata={"help": "Name of the cost in the log."})
    constraint_learning_rate: float = field(
        default=1.0, metadata={"help": "Step of the multiplier's logarithm, per unit of cost above the limit."}
    )
    constraint_initial: float = field(default=1.0, metadata={"help": "The multiplier at the start."})
    constraint_minimum: float = field(default=0.01, metadata={"help": "Its lower bound; above 0."})
    constraint_maximum: float = field(default=100.0, metadata={"help": "Its upper bound."})
    constraint_window: int = field(default=10, metadata={"help": "Steps over which the cost is averaged."})
    constraint_warmup: int = field(default=10, metadata={"help": "First steps, which leave the multiplier."})
    constraint_damping: float = field(
        default=0.0, metadata={"help": "Gain of a proportional term, per unit of cost, which damps oscillation."}
    )

    @property
    def constrained(self) -> bool:
        """Whether there is a constraint."""
        # GRPO alone has a margin.
        return self.constraint_limit is not None or getattr(self, "constraint_margin", None) is not None

    def constraint(self) -> LagrangianConstraint | None:
        """The constraint of these settings. Its limit may be set later.

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

    The log has means over tokens or rows, however they are spread over micro-batches, steps and processes.
    """

    constraint: LagrangianConstraint | None
    # By mode and name: sum and count `(2,)` in this process since the last log.
    _sums: defaultdict[str, dict[str, Tensor]]

    def _watch_constraint(self, constraint: LagrangianConstraint | None) -> None:
        """Use a constraint; called once, when the trainer is built."""
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
        """Add sums and counts, whose quotient the next log gets. Every process has to add the same names."""
        # One copy to the CPU for all: each copy would wait for the GPU.
        flat = torch.stack([torch.as_tensor(x).detach().cpu().double() for pair in figures.values() for x in pair])
        for name, pair in zip(figures, flat.view(-1, 2), strict=True):
            self._sums[mode][name] = self._sums[mode].get(name, 0) + pair

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, as TRL does, with means over all processes since the last log."""
        # As TRL does: it keeps metrics by the same two names.
        mode = "train" if self.model.training else "eval"  # type: ignore[attr-defined]
        sums = self._sums.pop(mode, {})
        # Processes agree on the names, see _add_to_log, so all of them enter the reduction.
        if sums:
            for name, (total, count) in zip(sums, self._reduced(torch.stack([*sums.values()])).tolist(), strict=True):
                if count:
                    self._metrics[mode][name] = [total / count]  # type: ignore[attr-defined]
        super().log(logs, start_time)  # type: ignore[misc]

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        # Saved first: transformers writes trainer_state.json last, so a finished checkpoint has the multiplier.
        if self.constraint is not None and self.args.should_save:  # type: ignore[attr-defined]
            folder = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"  # type: ignore[attr-defined]
            self.constraint.save(Path(self._get_output_dir(trial=trial)) / folder)  # type: ignore[attr-defined]
        super()._save_checkpoint(model, trial)  # type: ignore[misc]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if self.constraint is not None and checkpoint is not None:
            self.constraint.load(checkpoint)


class _DualStep(TrainerCallback):
    """Moves the multiplier after every step of the optimiser."""

    def __init__(self, trainer: ConstrainedTrainer):
        self.trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Update the multiplier and log its figures."""
        constraint = self.trainer.constraint
        assert constraint is not None
        constraint.update(self.trainer._reduced)
        for name, value in constraint.metrics().items():
            self.trainer._metrics["train"][name].append(value)  # type: ignore[attr-defined]
