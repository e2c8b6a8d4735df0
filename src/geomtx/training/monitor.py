"""Comparison of the gradients of tasks on shared parameters: do they pull in the same direction?"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from geomtx.checks import match_names
from geomtx.encoder.alternating import AlternatingEncoder

__all__ = ["GradientMonitor", "shared_parameters"]

logger = logging.getLogger("geomtx")

DECAY = 0.9
WINDOW = 50
ALERT_COSINE = -0.1
ALERT_CHECKS = 10


def shared_parameters(
    model: nn.Module, encoder: AlternatingEncoder, patterns: Sequence[str] = ()
) -> list[nn.Parameter]:
    """Return the trained parameters whose names match, by default those of the last two frame and global blocks."""
    if patterns:
        named = dict(model.named_parameters())
        names = match_names(patterns, named, what="monitor.parameters")
        chosen = [named[name] for name in dict.fromkeys(itertools.chain(*names.values()))]
    else:
        blocks = [*encoder.frame_blocks[-2:], *encoder.global_blocks[-2:]]
        chosen = [parameter for block in blocks for parameter in block.parameters()]
    return [parameter for parameter in chosen if parameter.requires_grad]


class GradientMonitor:
    """Compares the gradients of tasks on shared parameters, by their cosines.

    The gradients are computed beside the backward pass: parameters, their `.grad`, random numbers and the training are
    what they would be without the monitor. With several processes, the gradients of the whole batch are compared. A
    warning is logged when a pair's averaged cosine stays below -0.1 for ten comparisons.

    Call `begin`, then `add` for each chunk before its backward pass, then `finish` after the last.

    Args:
        parameters: Shared parameters, see `shared_parameters`.
        every: Number of steps between comparisons.
        reduce: Function that averages a tensor over the processes; defaults to one process.

    Raises:
        ValueError: For no parameters, and for sharded ones.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, every: int = 100, reduce: Any = None) -> None:
        if not parameters:
            raise ValueError("parameters must hold a trained one, got none; are the shared blocks frozen?")
        if any(isinstance(parameter, DTensor) for parameter in parameters):
            raise ValueError("parameters must be whole for a monitor, got some that are sharded")
        self.parameters = list(parameters)
        self.every = every
        self.reduce = reduce
        self.cosines: dict[str, float] = {}
        self.recent: dict[str, deque[bool]] = {}
        self.low: dict[str, int] = {}
        self._gradients: dict[str, Tensor] = {}
        self._is_active = False

    def begin(self, step: int) -> None:
        """Start a step, before its first chunk."""
        self._gradients = {}
        self._is_active = step % self.every == 0

    def add(self, tasks: dict[str, Tensor]) -> None:
        """Add the gradients of a chunk's tasks, scalars whose graph is kept."""
        if not self._is_active:
            return
        for name, task in tasks.items():
            gradient = self._gradient(task)
            self._gradients[name] = self._gradients[name] + gradient if name in self._gradients else gradient

    def finish(self) -> dict[str, Tensor]:
        """Compare the gradients, after the backward pass of the last chunk.

        Returns:
            In steps with a comparison, scalars for every pair of tasks: `cosine/A-B`, `norm_ratio/A-B`,
            `cosine_mean/A-B` (averaged over comparisons) and `conflicts/A-B` (share of negative cosines among the last
            50 comparisons).
        """
        if not self._is_active or not self._gradients:
            return {}
        names = list(self._gradients)
        stacked = torch.stack([self._gradients[name] for name in names])
        if self.reduce is not None:
            stacked = self.reduce(stacked)
        self._gradients = {}
        return self._compare(names, stacked)

    def _gradient(self, task: Tensor) -> Tensor:
        """Return the flat gradient in float32, with zeros where a parameter has no part in the task."""
        if not task.requires_grad:
            gradients = [torch.zeros_like(parameter) for parameter in self.parameters]
        else:
            gradients = list(torch.autograd.grad(task, self.parameters, retain_graph=True, materialize_grads=True))
        return torch.cat([gradient.flatten().float() for gradient in gradients])

    def _compare(self, names: list[str], gradients: Tensor) -> dict[str, Tensor]:
        norms = gradients.norm(dim=-1)
        units = gradients / norms.clamp(min=1e-30)[:, None]
        cosines = units @ units.T
        scalars = {}
        for i, j in itertools.combinations(range(len(names)), 2):
            pair = f"{names[i]}-{names[j]}"
            scalars[f"cosine/{pair}"] = cosines[i, j]
            scalars[f"norm_ratio/{pair}"] = norms[i] / norms[j].clamp(min=1e-30)
            mean, conflicts = self._remember(pair, float(cosines[i, j]))
            scalars[f"cosine_mean/{pair}"] = cosines.new_tensor(mean)
            scalars[f"conflicts/{pair}"] = cosines.new_tensor(conflicts)
        return scalars

    def _remember(self, pair: str, cosine: float) -> tuple[float, float]:
        """Return the averaged cosine and the share of conflicts; warn of a pair that stays in conflict."""
        if cosine == cosine:  # a step that is skipped has NaN
            self.cosines[pair] = DECAY * self.cosines.get(pair, cosine) + (1 - DECAY) * cosine
            self.recent.setdefault(pair, deque(maxlen=WINDOW)).append(cosine < 0)
            self.low[pair] = self.low.get(pair, 0) + 1 if self.cosines[pair] < ALERT_COSINE else 0
        if self.low.get(pair) == ALERT_CHECKS:
            logger.warning("The gradients of %s have been in conflict for %d comparisons.", pair, ALERT_CHECKS)
        recent = self.recent.get(pair, ())
        return self.cosines.get(pair, 0.0), sum(recent) / max(1, len(recent))

    def state_dict(self) -> dict[str, Any]:
        """Return what later comparisons depend on."""
        recent = {pair: list(values) for pair, values in self.recent.items()}
        return {"cosines": dict(self.cosines), "recent": recent, "low": dict(self.low)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.cosines, self.low = dict(state["cosines"]), dict(state["low"])
        self.recent = {pair: deque(values, maxlen=WINDOW) for pair, values in state["recent"].items()}
