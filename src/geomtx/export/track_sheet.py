"""Tracks drawn over the frames of a video, on one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from geomtx.checks import check_count, check_mask, check_shape
from geomtx.export.canvas import INK, Color, draw_text, view_color

__all__ = ["draw_track_sheet"]

_GAP, _TITLE = 4, 22


def draw_track_sheet(
    video: Tensor,
    rows: Mapping[str, tuple[Tensor, Tensor]],
    *,
    frames: Sequence[int] | None = None,
    scale: int = 4,
    trail: int = 4,
) -> Image.Image:
    """Draw a contact sheet: a row for each set of tracks, a column for each frame.

    A track has a colour of its own, by the order of the queries; a disc where it is seen, a ring where it is not, and
    its path over the last frames behind it.

    Args:
        video: (S, 3, H, W) in [0, 1].
        rows: Title → positions (S, N, 2) in pixels and whether they are seen, (S, N) bool.
        frames: Which to show; None = at most eight, evenly spaced.
        scale: Pixels of the sheet a pixel of the video.
        trail: Frames of the path.

    Raises:
        ValueError: For other shapes, or no rows.
    """
    check_shape("video", video, ("S", 3, "H", "W"))
    check_count("scale", scale)
    check_count("trail", trail, 0)
    if not rows:
        raise ValueError("rows must have tracks, got none")
    num_frames, _, height, width = video.shape
    for title, (coords, seen) in rows.items():
        check_shape(title, coords, (num_frames, "N", 2))
        check_mask(title, seen, tuple(coords.shape[:2]))
    if frames is None:
        count = min(8, num_frames)
        frames = [round(i * (num_frames - 1) / max(1, count - 1)) for i in range(count)]
    cell_w, cell_h = width * scale, height * scale
    size = (len(frames) * (cell_w + _GAP) + _GAP, len(rows) * (cell_h + _TITLE + _GAP))
    sheet = Image.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for row, (title, (coords, seen)) in enumerate(rows.items()):
        top = row * (cell_h + _TITLE + _GAP)
        draw_text(draw, (_GAP, top + _TITLE - 6), title, size=15, color=INK)
        for column, frame in enumerate(frames):
            cell = _draw_frame(video[frame], coords[max(0, frame - trail) : frame + 1], seen[frame], scale)
            sheet.paste(cell, (_GAP + column * (cell_w + _GAP), top + _TITLE))
    return sheet


def _draw_frame(image: Tensor, path: Tensor, seen: Tensor, scale: int) -> Image.Image:
    """One frame with the positions (T, N, 2) up to it; the last is its own."""
    pixels = (image.clamp(0, 1) * 255).round().byte().movedim(0, -1).cpu().numpy()
    cell = Image.fromarray(pixels).resize((image.shape[2] * scale, image.shape[1] * scale), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(cell)
    # Pixel centres are at integers; what isn't finite isn't drawn.
    places = ((path.double().cpu() + 0.5) * scale).tolist()
    radius = max(2, round(0.7 * scale))
    for track in range(path.shape[1]):
        line = [(x, y) for x, y in (step[track] for step in places) if abs(x) < 1e5 and abs(y) < 1e5]
        color: Color = view_color(track, path.shape[1])
        if len(line) > 1:
            draw.line(line, fill=color, width=max(1, scale // 3))
        if line and torch.isfinite(path[-1, track]).all():
            x, y = line[-1]
            box = (x - radius, y - radius, x + radius, y + radius)
            draw.ellipse(box, fill=color if seen[track] else None, outline=(255, 255, 255) if seen[track] else color)
    return cell
