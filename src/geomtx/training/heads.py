"""What a head gets of the encoder in training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from geomtx.checks import check_option
from geomtx.heads.probe import make_probe
from geomtx.models.extra_heads import head_modules
from geomtx.types import Tokens

__all__ = ["detach_heads", "run_heads_in_float32"]


def detach_heads(model: nn.Module, heads: Iterable[str]) -> None:
    """Make probes of heads: they learn from the tokens, the encoder learns nothing from them.

    Args:
        model: With heads as `VGGT` has them, added ones too; changed in place.
        heads: Names.

    Raises:
        ValueError: For a head that the model doesn't have.
    """
    available = head_modules(model)
    for head in heads:
        check_option("detach", head, available)
        make_probe(available[head])


def run_heads_in_float32(model: nn.Module) -> None:
    """Take the heads, also those of a VGGT inside, out of an autocast around the model; changes `model` in place."""
    heads = {head for part in model.modules() for head in head_modules(part).values()}
    if isinstance(rgb_head := getattr(model, "rgb_head", None), nn.Module):
        heads.add(rgb_head)
    for head in heads:
        head.forward = _Float32Head(head.forward)


class _Float32Head:
    def __init__(self, forward: Any) -> None:
        self.forward = forward

    def __call__(self, tokens: Tokens, *args: Any, **kwargs: Any) -> Any:
        layers = {index: layer.float() for index, layer in tokens.layers.items()}
        device = next(iter(layers.values())).device.type
        with torch.autocast(device, enabled=False):
            return self.forward(tokens._replace(layers=layers), *args, **kwargs)
