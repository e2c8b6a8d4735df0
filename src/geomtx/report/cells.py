"""What the cells of a page show of a view: its photo, a map of the model over it, or the tracks in it.

All cells of a view show the part of the photo that the model saw, in pixels of the photo that are counted from its
upper left corner, so that photo, maps and tracks lie over one another whatever was resized, cropped or padded.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from geomtx.report.layout import BACKGROUND, Column, DrawCell, view_color
from geomtx.scene.content import SceneContent
from geomtx.views.listing import PhotoError
from geomtx.views.pictures import read_picture
from geomtx.views.transform import ViewTransform, lies_inside

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "explain_tracks",
    "map_column",
    "open_photo",
    "page_aspect",
    "photo_column",
    "read_photo",
    "seen_part",
    "track_cell",
    "value_range",
]

logger = logging.getLogger(__name__)

_UNKNOWN = "#ececec"  # light grey, which no colour map contains
_PHOTO_SIDE = 700  # pixels; no cell of a page is larger


def seen_part(transform: ViewTransform) -> tuple[float, float, float, float]:
    """Return (left, top, right, bottom) of the part of the photo that the model saw, from the photo's corner."""
    (ox, oy), (sx, sy) = transform.offset, transform.scale
    (height, width), (image_h, image_w) = transform.original_hw, transform.image_hw
    return (
        max(0.0, -ox / sx),
        max(0.0, -oy / sy),
        min(float(width), (image_w - ox) / sx),
        min(float(height), (image_h - oy) / sy),
    )


def page_aspect(scene: SceneContent, shown: Sequence[int]) -> float:
    """Return the median of width over height of what the model saw of photos."""
    parts = [seen_part(scene.transforms[view]) for view in shown]
    return float(np.median([(right - left) / (bottom - top) for left, top, right, bottom in parts]))


def photo_column(title: str, scene: SceneContent, shown: Sequence[int]) -> Column:
    """Return a column of the photos themselves, or of the model's images where there are no files."""
    return Column(title, [functools.partial(_show_photo, scene, view) for view in shown])


def value_range(maps: Tensor, scene: SceneContent, shown: Sequence[int]) -> tuple[float, float]:
    """Return the 2nd and the 98th percentile of maps (S, H, W) within `masks`; 0 and 1 where nothing is finite."""
    values = maps[list(shown)][scene.masks[list(shown)]].double().numpy()
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, [2, 98]).tolist() if finite.size else (0.0, 1.0)
    return low, high


def map_column(
    title: str,
    maps: Tensor,
    scene: SceneContent,
    shown: Sequence[int],
    *,
    colormap: str,
    limits: tuple[float, float] | None = None,
    mark: float | None = None,
) -> Column:
    """Return maps (S, H, W) over the model's images as a column; grey where masked or not finite.

    Args:
        title: Text above the column.
        maps: One value a pixel.
        scene: Scene whose masks and transforms the maps have.
        shown: Views, one a row.
        colormap: matplotlib's name of the colours.
        limits: Values at the ends of the colours; defaults to `value_range`.
        mark: Mark of the column, see `Column`.
    """
    limits = value_range(maps, scene, shown) if limits is None else limits
    values = maps.double().masked_fill(~scene.masks | ~maps.isfinite(), torch.nan).numpy()
    cells = [functools.partial(_show_map, scene.transforms[n], values[n], colormap, limits) for n in shown]
    return Column(title, cells, colormap, limits, mark)


def track_cell(scene: SceneContent, view: int, chosen: Sequence[int]) -> DrawCell:
    """Return what draws a photo with tracks: discs with the number of the track, rings where it is hidden."""
    return functools.partial(_show_tracks, scene, view, chosen)


def explain_tracks(axes: Axes) -> None:
    """Draw the legend of `track_cell`."""
    from matplotlib.lines import Line2D

    axes.set(facecolor="none")
    common: dict[str, Any] = {"linestyle": "none", "color": view_color(0, 3), "markersize": 9}
    entries = [
        Line2D([], [], marker="o", markeredgecolor="white", label="seen", **common),
        Line2D(
            [], [], marker="o", markerfacecolor="none", markeredgewidth=1.5, label="not seen in this photo", **common
        ),
        Line2D([], [], marker="s", markeredgecolor="white", label="query point", **common),
    ]
    axes.legend(
        handles=entries, loc="center left", ncols=3, frameon=False, fontsize=10, borderaxespad=0, borderpad=0,
        handletextpad=0.3,
    )  # fmt: skip


def read_photo(scene: SceneContent, view: int, side: int) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """Return a photo, or the model's image where there is no file, and its (left, right, bottom, top) on the photo.

    Args:
        scene: Scene of the photo.
        view: Index of the photo.
        side: Longer side of the picture in pixels.
    """
    transform = scene.transforms[view]
    part = seen_part(transform)
    photo = open_photo(scene, view)
    if photo is None:
        picture = Image.fromarray(scene.images[view].movedim(0, -1).contiguous().numpy())
        extent = _image_extent(transform)
    else:
        # A very large photo is reduced while it is read.
        scales = np.array([photo.width, photo.height] * 2) / np.array(transform.original_hw[::-1] * 2)
        left, top, right, bottom = np.rint(part * scales).astype(int).tolist()
        picture = photo.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
        extent = (part[0], part[2], part[3], part[1])
    scale = side / max(picture.size)
    wh = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(wh, Image.Resampling.LANCZOS), extent


def _show_photo(scene: SceneContent, view: int, axes: Axes) -> None:
    picture, extent = read_photo(scene, view, _PHOTO_SIDE)
    axes.imshow(np.asarray(picture), extent=extent)
    _frame(axes, seen_part(scene.transforms[view]))


def open_photo(scene: SceneContent, view: int) -> Image.Image | None:
    """Read a photo of a scene again; None where there is none, or another one by now."""
    path = scene.paths[view] if scene.paths else None
    if path is None or not path.is_file():
        return None
    try:
        photo = read_picture(path, min_side=_PHOTO_SIDE)
    except PhotoError as error:
        logger.warning("the report shows the model's image: %s", error)
        return None
    return photo.image if photo.original_hw == scene.transforms[view].original_hw else None


def _show_map(
    transform: ViewTransform, values: np.ndarray, colormap: str, limits: tuple[float, float], axes: Axes
) -> None:
    import matplotlib

    colors = matplotlib.colormaps[colormap].with_extremes(bad=_UNKNOWN)
    low, high = limits
    extent = _image_extent(transform)
    axes.imshow(values, cmap=colors, vmin=low, vmax=max(high, low + 1e-12), extent=extent, interpolation="nearest")
    _frame(axes, seen_part(transform))


def _show_tracks(scene: SceneContent, view: int, chosen: Sequence[int], axes: Axes) -> None:
    from matplotlib.patheffects import withStroke

    _show_photo(scene, view, axes)
    tracks = scene.tracks
    assert tracks is not None
    places = tracks.coords_px[view]
    inside = lies_inside(places, scene.transforms[view].original_hw)
    for number in chosen:
        if not inside[number]:
            continue
        # Positions count from the centre of the first pixel, cells from its corner.
        x, y = (places[number].double() + 0.5).tolist()
        color = view_color(number, len(places))
        asked = scene.query_points is not None and scene.query_points[number, 0] == view
        seen = bool(tracks.visibility[view, number] > 0.5) or asked
        axes.plot(
            [x], [y], marker="s" if asked else "o", markersize=11, markeredgewidth=0.9 if seen else 1.6,
            markerfacecolor=color if seen else "none", markeredgecolor="white" if seen else color,
        )  # fmt: skip
        axes.annotate(
            str(number), (x, y), ha="center", va="center_baseline", fontsize=6, color="white", weight="bold",
            annotation_clip=True, path_effects=[withStroke(linewidth=1.2, foreground="#00000066")],
        )  # fmt: skip


def _image_extent(transform: ViewTransform) -> tuple[float, float, float, float]:
    """Return (left, right, bottom, top) of the model's image in pixels from the photo's corner."""
    (ox, oy), (sx, sy), (height, width) = transform.offset, transform.scale, transform.image_hw
    return -ox / sx, (width - ox) / sx, (height - oy) / sy, -oy / sy


def _frame(axes: Axes, part: tuple[float, float, float, float]) -> None:
    """Show a part of the photo, in the middle of the cell where the shapes differ."""
    left, top, right, bottom = part
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", anchor="C", facecolor=BACKGROUND)
