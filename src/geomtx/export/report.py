"""A picture of a whole scene: photos, depth, confidence, the cameras from above and the point cloud."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

from geomtx.export.canvas import INK, MUTED, PANEL, RULE, WARNING, count, draw_color_bar, draw_text, view_color
from geomtx.export.colormap import ColormapName, colorize
from geomtx.export.panel import cloud_panel, plan_panel
from geomtx.scene.pointcloud import PointCloud
from geomtx.scene.scene import Scene
from geomtx.views.transform import lies_inside

__all__ = ["draw_report"]

_MARGIN, _GAP, _CAPTION, _HEADER = 40, 14, 30, 74
_MIN_PANELS, _PANEL_TITLE = 640, 28


class _Column(NamedTuple):
    """Pictures of the shown views, and what their colours mean (None for photos)."""

    title: str
    pictures: list[Image.Image]
    colormap: ColormapName | None = None
    value_range: tuple[float, float] = (0.0, 1.0)
    mark: float | None = None


class _Panel(NamedTuple):
    """A picture with its place from the table's upper left corner, its title above it."""

    title: str
    picture: Image.Image
    left: int
    top: int

    @property
    def right(self) -> int:
        return self.left + self.picture.width

    @property
    def bottom(self) -> int:
        return self.top + _PANEL_TITLE + self.picture.height


def draw_report(
    scene: Scene, cloud: PointCloud | None = None, *, title: str = "geomtx reconstruction", max_views: int = 8
) -> Image.Image:
    """Draw the report: a row for each view, and beside the rows the plan and the point cloud.

    Args:
        scene: What there is of it is shown.
        cloud: Points to draw; None = no points.
        title: First line.
        max_views: More views than that are represented by as many, evenly spaced.
    """
    shown = np.unique(np.linspace(0, len(scene) - 1, min(max_views, len(scene))).round().astype(int)).tolist()
    columns = _columns(scene, shown, cloud)
    cell = _cell_size(columns[0].pictures)
    table_wh = (len(columns) * (cell[0] + _GAP) - _GAP, _HEADER + len(shown) * (cell[1] + _CAPTION + _GAP))
    panels = _panels(scene, cloud, shown, table_wh)
    top = 104 + (58 if scene.notice else 0)
    width = max([760, _MARGIN + table_wh[0], *(panel.right + _MARGIN for panel in panels)]) + _MARGIN
    height = top + max([table_wh[1], *(panel.bottom for panel in panels)]) + _MARGIN
    page = Image.new("RGB", (width, height), (255, 255, 255))
    _draw_heading(page, scene, cloud, title, len(shown))
    for index, column in enumerate(columns):
        _draw_column(page, column, (_MARGIN + index * (cell[0] + _GAP), top), cell)
    for row, view in enumerate(shown):
        y = top + _HEADER + row * (cell[1] + _CAPTION + _GAP)
        _draw_caption(page, scene, view, (_MARGIN, y), table_wh[0])
    for panel in panels:
        left, upper = _MARGIN + panel.left, top + panel.top
        draw_text(ImageDraw.Draw(page), (left, upper + 18), panel.title, size=17, bold=True)
        page.paste(panel.picture, (left, upper + _PANEL_TITLE))
    return page


def _columns(scene: Scene, shown: list[int], cloud: PointCloud | None) -> list[_Column]:
    """Photos and whatever maps there are, each view without its padding."""
    boxes = [_content_box(scene.masks[view].numpy()) for view in shown]
    photos = []
    for view, box in zip(shown, boxes, strict=True):
        photo = Image.fromarray(scene.images[view].permute(1, 2, 0).contiguous().numpy()).crop(box)
        photos.append(_with_tracks(scene, view, photo, (box[0], box[1])))
    columns = [_Column("photo" if scene.tracks is None else "photo, tracks", photos)]
    depth, points = scene.predictions.depth, scene.predictions.points
    threshold = None if cloud is None or len(cloud.confidence) == 0 else cloud.confidence.min().item()
    if depth is not None:
        columns.append(_map_column("depth", depth.value, scene, shown, boxes, "turbo"))
    elif points is not None:
        columns.append(_map_column("distance of points", points.value.norm(dim=-1), scene, shown, boxes, "turbo"))
    sure = depth or points
    if sure is not None:
        columns.append(_map_column("confidence", sure.confidence, scene, shown, boxes, "viridis", threshold))
    return columns


def _map_column(
    title: str,
    maps: torch.Tensor,
    scene: Scene,
    shown: list[int],
    boxes: list[tuple[int, int, int, int]],
    colormap: ColormapName,
    mark: float | None = None,
) -> _Column:
    values = maps[shown].double().masked_fill(~scene.masks[shown], torch.nan).numpy()
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, [2, 98]).tolist() if finite.size else (0.0, 1.0)
    pictures = [
        Image.fromarray(colorize(each, (low, high), colormap)).crop(box)
        for each, box in zip(values, boxes, strict=True)
    ]
    return _Column(title, pictures, colormap, (low, high), mark)


def _content_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0, 0, mask.shape[1], mask.shape[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _with_tracks(scene: Scene, view: int, photo: Image.Image, corner: tuple[int, int]) -> Image.Image:
    """The photo with the tracks that are seen in it; `corner` is where the photo lies in the model's image."""
    tracks, original = scene.predictions.tracks, scene.tracks
    if tracks is None or original is None:
        return photo
    zoom = max(1, round(960 / photo.width))  # for round dots
    photo = photo.resize((photo.width * zoom, photo.height * zoom), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(photo)
    radius = max(photo.size) / 60
    seen = tracks.visibility[view] > 0.5
    if scene.query_points is not None:  # a query is where its user put it, whatever the model thinks of it
        seen = seen | (scene.query_points[:, 0] == view)
    seen = seen & lies_inside(original.coords_px[view], scene.transforms[view].original_hw)
    for index in seen.nonzero()[:, 0].tolist():
        x, y = ((tracks.coords_px[view, index] - torch.tensor(corner) + 0.5) * zoom).tolist()
        draw.circle((x, y), radius, fill=(255, 255, 255))
        draw.circle((x, y), 0.7 * radius, fill=view_color(index, len(seen)))
    return photo


def _cell_size(photos: list[Image.Image]) -> tuple[int, int]:
    """Width and height that suit the number of rows and the typical shape of a photo."""
    side = {1: 480, 2: 380, 3: 320, 4: 290, 5: 260, 6: 240}.get(len(photos), 220)
    aspect = float(np.clip(np.median([photo.width / photo.height for photo in photos]), 0.5, 2.5))
    return (side, round(side / aspect)) if aspect >= 1 else (round(max(side * aspect, 150)), side)


def _panels(scene: Scene, cloud: PointCloud | None, shown: list[int], table_wh: tuple[int, int]) -> list[_Panel]:
    """The plan and the cloud, as far as there are cameras or points: beside the rows, or below a single row."""
    if cloud is None and scene.predictions.cameras is None:
        return []
    count = 1 if cloud is None else 2
    if len(shown) == 1:
        room = max(table_wh[0], 760)
        wh = ((room - _GAP * (count - 1)) // count, 420)
        first, step = (0, table_wh[1] + _GAP), (wh[0] + _GAP, 0)
    else:
        room = max(_MIN_PANELS, table_wh[1])
        wh = (int(np.clip(0.62 * room, 500, 760)), (room - _GAP * (count - 1)) // count - _PANEL_TITLE)
        first, step = (table_wh[0] + _MARGIN, 0), (0, wh[1] + _PANEL_TITLE + _GAP)
    panels = [_Panel("seen from above", plan_panel(scene, cloud, wh, shown), *first)]
    if cloud is not None:
        panels.append(_Panel("point cloud", cloud_panel(scene, cloud, wh), first[0] + step[0], first[1] + step[1]))
    return panels


def _draw_heading(page: Image.Image, scene: Scene, cloud: PointCloud | None, title: str, num_shown: int) -> None:
    draw = ImageDraw.Draw(page)
    room = page.width - 2 * _MARGIN
    draw_text(draw, (_MARGIN, 56), title, size=30, bold=True, max_width=room)
    height, width = scene.masks.shape[1:]
    num_views = len(scene)
    facts = [
        f"{num_shown} of {num_views} views" if num_shown < num_views else count(num_views, "view"),
        f"model images {width} x {height}",
        *([count(len(cloud.xyz), "point")] if cloud is not None else []),
        f"lengths {scene.units}" if scene.units == "up to scale" else f"lengths in {scene.units}",
        "first camera's frame",
    ]
    draw_text(draw, (_MARGIN, 84), "   ·   ".join(facts), size=16, color=MUTED, max_width=room)
    if scene.notice:
        draw.rounded_rectangle((_MARGIN, 102, page.width - _MARGIN, 146), radius=6, fill=WARNING)
        draw_text(
            draw,
            (_MARGIN + 16, 124),
            scene.notice,
            size=19,
            color=(255, 255, 255),
            anchor="lm",
            bold=True,
            max_width=room - 32,
        )


def _draw_column(page: Image.Image, column: _Column, corner: tuple[int, int], cell: tuple[int, int]) -> None:
    left, top = corner
    draw_text(ImageDraw.Draw(page), (left, top + 18), column.title, size=17, bold=True)
    if column.colormap is not None:
        bar = (left, top + 30, left + cell[0], top + 42)
        draw_color_bar(page, bar, column.colormap, column.value_range, mark=column.mark)
    for row, picture in enumerate(column.pictures):
        y = top + _HEADER + row * (cell[1] + _CAPTION + _GAP) + _CAPTION
        ImageDraw.Draw(page).rectangle((left, y, left + cell[0] - 1, y + cell[1] - 1), fill=PANEL)
        scale = min(cell[0] / picture.width, cell[1] / picture.height)
        wh = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        resampling = Image.Resampling.LANCZOS if column.colormap is None else Image.Resampling.BOX
        offset = (left + (cell[0] - wh[0]) // 2, y + (cell[1] - wh[1]) // 2)
        page.paste(picture.resize(wh, resampling), offset)


def _draw_caption(page: Image.Image, scene: Scene, view: int, corner: tuple[int, int], width: int) -> None:
    """The view's number in its colour, its name and its size, above a row."""
    draw = ImageDraw.Draw(page)
    x, y = corner
    draw.line([(x, y - 2), (x + width, y - 2)], fill=RULE)
    draw.rounded_rectangle((x, y + 5, x + 30, y + 24), radius=5, fill=view_color(view, len(scene)))
    draw_text(draw, (x + 15, y + 15), str(view), size=14, color=(255, 255, 255), anchor="mm", bold=True)
    height, original_width = scene.transforms[view].original_hw
    size = f"{original_width} x {height}"
    draw_text(draw, (x + width, y + 20), size, size=14, color=MUTED, anchor="rs")
    draw_text(draw, (x + 40, y + 20), scene.names[view], size=15, color=INK, max_width=width - 60 - 9 * len(size))
