"""Training and fine-tuning."""

from geomtx.training.groups import parameter_groups

__all__ = ["parameter_groups"]
