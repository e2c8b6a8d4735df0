"""What a head gets of the encoder in training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from geomtx.checks import check_option
from geomtx.models.config import HEAD_MODULES
from geomtx.types import Tokens

__all__ = ["detach_heads", "run_heads_in_float32"]


def detach_heads(model: nn.Module, heads: Iterable[str]) -> None:
    """Make probes of heads: they learn from the tokens, the encoder learns nothing from them.

    Args:
        model: With heads in the attributes that `HEAD_MODULES` names; changed in place.
        heads: Names.

    Raises:
        ValueError: For a head that the model doesn't have.
    """
    available = [name for name, module in HEAD_MODULES.items() if getattr(model, module, None) is not None]
    for head in heads:
        check_option("detach", head, available)
        module = getattr(model, next(attribute for name, attribute in HEAD_MODULES.items() if name == head))
        module.register_forward_pre_hook(_detach)


def _detach(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    tokens: Tokens = args[0]
    return (tokens._replace(layers={index: layer.detach() for index, layer in tokens.layers.items()}), *args[1:])


def run_heads_in_float32(model: nn.Module) -> None:
    """Take the heads, also those of a VGGT inside, out of an autocast around the model; changes `model` in place."""
    for part in model.modules():
        for attribute in (*HEAD_MODULES.values(), "rgb_head"):
            head = getattr(part, attribute, None)
            if head is not None:
                head.forward = _Float32Head(head.forward)


class _Float32Head:
    def __init__(self, forward: Any) -> None:
        self.forward = forward

    def __call__(self, tokens: Tokens, *args: Any, **kwargs: Any) -> Any:
        layers = {index: layer.float() for index, layer in tokens.layers.items()}
        device = next(iter(layers.values())).device.type
        with torch.autocast(device, enabled=False):
            return self.forward(tokens._replace(layers=layers), *args, **kwargs)
