"""Training toward human uncertainty with TRL."""

from ugap.training.rollouts import SampledGRPOTrainer, SampledRollouts

__all__ = ["SampledGRPOTrainer", "SampledRollouts"]
