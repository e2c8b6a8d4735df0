"""What a model's files say of it: its kind and its numbers; `saved_heads` has the heads that were added."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import nn

from geomtx.checkpoint.files import (
    Checkpoint,
    SkippedInitialisation,
    load_model,
    open_checkpoint,
    save_model,
    share_parameters,
)
from geomtx.checkpoint.key_table import KeyTable
from geomtx.inference.quantize import is_quantized
from geomtx.models.registry import find_weights
from geomtx.models.saved_heads import EXTRA_HEADS, describe_heads, fill_heads
from geomtx.models.vggt.config import HEAD_MODULES, VGGTConfig
from geomtx.models.vggt.keys import VGGT_KEYS, is_published_config, parse_config

__all__ = [
    "NO_OTHER_NAMES",
    "Kind",
    "added_heads",
    "check_can_save",
    "config_of_checkpoint",
    "describe_model",
    "kind_of",
    "load_around_vggt",
    "open_vggt",
    "parse_stored",
    "save_around_vggt",
]

Kind = Literal["VGGT", "VGGTForNVS", "VideoTracker"]
Config = TypeVar("Config")
Model = TypeVar("Model", bound=nn.Module)

NO_OTHER_NAMES = KeyTable(())
"""Of models that nobody else publishes."""

_KIND = "kind"  # key in a `config.json`

# Where a model of a kind has its VGGT.
_INSIDE: dict[Kind, str] = {"VGGT": "", "VGGTForNVS": "vggt", "VideoTracker": "features.vggt"}


def kind_of(checkpoint: Checkpoint) -> str:
    """A `Kind`, as the files say; where they don't, by the numbers, as before there was such a field."""
    stored = _stored(checkpoint) or {}
    if _KIND in stored:
        return str(stored[_KIND])
    return "VGGT" if "vggt" not in stored else "VideoTracker" if "window" in stored else "VGGTForNVS"


def added_heads(checkpoint: Checkpoint) -> dict[str, Any]:
    """Name → description of the heads that were added, see `describe_heads`.

    Raises:
        ValueError: If what is stored of them is no mapping.
    """
    described = (_stored(checkpoint) or {}).get(EXTRA_HEADS, {})
    if not isinstance(described, dict):
        raise ValueError(_useless(checkpoint, f"{EXTRA_HEADS} must be a mapping, got {described!r}"))
    return described


def _stored(checkpoint: Checkpoint) -> dict[str, Any] | None:
    stored, embedded = checkpoint.config, checkpoint.embedded_config
    # The embedded one is complete, where a published one has few numbers.
    return embedded if embedded is not None and (not stored or is_published_config(stored)) else stored


def _useless(checkpoint: Checkpoint, reason: object) -> str:
    return f"{checkpoint.source} has a configuration that makes no model: {reason}"


def open_vggt(source: str | os.PathLike[str]) -> Checkpoint:
    """Open the weights of a VGGT, embedded ones too; tensors have a VGGT's names, see `Checkpoint.unwrapped`."""
    return open_checkpoint(find_weights(source)).unwrapped(VGGT_KEYS.__contains__)


def config_of_checkpoint(checkpoint: Checkpoint) -> tuple[VGGTConfig, dict[str, Any]]:
    """The stored configuration and extra heads; else VGGT-1B's, with the heads that the checkpoint has tensors of."""
    if _stored(checkpoint) is not None:
        return parse_stored(checkpoint, "VGGT", parse_config)
    parts = {name.partition(".")[0] for name in checkpoint.shapes}
    return VGGTConfig(heads=tuple(head for head, module in HEAD_MODULES.items() if module in parts)), {}


def parse_stored(
    checkpoint: Checkpoint, wanted: Kind, parse: Callable[[dict[str, Any]], Config]
) -> tuple[Config, dict[str, Any]]:
    """The configuration of stored numbers, and `added_heads`.

    Raises:
        ValueError: For weights of another kind, naming the call that takes them; if `parse` refuses the numbers, saying
            whose they are.
    """
    _check_kind(checkpoint, wanted)
    described = added_heads(checkpoint)
    numbers = {key: value for key, value in (_stored(checkpoint) or {}).items() if key not in (_KIND, EXTRA_HEADS)}
    try:
        return parse(numbers), described
    except (TypeError, ValueError) as error:
        raise ValueError(_useless(checkpoint, error)) from error


def _check_kind(checkpoint: Checkpoint, wanted: Kind) -> None:
    found, name = kind_of(checkpoint), repr(checkpoint.source)
    if found == wanted:
        return
    if found == "VGGT":
        way = f"{wanted}.from_vggt begins with them"
    elif found in get_args(Kind):
        way = f"{found}.from_pretrained({name}) takes them, and has a VGGT inside, .vggt"
    else:
        way = f"kinds are {', '.join(get_args(Kind))}"
    raise ValueError(f"weights must be of a {wanted}, got {name} of a {found}; {way}")


def check_can_save(model: nn.Module) -> None:
    """Refuse quantised weights, whose own numbers are lost.

    Raises:
        ValueError: For these.
    """
    if is_quantized(model):
        raise ValueError("model must not be quantised to be saved, got quantised weights; save it before")


def describe_model(kind: Kind, numbers: dict[str, Any], heads: nn.ModuleDict) -> dict[str, Any]:
    """What is stored of a model: its kind, its numbers, the heads that were added."""
    return {_KIND: kind, **numbers, **({EXTRA_HEADS: describe_heads(heads)} if heads else {})}


def save_around_vggt(
    model: nn.Module, kind: Kind, numbers: dict[str, Any], folder: str | os.PathLike[str], *, overwrite: bool = False
) -> Path:
    """Write a model that has a VGGT inside into a folder, with the heads that were added to that, see `save_model`.

    Raises:
        ValueError: For quantised weights, and for added heads of a VGGT elsewhere in the model.
    """
    check_can_save(model)
    added = {path: heads for path, part in model.named_modules() if (heads := getattr(part, EXTRA_HEADS, None))}
    here = added.pop(_INSIDE[kind], nn.ModuleDict())
    for path, heads in added.items():
        raise ValueError(f"added heads must be those of model.{_INSIDE[kind]}, got {', '.join(heads)} of model.{path}")
    stored = describe_model(kind, numbers, here)
    return save_model(model, folder, NO_OTHER_NAMES, config=stored, published_config=stored, overwrite=overwrite)


def load_around_vggt(
    checkpoint: Checkpoint,
    kind: Kind,
    build: Callable[[], Model],
    heads: dict[str, nn.Module],
    *,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Model:
    """The inverse of `save_around_vggt`: see `load_model`, and `build_heads` for what `heads` are.

    Raises:
        ValueError: If the tensors don't fit.
    """
    inside = _INSIDE[kind]
    apart = [f"{inside}.{EXTRA_HEADS}.{name}." for name in added_heads(checkpoint)]
    parts = [*(f"{inside}.{head}" for head in HEAD_MODULES.values()), "tracker"]
    with torch.device("meta"), SkippedInitialisation():
        model = build()
    checkpoint = checkpoint.unwrapped(dict(model.named_parameters()).__contains__)
    load_model(checkpoint, lambda: model, NO_OTHER_NAMES, device=device, dtype=dtype, apart=apart, parts=parts)
    filled = fill_heads(heads, checkpoint, device, dtype, inside=inside)
    if filled:
        vggt: Any = model.get_submodule(inside)
        vggt.extra_heads.update(filled)
    share_parameters(model, checkpoint.shared)
    return model
