"""Parts of a model that training leaves as they are."""

from __future__ import annotations

import types
from collections.abc import Iterable

from torch import nn

from geomtx.names import match_names

__all__ = ["freeze"]


def freeze(model: nn.Module, patterns: Iterable[str]) -> list[str]:
    """Take modules out of the training.

    Their parameters get no gradient, and they stay in evaluation mode whatever `model.train()` says. What comes before
    the first trained parameter needs no graph, so autograd records none: it costs as little as under `no_grad`.

    Args:
        model: Changed in place.
        patterns: Of module names ("encoder", "encoder.backbone", "*.blocks.[0-5]").

    Returns:
        Names of the frozen modules.

    Raises:
        ValueError: For a pattern that matches no module.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    matched = match_names(patterns, modules, what="freeze")
    names = sorted({name for found in matched.values() for name in found})
    for name in names:
        modules[name].requires_grad_(False)
        for module in modules[name].modules():
            module.eval()
            module.train = types.MethodType(_stay, module)
    return names


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    """In place of `nn.Module.train`."""
    return module
