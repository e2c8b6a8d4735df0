"""Tracks drawn over the frames of a video, on one picture."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image
from torch import Tensor

from geomtx.report.layout import drawing_style, to_picture, view_color

_UNITS = 100  # an inch


def draw_track_sheet(video: Tensor, rows: Mapping[str, tuple[Tensor, Tensor]], *, trail: int = 4) -> Image.Image:
    """Draw a row for each set of tracks, with at most eight evenly spaced frames.

    A track has a colour of its own; a disc where it is seen, a ring where it is not, and its path over the last
    `trail` frames behind it.

    Args:
        video: (S, 3, H, W) in [0, 1].
        rows: Title → positions (S, N, 2) in pixels and whether they are seen, (S, N) bool.
        trail: Number of frames of the path.
    """
    from matplotlib.figure import Figure

    num_frames, _, height, width = video.shape
    frames = np.unique(np.linspace(0, num_frames - 1, min(8, num_frames)).round().astype(int))
    cell_w, cell_h = 190, 190 * height / width
    with drawing_style():
        figure = Figure((len(frames) * cell_w / _UNITS, len(rows) * (cell_h + 30) / _UNITS), dpi=_UNITS, layout="tight")
        grid = figure.subplots(len(rows), len(frames), squeeze=False)
        for axes_row, (title, (coords, seen)) in zip(grid, rows.items(), strict=True):
            axes_row[0].set_title(title, loc="left", fontsize=11)
            for axes, frame in zip(axes_row, frames, strict=True):
                axes.imshow(video[frame].movedim(0, -1).numpy())
                axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=(), yticks=())
                for track in range(coords.shape[1]):
                    color = view_color(track, coords.shape[1])
                    path = coords[max(0, frame - trail) : frame + 1, track].numpy()
                    axes.plot(*path.T, color=color, linewidth=1)
                    axes.plot(
                        *path[-1:].T, marker="o", markersize=5, markerfacecolor=color if seen[frame, track] else "none",
                        markeredgecolor="white" if seen[frame, track] else color,
                    )  # fmt: skip
        return to_picture(figure)
