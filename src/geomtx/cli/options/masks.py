"""Options of `geomtx reconstruct` for what takes part: masks of photos, and which pixels give points."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from geomtx.checks import check_range
from geomtx.cli.parser import parse_count, parse_name
from geomtx.views.listing import list_masks

if TYPE_CHECKING:
    from geomtx.scene import Scene
    from geomtx.views import Views

__all__ = ["add_filter_options", "add_options", "apply_filter", "apply_masks", "check_filter", "check_options"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to the command."""
    group = parser.add_argument_group(
        "what takes part", "Masks of photos, and pixels that give points; all by default."
    )
    group.add_argument(
        "--masks", type=parse_name, metavar="DIR",
        help="folder of masks with the names of the photos: white takes part, black is not seen by the model",
    )  # fmt: skip
    add_filter_options(group)


def add_filter_options(group: argparse._ActionsContainer) -> None:
    """Add the options that say which pixels give points, also of a scene that is there, to a command or a group."""
    group.add_argument(
        "--percentile", type=float, default=20.0, metavar="P",
        help="share of the points to leave out, least confident first, in percent (20)",
    )  # fmt: skip
    group.add_argument("--max-points", type=parse_count, metavar="N", help="largest number of points to keep (all)")
    group.add_argument(
        "--keep-edges", action="store_true",
        help="keep points of pixels between two surfaces, which fly between them and are left out otherwise",
    )  # fmt: skip
    group.add_argument(
        "--min-confidence", type=float, metavar="C", help="smallest confidence of a point, beside --percentile (any)"
    )
    group.add_argument(
        "--agreement", type=float, metavar="SHARE",
        help="keep a point only if this share of the photos that should see it do, 0 to 1 (no such test)",
    )  # fmt: skip
    group.add_argument("--no-sky", action="store_true", help="leave out what looks like sky, by a rule of thumb")


def check_options(arguments: argparse.Namespace, names: Sequence[str]) -> None:
    """Require masks of these photos, and numbers in their ranges, before torch is imported.

    Raises:
        ValueError: Otherwise.
    """
    if arguments.masks is not None:
        list_masks(arguments.masks, names, warn=False)  # `apply_masks` warns
    check_filter(arguments)
    heads = arguments.heads
    needed = [name for name in ("agreement", "no_sky") if getattr(arguments, name)]
    if needed and heads and not {"camera", "depth"} <= set(heads):
        option = needed[0].replace("_", "-")
        raise ValueError(f"heads must hold camera and depth for --{option}, got {', '.join(heads)}")


def check_filter(arguments: argparse.Namespace) -> None:
    """Require numbers in their ranges.

    Raises:
        ValueError: Otherwise.
    """
    check_range("percentile", arguments.percentile, 0, 100)
    if arguments.min_confidence is not None and not math.isfinite(arguments.min_confidence):
        raise ValueError(f"--min-confidence must be finite, got {arguments.min_confidence}")
    if arguments.agreement is not None:
        check_range("agreement", arguments.agreement, 0, 1)


def apply_masks(arguments: argparse.Namespace, views: Views) -> Views:
    """Return the views with their masks."""
    from geomtx.views import load_masks

    return views if arguments.masks is None else load_masks(arguments.masks, views)


def apply_filter(arguments: argparse.Namespace, scene: Scene) -> Scene:
    """Return the scene with masks of the pixels that were asked for; as it is where nothing was."""
    from geomtx.scene.filters import PixelFilter, filter_pixels

    which = PixelFilter(
        edges=not arguments.keep_edges,
        min_confidence=arguments.min_confidence,
        agreement=arguments.agreement,
        sky=not arguments.no_sky,
    )
    # Edges are left out when points are made, not of the scene's masks.
    return scene if which in (PixelFilter(), PixelFilter(edges=False)) else filter_pixels(scene, which)
