"""What a model's files say of it: its kind, its configuration, and the heads that were added to it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from geomtx.checkpoint.files import Checkpoint, SkippedInitialisation, load_weights, save_model
from geomtx.checkpoint.key_table import KeyTable
from geomtx.heads.dense import DenseHead, PixelShuffleHead, RGBHead
from geomtx.heads.dpt import DPTDecoder
from geomtx.inference.quantize import is_quantized
from geomtx.models.published import MARKS, kind_of_names, open_weights
from geomtx.models.vggt.config import HEAD_MODULES, VGGTConfig
from geomtx.models.vggt.keys import VGGT_KEYS, is_published_config, is_vggt, parse_config

__all__ = [
    "NO_OTHER_NAMES",
    "HeadSource",
    "added_heads",
    "check_can_save",
    "choose_heads",
    "config_of_checkpoint",
    "describe_model",
    "kind_of",
    "load_around_vggt",
    "open_as",
    "open_vggt",
    "parse_stored",
    "published_name",
    "save_around_vggt",
    "stored_kind",
]

Config = TypeVar("Config")
Model = TypeVar("Model", bound=nn.Module)

NO_OTHER_NAMES = KeyTable(())
"""Table of names of models that nobody else publishes."""

HeadSource = nn.Module | Callable[[VGGTConfig], nn.Module] | None
"""An added head to fill, or a function that makes it; None leaves it out."""

# What builds a part again: the arguments of its constructor, which are attributes of it. Other heads are given.
_NUMBERS: dict[type[nn.Module], tuple[str, ...]] = {
    DenseHead: ("decoder", "value_dim", "activation", "hidden_dim"),
    PixelShuffleHead: ("decoder", "value_dim", "activation", "factor"),
    RGBHead: ("decoder", "hidden_dim"),
    DPTDecoder: (
        *("dim", "features", "channels", "taps", "out_channels", "stride", "position_signal"),
        *("token_norm", "rectified_skip", "crop", "unused_skip"),
    ),
}

_KIND = "kind"  # key in a `config.json`
_PUBLISHED_NAME = "model_name"  # key in a published `config.json` of Depth Anything 3
_EXTRA_HEADS = "extra_heads"  # the mapping of added heads in a VGGT; in a configuration, what builds them

# Where a model of a kind has its VGGT.
_INSIDE: dict[str, str] = {"VGGT": "", "VGGTForNVS": "vggt", "VideoTracker": "features.vggt"}


def kind_of(checkpoint: Checkpoint) -> str:
    """The name of a model's class, see `stored_kind`; "VGGT" where the files don't tell."""
    return stored_kind(checkpoint) or "VGGT"


def stored_kind(checkpoint: Checkpoint) -> str | None:
    """The name of a model's class, as the files say; where they don't, by the names of tensors and by the numbers.

    None if neither tells: there is no configuration, or one beside tensors of no family that geomtx knows.
    """
    stored = _stored(checkpoint)
    if stored is not None and _KIND in stored:
        return str(stored[_KIND])
    kind = kind_of_names(checkpoint.shapes)
    if kind is not None or stored is None:
        return kind
    if "vggt" in stored:
        return "VideoTracker" if "window" in stored else "VGGTForNVS"
    return "VGGT" if not checkpoint.shapes or is_vggt(checkpoint.shapes) else None


def published_name(checkpoint: Checkpoint) -> str | None:
    """Return the name that a published `config.json` has for its model; None for weights that geomtx wrote.

    Without such a name it is "".
    """
    stored = _stored(checkpoint)
    if stored is not None and _KIND in stored:
        return None
    return str((stored or {}).get(_PUBLISHED_NAME, ""))


def added_heads(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the added heads that some tensors belong to, by the names of the tensors."""
    found = (re.search(rf"(?:^|\.){_EXTRA_HEADS}\.(\w+)\.", name) for name in names)
    return tuple(dict.fromkeys(match[1] for match in found if match))


def build_heads(checkpoint: Checkpoint) -> dict[str, nn.Module]:
    """Return the added heads that can be built from what is stored of them, by name, on the meta device."""
    described = (_stored(checkpoint) or {}).get(_EXTRA_HEADS) or {}
    built = {name: _build_part(part) for name, part in described.items()}
    return {name: head for name, head in built.items() if head is not None}


def choose_heads(
    checkpoint: Checkpoint,
    given: Mapping[str, HeadSource] | None,
    config: Any,
    *,
    inside: str = "",
    asked: Sequence[str] | None = None,
) -> tuple[dict[str, nn.Module], list[str]]:
    """Return the added heads that a checkpoint's tensors are for, and the prefixes of tensors that are left out.

    Args:
        checkpoint: Open files whose tensors have the names of the model.
        given: Added heads by name: a module, a function that makes it from the configuration, or None to leave it out.
        config: Configuration of the model that has the heads.
        inside: Name of that model in the whole one.
        asked: Names of the heads that are wanted; defaults to all.

    Raises:
        ValueError: For a head that is given but not stored, or stored and wanted but not given.
    """
    given, path = given or {}, f"{inside}.{_EXTRA_HEADS}.".removeprefix(".")
    tails = (name.removeprefix(path) for name in checkpoint.shapes if name.startswith(path))
    described = (_stored(checkpoint) or {}).get(_EXTRA_HEADS) or {}
    there = dict.fromkeys(tail.partition(".")[0] for tail in tails)
    # A head without parameters has no tensors: it is stored if it is described, and comes back if it is given.
    without = [name for name in given if name in described]
    stored = tuple(dict.fromkeys((*(name for name in described if name in there), *there, *without)))
    for name, source in given.items():
        if source is not None and name not in stored:
            names = ", ".join(map(repr, stored)) or "none"
            raise ValueError(f"extra_heads must be among those of the weights, {names}, got {name!r}")
    heads: dict[str, nn.Module] = {}
    for name in stored:
        if asked is not None and name not in asked:
            continue
        if name not in given and (built := _build_part(described.get(name))) is not None:
            heads[name] = built
            continue
        if name not in given:
            raise ValueError(
                f"extra_heads must have a module for the head {name!r} of '{checkpoint.source}', got none; "
                f"from_pretrained(…, extra_heads={{{name!r}: module}}), or None in its place to do without"
            )
        source = given[name]
        if source is None:
            continue
        head = source if isinstance(source, nn.Module) else source(config)
        if not isinstance(head, nn.Module):
            raise ValueError(f"extra_heads must be modules, got {type(head).__name__} for {name!r}")
        heads[name] = head
    return heads, [f"{path}{name}." for name in stored if name not in heads]


def _stored(checkpoint: Checkpoint) -> dict[str, Any] | None:
    stored, embedded = checkpoint.config, checkpoint.embedded_config
    # The embedded one is complete, where a published one has few numbers.
    return embedded if embedded is not None and (not stored or _is_published(stored)) else stored


def _is_published(stored: dict[str, Any]) -> bool:
    return is_published_config(stored) or _PUBLISHED_NAME in stored


def open_as(source: str | os.PathLike[str], kind: str, is_name: Callable[[str], bool]) -> Checkpoint:
    """Open the weights of a class of models; tensors have the model's names, see `Checkpoint.unwrapped`.

    Args:
        source: Name, hub id, folder or file.
        kind: Name of the class.
        is_name: Whether a name, published or geomtx's, is one of the model's tensors.

    Raises:
        ValueError: For weights of another class, naming the call that takes them, and as `open_weights`.
        FileNotFoundError: If there are none.
    """
    checkpoint = open_weights(source)
    # Before names are unwrapped: some of another class look like wrapped ones of this.
    _check_kind(checkpoint, kind)
    return checkpoint.unwrapped(is_name)


def open_vggt(source: str | os.PathLike[str]) -> Checkpoint:
    """Open the weights of a VGGT, embedded ones too, see `open_as`."""
    return open_as(source, "VGGT", VGGT_KEYS.__contains__)


def config_of_checkpoint(checkpoint: Checkpoint) -> VGGTConfig:
    """The stored configuration; else VGGT-1B's, with the heads that the checkpoint has tensors of."""
    if _stored(checkpoint) is not None or stored_kind(checkpoint) is not None:
        return parse_stored(checkpoint, "VGGT", parse_config)
    parts = {name.partition(".")[0] for name in checkpoint.shapes}
    return VGGTConfig(heads=tuple(head for head, module in HEAD_MODULES.items() if module in parts))


def parse_stored(checkpoint: Checkpoint, wanted: str, parse: Callable[[dict[str, Any]], Config]) -> Config:
    """The configuration of stored numbers.

    Raises:
        ValueError: For weights of another kind, naming the call that takes them; if `parse` refuses the numbers, saying
            whose they are.
    """
    _check_kind(checkpoint, wanted)
    numbers = {key: value for key, value in (_stored(checkpoint) or {}).items() if key not in (_KIND, _EXTRA_HEADS)}
    try:
        return parse(numbers)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{checkpoint.source} has a configuration that makes no model: {error}") from error


def _check_kind(checkpoint: Checkpoint, wanted: str) -> None:
    found, name = stored_kind(checkpoint), repr(checkpoint.source)
    if found is None and is_vggt(checkpoint.shapes):
        found = "VGGT"
    if found in (wanted, None):  # of tensors that tell nothing, loading says which are missing
        return
    if found == "VGGT" and wanted in _INSIDE:
        way = f"{wanted}.from_vggt begins with them"
    elif found == "VGGT" or found in MARKS:
        way = f"{found}.from_pretrained({name}) takes them, as geomtx.load_model does"
    elif found in _INSIDE:
        way = f"{found}.from_pretrained({name}) takes them, and has a VGGT inside, .vggt"
    else:
        way = f"kinds are {', '.join((*_INSIDE, *MARKS))}"
    raise ValueError(f"weights must be of a {wanted}, got {name} of a {found}; {way}")


def check_can_save(model: nn.Module) -> None:
    """Refuse quantised weights, whose own numbers are lost.

    Raises:
        ValueError: For these.
    """
    if is_quantized(model):
        raise ValueError("model must not be quantised to be saved, got quantised weights; save it before")


def describe_model(kind: str, numbers: dict[str, Any], heads: nn.ModuleDict | None = None) -> dict[str, Any]:
    """What is stored of a model: its kind, its numbers, and its added heads in their order."""
    described = {name: _describe_part(head) for name, head in (heads or {}).items()}
    return {_KIND: kind, **numbers, **({_EXTRA_HEADS: described} if described else {})}


def _describe_part(part: nn.Module) -> dict[str, Any]:
    """What builds a part again, see `_NUMBERS`; of other classes only their names."""
    kind = type(part)
    if kind not in _NUMBERS:
        return {"class": f"{kind.__module__}.{kind.__qualname__}"}
    values = {name: getattr(part, name) for name in _NUMBERS[kind]}
    numbers = {name: _describe_part(v) if isinstance(v, nn.Module) else v for name, v in values.items()}
    return {"class": kind.__name__, "numbers": numbers}


def _build_part(described: Any) -> nn.Module | None:
    """Build what `_describe_part` described, on the meta device; None for anything else."""
    if not isinstance(described, dict):
        return None
    kind = next((kind for kind in _NUMBERS if kind.__name__ == described.get("class")), None)
    numbers = described.get("numbers")
    if kind is None or not isinstance(numbers, dict) or not numbers.keys() <= set(_NUMBERS[kind]):
        return None
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in numbers.items()}
    if "decoder" in values:
        values["decoder"] = _build_part(values["decoder"])
        if values["decoder"] is None:
            return None
    with torch.device("meta"), SkippedInitialisation():
        return kind(**values)


def save_around_vggt(
    model: nn.Module, kind: str, numbers: dict[str, Any], folder: str | os.PathLike[str], *, overwrite: bool = False
) -> Path:
    """Write a model that has a VGGT inside into a folder, added heads too, see `save_model`.

    Raises:
        ValueError: For quantised weights.
    """
    check_can_save(model)
    vggt = dict(model.named_modules()).get(_INSIDE[kind])
    stored = describe_model(kind, numbers, getattr(vggt, _EXTRA_HEADS, None))
    return save_model(model, folder, NO_OTHER_NAMES, config=stored, published_config=stored, overwrite=overwrite)


def load_around_vggt(
    checkpoint: Checkpoint,
    kind: str,
    build: Callable[[], Model],
    heads: Mapping[str, HeadSource] | None,
    *,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Model:
    """The inverse of `save_around_vggt`, see `load_weights` and, for the heads, `choose_heads`.

    Raises:
        ValueError: If the tensors don't fit.
    """
    inside = _INSIDE[kind]
    with torch.device("meta"), SkippedInitialisation():
        model = build()
    checkpoint = checkpoint.unwrapped(dict(model.named_parameters()).__contains__)
    vggt: Any = dict(model.named_modules()).get(inside)
    added, ignored = ({}, []) if vggt is None else choose_heads(checkpoint, heads, vggt.config, inside=inside)
    if vggt is not None:
        vggt.extra_heads.update(added)
    parts = [*(f"{inside}.{head}" for head in (*HEAD_MODULES.values(), *(f"{_EXTRA_HEADS}.{n}" for n in added)))]
    parts.append("tracker")
    return load_weights(
        checkpoint, lambda: model, NO_OTHER_NAMES, device=device, dtype=dtype, ignored=ignored, parts=parts
    )
