"""How a training is measured as it goes: evaluation, callback, wandb, model card."""
