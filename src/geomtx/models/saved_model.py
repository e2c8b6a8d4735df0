"""What a model's files say of it: its numbers, and the heads that were added, which come back."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from geomtx.checkpoint import Checkpoint, save_model
from geomtx.heads.camera import CameraHead
from geomtx.heads.dense import DenseHead
from geomtx.heads.dpt import DPTDecoder
from geomtx.heads.track import TrackHead
from geomtx.key_table import KeyTable
from geomtx.models.config import HEAD_MODULES, VGGTConfig
from geomtx.models.quantize import is_quantized
from geomtx.models.vggt_keys import is_published_config, parse_config
from geomtx.tracking.tracker import Tracker

__all__ = [
    "EXTRA_HEADS",
    "NO_OTHER_NAMES",
    "HeadSource",
    "build_heads",
    "check_can_save",
    "check_kind",
    "config_of_checkpoint",
    "describe_heads",
    "fill_heads",
    "parse_stored",
    "save_around_vggt",
    "stored_numbers",
]

HeadSource = nn.Module | Callable[[VGGTConfig], nn.Module]
Config = TypeVar("Config")

NO_OTHER_NAMES = KeyTable(())
"""Of models that nobody else publishes."""

EXTRA_HEADS = "extra_heads"
"""Key in a `config.json`, and the module's name in a model."""

# Their attributes have the names of their constructors' arguments, so that they can be built again.
_OWN: dict[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (CameraHead, DPTDecoder, DenseHead, TrackHead, Tracker)
}


def check_kind(checkpoint: Checkpoint, wanted: Literal["VGGT", "VGGTForNVS", "VideoTracker"]) -> None:
    """Require the weights of a model of one class.

    Raises:
        ValueError: For those of another of geomtx's models, naming the call that takes them.
    """
    stored = stored_numbers(checkpoint)
    found = "VGGT" if "vggt" not in stored else "VideoTracker" if "window" in stored else "VGGTForNVS"
    if found == wanted:
        return
    name = repr(checkpoint.source)
    if found == "VGGT":
        way = f"{wanted}.from_vggt begins with them"
    else:
        way = f"{found}.from_pretrained({name}) takes them, and has a VGGT inside, .vggt"
    raise ValueError(f"weights must be of a {wanted}, got {name} of a {found}; {way}")


def config_of_checkpoint(checkpoint: Checkpoint) -> tuple[VGGTConfig, dict[str, Any]]:
    """The stored configuration and extra heads; else VGGT-1B's, with the heads that the checkpoint has tensors of."""
    check_kind(checkpoint, "VGGT")
    stored = checkpoint.config
    if stored is None or (is_published_config(stored) and checkpoint.embedded_config is not None):
        stored = checkpoint.embedded_config  # complete, where a published one has few numbers
    if stored is not None:
        return parse_stored(checkpoint, stored, _parse_with_heads)
    parts = {name.partition(".")[0] for name in checkpoint.shapes}
    return VGGTConfig(heads=tuple(head for head, module in HEAD_MODULES.items() if module in parts)), {}


def _parse_with_heads(stored: dict[str, Any]) -> tuple[VGGTConfig, dict[str, Any]]:
    numbers = {key: value for key, value in stored.items() if key != EXTRA_HEADS}
    return parse_config(numbers), dict(stored.get(EXTRA_HEADS, {}))


def stored_numbers(checkpoint: Checkpoint) -> dict[str, Any]:
    """Of a model around a VGGT, whose own numbers are "vggt"; empty where none are stored."""
    return checkpoint.config or checkpoint.embedded_config or {}


def parse_stored(checkpoint: Checkpoint, numbers: dict[str, Any], parse: Callable[[dict[str, Any]], Config]) -> Config:
    """The configuration of stored numbers.

    Raises:
        ValueError: If `parse` refuses them, saying whose they are.
    """
    try:
        return parse(numbers)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{checkpoint.source} has a configuration that makes no model: {error}") from error


def check_can_save(model: nn.Module) -> None:
    """Refuse quantised weights, whose own numbers are lost.

    Raises:
        ValueError: For these.
    """
    if is_quantized(model):
        raise ValueError("model must not be quantised to be saved, got quantised weights; save it before")


def save_around_vggt(model: nn.Module, numbers: dict[str, Any], folder: str | os.PathLike[str]) -> Path:
    """Write a model that has a VGGT inside, as "model.vggt", into a folder, see `save_model`.

    Raises:
        ValueError: For quantised weights, and for heads added to the VGGT, which have their place in its own files.
    """
    check_can_save(model)
    added = [name for part in model.modules() for name in getattr(part, EXTRA_HEADS, ())]
    if added:
        names = ", ".join(added)
        raise ValueError(f"model.vggt must be without added heads to be saved in this model, got {names}")
    return save_model(model, folder, NO_OTHER_NAMES, config=numbers, published_config=numbers)


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
    """Heads by name: those that are given, the others from their numbers, on the meta device.

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
        if name in given:
            source = given[name]
            head = source if isinstance(source, nn.Module) else source(config)
        else:
            head = _rebuild(name, description)
        if not isinstance(head, nn.Module):
            raise ValueError(f"extra_heads must be modules, got {type(head).__name__} for {name!r}")
        heads[name] = head
    return heads


def _rebuild(name: str, description: Any) -> nn.Module:
    try:
        with torch.device("meta"):
            head = _build(description)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"extra_heads must describe {name!r} by numbers that make a head, got: {error}") from error
    if head is None:
        raise ValueError(
            f"extra_heads must be given the head {name!r}, of the class {_class_of(description)}, which geomtx can't "
            f"build, got none; from_pretrained(…, extra_heads={{{name!r}: module}}), or other heads=(…)"
        )
    return head


def fill_heads(
    heads: dict[str, nn.Module], checkpoint: Checkpoint, device: torch.device | str | None, dtype: torch.dtype | None
) -> dict[str, nn.Module]:
    """Put a checkpoint's tensors into heads, buffers too, strictly; in evaluation mode.

    Raises:
        ValueError: If they don't fit.
    """
    for name, head in heads.items():
        prefix, state = f"{EXTRA_HEADS}.{name}.", {}
        for file in checkpoint.files:
            for stored, tensor in file.read([key for key in file.shapes if key.startswith(prefix)]):
                state[stored.removeprefix(prefix)] = tensor.clone()
        try:
            head.load_state_dict(state, assign=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{checkpoint.source} doesn't fit the head {name!r}: {reason}") from error
        head.to(device=device or "cpu", dtype=dtype).eval()
    return heads
