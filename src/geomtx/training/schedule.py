"""Learning rates as functions of progress, so that they adapt to the length of a run."""

from __future__ import annotations

import math

from torch.optim import Optimizer

from geomtx.training.config import ScheduleSection

__all__ = ["learning_rate", "set_learning_rates"]


def learning_rate(progress: float, peak: float, section: ScheduleSection) -> float:
    """Linear from `initial_lr` to `peak`, then along a cosine or a line to `final_lr`.

    Args:
        progress: Steps done over all steps, 0 … 1.
        peak: Where the warm-up ends.
        section: Share of the warm-up, the rates at both ends and the shape of the way down.
    """
    if progress < section.warmup:
        return section.initial_lr + (peak - section.initial_lr) * progress / section.warmup
    phase = (progress - section.warmup) / (1 - section.warmup) if section.warmup < 1 else 1.0
    left = 1 - phase if section.shape == "linear" else 0.5 * (1 + math.cos(math.pi * phase))
    return section.final_lr + (peak - section.final_lr) * left


def set_learning_rates(optimiser: Optimizer, lr: float) -> None:
    """Give every group `lr` times its "lr_factor"."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["lr_factor"]
