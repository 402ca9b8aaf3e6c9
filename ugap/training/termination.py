"""Answer SIGTERM: save a checkpoint after the current step, and end the run.

Schedulers send SIGTERM and kill some seconds later. Transformers' `enable_jit_checkpoint` waits three seconds, saves in
the middle of a step, and lets a program continue as if the training were done.
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

STATUS = 128 + signal.SIGTERM  # the shell's exit status for a signal


class Terminated(Exception):
    """SIGTERM has ended the run, after a checkpoint.

    Args:
        checkpoint (`Path`): The checkpoint.
    """

    def __init__(self, checkpoint: Path):
        super().__init__(f"ended by SIGTERM; what was trained is in {checkpoint}")
        self.checkpoint = checkpoint


@contextmanager
def saving_at_sigterm(trainer: Trainer) -> Iterator[None]:
    """Answer SIGTERM in this block: a checkpoint after the step, then `Terminated`.

    All processes end at the same step, whichever gets the signal. Python handles signals in the main thread alone, so
    in another thread this does nothing.
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
    """Asks for a checkpoint at the end of the step in which the signal came, then ends the run."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.signalled = self.ending = False

    def note(self, *_: Any) -> None:
        """Note the signal; the step goes on."""
        self.signalled = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a checkpoint, if any process got the signal."""
        accelerator = self.trainer.accelerator
        signalled = torch.tensor(float(self.signalled), device=accelerator.device)
        self.ending = bool(accelerator.reduce(signalled, reduction="sum") > 0)
        if self.ending:
            control.should_save, control.should_evaluate = True, False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """End the run, once all processes have saved."""
        if self.ending:
            # A launcher kills the other processes as soon as the first one leaves.
            self.trainer.accelerator.wait_for_everyone()
            raise Terminated(Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
