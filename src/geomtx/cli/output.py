"""What commands that make a scene share: a progress bar over the stages, and what they say at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from geomtx.scene import Scene
    from geomtx.scene.files.save import Saved

__all__ = ["NANO_WEIGHTS", "RANDOM_WEIGHTS", "Stages", "describe_saved"]

NANO_WEIGHTS = "nano has seen nothing but small rendered rooms: it says little about photos"
RANDOM_WEIGHTS = "RANDOM WEIGHTS: nothing was learned, the geometry is meaningless"


class Stages:
    """A progress bar over named stages, on stderr if that is a terminal."""

    def __init__(self, total: int, *, show: bool = True) -> None:
        self.started = time.monotonic()
        bar_format = "{desc:<24}{bar:20} {n_fmt}/{total_fmt} [{elapsed}]"
        self._bar = tqdm(total=total, unit="stage", bar_format=bar_format, disable=None if show else True)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show a stage while the block runs."""
        self._bar.set_description_str(name)
        try:
            yield
        except BaseException:
            self._bar.close()
            raise
        self._bar.update()

    def finish(self) -> float:
        """Close the bar; returns the seconds since the start."""
        self._bar.set_description_str("done")
        self._bar.close()
        return time.monotonic() - self.started


def describe_saved(scene: Scene, saved: Saved) -> str:
    """Return two lines: the files that were written, and how much is in them."""
    from geomtx.report.text import count, describe_lengths

    points = "no points" if saved.num_points is None else count(saved.num_points, "point")
    return f"{', '.join(saved.names)}\n{count(len(scene), 'view')}, {points}, {describe_lengths(scene.units)}"
