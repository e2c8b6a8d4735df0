"""Parts of a model that training leaves as they are."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from torch import nn

from geomtx.layers.lora import adapted_layers
from geomtx.names import match_names

__all__ = ["freeze", "unfreeze"]


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
    modules = _match(model, patterns, "freeze")
    for part in modules.values():
        part.requires_grad_(False)
        for module in part.modules():
            module.eval()
            # Not a bound method, which would be pickled by its name.
            module.train = functools.partial(_stay, module)  # type: ignore[method-assign]
    return list(modules)


def unfreeze(model: nn.Module, patterns: Iterable[str]) -> list[str]:
    """The inverse of `freeze`, for the same modules or for parts of them.

    Their parameters get gradients, and they are in the mode of the model and follow `model.train()`. Weights that have
    adapters (`geomtx.add_lora`) stay frozen.

    Args:
        model: Changed in place.
        patterns: Of module names.

    Returns:
        Names of the modules.

    Raises:
        ValueError: For a pattern that matches no module.
    """
    modules = _match(model, patterns, "unfreeze")
    for part in modules.values():
        part.requires_grad_(True)
        for module in part.modules():
            vars(module).pop("train", None)
        part.train(model.training)
    for layer, _ in adapted_layers(model).values():
        layer.parametrizations.weight.original.requires_grad_(False)  # type: ignore[union-attr]
    return list(modules)


def _match(model: nn.Module, patterns: Iterable[str], what: str) -> dict[str, nn.Module]:
    """Name → module, sorted."""
    modules = {name: module for name, module in model.named_modules() if name}
    matched = match_names(patterns, modules, what=what)
    return {name: modules[name] for name in sorted({name for found in matched.values() for name in found})}


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    """In place of `nn.Module.train`: what in it isn't frozen, still listens."""
    for child in module.children():
        child.train(mode)
    return module
