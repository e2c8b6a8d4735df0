"""Tracks as pictures: frames of a video with tails, and a sheet of photos with the points that were found in them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from geomtx.report.cells import open_photo
from geomtx.report.layout import choose_rows, view_color
from geomtx.report.text import shorten
from geomtx.scene.content import SceneContent
from geomtx.scene.files.tracks import seen_tracks

__all__ = ["draw_track_frames", "draw_track_sheet"]

_VIDEO_SIDES = 480, 1280  # least and largest longer side of a frame, pixels
_CELL_SIDE, _SHEET_SIDE, _GAP, _CAPTION = 420, 1680, 12, 26
_MOST_CELLS = 24
_SMOOTH = 2  # pictures are drawn this many times larger and reduced, for smooth lines
_LEGEND = "disc: seen     ring: hidden     square: query     each point has a colour"
_BACKGROUND, _INK = (255, 255, 255), (60, 66, 74)


def draw_track_frames(scene: SceneContent, *, tail: int) -> Iterator[Image.Image]:
    """Draw the frames of a video with a point for each track, and the path that it took before.

    A point is a disc where it is seen and a ring where it is hidden; it is left out outside of the frame. Hidden parts
    of a path are thin. A track has the same colour in all frames.

    Args:
        scene: Scene with tracks, whose views are frames in the order of time.
        tail: Number of frames of a path before the current one.

    Yields:
        Pictures of one size, with even sides, for `geomtx.views.write_video`.

    Raises:
        ValueError: If the scene has no tracks.
    """
    seen = seen_tracks(scene).numpy()
    largest = max(scene.transforms, key=lambda transform: max(transform.original_hw)).original_hw
    low, high = _VIDEO_SIDES
    scale = min(max(1.0, low / max(largest)), high / max(largest))
    size = tuple(max(2 * round(length * scale / 2), 2) for length in reversed(largest))
    for frame in range(len(scene)):
        canvas = Image.new("RGB", (size[0], size[1]))
        picture = _draw_view(scene, frame, tail, seen, size)
        canvas.paste(picture, ((size[0] - picture.width) // 2, (size[1] - picture.height) // 2))
        yield canvas


def draw_track_sheet(scene: SceneContent) -> Image.Image:
    """Draw photos beside one another, with a disc for each point that is seen and a ring for one that is hidden.

    The query of a track is a square. Of more than 24 photos, 24 are shown, evenly spread.

    Args:
        scene: Scene with tracks.

    Raises:
        ValueError: If the scene has no tracks.
    """
    seen = seen_tracks(scene).numpy()
    shown = choose_rows(len(scene), _MOST_CELLS)
    cells = [_draw_view(scene, view, 0, seen, (_CELL_SIDE, _CELL_SIDE)) for view in shown]
    columns = min(len(cells), max(round(math.sqrt(len(cells) * 4 / 3)), 1), _SHEET_SIDE // _CELL_SIDE)
    width, height = max(cell.width for cell in cells), max(cell.height for cell in cells) + _CAPTION
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * (width + _GAP) + _GAP, rows * (height + _GAP) + _GAP + _CAPTION), _BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for place, (view, cell) in enumerate(zip(shown, cells, strict=True)):
        x, y = _GAP + place % columns * (width + _GAP), _GAP + place // columns * (height + _GAP)
        text = f"{view}   {shorten(scene.names[view], 30)}:  {int(seen[view].sum())} of {seen.shape[1]} seen"
        draw.text((x, y + 3), text, _INK, font)
        sheet.paste(cell, (x, y + _CAPTION))
    draw.text((_GAP, sheet.height - _CAPTION), _LEGEND, _INK, font)
    return sheet


def _draw_view(scene: SceneContent, view: int, tail: int, seen: NDArray[np.bool_], box: tuple[int, ...]) -> Image.Image:
    """Draw the photo of a view, scaled into a box, with the paths of the last `tail` views and the points in it."""
    tracks = scene.tracks
    assert tracks is not None
    height, width = scene.transforms[view].original_hw
    scale = min(box[0] / width, box[1] / height)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    photo = (open_photo(scene, view) or _model_image(scene, view)).resize(size, Image.Resampling.LANCZOS)
    start = max(view - tail, 0)
    factors = np.array(size) / (width, height)
    # Pixel centres are at integers, the picture's corner at 0.
    paths = (tracks.coords_px[start : view + 1].double().numpy() + 0.5) * factors
    asked = np.zeros(paths.shape[1], bool) if scene.query_points is None else (scene.query_points[:, 0] == view).numpy()
    return _draw_paths(photo, paths, seen[start : view + 1], asked)


def _model_image(scene: SceneContent, view: int) -> Image.Image:
    """Return the photo as far as the model saw it, where its file is gone; other parts are black."""
    image = Image.fromarray(scene.images[view].movedim(0, -1).contiguous().numpy())
    transform = scene.transforms[view]
    (sx, sy), (x, y), (height, width) = transform.scale, transform.offset, transform.original_hw
    # From a pixel of the photo to the model's: x_model + 0.5 = (x + 0.5) · scale + offset.
    return image.transform((width, height), Image.Transform.AFFINE, (sx, 0, x, 0, sy, y), Image.Resampling.BILINEAR)


def _draw_paths(
    photo: Image.Image, paths: NDArray[np.float64], seen: NDArray[np.bool_], asked: NDArray[np.bool_]
) -> Image.Image:
    """Draw paths over a photo.

    Args:
        photo: The photo.
        paths: Places in pixels of the photo, (T, N, 2), of which the last is the point now.
        seen: Whether a point is seen at each place, (T, N) bool.
        asked: Whether a point was asked for in this view, (N,) bool.
    """
    size = (photo.width * _SMOOTH, photo.height * _SMOOTH)
    picture = photo.resize(size, Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(picture, "RGBA")
    radius = max(max(photo.size) / 110, 4.0) * _SMOOTH
    paths = paths * _SMOOTH
    number = paths.shape[1]
    colors = [tuple(round(255 * part) for part in view_color(track, number)) for track in range(number)]
    steps = len(paths) - 1
    for step in range(steps):
        alpha = round(40 + 190 * (step + 1) / steps)
        for track, color in enumerate(colors):
            line = [*paths[step, track], *paths[step + 1, track]]
            if not np.isfinite(line).all():
                continue
            thick = seen[step, track] and seen[step + 1, track]
            draw.line(line, (*color, alpha if thick else alpha // 3), round(radius * (0.7 if thick else 0.35)))
    for track, color in enumerate(colors):
        x, y = paths[-1, track]
        if not (np.isfinite([x, y]).all() and 0 <= x <= size[0] and 0 <= y <= size[1]):
            continue
        corners = (x - radius, y - radius, x + radius, y + radius)
        shape = draw.rectangle if asked[track] else draw.ellipse
        if seen[-1, track]:
            shape(corners, (*color, 255), (255, 255, 255, 255), max(round(radius / 4), 1))
        else:
            shape(corners, None, (255, 255, 255, 150), max(round(radius / 1.6), 1))
            shape(corners, None, (*color, 255), max(round(radius / 2.5), 1))
    return picture.resize(photo.size, Image.Resampling.BOX)
