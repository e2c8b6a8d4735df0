"""What the optimiser steps on: parameter groups, frozen parts, learning-rate schedules and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from geomtx.checks import check_at_least, check_finite_positive, match_names
from geomtx.layers.lora import adapted_layers
from geomtx.training.checkpoint import copy_full_, full_tensor
from geomtx.training.config import ScheduleSection

if TYPE_CHECKING:
    from geomtx.training.config import OptimiserSection

__all__ = [
    "ClipGroup",
    "WeightAverage",
    "build_clip_groups",
    "build_parameter_groups",
    "clip_gradients",
    "freeze",
    "learning_rate",
    "parameter_groups",
    "set_learning_rates",
    "unfreeze",
]


def freeze(model: nn.Module, patterns: Iterable[str]) -> list[str]:
    """Take modules out of the training: their parameters get no gradient, and they are in evaluation mode.

    Autograd records nothing before the first trained parameter: frozen blocks at the beginning cost as little as under
    `no_grad`. `model.train()` brings all modules back into training mode, so call `freeze` after it, or let
    `geomtx.training.tasks.running.TrainedModel` keep the modes.

    Args:
        model: Model, changed in place.
        patterns: Patterns of module names, for instance "encoder", "encoder.backbone" or "*.blocks.[0-5]".

    Returns:
        Names of the frozen modules.

    Raises:
        ValueError: For a pattern that matches no module.
    """
    modules = _match(model, patterns, "freeze")
    for module in modules.values():
        module.requires_grad_(False)
        module.eval()
    return list(modules)


def unfreeze(model: nn.Module, patterns: Iterable[str]) -> list[str]:
    """Undo `freeze`, for the same modules or for parts of them.

    Their parameters get gradients, and they are in the mode of the model. Weights that have adapters
    (`geomtx.add_lora`) stay frozen.

    Args:
        model: Model, changed in place.
        patterns: Patterns of module names.

    Returns:
        Names of the modules.

    Raises:
        ValueError: For a pattern that matches no module.
    """
    modules = _match(model, patterns, "unfreeze")
    for module in modules.values():
        module.requires_grad_(True)
        module.train(model.training)
    for layer, _ in adapted_layers(model).values():
        layer.parametrizations.weight.original.requires_grad_(False)  # type: ignore[union-attr]
    return list(modules)


def _match(model: nn.Module, patterns: Iterable[str], what: str) -> dict[str, nn.Module]:
    """Return name → module of those that match, sorted by name."""
    modules = {name: module for name, module in model.named_modules() if name}
    matched = match_names(patterns, modules, what=what)
    return {name: modules[name] for name in sorted({name for found in matched.values() for name in found})}


class ClipGroup(NamedTuple):
    """Parameters whose gradient is clipped as one vector.

    Attributes:
        pattern: Pattern of their names.
        parameters: Trained parameters.
        max_norm: Norm that their gradient is clipped to.
    """

    pattern: str
    parameters: list[nn.Parameter]
    max_norm: float


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return name → parameter of those that get a gradient."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    factors: Mapping[str, float] | None = None,
    weight_decay: float = 0.05,
    decays: Mapping[str, float] | None = None,
    decay_vectors: bool = False,
) -> list[dict[str, Any]]:
    """Return parameter groups for an optimiser of `torch.optim`, for instance with slower pretrained parts.

        groups = parameter_groups(model, lr=1e-4, factors={"encoder.*": 0.1})
        optimiser = torch.optim.AdamW(groups, lr=1e-4)

    Args:
        model: Model; its parameters without a gradient are left out.
        lr: Learning rate.
        factors: Pattern of parameter names ("*" stands for any characters) → factor of the learning rate; the first
            pattern that matches counts. Other parameters have 1.
        weight_decay: Weight decay of parameters with two axes or more.
        decays: Pattern → weight decay in place of `weight_decay`; the first pattern that matches counts.
        decay_vectors: Whether parameters with fewer than two axes, such as biases and scales, decay, too.

    Returns:
        Groups with "params", "lr", "lr_factor" (for `set_learning_rates`) and "weight_decay".

    Raises:
        ValueError: For a pattern that matches no parameter, a number out of range, or a model in which nothing is
            trained.
    """
    factors, decays = factors or {}, decays or {}
    check_finite_positive("lr", lr)
    for what, numbers in (("factors", factors), ("decays", decays)):
        match_names(numbers, (name for name, _ in model.named_parameters()), what=what)
        for pattern, number in numbers.items():
            check_at_least(f"{what}.{pattern}", number, 0)
    check_at_least("weight_decay", weight_decay, 0)
    trained = trained_parameters(model)
    if not trained:
        raise ValueError("model must have trained parameters, got none; does freeze match them all?")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        decays_at_all = decay_vectors or parameter.ndim >= 2
        decay = _first_match(decays, name, weight_decay) if decays_at_all else 0.0
        groups.setdefault((_first_match(factors, name, 1.0), decay), []).append(parameter)
    return [
        {"params": parameters, "lr": lr * factor, "lr_factor": factor, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]


def _first_match(numbers: Mapping[str, float], name: str, default: float) -> float:
    return next((number for pattern, number in numbers.items() if fnmatchcase(name, pattern)), default)


def build_parameter_groups(model: nn.Module, section: OptimiserSection) -> list[dict[str, Any]]:
    """Return the `parameter_groups` of a configuration, whose patterns are `optimiser.groups`."""
    match_names(section.groups, (name for name, _ in model.named_parameters()), what="optimiser.groups")
    decays = {pattern: group.weight_decay for pattern, group in section.groups.items()}
    return parameter_groups(
        model,
        lr=section.lr,
        factors={pattern: group.lr for pattern, group in section.groups.items()},
        weight_decay=section.weight_decay,
        decays={pattern: section.weight_decay if decay is None else decay for pattern, decay in decays.items()},
        decay_vectors=section.decay == "all",
    )


def build_clip_groups(model: nn.Module, clip: Mapping[str, float]) -> list[ClipGroup]:
    """Return the groups whose gradients are clipped; every trained parameter is in exactly one.

    Args:
        model: Model; its parameters without a gradient are left out, and groups that are empty then.
        clip: Pattern of parameter names → norm that the gradient is clipped to.

    Raises:
        ValueError: For a pattern that matches no parameter, and parameters in no group or in two.
    """
    trained = trained_parameters(model)
    matched = match_names(clip, (name for name, _ in model.named_parameters()), what="optimiser.clip")
    for name in trained:
        patterns = [pattern for pattern, names in matched.items() if name in names]
        if len(patterns) != 1:
            found = " and ".join(map(repr, patterns)) or "none"
            raise ValueError(f"optimiser.clip must have each trained parameter in one pattern, got {found} for {name}")
    groups = [
        ClipGroup(pattern, [trained[name] for name in names if name in trained], clip[pattern])
        for pattern, names in matched.items()
    ]
    return [group for group in groups if group.parameters]


def clip_gradients(groups: list[ClipGroup]) -> dict[str, Tensor]:
    """Scale the gradient of every group to at most its norm.

    Returns:
        Pattern → norm before clipping, scalars.
    """
    norms = {}
    for group in groups:
        gradients = [parameter.grad for parameter in group.parameters if parameter.grad is not None]
        # Of no gradient at all, it would be 0 on the CPU.
        norm = torch.nn.utils.get_total_norm(gradients) if gradients else group.parameters[0].new_zeros(())
        torch.nn.utils.clip_grads_with_norm_(group.parameters, group.max_norm, norm)
        # Of sharded gradients, the norm is sharded too.
        norms[group.pattern] = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return norms


def learning_rate(progress: float, peak: float, section: ScheduleSection) -> float:
    """Return the learning rate: linear from `initial_lr` to `peak`, then along a cosine or a line to `final_lr`.

    Args:
        progress: Number of steps done over the number of all steps, 0 … 1.
        peak: Learning rate at the end of the warm-up.
        section: Length of the warm-up, learning rates at both ends, and the shape of the decay.
    """
    if progress < section.warmup:
        return section.initial_lr + (peak - section.initial_lr) * progress / section.warmup
    phase = (progress - section.warmup) / (1 - section.warmup) if section.warmup < 1 else 1.0
    left = 1 - phase if section.shape == "linear" else 0.5 * (1 + math.cos(math.pi * phase))
    return section.final_lr + (peak - section.final_lr) * left


def set_learning_rates(optimiser: Optimizer, lr: float) -> None:
    """Set the learning rate of every group to `lr` times its "lr_factor"."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["lr_factor"]


class WeightAverage:
    """Exponential moving average of the weights (Polyak and Juditsky 1992), in float32 or better.

    After each step, average ← d · average + (1 - d) · weights. Early on, d is (1 + n) / (10 + n) after n steps if that
    is less, so that random weights are forgotten quickly.

    Args:
        model: Model whose trained parameters are averaged.
        decay: The decay d, in 0 … 1.
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
        """Update the averages after a step of the optimiser."""
        decay = min(self.decay, (1 + self.num_steps) / (10 + self.num_steps))
        self.num_steps += 1
        averages = list(self.averages.values())
        weights = [p.to(a.dtype) for p, a in zip(self.parameters.values(), averages, strict=True)]
        torch._foreach_lerp_(averages, weights, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averaged weights within the block."""
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
        """Return whole tensors on the CPU; all processes have to take part."""
        averages = {name: full_tensor(average) for name, average in self.averages.items()}
        return {"num_steps": self.num_steps, "averages": averages}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: If the averages are of other parameters.
        """
        if state["averages"].keys() != self.averages.keys():
            other = sorted(state["averages"].keys() ^ self.averages.keys())
            raise ValueError(f"averages must be of the trained parameters, got a difference in {other[0]}")
        self.num_steps = state["num_steps"]
        for name, average in self.averages.items():
            copy_full_(average, state["averages"][name])
