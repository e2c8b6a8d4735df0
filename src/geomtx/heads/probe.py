"""Heads that learn from the tokens while the encoder learns nothing from them."""

from __future__ import annotations

from typing import Any

from torch import nn

from geomtx.types import Tokens

__all__ = ["make_probe", "unmake_probe"]


def make_probe(head: nn.Module) -> None:
    """Cut the gradient between a head and the tokens that it is given."""
    unmake_probe(head)
    head.register_forward_pre_hook(detach_tokens)


def unmake_probe(head: nn.Module) -> None:
    """The inverse of `make_probe`; changes no other head."""
    hooks = head._forward_pre_hooks
    for key in [key for key, hook in hooks.items() if hook is detach_tokens]:
        del hooks[key]


def detach_tokens(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """A pre-forward hook; projected tokens, which memory plans make, have no gradients anyway."""
    tokens = args[0]
    if not isinstance(tokens, Tokens):
        return args
    return (tokens._replace(layers={index: layer.detach() for index, layer in tokens.layers.items()}), *args[1:])
