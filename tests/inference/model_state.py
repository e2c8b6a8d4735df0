"""All that running a model could change in it."""

from __future__ import annotations

from typing import Any

from torch import nn


def state_of(model: nn.Module) -> dict[str, Any]:
    """Return identities of all attributes of all modules, and of what their dicts hold: hooks, parameters, children."""
    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        attributes = vars(module)
        held = {key: _identities(value) for key, value in attributes.items() if isinstance(value, dict)}
        state[name] = (_identities(attributes), held)
    state |= {f"version of {name}": parameter._version for name, parameter in model.named_parameters()}
    return state | {f"buffer {name}": (id(buffer), buffer._version) for name, buffer in model.named_buffers()}


def _identities(values: dict[str, Any]) -> dict[str, int]:
    return dict(zip(values, map(id, values.values()), strict=True))
