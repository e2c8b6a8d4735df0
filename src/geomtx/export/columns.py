"""Columns of a page that show a scene: photos and maps, each view without its padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from geomtx.export.colormap import ColormapName, colorize
from geomtx.export.table import Column
from geomtx.scene.scene import Scene

__all__ = ["content_box", "crop_photo", "map_column", "value_range"]


def crop_photo(scene: Scene, view: int) -> Image.Image:
    """The part of a view's image that is photo."""
    image = scene.images[view].permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(image).crop(content_box(scene, view))


def content_box(scene: Scene, view: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a view's masked-in part; the whole image where there is none."""
    mask = scene.masks[view].numpy()
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0, 0, mask.shape[1], mask.shape[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def value_range(maps: Tensor, scene: Scene, shown: Sequence[int]) -> tuple[float, float]:
    """From the 2nd to the 98th percentile of maps (S, H, W) in the photos; 0 to 1 of nothing finite."""
    values = maps[list(shown)][scene.masks[list(shown)]].double().numpy()
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, [2, 98]).tolist() if finite.size else (0.0, 1.0)
    return low, high


def map_column(
    title: str,
    maps: Tensor,
    scene: Scene,
    shown: Sequence[int],
    *,
    colormap: ColormapName,
    limits: tuple[float, float] | None = None,
    mark: float | None = None,
) -> Column:
    """Maps (S, H, W) as a column; grey where masked or not finite.

    Args:
        title: Of the column.
        maps: One value a pixel.
        scene: Its masks count.
        shown: Views, one a row.
        colormap: Of the values.
        limits: Values of the colour map's ends; None = `value_range`.
        mark: See `Column`.
    """
    low_high = value_range(maps, scene, shown) if limits is None else limits
    values = maps.double().masked_fill(~scene.masks, torch.nan).numpy()
    pictures = [
        Image.fromarray(colorize(values[view], low_high, colormap)).crop(content_box(scene, view)) for view in shown
    ]
    return Column(title, pictures, colormap, low_high, mark)
