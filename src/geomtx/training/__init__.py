"""Training and fine-tuning."""

from geomtx.training.optim import parameter_groups

__all__ = ["parameter_groups"]
