"""Options of `geomtx reconstruct` for bundle adjustment of the result."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from geomtx.scene import ObservedPoints, Scene

__all__ = ["add_options", "check_heads", "check_options", "needs_tracker", "refine_scene", "warn"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to the command."""
    group = parser.add_argument_group(
        "refinement",
        "Bundle adjustment of the cameras, with which depth and points are brought into agreement. Where it fails, the "
        "model's own result is written, with a warning.",
    )
    group.add_argument("--refine", action="store_true", help="refine the cameras")
    group.add_argument(
        "--refine-from", choices=("tracks", "depth", "sift"),
        help="what photos have in common: tracks of the model, its depth maps, or SIFT features (needs the extra "
        "colmap) (tracks where the weights have them and there are no windows, else depth)",
    )  # fmt: skip
    group.add_argument(
        "--refine-solver", choices=("auto", "torch", "pycolmap"),
        help="solver: geomtx's own, or that of pycolmap (needs the extra colmap) (auto: geomtx's up to 200 photos)",
    )  # fmt: skip
    group.add_argument(
        "--refine-focal", choices=("known", "shared", "free"),
        help="focal lengths: as predicted, refined as one for all photos, or for each (shared for photos of one size)",
    )  # fmt: skip


def check_options(arguments: argparse.Namespace) -> None:
    """Require options that go together and what they need, before torch is imported.

    Raises:
        ValueError: Otherwise.
    """
    given = [name for name in ("from", "solver", "focal") if getattr(arguments, f"refine_{name}") is not None]
    if given and not arguments.refine:
        raise ValueError(f"--refine-{given[0]} must go with --refine")
    if not arguments.refine:
        return
    heads = arguments.heads
    if heads and not ("camera" in heads and {"depth", "points"} & set(heads)):
        raise ValueError(f"--heads must hold camera, and depth or points, for --refine, got {', '.join(heads)}")
    if arguments.refine_from == "tracks" and arguments.window:
        raise ValueError("--refine-from tracks must not go with --window: a point is followed through all photos")
    wanted = [f"--refine-from {arguments.refine_from}"] if arguments.refine_from == "sift" else []
    wanted += [f"--refine-solver {arguments.refine_solver}"] if arguments.refine_solver == "pycolmap" else []
    if wanted and importlib.util.find_spec("pycolmap") is None:
        raise ValueError(f"{wanted[0]} needs pycolmap, which is not installed: pip install 'geomtx[colmap]'")


def check_heads(arguments: argparse.Namespace, available: Sequence[str]) -> None:
    """Require a head of tracks where the refinement is to take them.

    Args:
        arguments: Arguments of the command.
        available: Names of the heads of the weights.

    Raises:
        ValueError: Otherwise.
    """
    if arguments.refine_from == "tracks" and "tracks" not in available:
        raise ValueError(f"--refine-from tracks needs weights with the head tracks, got {', '.join(available)}")


def needs_tracker(arguments: argparse.Namespace) -> bool:
    """Return whether the refinement uses the head of tracks, where the weights have one."""
    return bool(arguments.refine) and arguments.refine_from in (None, "tracks") and not arguments.window


def refine_scene(arguments: argparse.Namespace, model: Any, scene: Scene, fixed_views: Tensor | None = None) -> Scene:
    """Return the scene as the options refine it, or unchanged where they ask for nothing or it can't be refined.

    Args:
        arguments: Arguments of the command.
        model: The model that made the scene.
        scene: The scene.
        fixed_views: Views whose poses stay as they are, (S,) bool; defaults to none.

    Raises:
        ValueError: If tracks are asked for and the model can't follow any.
    """
    if not arguments.refine:
        return scene
    from geomtx.scene.refine import refine

    observations = _observe(arguments, model, scene)
    solver: Any = arguments.refine_solver or "auto"
    return refine(scene, observations, solver=solver, focal=arguments.refine_focal, fixed_views=fixed_views)


def warn(arguments: argparse.Namespace, scene: Scene) -> None:
    """Print a warning if a refinement was asked for and failed."""
    if arguments.refine and not scene.refined:
        reason = scene.provenance["refinement"].removeprefix("none: ")
        print(f"geomtx: warning: not refined, the result is the model's own: {reason}", file=sys.stderr)


def _observe(arguments: argparse.Namespace, model: Any, scene: Scene) -> ObservedPoints | None:
    """Return the observations, or None where `refine` is to take them from the dense maps."""
    from geomtx.scene import match_points, track_points

    if arguments.refine_from == "sift":
        return match_points(scene)
    if not needs_tracker(arguments):
        return None
    head = getattr(model, "track_head", None)
    large = head is not None and min(scene.images.shape[-2:]) >= head.tracker.min_image_side
    if large or arguments.refine_from == "tracks":
        return track_points(model, scene, memory=arguments.memory)
    return None
