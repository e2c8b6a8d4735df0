"""The cameras and the point cloud seen from above: the x-z plane of the first camera's frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from geomtx.export.canvas import INK, MUTED, PANEL, Color, draw_text, format_value, round_length, view_color

__all__ = ["camera_centers", "draw_plan", "frustum_corners"]

_SUPERSAMPLING = 2
_MARGIN = 0.09


def camera_centers(cam_from_world: np.ndarray) -> np.ndarray:
    """(S, 3, 4) → (S, 3) in world coordinates, -Rᵀt."""
    return -np.einsum("sij,si->sj", cam_from_world[:, :, :3], cam_from_world[:, :, 3])


def frustum_corners(
    cam_from_world: np.ndarray, intrinsics: np.ndarray, image_hw: Sequence[tuple[int, int]], depth: float
) -> np.ndarray:
    """(S, 4, 3): the corners of each image at `depth` in front of its camera, in world coordinates."""
    corners = []
    for pose, k, (height, width) in zip(cam_from_world, intrinsics, image_hw, strict=True):
        uv = np.array([[-0.5, -0.5], [width - 0.5, -0.5], [width - 0.5, height - 0.5], [-0.5, height - 0.5]])
        rays = np.concatenate([(uv - k[:2, 2]) / k[[0, 1], [0, 1]], np.ones((4, 1))], axis=1)
        corners.append((rays * depth - pose[:, 3]) @ pose[:, :3])
    return np.stack(corners)


def draw_plan(
    wh: tuple[int, int],
    points: np.ndarray,
    colors: np.ndarray,
    centers: np.ndarray,
    corners: np.ndarray,
    *,
    labels: Sequence[int],
    units: str,
    truth: tuple[np.ndarray, np.ndarray] | None = None,
) -> Image.Image:
    """Draw the plan.

    Args:
        wh: Width and height, pixels.
        points: (N, 3), drawn as light dots; may be none.
        colors: (N, 3) uint8.
        centers: (S, 3) of the cameras; may be none.
        corners: (S, 4, 3) of the cameras' images, see `frustum_corners`.
        labels: Cameras that get their number.
        units: For the scale bar.
        truth: Centres and corners of the true cameras, drawn in grey below the others, with a line to them.
    """
    size = (wh[0] * _SUPERSAMPLING, wh[1] * _SUPERSAMPLING)
    if len(points) == len(centers) == 0:
        return _empty(wh)
    true_centers, true_corners = truth or (centers[:0], corners[:0])
    all_cameras = [centers, corners.reshape(-1, 3), true_centers, true_corners.reshape(-1, 3)]
    scale, shift = _fit(size, points, np.concatenate(all_cameras))

    def to_pixels(xyz: np.ndarray) -> np.ndarray:
        return xyz[..., [0, 2]] * [scale, -scale] + shift

    image = Image.fromarray(_footprint(size, to_pixels(points), colors))
    draw = ImageDraw.Draw(image)
    positions, wedges = to_pixels(centers), to_pixels(corners)
    for position, wedge in zip(to_pixels(true_centers), to_pixels(true_corners), strict=True):
        _draw_camera(draw, position, wedge, MUTED)
    for start, end in zip(to_pixels(true_centers), positions, strict=False):
        draw.line([tuple(start), tuple(end)], fill=INK, width=_SUPERSAMPLING)
    for index in reversed(range(len(positions))):
        _draw_camera(draw, positions[index], wedges[index], view_color(index, len(positions)))
    for index in labels:
        _label(draw, index, positions[index], wedges[index].mean(axis=0), len(positions))
    _scale_bar(draw, size, scale, units)
    return image.resize(wh, Image.Resampling.LANCZOS)


def _empty(wh: tuple[int, int]) -> Image.Image:
    image = Image.new("RGB", wh, PANEL)
    draw_text(ImageDraw.Draw(image), (wh[0] / 2, wh[1] / 2), "no finite camera", color=MUTED, anchor="mm")
    return image


def _fit(size: tuple[int, int], points: np.ndarray, cameras: np.ndarray) -> tuple[float, np.ndarray]:
    """Pixels a unit, and the shift that centres everything but the farthest points; z points up in the picture."""
    spread = np.percentile(points, [2, 98], axis=0) if len(points) else np.empty((0, 3))
    shown = np.concatenate([spread, cameras])[:, [0, 2]]
    low, high = shown.min(axis=0), shown.max(axis=0)
    extent = np.maximum(high - low, 1e-9)
    scale = float(np.min(np.array(size) * (1 - 2 * _MARGIN) / extent))
    middle = (low + high) / 2
    return scale, np.array(size) / 2 - middle * [scale, -scale]


def _footprint(size: tuple[int, int], pixels: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: the mean colour of the points in each cell, fainter where there are few."""
    # As wide as the gaps between points, so that surfaces close.
    cell = int(np.clip(np.sqrt(size[0] * size[1] / max(len(pixels), 1)), 3, 8))
    width, height = -(-size[0] // cell), -(-size[1] // cell)
    column, row = np.floor(pixels / cell).clip(-1, max(width, height)).astype(np.int64).reshape(-1, 2).T
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    index = (row * width + column)[inside]
    count = np.bincount(index, minlength=width * height)
    total = np.stack([np.bincount(index, colors[inside, c], minlength=width * height) for c in range(3)], axis=-1)
    mean = total / np.maximum(count, 1)[:, None]
    typical = np.percentile(count[count > 0], 60) if count.any() else 1
    alpha = 0.7 * np.clip(count / typical, 0.4, 1) * (count > 0)
    picture = mean * alpha[:, None] + np.array(PANEL) * (1 - alpha[:, None])
    picture = picture.reshape(height, width, 3).round().astype(np.uint8)
    return picture.repeat(cell, axis=0).repeat(cell, axis=1)[: size[1], : size[0]]


def _draw_camera(draw: ImageDraw.ImageDraw, position: np.ndarray, wedge: np.ndarray, color: Color) -> None:
    """A triangle from the camera to the sides of its image."""
    apex = tuple(position)
    left, right = (tuple(wedge[pair].mean(axis=0)) for pair in ([0, 3], [1, 2]))
    draw.polygon([apex, left, right], fill=tuple(255 - (255 - c) // 4 for c in color))
    draw.line([apex, left, right, apex], fill=color, width=2 * _SUPERSAMPLING, joint="curve")
    draw.circle(apex, 3 * _SUPERSAMPLING, fill=color)


def _label(draw: ImageDraw.ImageDraw, index: int, apex: np.ndarray, front: np.ndarray, num_views: int) -> None:
    """The view's number behind its camera."""
    back = apex - front
    length = np.linalg.norm(back)
    direction = back / length if length > 1e-9 else np.array([0.0, 1.0])
    xy = apex + direction * 13 * _SUPERSAMPLING
    size = 15 * _SUPERSAMPLING
    color = view_color(index, num_views)
    draw_text(draw, (xy[0], xy[1]), str(index), size=size, color=color, anchor="mm", bold=True, halo=PANEL)


def _scale_bar(draw: ImageDraw.ImageDraw, size: tuple[int, int], scale: float, units: str) -> None:
    length = round_length(0.25 * size[0] / scale)
    unit = "scene unit" if units == "up to scale" else units
    unit += "s" if unit == "scene unit" and length != 1 else ""
    k = _SUPERSAMPLING
    left, y = 18 * k, size[1] - 20 * k
    right = left + length * scale
    draw.line([(left, y), (right, y)], fill=INK, width=2 * k)
    for x in (left, right):
        draw.line([(x, y - 5 * k), (x, y + 5 * k)], fill=INK, width=2 * k)
    text = f"{length:g} {unit}" if 1e-4 <= length < 1e6 else f"{format_value(length)} {unit}"
    draw_text(draw, (left, y - 10 * k), text, size=14 * k, color=INK, halo=PANEL)
    draw_text(draw, (size[0] - 16 * k, size[1] - 16 * k), "x right, z up", size=13 * k, color=MUTED, anchor="rs")
