"""Stop a run that goes wrong: training ends when the policy's entropy leaves a band.

A reward on the text does not see the policy's own entropy. The policy can collapse to a few stock texts or dissolve
into noise. The band catches both, on an entropy that the trainer logs anyway.
"""

import logging
import math
from numbers import Real
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)


class EntropyBandCallback(TrainerCallback):
    """End a run whose policy entropy stays outside of `[low, high]`, and save the model.

    The metric must be in every log of the trainer, and the same in every process. TRL's `entropy` is: the entropy at
    the sampling temperature, in nats per token. NaN is outside of any band, and so is `None`, which TRL logs for NaN.

    Args:
        low (`float`): The lowest entropy that is healthy, in nats.
        high (`float`): The highest; infinity for no upper end.
        metric (`str`, *optional*, defaults to `"entropy"`): The name under which the trainer logs it.
        patience (`int`, *optional*, defaults to `1`): Logs in a row that must lie outside.

    Attributes:
        reason (`str` or `None`): Why the run was ended, in a sentence; `None` if it was not.

    Raises:
        ValueError: If an argument is out of its range; the message names it.

    Example:
        ```python
        band = EntropyBandCallback(low=1.0, high=5.0, patience=3)
        trainer = GRPOTrainer(model, reward, args=config, callbacks=[band], ...)
        trainer.train()
        if band.stopped:
            print(band.reason)
        ```
    """

    def __init__(self, low: float, high: float, metric: str = "entropy", patience: int = 1):
        for name, value in (("low", low), ("high", high)):
            # bool is a number to Python, but not a number of nats.
            if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value):
                raise ValueError(f"{name}: expected a number of nats, got {value!r}")
        if not 0 <= low < math.inf:
            raise ValueError(f"low: expected a finite number that is not negative, got {low!r}")
        if high <= low:
            raise ValueError(f"high: expected more than the low end of {low}, got {high!r}")
        if not isinstance(metric, str) or not metric.strip():
            raise ValueError(f"metric: expected the name of a logged number, got {metric!r}")
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise ValueError(f"patience: expected a whole number from 1, got {patience!r}")
        self.low, self.high, self.metric, self.patience = float(low), float(high), metric, patience
        self.reason: str | None = None
        self._outside = 0
        self._seen = False

    @property
    def stopped(self) -> bool:
        """Whether this callback has ended the run."""
        return self.reason is not None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget an earlier run."""
        self.reason, self._outside, self._seen = None, 0, False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Compare a logged entropy with the band. A log without entropy, such as an evaluation's, changes nothing."""
        if self.stopped or not logs or self.metric not in logs:
            return
        self._seen = True
        # TRL logs None for NaN, which JSON does not have.
        entropy = math.nan if logs[self.metric] is None else float(logs[self.metric])
        # A comparison with NaN is false, so NaN counts as outside.
        self._outside = 0 if self.low <= entropy <= self.high else self._outside + 1
        if self._outside < self.patience:
            return
        times = "" if self.patience == 1 else f" for {self.patience} logs in a row"
        self.reason = (
            f"step {state.global_step}: {self.metric} is {entropy:.4g} nats, outside of "
            f"[{self.low:g}, {self.high:g}]{times}: the run is saved and ends"
        )
        logger.warning(self.reason)
        control.should_training_stop = control.should_save = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Warn if no log had the metric."""
        if not self._seen:
            logger.warning("no log of this run held %r: its band was not watched", self.metric)
