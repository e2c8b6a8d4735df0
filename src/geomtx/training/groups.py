"""Which parameters share a learning rate, a weight decay or a gradient norm."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from geomtx.checks import check_at_least, check_finite_positive
from geomtx.names import match_names

if TYPE_CHECKING:
    from geomtx.training.config import OptimiserSection

__all__ = ["ClipGroup", "build_clip_groups", "build_parameter_groups", "clip_gradients", "parameter_groups"]


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


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    factors: Mapping[str, float] | None = None,
    weight_decay: float = 0.05,
    decays: Mapping[str, float] | None = None,
    decay_vectors: bool = False,
) -> list[dict[str, Any]]:
    """Groups for any optimiser of `torch.optim`: pretrained parts slower than new ones, vectors without decay.

        groups = parameter_groups(model, lr=1e-4, factors={"encoder.*": 0.1})
        optimiser = torch.optim.AdamW(groups, lr=1e-4)

    Args:
        model: Parameters without a gradient are left out.
        lr: Learning rate.
        factors: Pattern of parameter names ("*" stands for any characters) → factor of the learning rate; the first
            that matches counts. Others have 1.
        weight_decay: Of parameters with two axes or more.
        decays: Pattern → weight decay in place of `weight_decay`; the first that matches counts.
        decay_vectors: Let biases, scales and other parameters with fewer than two axes decay, too.

    Returns:
        "params", "lr", "lr_factor" (for `set_learning_rates`) and "weight_decay" each.

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
    """The `parameter_groups` of a configuration. Errors as there, the patterns being `optimiser.groups`."""
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
