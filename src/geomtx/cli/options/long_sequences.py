"""Options of `geomtx reconstruct` for many photos: windows, and global attention to fewer keys."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from geomtx.checks import check_count, check_range
from geomtx.cli.parser import parse_count

if TYPE_CHECKING:
    from geomtx.scene.windows import WindowPlan

__all__ = ["add_options", "check_options", "read_options"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to the command."""
    group = parser.add_argument_group("many photos", "Approximations that save memory and time, all off by default.")
    group.add_argument(
        "--window", type=parse_count, metavar="SIZE",
        help="reconstruct SIZE photos at a time, in their order, and stitch the parts by the photos they share",
    )  # fmt: skip
    group.add_argument(
        "--overlap",
        type=parse_count,
        metavar="N",
        help="number of photos that neighbouring windows share (a quarter of SIZE)",
    )
    group.add_argument(
        "--key-views", type=parse_count, metavar="N", help="number of photos whose patches all photos attend to (all)"
    )
    group.add_argument(
        "--key-stride",
        type=parse_count,
        default=1,
        metavar="N",
        help="attend to every N-th row and column of patches only (1)",
    )
    group.add_argument(
        "--local-layers", type=parse_count, metavar="N",
        help="number of first global layers in which each photo attends to itself only (0)",
    )  # fmt: skip


def check_options(arguments: argparse.Namespace) -> None:
    """Require options that go together, before torch is imported.

    Raises:
        ValueError: Otherwise.
    """
    window, overlap = arguments.window, arguments.overlap
    if window is None:
        if overlap is not None:
            raise ValueError("--overlap must go with --window")
        return
    if arguments.query:
        raise ValueError("--query must not go with --window: a point is followed through all photos in one pass")
    check_count("window size", window, 2)
    if overlap is not None:
        check_range("window overlap", overlap, 1, window - 1)
    heads = arguments.heads
    if heads and "points" not in heads and not {"camera", "depth"} <= set(heads):
        raise ValueError(f"heads must hold camera and depth, or points, to stitch windows, got {', '.join(heads)}")


def read_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of `geomtx.reconstruct` that the options stand for."""
    from geomtx.inference import GlobalApproximation

    options: dict[str, Any] = {}
    approximation = GlobalApproximation(arguments.key_views, arguments.key_stride, arguments.local_layers or 0)
    if approximation != GlobalApproximation():
        options["approximation"] = approximation
    if arguments.window is not None:
        options["window"] = _read_window(arguments)
    return options


def _read_window(arguments: argparse.Namespace) -> WindowPlan:
    from geomtx.scene.windows import WindowPlan

    overlap = max(1, arguments.window // 4) if arguments.overlap is None else arguments.overlap
    return WindowPlan(arguments.window, overlap)
