"""All that running a model could change in it."""

from __future__ import annotations

from typing import Any

from torch import nn


def state_of(model: nn.Module) -> dict[str, Any]:
    """Return identities of all attributes of all modules, and of what their dicts hold: hooks, parameters, children."""
    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            held = {key: id(each) for key, each in value.items()} if isinstance(value, dict) else None
            state[f"{name}.{attribute}"] = (id(value), held)
    state |= {f"version of {name}": parameter._version for name, parameter in model.named_parameters()}
    return state | {f"buffer {name}": (id(buffer), buffer._version) for name, buffer in model.named_buffers()}
