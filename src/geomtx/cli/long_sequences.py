"""Options of `geomtx reconstruct` for many photos: windows, and global attention over fewer keys."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geomtx.scene.windows import WindowPlan

__all__ = ["add_options", "check_options", "read_options"]


def add_options(parser: argparse.ArgumentParser, parse_count: Callable[[str], int]) -> None:
    """Add them to the command."""
    group = parser.add_argument_group("many photos", "approximations, all off by default")
    group.add_argument(
        "--window", type=parse_count, metavar="SIZE",
        help="so many photos at a time, in their order, stitched by what they share",
    )  # fmt: skip
    group.add_argument(
        "--overlap", type=parse_count, metavar="N", help="photos that neighbouring windows share (a quarter)"
    )
    group.add_argument(
        "--key-views", type=parse_count, metavar="N", help="photos whose patches all others attend to (all)"
    )
    group.add_argument(
        "--key-stride", type=parse_count, default=1, metavar="N", help="attend to every N-th row and column of patches"
    )
    group.add_argument(
        "--local-layers", type=parse_count, metavar="N",
        help="in so many first global layers each photo sees itself only (none)",
    )  # fmt: skip


def check_options(arguments: argparse.Namespace) -> None:
    """Require those that go together.

    Raises:
        ValueError: Otherwise.
    """
    if arguments.window is None:
        if arguments.overlap is not None:
            raise ValueError("--overlap must go with --window")
        return
    if arguments.query:
        raise ValueError("--query must not go with --window: a point is followed through all photos in one pass")
    from geomtx.scene.windows import check_window, check_window_heads

    check_window(_read_window(arguments))
    if arguments.heads:
        check_window_heads(arguments.heads)


def read_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `geomtx.reconstruct` that they stand for."""
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
