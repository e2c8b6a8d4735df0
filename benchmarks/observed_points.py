"""The picture of the recipe of splats: after `geomtx demo`, `observed_points.py geomtx-demo docs/images/splats.png`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

import geomtx
from geomtx.report.layout import INK, drawing_style, to_picture
from geomtx.scene import ObservedPoints, observe_points

_INCHES, _DPI = (12.0, 3.55), 110
_VIEWS = (0, 3, 6)
_SHOWN = 700  # points: more would hide the photos


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="folder that `geomtx demo` wrote")
    parser.add_argument("out", type=Path, help="PNG file to write")
    arguments = parser.parse_args()
    scene = geomtx.Scene.load(arguments.demo)
    observed = observe_points(scene, max_points=_SHOWN)
    with drawing_style():
        picture = draw(scene, observed)
    picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(arguments.out, optimize=True)
    print(f"{arguments.out}: {picture.width} × {picture.height}, {arguments.out.stat().st_size / 1000:.0f} kB")


def draw(scene: geomtx.Scene, observed: ObservedPoints) -> Image.Image:
    """Photos with the observations in each, in colours of the number of photos that see a point."""
    lengths = np.bincount(observed.point.numpy())
    figure = Figure(_INCHES, dpi=_DPI, facecolor="white", layout="constrained")
    axes = figure.subplots(1, len(_VIEWS))
    dots = None
    for axis, view in zip(axes, _VIEWS, strict=True):
        path = scene.paths[view]
        assert path is not None
        rows = (observed.view == view).numpy()
        x, y = observed.coords_px[rows].numpy().T
        axis.imshow(Image.open(path))
        dots = axis.scatter(
            x, y, c=lengths[observed.point[rows].numpy()], s=9, cmap="viridis", vmin=1, vmax=len(scene), linewidths=0
        )
        axis.set(xticks=(), yticks=())
        axis.set_title(f"{scene.names[view]}: {rows.sum()} of {len(lengths)} points", size=11, color=INK)
    figure.colorbar(dots, ax=axes, shrink=0.85, label="photos that see the point")
    return to_picture(figure)


if __name__ == "__main__":
    main()
