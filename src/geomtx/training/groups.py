"""Which parameters share a learning rate, a weight decay or a gradient norm."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from geomtx.names import match_names
from geomtx.training.config import GroupSection, OptimiserSection

__all__ = ["ClipGroup", "build_clip_groups", "build_parameter_groups", "clip_gradients"]


class ClipGroup(NamedTuple):
    """Parameters whose gradient is clipped as one vector.

    Attributes:
        pattern: Of their names.
        parameters: Trained ones.
        max_norm: Of their gradient.
    """

    pattern: str
    parameters: list[nn.Parameter]
    max_norm: float


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name → parameter, of those that get a gradient."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def build_parameter_groups(model: nn.Module, section: OptimiserSection) -> list[dict[str, Any]]:
    """Groups for `torch.optim.AdamW`, with the key "lr_factor" for the schedule.

    Args:
        model: Parameters without a gradient are left out.
        section: The first pattern of `groups` that matches a parameter counts; with `decay="matrices"`, parameters
            with fewer than two axes don't decay.

    Raises:
        ValueError: For a pattern that matches no parameter, or a model in which nothing is trained.
    """
    trained = trained_parameters(model)
    if not trained:
        raise ValueError("model must have trained parameters, got none; does freeze match them all?")
    match_names(section.groups, (name for name, _ in model.named_parameters()), what="optimiser.groups")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        group = next((g for pattern, g in section.groups.items() if fnmatchcase(name, pattern)), GroupSection())
        decay = section.weight_decay if group.weight_decay is None else group.weight_decay
        if section.decay == "matrices" and parameter.ndim < 2:
            decay = 0.0
        groups.setdefault((group.lr, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": section.lr * factor, "lr_factor": factor, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]


def build_clip_groups(model: nn.Module, clip: Mapping[str, float]) -> list[ClipGroup]:
    """Cover every trained parameter exactly once.

    Args:
        model: Parameters without a gradient are left out, and so are groups of which nothing is left.
        clip: Pattern of parameter names → largest norm.

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
        Pattern → norm before, scalars.
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
