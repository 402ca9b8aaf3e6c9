"""Arguments of the GRPO trainer."""

import math
from dataclasses import dataclass, field

from trl import GRPOConfig

from ugap.errors import InputError, require
from ugap.training.constrained import ConstrainedConfig

SCALES = ("batch", "group", "none")


@dataclass
class UncertaintyGRPOConfig(ConstrainedConfig, GRPOConfig):
    """Arguments of [`UncertaintyGRPOTrainer`][ugap.training.UncertaintyGRPOTrainer]: TRL's and these."""

    multi_objective_aggregation: str = field(
        default="normalize_then_sum",
        metadata={"help": "Each reward is centred and scaled before it is weighted. No other value works."},
    )
    scale_rewards: str = field(
        default="batch",
        metadata={
            "help": "What the advantages of each reward are divided by: its deviation within groups over the whole "
            "batch ('batch'), that of each group ('group'), or nothing ('none'). A group's own deviation blows up the "
            "noise of completions that are equally good."
        },
    )
    constraint_margin: float | None = field(
        default=None,
        metadata={
            "help": "Instead of constraint_limit: the limit is the model's own cost before training plus this margin."
        },
    )
    target_entropy_coef: float = field(
        default=0.1,
        metadata={
            "help": "Weight of the two-sided entropy term: the squared distance, in nats, of a completion's mean "
            "entropy from its target. 0 switches it off, and nothing then holds the policy's entropy."
        },
    )
    functional_beta: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the KL divergence from the frozen base on functional rows alone. TRL's `beta` weighs "
            "the same estimate on all rows."
        },
    )
    entropy_low: float = field(
        default=0.3, metadata={"help": "The run ends when the policy's entropy (nats per token) falls below this."}
    )
    entropy_high: float = field(
        default=6.0, metadata={"help": "The run ends when the policy's entropy rises above this."}
    )
    entropy_patience: int = field(default=3, metadata={"help": "Logs in a row outside of the band that end the run."})

    def __post_init__(self) -> None:
        """Check what can be checked without data.

        Raises:
            InputError: If a value is out of its range, a setting would leave the constraint without effect, or vLLM is
                asked for and not installed.
        """
        super().__post_init__()
        if self.use_vllm:
            require("vllm")
        if self.multi_objective_aggregation != "normalize_then_sum":
            # Rewards that are weighted first and normalised then lose their weight: only one applies to a row.
            raise InputError(
                f"multi_objective_aggregation={self.multi_objective_aggregation!r} would undo the weight of a reward "
                "of one domain, and the constraint would do nothing: use 'normalize_then_sum'"
            )
        if self.scale_rewards not in SCALES:
            raise InputError(f"scale_rewards={self.scale_rewards!r}: choose of {', '.join(SCALES)}")
        if self.constraint_limit is not None and self.constraint_margin is not None:
            raise InputError("constraint_limit and constraint_margin both say the limit: give one")
        for name in ("target_entropy_coef", "functional_beta"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}, not a number from 0")
        if self.target_entropy_coef and (self.entropy_coef or self.use_adaptive_entropy):
            raise InputError("target_entropy_coef and TRL's entropy bonus pull at one entropy: switch one of them off")
