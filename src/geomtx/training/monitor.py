"""Do the tasks pull shared parameters in the same direction? And what to do if they don't (PCGrad, Yu et al. 2020)."""

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

__all__ = ["GradientMonitor", "project_conflicts", "shared_parameters"]

logger = logging.getLogger("geomtx")

DECAY = 0.9
WINDOW = 50
ALERT_COSINE = -0.1
ALERT_CHECKS = 10


def shared_parameters(
    model: nn.Module, encoder: AlternatingEncoder, patterns: Sequence[str] = ()
) -> list[nn.Parameter]:
    """Trained parameters that match; without patterns, those of the last two frame and the last two global blocks."""
    if patterns:
        named = dict(model.named_parameters())
        names = match_names(patterns, named, what="monitor.parameters")
        chosen = [named[name] for name in dict.fromkeys(itertools.chain(*names.values()))]
    else:
        blocks = [*encoder.frame_blocks[-2:], *encoder.global_blocks[-2:]]
        chosen = [parameter for block in blocks for parameter in block.parameters()]
    return [parameter for parameter in chosen if parameter.requires_grad]


def project_conflicts(gradients: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """PCGrad: from each gradient, take away what points against another one.

    Args:
        gradients: (K, P), one a task.
        generator: Of the order in which a gradient meets the others, on the CPU.

    Returns:
        (P,), the sum of the projected gradients; that of `gradients` where none are in conflict.
    """
    total = torch.zeros_like(gradients[0])
    for index, gradient in enumerate(gradients):
        for other in torch.randperm(len(gradients), generator=generator).tolist():
            if other != index:
                direction = gradients[other]
                overlap = (gradient @ direction).clamp(max=0) / (direction @ direction).clamp(min=1e-30)
                gradient = gradient - overlap * direction
        total = total + gradient
    return total


class GradientMonitor:
    """Compares the gradients of tasks on shared parameters.

    Gradients are taken apart from the backward pass, so that parameters, their `.grad`, random numbers and the training
    are what they would be without it (except with `pcgrad`). With several processes, what is compared are the
    gradients of the whole batch. A warning is logged when a pair's averaged cosine stays below -0.1 for ten looks.

    Call `begin`, then `add` for each chunk before its backward pass, then `finish` after the last.

    Args:
        parameters: Shared ones, see `shared_parameters`.
        every: Steps between looks; 0 = never.
        pcgrad: In every step, replace the gradient of the shared parameters by `project_conflicts`.
        projection: Compare random projections to so many numbers, to save memory; None = the gradients themselves.
            Cosines are then off by about projection^-½. `pcgrad` uses the gradients themselves.
        reduce: Mean over the processes of a tensor; None = there is one process.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        *,
        every: int = 100,
        pcgrad: bool = False,
        projection: int | None = None,
        reduce: Any = None,
    ) -> None:
        if not parameters:
            raise ValueError("parameters must hold a trained one, got none; are the shared blocks frozen?")
        if any(isinstance(parameter, DTensor) for parameter in parameters):
            raise ValueError("parameters must be whole for a monitor, got some that are sharded")
        self.parameters = list(parameters)
        self.every = every
        self.pcgrad = pcgrad
        self.projection = None if pcgrad else projection
        self.reduce = reduce
        self.cosines: dict[str, float] = {}
        self.recent: dict[str, deque[bool]] = {}
        self.low: dict[str, int] = {}
        # Of its own: the monitor draws nothing from the training's.
        self._generator = torch.Generator().manual_seed(0)
        self._gradients: dict[str, Tensor] = {}
        self._looks = self._active = False

    def begin(self, step: int) -> None:
        """Before the first chunk of a step."""
        self._gradients = {}
        self._looks = self.every > 0 and step % self.every == 0
        self._active = self._looks or self.pcgrad

    def add(self, tasks: dict[str, Tensor]) -> None:
        """Take the gradients of a chunk's tasks: scalars with a graph, which is kept."""
        if not self._active:
            return
        for name, task in tasks.items():
            gradient = self._gradient(task)
            self._gradients[name] = self._gradients[name] + gradient if name in self._gradients else gradient

    def finish(self) -> dict[str, Tensor]:
        """Compare, and project if asked to; after the backward pass of the last chunk, before clipping.

        Returns:
            In steps that look: `cosine/A-B`, `norm_ratio/A-B`, `cosine_mean/A-B` (averaged over looks) and
            `conflicts/A-B` (share of negative cosines in the last 50 looks), scalars, for every pair of tasks.
        """
        if not self._active or not self._gradients:
            return {}
        names = list(self._gradients)
        stacked = torch.stack([self._gradients[name] for name in names])
        if self.reduce is not None:
            stacked = self.reduce(stacked)
        self._gradients = {}
        if self.pcgrad:
            self._replace(project_conflicts(stacked, self._generator))
        return self._compare(names, stacked) if self._looks else {}

    def _gradient(self, task: Tensor) -> Tensor:
        """Flat, float32; zeros where a parameter has no part in the task."""
        if not task.requires_grad:
            gradients = [torch.zeros_like(parameter) for parameter in self.parameters]
        else:
            gradients = list(torch.autograd.grad(task, self.parameters, retain_graph=True, materialize_grads=True))
        if self.projection is None:
            return torch.cat([gradient.flatten().float() for gradient in gradients])
        return self._project(gradients)

    def _project(self, gradients: list[Tensor]) -> Tensor:
        """Every number into a random bin with a random sign: dot products stay, on average (CountSketch)."""
        assert self.projection is not None
        sketch = torch.zeros(self.projection, device=gradients[0].device)
        generator = torch.Generator().manual_seed(0)  # the same bins for every task and look
        for gradient in gradients:
            codes = torch.randint(2 * self.projection, (gradient.numel(),), generator=generator).to(sketch.device)
            sketch.index_add_(0, codes // 2, (1 - 2 * (codes % 2)) * gradient.flatten().float())
        return sketch

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
        """Average over looks and share of conflicts; says so if a pair stays in conflict."""
        if cosine == cosine:  # a step that is skipped says nothing
            self.cosines[pair] = DECAY * self.cosines.get(pair, cosine) + (1 - DECAY) * cosine
            self.recent.setdefault(pair, deque(maxlen=WINDOW)).append(cosine < 0)
            self.low[pair] = self.low.get(pair, 0) + 1 if self.cosines[pair] < ALERT_COSINE else 0
        if self.low.get(pair) == ALERT_CHECKS:
            logger.warning("The gradients of %s have been in conflict for %d looks.", pair, ALERT_CHECKS)
        recent = self.recent.get(pair, ())
        return self.cosines.get(pair, 0.0), sum(recent) / max(1, len(recent))

    def _replace(self, gradient: Tensor) -> None:
        """Put a flat gradient in place of the parameters'."""
        parts = gradient.split([parameter.numel() for parameter in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.copy_(part.view_as(parameter))

    def state_dict(self) -> dict[str, Any]:
        """What later looks depend on."""
        recent = {pair: list(values) for pair, values in self.recent.items()}
        return {
            "cosines": dict(self.cosines), "recent": recent, "low": dict(self.low),
            "generator": self._generator.get_state(),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.cosines, self.low = dict(state["cosines"]), dict(state["low"])
        self.recent = {pair: deque(values, maxlen=WINDOW) for pair, values in state["recent"].items()}
        self._generator.set_state(state["generator"])
