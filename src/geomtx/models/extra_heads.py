"""Heads that a user adds to a model: checks of a new one, and the mapping of all heads by name."""

from __future__ import annotations

from torch import nn

from geomtx.models.vggt.config import HEAD_MODULES, HEADS

__all__ = [
    "check_new_head",
    "head_modules",
]

# Names of tasks that `MultitaskLoss` has, besides those of heads.
_TAKEN = (*HEADS, "consistency")


def head_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Name → head of all heads of a model, its own first; those of the attributes that `HEAD_MODULES` names."""
    own = {head: getattr(model, attribute, None) for head, attribute in HEAD_MODULES.items()}
    extra = getattr(model, "extra_heads", nn.ModuleDict())
    return {name: head for name, head in own.items() if head is not None} | dict(extra.items())


def check_new_head(name: str, head: nn.Module, model: nn.Module) -> None:
    """Require a name that is free and a module that is no part of the model yet.

    Raises:
        ValueError: Otherwise.
    """
    if not isinstance(name, str) or not name.isidentifier() or hasattr(nn.ModuleDict, name):
        raise ValueError(f"name must be an identifier that torch.nn.ModuleDict doesn't use itself, got {name!r}")
    taken = dict.fromkeys((*_TAKEN, *head_modules(model)))
    if name in taken:
        raise ValueError(f"name must not be one of {', '.join(map(repr, taken))}, got {name!r}")
    if not isinstance(head, nn.Module):
        raise ValueError(f"head must be a torch.nn.Module, got {type(head).__name__}")
    if any(part is head for part in model.modules()):
        raise ValueError(f"head must be no part of the model yet, got one that is, {type(head).__name__}")
