"""The drawings of docs/conventions.md: `convention_drawings.py docs/images`. Numbers in them are geomtx's own."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon, Rectangle
from numpy.typing import ArrayLike

import geomtx
from geomtx.geometry import fov_to_intrinsics, transform_points
from geomtx.report.layout import BACKGROUND, INK, MUTED, RULE
from geomtx.views import ViewTransform

_WIDTH = 4.8  # inches; on a phone the text is still legible
_RED, _GREEN, _BLUE, _ORANGE = "#cf222e", "#1a7f37", "#0969da", "#bc4c00"
_EYE = torch.eye(3, 4)
# Oblique view of OpenCV's axes: x to the right, y down, z away from the viewer, to the upper right.
_OBLIQUE = np.array([[1.0, 0.0], [0.0, -1.0], [0.7, 0.42]])
_STYLE = {
    "font.family": ["DejaVu Sans"], "font.size": 10.5, "text.color": INK, "svg.fonttype": "path",
    "svg.hashsalt": "geomtx", "mathtext.fontset": "dejavusans",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write conventions_*.svg to")
    out = parser.parse_args().out
    drawings: dict[str, tuple[float, Callable[[Axes], None]]] = {
        "values": (4.1, draw_values),
        "poses": (2.9, draw_poses),
        "axes": (3.0, draw_axes),
        "depth": (2.75, draw_depth),
        "pixels": (3.3, draw_pixels),
        "transform": (1.95, draw_transform),
    }
    with matplotlib.rc_context(_STYLE):
        for name, (height, draw) in drawings.items():
            figure = Figure((_WIDTH, height), facecolor="white")
            axes = figure.add_axes((0.02, 0.02, 0.96, 0.96))
            axes.set_axis_off()
            axes.set_aspect("equal")
            draw(axes)
            path = out / f"conventions_{name}.svg"
            figure.savefig(path, metadata={"Date": None, "Creator": None})
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def draw_values(axes: Axes) -> None:
    """What `Views`, `Predictions` and `Scene` hold, and in which pixels."""
    steps = [
        ("photos", "files of any size", "original pixels", 0),
        ("Views", "images (S, 3, H, W), masks,\na ViewTransform a photo", "model pixels", 1),
        ("Predictions", "cameras (B, S, …), depth (B, S, H, W),\nB scenes of S views, in a tensor", "model pixels", 1),
        ("Scene", "cameras (S, …), a depth map a photo,\npoints, tracks: one scene, without B", "original pixels", 0),
    ]  # fmt: skip
    calls = ["load_views", "model(images)", "the way back: ViewTransform"]
    for row, (name, content, pixels, kind) in enumerate(steps):
        top = -1.55 * row
        color = _BLUE if kind else _GREEN
        axes.add_patch(
            FancyBboxPatch((0, top - 1.0), 6.4, 1.0, boxstyle="round,pad=0,rounding_size=0.1", fc=BACKGROUND, ec=RULE)
        )
        axes.text(0.2, top - 0.5, name, weight="bold", va="center")
        axes.text(1.75, top - 0.5, content, va="center", size=8.5, linespacing=1.35)
        axes.text(6.2, top - 0.02, pixels, ha="right", va="bottom", size=8.5, color=color)
        if row:
            arrow(axes, (0.75, top + 0.55), (0.75, top + 0.05), MUTED)
            axes.text(0.95, top + 0.28, calls[row - 1], va="center", size=8.5, color=MUTED)
    axes.set(xlim=(-0.05, 6.45), ylim=(-5.75, 0.35))


def draw_poses(axes: Axes) -> None:
    """Two views of a scene, the world in the first one's camera, and what `cam_from_world` takes where."""
    second = torch.tensor([[0.8, 0.0, 0.6, -2.28], [0.0, 1.0, 0.0, 0.0], [-0.6, 0.0, 0.8, 1.46]])
    point = torch.tensor([1.15, -0.35, 2.1])
    for view, (pose, name) in enumerate(((_EYE, "view 0: the world"), (second, "view 1"))):
        draw_camera(axes, pose)
        center = geomtx.invert_rigid(pose)[:, 3]
        x, y = flat(center)
        axes.text(x, y - 0.82, name, ha="center", va="top", weight="bold", size=9.5)
        label = "$x_{world}$" if view == 0 else "$x_{cam}$"
        arrow(axes, flat(center), flat(point), INK, style="--")
        along = flat(center + 0.55 * (point - center))
        axes.text(along[0] + (-0.08 if view == 0 else 0.12), along[1] + 0.1, label,
                  ha="right" if view == 0 else "left", va="bottom", size=11.5)  # fmt: skip
    axes.plot(*flat(point), "o", color=_ORANGE, ms=8)
    start, end = flat(torch.zeros(3)), flat(geomtx.invert_rigid(second)[:, 3])
    axes.annotate(
        "", (end[0] - 0.5, end[1] - 0.4), (start[0] + 0.5, start[1] - 0.4),
        arrowprops={"arrowstyle": "-|>", "color": _BLUE, "lw": 1.8, "connectionstyle": "arc3,rad=0.28"},
    )  # fmt: skip
    axes.text(
        (start[0] + end[0]) / 2, -1.38, "cam_from_world of view 1\n$x_{cam} = R\\,x_{world} + t$",
        ha="center", va="top", color=_BLUE, size=9.5, linespacing=1.5,
    )  # fmt: skip
    axes.set(xlim=(-0.95, 4.0), ylim=(-2.05, 1.35))


def draw_axes(axes: Axes) -> None:
    """The axes of a camera and of its image."""
    corners = torch.tensor([[-0.9, -0.65, 2.6], [0.9, -0.65, 2.6], [0.9, 0.65, 2.6], [-0.9, 0.65, 2.6]])
    image = np.array([flat(corner) for corner in corners])
    axes.add_patch(Polygon(image, fc=BACKGROUND, ec=MUTED))
    for corner in image:
        axes.plot(*zip(flat(torch.zeros(3)), corner, strict=True), color=RULE, lw=1, zorder=0)
    draw_frame(axes, _EYE, 1.1, names=("x right", "y down", "z forward"), places=("right", "below", "above"))
    axes.plot(*flat(torch.zeros(3)), "o", color=INK, ms=5)
    axes.text(-0.12, 0.05, "camera", ha="right", va="bottom", weight="bold")
    start = corners[0]
    for end, name, place in (
        (torch.tensor([1.1, 0, 0]), "x: columns, to W", "above"),
        (torch.tensor([0, 0.9, 0]), "y: rows, to H", "left"),
    ):
        arrow(axes, flat(start), flat(start + end), INK)
        write_beside(axes, flat(start + (0.5 if place == "left" else 0.7) * end), name, place, size=9.5)
    axes.text(*(image[2] + (-0.08, 0.08)), "image", ha="right", va="bottom", color=MUTED)
    axes.set(xlim=(-0.75, 2.8), ylim=(-1.42, 2.05))


def draw_depth(axes: Axes) -> None:
    """Depth against distance, from above."""
    point = torch.tensor([3.0, 0.0, 4.0])
    depth, distance = point[2].item(), torch.linalg.vector_norm(point).item()
    # From above: z to the right, x downwards, as if the camera looked along the page.
    end = (depth, -point[0].item())
    arrow(axes, (0, 0), (5.2, 0), _BLUE)
    axes.text(5.25, 0, "z", va="center", color=_BLUE)
    arrow(axes, (0, 0), (0, -1.3), _RED)
    axes.text(0, -1.38, "x", ha="center", va="top", color=_RED)
    axes.plot(*zip((0, 0), end, strict=True), color=_ORANGE, lw=2)
    axes.plot((depth, depth), (0, end[1]), color=MUTED, lw=1, ls="--")
    axes.plot((0, depth), (0.28, 0.28), color=_BLUE, lw=2, marker="|", ms=9)
    axes.plot(*end, "o", color=INK, ms=7)
    axes.plot(0, 0, "o", color=INK, ms=5)
    axes.text(depth / 2, 0.4, f"depth {depth:g}", ha="center", va="bottom", color=_BLUE, weight="bold")
    axes.text(depth / 2 - 0.15, end[1] / 2 - 0.15, f"distance {distance:g}", ha="right", va="top", color=_ORANGE,
              weight="bold")  # fmt: skip
    axes.text(depth + 0.2, end[1], f"point ({point[0]:g}, {point[1]:g}, {point[2]:g})", va="center")
    axes.text(-0.15, 0.1, "camera,\nfrom above", ha="right", va="bottom", size=9.5)
    axes.set(xlim=(-1.75, 6.4), ylim=(-3.4, 1.15))


def draw_pixels(axes: Axes) -> None:
    """Coordinates of pixels of an image of 4 × 6, and the principal point of predicted cameras."""
    height, width = 4, 6
    for row in range(height):
        for column in range(width):
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fc=BACKGROUND, ec=MUTED, lw=0.8))
            axes.plot(column, row, ".", color=MUTED, ms=4)
    for (column, row), ha in (((0, 0), "center"), ((width - 1, height - 1), "center")):
        axes.plot(column, row, "o", color=_BLUE, ms=6)
        axes.text(column, row + 0.14, f"({column}, {row})", ha=ha, va="top", size=9.5, color=_BLUE)
    middle = ((width - 1) / 2, (height - 1) / 2)
    cx, cy = fov_to_intrinsics(torch.ones(2), image_hw=(height, width))[:2, 2].tolist()
    axes.plot(*middle, "+", color=INK, ms=11, mew=1.6)
    axes.text(
        middle[0] - 0.12, middle[1] - 0.14, f"middle ({middle[0]:g}, {middle[1]:g})", ha="right", va="bottom", size=9.5
    )
    axes.plot(cx, cy, "x", color=_ORANGE, ms=8, mew=2)
    axes.text(cx + 0.15, cy + 0.1, f"(W/2, H/2) = ({cx:g}, {cy:g})", va="top", size=9.5, color=_ORANGE)
    axes.text(-0.5, -0.72, "-0.5", ha="center", va="bottom", size=9.5)
    axes.text(width - 0.5, -0.72, f"W - 0.5 = {width - 0.5:g}", ha="center", va="bottom", size=9.5)
    axes.text(-0.66, height - 0.5, f"H - 0.5\n= {height - 0.5:g}", ha="right", va="center", size=9.5)
    arrow(axes, (0.4, -0.9), (1.9, -0.9), INK)
    axes.text(2.0, -0.9, "x", va="center")
    arrow(axes, (-0.9, 0.2), (-0.9, 1.7), INK)
    axes.text(-0.9, 1.8, "y", va="top", ha="center")
    axes.set(xlim=(-1.75, width + 0.4), ylim=(height - 0.2, -1.35))


def draw_transform(axes: Axes) -> None:
    """A photo and the image that the model sees of it, with one place in both."""
    photo_hw, image_hw = (480, 640), (392, 518)
    transform = ViewTransform(photo_hw, image_hw, (image_hw[1] / photo_hw[1], image_hw[0] / photo_hw[0]))
    in_photo = torch.tensor([440.0, 180.0])
    in_image = transform.from_original(in_photo)
    gap = 330
    for left, (height, width), place, name, color in (
        (0, photo_hw, in_photo, "photo", _GREEN),
        (photo_hw[1] + gap, image_hw, in_image, "model's image", _BLUE),
    ):
        top = (photo_hw[0] - height) / 2
        x, y = (float(part) for part in place)
        axes.add_patch(Rectangle((left, top), width, height, fc=BACKGROUND, ec=color, lw=1.5))
        axes.text(left, top - 14, f"{name},\n{width} × {height}", va="bottom", size=9.5, color=color)
        axes.plot(left + x, top + y, "o", color=_ORANGE, ms=7)
        axes.text(left + x - 60, top + y + 24, f"({x:.1f}, {y:.1f})", ha="center", va="top", size=9.5)
    start, end = photo_hw[1] + 25, photo_hw[1] + gap - 25
    for y, (first, last), name in ((170, (start, end), "from_original"), (330, (end, start), "to_original")):
        arrow(axes, (first, y), (last, y), INK)
        axes.text((first + last) / 2, y - 12, name, ha="center", va="bottom", size=8.5)
    axes.set(xlim=(-10, photo_hw[1] + gap + image_hw[1] + 10), ylim=(photo_hw[0] + 15, -125))


def draw_camera(axes: Axes, pose: torch.Tensor) -> None:
    """A camera as a pyramid, with its axes."""
    back = geomtx.invert_rigid(pose)
    corners = torch.tensor([[-0.5, -0.36, 0.75], [0.5, -0.36, 0.75], [0.5, 0.36, 0.75], [-0.5, 0.36, 0.75]])
    image = np.array([flat(corner) for corner in transform_points(back, corners)])
    axes.add_patch(Polygon(image, fc="none", ec=MUTED, lw=1))
    for corner in image:
        axes.plot(*zip(flat(back[:, 3]), corner, strict=True), color=MUTED, lw=0.8)
    draw_frame(axes, pose, 0.5)
    axes.plot(*flat(back[:, 3]), "o", color=INK, ms=4)


def draw_frame(
    axes: Axes,
    pose: torch.Tensor,
    length: float,
    names: Sequence[str] = ("x", "y", "z"),
    places: Sequence[str] = ("right", "below", "above"),
) -> None:
    """The axes of a camera: x red, y green, z blue."""
    back = geomtx.invert_rigid(pose)
    for axis, (color, name, place) in enumerate(zip((_RED, _GREEN, _BLUE), names, places, strict=True)):
        end = flat(back[:, 3] + length * back[:, axis])
        arrow(axes, flat(back[:, 3]), end, color)
        write_beside(axes, end, name, place, color=color)


def flat(point: ArrayLike | torch.Tensor) -> np.ndarray:
    """Where a point of the world (3,) is on the page, (2,)."""
    place: np.ndarray = np.asarray(point, dtype=float) @ _OBLIQUE
    return place


def arrow(axes: Axes, start: ArrayLike, end: ArrayLike, color: str, style: str = "-") -> None:
    axes.annotate(
        "", tuple(end), tuple(start),
        arrowprops={"arrowstyle": "-|>", "color": color, "lw": 1.8, "ls": style, "shrinkA": 0, "shrinkB": 0},
    )  # fmt: skip


def write_beside(axes: Axes, place: ArrayLike, text: str, side: str, **style: object) -> None:
    dx, dy, ha, va = {
        "right": (0.06, 0, "left", "center"), "left": (-0.06, 0, "right", "center"),
        "above": (0, 0.06, "center", "bottom"), "below": (0, -0.06, "center", "top"),
    }[side]  # fmt: skip
    x, y = place
    axes.text(x + dx, y + dy, text, ha=ha, va=va, **style)


if __name__ == "__main__":
    main()
