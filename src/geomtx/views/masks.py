"""Views with the masks of a folder."""

from __future__ import annotations

import torch

from geomtx.views.listing import PathLike, PhotoError, list_masks
from geomtx.views.pictures import read_mask
from geomtx.views.views import Views

__all__ = ["load_masks"]


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
