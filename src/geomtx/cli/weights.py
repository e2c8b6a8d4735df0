"""What can be said of weights by their name and by a `config.json`, without importing torch (which takes seconds)."""

from __future__ import annotations

import json
import re
from pathlib import Path

from geomtx.checks import close_matches
from geomtx.files import user_path

__all__ = ["check_image_side", "check_weights_name", "embedded_weights"]

_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


PAIRS = ("da3nested-small-large", "da3nested-base-large")
"""Names that stand for two published weights each."""


def embedded_weights() -> dict[str, Path]:
    """Return name → folder of the weights that come with the package."""
    return {path.parent.name: path.parent for path in Path(__file__).parents[1].glob("weights/*/config.json")}


def check_weights_name(name: str) -> None:
    """Require weights that exist, or a name that may be one of the hub's, which is asked later.

    Raises:
        FileNotFoundError: Otherwise; names known weights that are spelt alike.
    """
    embedded, path = embedded_weights(), user_path(name)
    if name in embedded or name in PAIRS or path.exists():
        return
    is_file = path.suffix.lower() in _SUFFIXES
    on_hub = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(/[\w.-]+)?", name)
    # A file of a repository has its name behind the hub id; of a folder that is here, it would be here too.
    if on_hub and is_file == bool(on_hub[1]) and not (is_file and path.parents[1].exists()):
        return
    hint = "; there is no such file" if is_file else close_matches(name, (*embedded, *PAIRS)) or _hint_of_owner(name)
    also = f" (or {', '.join(map(repr, embedded))}, which comes with geomtx)"
    raise FileNotFoundError(
        f"weights must be a file, a folder or a hub id like 'facebook/VGGT-1B'{'' if is_file else also}, "
        f"got '{name}'{hint}"
    )


def _hint_of_owner(name: str) -> str:
    from geomtx.models.published import suggest_names  # with torch, for an error alone

    return suggest_names(name)


def check_image_side(size: int | None, weights: str | None) -> None:
    """Require a side of whole patches, where a `config.json` says how large a patch is; otherwise it is checked later.

    Args:
        size: Longer side of the images in pixels; None for the default, which fits.
        weights: Name of embedded weights or a folder; nothing is known of others.

    Raises:
        ValueError: If `size` is no multiple of the patch.
    """
    patch = None if size is None or weights is None else _read_patch_size(weights)
    if size is not None and patch is not None and size % patch:
        nearest = max(round(size / patch), 1) * patch
        raise ValueError(f"size must be a multiple of {patch}, the patch of {weights}, got {size}; try {nearest}")


def _read_patch_size(weights: str) -> int | None:
    path = embedded_weights().get(weights, user_path(weights)) / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError):  # found where the weights are loaded
        return None
    patch = config.get("patch_size") if isinstance(config, dict) else None
    return patch if isinstance(patch, int) and patch > 0 else None
