"""A run that is told to end: it saves a checkpoint behind its step, and ends there.

Schedulers send SIGTERM and kill some seconds later. Transformers' `enable_jit_checkpoint` waits three seconds before it
looks, saves in the middle of a step, and lets a program go on as if the training were done.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

STATUS = 128 + signal.SIGTERM  # as a shell says that a signal has ended a program


class Terminated(Exception):
    """The run was told to end, and has saved where it was.

    Args:
        checkpoint (`Path`): The checkpoint.
    """

    def __init__(self, checkpoint: Path):
        super().__init__(f"ended by SIGTERM; what was trained is in {checkpoint}")
        self.checkpoint = checkpoint


@contextmanager
def saving_at_sigterm(trainer: Trainer) -> Iterator[None]:
    """Let a training in this block answer SIGTERM: by a checkpoint behind the step, then `Terminated`.

    All processes end at the same step, whichever of them was told. Python answers signals in the main thread alone: in
    another one nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    callback = _SaveAtSigterm(trainer)
    trainer.add_callback(callback)
    before = signal.signal(signal.SIGTERM, callback.note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        trainer.remove_callback(callback)


class _SaveAtSigterm(TrainerCallback):
    """Asks for a checkpoint at the end of the step in which the signal came, and ends the run behind it."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.told = self.ending = False

    def note(self, *_: Any) -> None:
        """Answer the signal."""
        self.told = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a checkpoint, if any process was told to end."""
        accelerator = self.trainer.accelerator
        told = torch.tensor(float(self.told), device=accelerator.device)
        self.ending = bool(accelerator.reduce(told, reduction="sum") > 0)
        if self.ending:
            control.should_save, control.should_evaluate = True, False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """End the run, when all processes have saved: a launcher ends the others with the first that leaves."""
        if self.ending:
            self.trainer.accelerator.wait_for_everyone()
            raise Terminated(Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
