"""Factuality as a constraint: a multiplier that rises while a cost is above its limit and falls while it is below.

The problem is to maximise a creative objective `R` subject to `C <= limit`, with `C` the mean cost of functional rows.
Its Lagrangian is

    `L = R - lambda * (C - limit)`

which the policy ascends and `lambda` descends (dual ascent). A [`LagrangianConstraint`][] is the second half. A trainer
passes it the costs, calls `update` after every optimiser step, and weighs the cost by `value`.

Design choices:
- *Log form.* `log lambda` moves by `learning_rate * (cost - limit)`: mirror ascent with entropy as the mirror, the
  exponentiated gradient of Kivinen and Warmuth (1997), without the factor `lambda`, so that a small multiplier grows
  fast too. `lambda` stays positive, moves by factors, and is projected on `[minimum, maximum]`. It cannot become 0:
  `minimum` means "off".
- *The violation is absolute*, in the unit of the cost. It is the gradient of `L`. It works for a limit of 0, and for a
  base's cost plus a margin, where the margin sets the scale. So the learning rate has the unit of 1 / cost: a violation
  `v` doubles `lambda` in `ln 2 / (learning_rate * v)` updates.
- *Damping.* Ascent on the dual is integral control, which oscillates. A proportional term damps it (Stooke, Achiam
  and Abbeel, 2020, arXiv 2007.03964), here in log form: `log lambda = I + damping * (cost - limit)`, with `I` the
  integral above. `I` is projected by itself, so it does not wind up while `lambda` is at a bound.
- *Windowed cost.* The cost is the sum of costs over the count of rows in the last `window` updates. All rows weigh
  the same, whatever their step or process.
- *A step without a functional row*, in any process, changes nothing.
- *Costs that are not finite are skipped*, counted in `skipped`, and warned of once. An exception in one process would
  leave the others waiting in the reduction.
"""

import json
import logging
import math
from collections import deque
from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ugap.errors import InputError
from ugap.files import write_json

logger = logging.getLogger(__name__)

STATE_FILE = "constraint_state.json"


class LagrangianConstraint:
    """The multiplier of `cost <= limit`, by projected dual ascent on a windowed mean cost.

    Args:
        metric (`str`): Name of the cost in logs and in the checkpoint, such as "factuality".
        limit (`float`, *optional*): Limit of the mean cost; by default set later, by `set_limit`.
        learning_rate (`float`, *optional*, defaults to `1.0`): Step of `log lambda`, per unit of cost.
        initial (`float`, *optional*, defaults to `1.0`): The multiplier at the start.
        minimum (`float`, *optional*, defaults to `0.01`): Its lower bound; above 0.
        maximum (`float`, *optional*, defaults to `100.0`): Its upper bound.
        window (`int`, *optional*, defaults to `10`): Updates over which the cost is averaged.
        warmup (`int`, *optional*, defaults to `10`): First updates, which gather costs and do not move the multiplier.
        damping (`float`, *optional*, defaults to `0.0`): Gain of the proportional term, per unit of cost.

    Attributes:
        limit (`float` or `None`): The limit; `None` while it is not set.
        updates (`int`): Updates with at least one row.
        skipped (`float`): Rows of all processes whose cost was not finite.

    Raises:
        ValueError: If an argument is out of its range; the message names it.

    Example:
        >>> constraint = LagrangianConstraint("factuality", 0.25, window=1, warmup=0)
        >>> constraint.observe(total=3.0, count=4)  # 3 of 4 answers are wrong
        >>> round(constraint.update(), 4)  # exp(0.75 - 0.25)
        1.6487
        >>> constraint.metrics()["constraint/factuality/cost"]
        0.75
    """

    def __init__(
        self,
        metric: str,
        limit: float | None = None,
        *,
        learning_rate: float = 1.0,
        initial: float = 1.0,
        minimum: float = 0.01,
        maximum: float = 100.0,
        window: int = 10,
        warmup: int = 10,
        damping: float = 0.0,
    ):
        if not isinstance(metric, str) or not metric.strip():
            raise ValueError(f"metric: expected a name, got {metric!r}")
        self.metric = metric
        self.limit = None if limit is None else _finite("limit", limit)
        self.learning_rate = _positive("learning_rate", learning_rate)
        self.minimum = _positive("minimum", minimum)
        self.maximum = _positive("maximum", maximum)
        if self.minimum >= self.maximum:
            raise ValueError(f"maximum: expected more than the minimum of {minimum}, got {maximum}")
        self.initial = _positive("initial", initial)
        if not self.minimum <= self.initial <= self.maximum:
            raise ValueError(f"initial: expected a number in [{minimum}, {maximum}], got {initial}")
        self.window = _whole("window", window, 1)
        self.warmup = _whole("warmup", warmup, 0)
        self.damping = _finite("damping", damping)
        if self.damping < 0:
            raise ValueError(f"damping: expected a number that is not negative, got {damping!r}")
        self.updates = 0
        self.skipped = 0.0
        self._limit_is_state = limit is None
        self._log_value = self._integral = math.log(self.initial)
        self._steps: deque[tuple[float, float]] = deque(maxlen=self.window)
        # Since the last update, in this process: sum of costs, rows, rows skipped.
        self._pending = [0.0, 0.0, 0.0]

    @property
    def value(self) -> float:
        """The multiplier `lambda` now, in `[minimum, maximum]`."""
        return min(max(math.exp(self._log_value), self.minimum), self.maximum)

    @property
    def cost(self) -> float:
        """Mean cost of the rows in the window; NaN before the first update with a row."""
        count = sum(count for _, count in self._steps)
        return sum(total for total, _ in self._steps) / count if count else math.nan

    def set_limit(self, limit: float) -> None:
        """Set the limit, such as a base model's cost plus a margin, from the next update on.

        This limit is part of the state: a checkpoint that is loaded afterwards replaces it.

        Raises:
            ValueError: If `limit` is no finite number.
        """
        self.limit, self._limit_is_state = _finite("limit", limit), True

    def observe(self, total: float | Tensor, count: float | Tensor) -> None:
        """Add rows of this process since the last update, such as those of one micro-batch.

        Args:
            total (`float` or `Tensor` of one element): Sum of the costs of the rows. If it is not finite, the rows are
                skipped.
            count (`float` or `Tensor` of one element): Number of the rows; 0 adds nothing, whatever the total.

        Raises:
            ValueError: If an argument is more than one number, or `count` is negative or not finite.
        """
        rows = _number("count", count)
        if not math.isfinite(rows) or rows < 0:
            raise ValueError(f"count: expected a number that is not negative, got {rows!r}")
        cost = _number("total", total)
        # A total over no rows can be NaN, which is no failure.
        if rows == 0:
            return
        if math.isfinite(cost):
            self._pending[0] += cost
            self._pending[1] += rows
        else:
            self._pending[2] += rows

    def update(self, reduce: Callable[[Tensor], Tensor] | None = None) -> float:
        """Close an optimiser step: sum over processes, move the window, take one dual step.

        Every process must call this at the same steps, with or without rows. All get the same multiplier.

        Args:
            reduce (`Callable[[Tensor], Tensor]`, *optional*):
                Sums a float64 CPU tensor over the processes, such as
                `lambda t: accelerator.reduce(t.to(accelerator.device), "sum")`; by default there is one process.

        Returns:
            `float`: The multiplier after the step.

        Raises:
            ValueError: If the limit is not set.
        """
        if self.limit is None:
            raise ValueError("limit: not set; call set_limit before the first update")
        # float64: the counts of large runs exceed what float32 holds exactly.
        sums = torch.tensor(self._pending, dtype=torch.float64)
        total, count, skipped = (reduce(sums) if reduce else sums).tolist()
        self._pending = [0.0, 0.0, 0.0]
        # Once for a run: a broken cost tends to stay broken.
        if skipped and not self.skipped:
            logger.warning("%s: the cost of %g rows is not finite; such rows are skipped", self.metric, skipped)
        self.skipped += skipped
        if count > 0:
            self._steps.append((total, count))
            self.updates += 1
            # The window needs costs before its mean means something.
            if self.updates > self.warmup:
                violation = self.cost - self.limit
                self._integral = self._projected(self._integral + self.learning_rate * violation)
                # The proportional part is not integrated: it is gone as soon as the violation is.
                self._log_value = self._projected(self._integral + self.damping * violation)
        return self.value

    def _projected(self, log_value: float) -> float:
        return min(max(log_value, math.log(self.minimum)), math.log(self.maximum))

    def metrics(self) -> dict[str, float]:
        """For the log: `constraint/{metric}/cost`, `/limit` and `/lambda`; NaN for a number that has no value yet."""
        limit = math.nan if self.limit is None else self.limit
        values = {"cost": self.cost, "limit": limit, "lambda": self.value}
        return {f"constraint/{self.metric}/{name}": value for name, value in values.items()}

    def state_dict(self) -> dict[str, Any]:
        """The state that the next updates depend on, in JSON types; the same in every process.

        It leaves out rows observed since the last update: take it between `update` and the next `observe`.
        """
        return {
            "metric": self.metric,
            "limit": self.limit,
            "integral": self._integral,
            "log_lambda": self._log_value,
            "window": [[total, count] for total, count in self._steps],
            "updates": self.updates,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a state. The constructor's limit, bounds and rates stay.

        Raises:
            InputError: If the state is damaged or of another metric; nothing changes then.
        """
        if state.get("metric") != self.metric:
            raise InputError(f"the state of a constraint on {state.get('metric')!r} is not one on {self.metric!r}")
        try:
            limit = None if state["limit"] is None else _finite("limit", state["limit"])
            integral, log_value = (_finite(name, state[name]) for name in ("integral", "log_lambda"))
            steps = [(_finite("window", total), _positive("window", count)) for total, count in state["window"]]
            updates, skipped = _whole("updates", state["updates"], 0), _finite("skipped", state["skipped"])
        except KeyError as error:
            raise InputError(f"a damaged state of the constraint on {self.metric!r}: {error} is missing") from error
        except (TypeError, ValueError) as error:
            raise InputError(f"a damaged state of the constraint on {self.metric!r}: {error}") from error
        # A limit of the constructor comes from the settings, which win over the checkpoint.
        if self._limit_is_state and limit is not None:
            self.limit = limit
        # The bounds may have changed since the checkpoint.
        self._integral, self._log_value = self._projected(integral), self._projected(log_value)
        self._steps = deque(steps, maxlen=self.window)
        self.updates, self.skipped = updates, skipped
        self._pending = [0.0, 0.0, 0.0]

    def save(self, folder: str | Path) -> None:
        """Write the state to `constraint_state.json` in a checkpoint's folder; call it in one process."""
        write_json(Path(folder) / STATE_FILE, self.state_dict(), indent=None)

    def load(self, folder: str | Path) -> None:
        """Read `constraint_state.json` from a checkpoint's folder; call it in every process.

        Raises:
            InputError: If the file is missing, damaged, or of another metric.
        """
        path = Path(folder) / STATE_FILE
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        # A silent start from the initial multiplier would make the resumed run another one.
        except FileNotFoundError as error:
            raise InputError(f"{folder}: it was saved without a constraint: there is no {STATE_FILE}") from error
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise InputError(f"{path}: not the state of a constraint: {error}") from error
        if not isinstance(state, dict):
            raise InputError(f"{path}: not the state of a constraint: no JSON object")
        try:
            self.load_state_dict(state)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


def _number(name: str, value: float | Tensor) -> float:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name}: expected one number, got a tensor of shape {tuple(value.shape)}")
        return float(value.detach())
    # bool is a number to Python, but not a cost or a count.
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name}: expected a number, got {value!r}")
    return float(value)


def _finite(name: str, value: float) -> float:
    number = _number(name, value)
    if not math.isfinite(number):
        raise ValueError(f"{name}: expected a finite number, got {value!r}")
    return number


def _positive(name: str, value: float) -> float:
    number = _finite(name, value)
    if number <= 0:
        raise ValueError(f"{name}: expected a positive number, got {value!r}")
    return number


def _whole(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: expected a whole number from {least}, got {value!r}")
    return value
