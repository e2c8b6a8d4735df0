"""Averaged weights (Polyak & Juditsky 1992), as an exponential moving average."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from geomtx.training.state import copy_full_, full_tensor

__all__ = ["WeightAverage"]


class WeightAverage:
    """average ← d · average + (1 - d) · weights after each step, in float32 or better.

    Early on, d is (1 + n) / (10 + n) after n steps if that is less: random weights are forgotten quickly.

    Args:
        model: Its trained parameters are averaged.
        decay: d, in 0 … 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_steps = 0
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.averages = {
            name: p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)
            for name, p in self.parameters.items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """After a step of the optimiser."""
        decay = min(self.decay, (1 + self.num_steps) / (10 + self.num_steps))
        self.num_steps += 1
        averages = list(self.averages.values())
        weights = [p.to(a.dtype) for p, a in zip(self.parameters.values(), averages, strict=True)]
        torch._foreach_lerp_(averages, weights, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block, the model has the averaged weights."""
        weights = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self._copy(self.averages)
        try:
            yield
        finally:
            self._copy(weights)

    @torch.no_grad()
    def _copy(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def state_dict(self) -> dict[str, Any]:
        """Whole tensors on the CPU; all processes have to take part."""
        averages = {name: full_tensor(average) for name, average in self.averages.items()}
        return {"num_steps": self.num_steps, "averages": averages}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`.

        Raises:
            ValueError: If the averages are of other parameters.
        """
        if state["averages"].keys() != self.averages.keys():
            other = sorted(state["averages"].keys() ^ self.averages.keys())
            raise ValueError(f"averages must be of the trained parameters, got a difference in {other[0]}")
        self.num_steps = state["num_steps"]
        for name, average in self.averages.items():
            copy_full_(average, state["averages"][name])
