"""The picture of README and docs home: run `geomtx demo`, then `front_page.py geomtx-demo docs/images/demo.png`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

import geomtx
from geomtx.report.cells import map_column, photo_column
from geomtx.report.layout import BACKGROUND, INK, drawing_style, to_picture
from geomtx.report.panels import draw_cloud, sample_points

_INCHES, _DPI = (12.0, 4.23), 140
_VIEWS = (0, 2, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="folder that `geomtx demo` wrote")
    parser.add_argument("out", type=Path, help="PNG file to write")
    arguments = parser.parse_args()
    scene = geomtx.Scene.load(arguments.demo)
    scene = replace(scene, paths=tuple(arguments.demo / "photos" / name for name in scene.names))
    with drawing_style():
        picture = draw(scene)
    # A palette halves the file, and nobody sees it.
    picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(arguments.out, optimize=True)
    print(f"{arguments.out}: {picture.width} × {picture.height}, {arguments.out.stat().st_size / 1000:.0f} kB")


def draw(scene: geomtx.Scene) -> Image.Image:
    """Photos and depth at the left, the cloud with its cameras at the right."""
    assert scene.predictions.depth is not None
    figure = Figure(_INCHES, dpi=_DPI, facecolor="white")
    columns = [
        (f"{len(scene)} photos", photo_column("", scene, _VIEWS)),
        ("depth", map_column("", scene.predictions.depth.value, scene, _VIEWS, colormap="turbo")),
    ]
    width, height, gap, top = 1.62, 1.215, 0.08, 0.34
    for index, (title, column) in enumerate(columns):
        left = gap + index * (width + gap)
        write(figure, left, title)
        for row, cell in enumerate(column.cells):
            cell(add_axes(figure, left, top + row * (height + gap), width, height))
    left = gap + 2 * (width + gap) + 0.12
    write(figure, left, "cameras and point cloud")
    axes = add_axes(figure, left, top, _INCHES[0] - left - gap, 3 * height + 2 * gap)
    draw_cloud(axes, scene, sample_points(scene, scene.points()), yaw=-20.0)
    return to_picture(figure)


def add_axes(figure: Figure, left: float, top: float, width: float, height: float):
    """Axes without ticks, measured in inches from the upper left corner."""
    w, h = _INCHES
    axes = figure.add_axes((left / w, 1 - (top + height) / h, width / w, height / h), facecolor=BACKGROUND)
    axes.set(xticks=(), yticks=())
    axes.spines[:].set_visible(False)
    return axes


def write(figure: Figure, left: float, text: str) -> None:
    figure.text(left / _INCHES[0], 1 - 0.2 / _INCHES[1], text, size=12, weight="bold", color=INK, va="center_baseline")


if __name__ == "__main__":
    main()
