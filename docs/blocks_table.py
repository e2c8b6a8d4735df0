"""Table of blocks and families on docs/models/index.md, made of the models when the site is built (`hooks`)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import geomtx

PLACE = "<!-- blocks -->"
FOLDERS = ("layers", "encoder", "heads", "tracking")
FAMILIES: dict[str, tuple[Callable[[], nn.Module], ...]] = {
    "VGGT": (lambda: geomtx.VGGT(geomtx.VGGTConfig()),),
    "Depth Anything 3": (
        lambda: geomtx.DepthAnything3(geomtx.DepthAnything3Config.small()),
        lambda: geomtx.DepthAnything3(geomtx.DepthAnything3Config.giant()),
        lambda: geomtx.DepthAnything3(geomtx.DepthAnything3Config.mono()),
    ),
    "VGGT-Omega": (lambda: geomtx.VGGTOmega(geomtx.VGGTOmegaConfig(heads=("camera", "depth", "text"))),),
    "Pi3, Pi3X": (
        lambda: geomtx.Pi3(geomtx.Pi3Config()),
        lambda: geomtx.Pi3(geomtx.Pi3Config.pi3x()),
    ),
}
"""Family → functions that build those of its models that together have all of its parts."""


def on_page_markdown(markdown: str, **context: Any) -> str:
    """Called by mkdocs for every page."""
    return markdown.replace(PLACE, make_table()) if PLACE in markdown else markdown


def make_table() -> str:
    """A row for each public block that a family has, itself or a special case of it, in the order of the folders."""
    parts: dict[str, set[type[nn.Module]]] = {}
    with torch.device("meta"):
        for family, models in FAMILIES.items():
            parts[family] = {type(module) for make in models for module in make().modules()}
    bases = {base for kinds in parts.values() for kind in kinds for base in kind.__mro__}
    blocks = {base for base in bases if folder_of(base) is not None}
    lines = [["block", *parts], ["---"] + [":---:"] * len(parts)]
    for kind in sorted(blocks, key=lambda kind: (FOLDERS.index(folder_of(kind) or ""), kind.__name__)):
        marks = ["yes" if any(issubclass(part, kind) for part in each) else "" for each in parts.values()]
        lines.append([f"`{folder_of(kind)}.{kind.__name__}`", *marks])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def folder_of(kind: type) -> str | None:
    """Name of the folder that a public block is in; None for other modules."""
    package, _, rest = kind.__module__.partition(".")
    folder = rest.partition(".")[0]
    if package != "geomtx" or folder not in FOLDERS:
        return None
    return folder if hasattr(importlib.import_module(f"geomtx.{folder}"), kind.__name__) else None
