"""Training toward human uncertainty with TRL: rewards, losses, the factuality constraint, trainers and tracking."""

from ugap.training.constraint import LagrangianConstraint
from ugap.training.data import grpo_dataset, sft_dataset, start_with_bos
from ugap.training.entropy_band import EntropyBandCallback
from ugap.training.grpo import UncertaintyGRPOConfig, UncertaintyGRPOTrainer
from ugap.training.rewards import FactualityReward, UncertaintyReward
from ugap.training.rollouts import SampledGRPOTrainer, SampledRollouts
from ugap.training.sft import UncertaintySFTConfig, UncertaintySFTTrainer
from ugap.training.shared_scorer import SharedScorer
from ugap.training.tracking import UncertaintyGapCallback

__all__ = [
    "EntropyBandCallback",
    "FactualityReward",
    "LagrangianConstraint",
    "SampledGRPOTrainer",
    "SampledRollouts",
    "SharedScorer",
    "UncertaintyGRPOConfig",
    "UncertaintyGRPOTrainer",
    "UncertaintyGapCallback",
    "UncertaintyReward",
    "UncertaintySFTConfig",
    "UncertaintySFTTrainer",
    "grpo_dataset",
    "sft_dataset",
    "start_with_bos",
]
