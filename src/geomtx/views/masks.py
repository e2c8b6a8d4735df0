"""Masks of photos from a folder, matched with the photos by name."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from geomtx.files import user_path
from geomtx.views.listing import EXTENSIONS, PathLike, PhotoError

if TYPE_CHECKING:
    from geomtx.views.views import Views

__all__ = ["list_masks", "load_masks"]

logger = logging.getLogger(__name__)

_MOST_NAMED = 3


def list_masks(folder: PathLike, names: Sequence[str]) -> list[Path | None]:
    """Return the file of each photo's mask, None for a photo that has none.

    The mask of sub/a.jpg is sub/a.EXT or sub/a.jpg.EXT below the folder, in any format, or else a.EXT or a.jpg.EXT.
    Photos without a mask, and masks of no photo, are named in a warning in the log.

    Args:
        folder: Folder of masks.
        names: Names of the photos, see `Views.names`.

    Raises:
        PhotoError: If there is no such folder, no mask is that of a photo, a photo has two, or two photos have one.
    """
    place = user_path(folder)
    if not place.is_dir():
        raise PhotoError(f"masks must be in an existing folder, got '{folder}'")
    files = sorted(file for file in place.rglob("*") if file.suffix.lower() in EXTENSIONS and file.name[0] != ".")
    by_key: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        by_key[file.relative_to(place).with_suffix("").as_posix()].append(file)
    masks = [_find_mask(name, by_key) for name in names]
    owners: dict[Path, str] = {}
    for name, mask in zip(names, masks, strict=True):
        if mask in owners:
            raise PhotoError(f"mask '{mask}' must be of one photo, got '{owners[mask]}' and '{name}'")
        if mask is not None:
            owners[mask] = name
    if not owners:
        found = _enumerate([file.name for file in files]) or "none"
        raise PhotoError(f"masks in '{folder}' must have the names of the photos, got {found} for {_enumerate(names)}")
    _warn_of_others([name for name, mask in zip(names, masks, strict=True) if mask is None], "photos have no mask")
    _warn_of_others([file.name for file in files if file not in owners], "masks are of no photo")
    return masks


def load_masks(folder: PathLike, views: Views) -> Views:
    """Return views with the masks of a folder: masked patches take no part in attention, masked pixels give no points.

    White takes part, black does not; see `geomtx.views.color.convert_to_mask` for other pictures, such as photos with
    their background cut out. A photo without a mask takes part as a whole.

    Args:
        folder: Folder of masks, see `list_masks`.
        views: Views of the photos.

    Raises:
        PhotoError: As `list_masks`, for a file that is no mask, another size than the upright photo's, and masks that
            leave no pixel of any photo.
    """
    import torch

    from geomtx.views.pictures import read_mask

    masks = []
    for file, name, transform in zip(list_masks(folder, views.names), views.names, views.transforms, strict=True):
        if file is None:
            masks.append(torch.ones(transform.original_hw, dtype=torch.bool))
            continue
        mask = read_mask(file)
        if mask.shape != tuple(transform.original_hw):
            own, wanted = (f"{width}x{height}" for height, width in (mask.shape, transform.original_hw))
            raise PhotoError(f"mask '{file}' must have the {wanted} pixels of '{name}' when it is upright, got {own}")
        masks.append(torch.from_numpy(mask))
    masked = views.with_masks(masks)
    if not masked.masks.any():
        raise PhotoError(f"masks in '{folder}' must leave some pixel of a photo, got none")
    return masked


def _find_mask(name: str, by_key: dict[str, list[Path]]) -> Path | None:
    path = PurePosixPath(name)
    for key in (name, path.with_suffix("").as_posix(), path.name, path.stem):
        found = by_key.get(key, [])
        if len(found) > 1:
            raise PhotoError(f"photo '{name}' must have one mask, got {_enumerate([file.name for file in found])}")
        if found:
            return found[0]
    return None


def _warn_of_others(names: Sequence[str], what: str) -> None:
    if names:
        logger.warning("%d %s: %s", len(names), what, _enumerate(names))


def _enumerate(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(f"'{name}'" for name in names[:_MOST_NAMED]) + more
