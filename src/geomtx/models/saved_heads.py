"""Heads that were added to a VGGT, told by plain numbers and built again."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from geomtx.checkpoint.files import Checkpoint, SkippedInitialisation
from geomtx.checkpoint.key_table import drop_wrappers
from geomtx.heads.camera import CameraHead
from geomtx.heads.dense import DenseHead, RGBHead
from geomtx.heads.dpt import DPTDecoder
from geomtx.heads.track import TrackHead
from geomtx.models.vggt.config import VGGTConfig
from geomtx.tracking.tracker import Tracker

__all__ = ["EXTRA_HEADS", "HeadSource", "build_heads", "describe_heads", "fill_heads"]

EXTRA_HEADS = "extra_heads"
"""Key in a `config.json`, and the module's name in a VGGT."""

HeadSource = nn.Module | Callable[[VGGTConfig], nn.Module] | None
"""None leaves the head out."""

# Their attributes have the names of their constructors' arguments, so that they can be built again.
_OWN: dict[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (CameraHead, DPTDecoder, DenseHead, RGBHead, TrackHead, Tracker)
}


def describe_heads(heads: nn.ModuleDict) -> dict[str, Any]:
    """Name → {"class", "numbers"} for `config.json`; a head of another library's is a class without numbers."""
    return {name: _describe(head) for name, head in heads.items()}


def _describe(module: nn.Module) -> dict[str, Any]:
    kind = type(module)
    if _OWN.get(kind.__name__) is not kind:
        return {"class": f"{kind.__module__}.{kind.__qualname__}"}
    values = {name: getattr(module, name) for name in inspect.signature(kind).parameters}
    numbers: dict[str, Any] = {
        name: _describe(value) if isinstance(value, nn.Module) else list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
    }
    return {"class": kind.__name__, "numbers": numbers}


def _build(description: Mapping[str, Any]) -> nn.Module | None:
    """None for a class that isn't geomtx's."""
    kind, numbers = _OWN.get(description.get("class", "")), {}
    if kind is None:
        return None
    for name, value in description["numbers"].items():
        if isinstance(value, dict):
            value = _build(value)
            if value is None:
                return None
        numbers[name] = tuple(value) if isinstance(value, list) else value
    return kind(**numbers)


def _class_of(description: Mapping[str, Any]) -> str:
    """Of the first part that isn't geomtx's."""
    parts = [part for part in description.get("numbers", {}).values() if isinstance(part, dict)]
    foreign = (_class_of(part) for part in parts if _build(part) is None)
    return next(foreign, str(description.get("class")))


def build_heads(
    described: Mapping[str, Any], given: Mapping[str, HeadSource], config: VGGTConfig
) -> dict[str, nn.Module]:
    """Heads by name: those that are given, the others from their numbers, on the meta device; without those given None.

    Raises:
        ValueError: For a head that is given but not described, one that only its own library can build and isn't given,
            and numbers that make no head.
    """
    for name in given:
        if name not in described:
            there = ", ".join(map(repr, described)) or "none"
            raise ValueError(f"extra_heads must be among those of the weights, {there}, got {name!r}")
    heads = {}
    for name, description in described.items():
        if name not in given:
            head = _rebuild(name, description)
        elif (source := given[name]) is None:
            continue
        else:
            head = source if isinstance(source, nn.Module) else source(config)
        if not isinstance(head, nn.Module):
            raise ValueError(f"extra_heads must be modules, got {type(head).__name__} for {name!r}")
        heads[name] = head
    return heads


def _rebuild(name: str, description: Any) -> nn.Module:
    try:
        with torch.device("meta"), SkippedInitialisation():
            head = _build(description)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"extra_heads must describe {name!r} by numbers that make a head, got: {error}") from error
    if head is None:
        raise ValueError(
            f"extra_heads must be given the head {name!r}, of the class {_class_of(description)}, which geomtx can't "
            f"build, got none; from_pretrained(…, extra_heads={{{name!r}: module}}), or None to do without"
        )
    return head


def fill_heads(
    heads: dict[str, nn.Module],
    checkpoint: Checkpoint,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    *,
    inside: str = "",
) -> dict[str, nn.Module]:
    """Put a checkpoint's tensors into heads of the VGGT at `inside`, buffers too, strictly; in evaluation mode.

    Raises:
        ValueError: If they don't fit.
    """
    for name, head in heads.items():
        prefix, state = f"{inside}.{EXTRA_HEADS}.{name}.".removeprefix("."), {}
        for file in checkpoint.files:
            for stored, tensor in file.read([key for key in file.shapes if key.startswith(prefix)]):
                state[stored.removeprefix(prefix)] = tensor.clone()
        own = {drop_wrappers(key): key for key in head.state_dict()}
        state = {own.get(drop_wrappers(key), key): tensor for key, tensor in state.items()}
        if type(head).__name__ in _OWN and dtype is None:
            dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
            state = {key: tensor.to(functools.reduce(torch.promote_types, dtypes)) for key, tensor in state.items()}
        try:
            head.load_state_dict(state, assign=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{checkpoint.source} doesn't fit the head {name!r}: {reason}") from error
        head.to(device=device or "cpu", dtype=dtype).eval()
    return heads
