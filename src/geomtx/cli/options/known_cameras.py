"""Options of `geomtx reconstruct` for what is known of a scene: cameras, a distance; and for its reference view."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from geomtx.cli.options.pairs import sees_pairs
from geomtx.cli.parser import parse_name
from geomtx.files import user_path

if TYPE_CHECKING:
    from torch import Tensor

    from geomtx.scene import KnownCameras, Scene
    from geomtx.views import Views

__all__ = [
    "add_options",
    "align_scene",
    "check_options",
    "find_fixed_views",
    "is_model_input",
    "read_known_cameras",
    "read_options",
]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to the command."""
    group = parser.add_argument_group(
        "what is known", "Cameras and lengths, which give the scene its world and its unit."
    )
    group.add_argument(
        "--cameras", type=parse_name, metavar="FILE",
        help="known cameras by the names of the photos: a cameras.json, a transforms.json of nerfstudio, or a folder "
        "with a model of COLMAP; their intrinsics are used and kept, and the scene is aligned to their poses; models "
        "that take cameras (Depth Anything 3, Pi3X) get them as an input, of all photos; of models that see pairs "
        "(DUSt3R, MASt3R), the alignment gets those that are known; with --window, the stitched scene is aligned",
    )  # fmt: skip
    group.add_argument(
        "--cameras-fixed", action="store_true",
        help="put the known poses in place of the predicted ones, where refinement keeps them",
    )  # fmt: skip
    group.add_argument(
        "--distance", type=_parse_distance, action="append", metavar="A,B,LENGTH",
        help="known distance in metres between photo A and photo B, counted from 0; can be given again",
    )  # fmt: skip
    group.add_argument(
        "--reference", choices=("first", "middle", "shared"), default="first",
        help="photo that the model takes for its first: the first, the middle one, or the one that shares most with "
        "the others, which takes a second pass; results are in the order of the photos in any case (first)",
    )  # fmt: skip


def check_options(arguments: argparse.Namespace) -> None:
    """Require options that go together, before torch is imported.

    Raises:
        ValueError: Otherwise.
        FileNotFoundError: If there is no such file of cameras.
    """
    if arguments.cameras_fixed and arguments.cameras is None:
        raise ValueError("--cameras-fixed must go with --cameras FILE, which has the poses")
    if arguments.distance and arguments.cameras is not None:
        raise ValueError("--distance must not go with --cameras, whose poses give the scale")
    heads = arguments.heads
    for name in ("cameras", "distance"):
        if getattr(arguments, name) and heads and "camera" not in heads:
            raise ValueError(f"heads must hold camera for --{name}, got {', '.join(heads)}")
    if arguments.reference == "shared" and heads and not {"camera", "depth"} <= set(heads):
        raise ValueError(f"heads must hold camera and depth for --reference shared, got {', '.join(heads)}")
    if arguments.reference != "first" and arguments.window is not None:
        raise ValueError("--reference must not go with --window: each window has a first view of its own")
    if arguments.cameras is not None and not user_path(arguments.cameras).exists():
        raise FileNotFoundError(
            f"--cameras must be a file or a folder with a model of COLMAP, got '{arguments.cameras}'"
        )


def read_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of `geomtx.reconstruct` that the options stand for."""
    return {} if arguments.reference == "first" else {"reference": arguments.reference}


def read_known_cameras(arguments: argparse.Namespace, views: Views, model: Any) -> KnownCameras | None:
    """Read the known cameras of the views, before the model runs; None where none were given.

    Args:
        arguments: Arguments of the command.
        views: The views.
        model: The model, also without values.

    Raises:
        ValueError: If they can't be used: of other photos, of other shapes, poses that align nothing.
    """
    for first, second, _ in arguments.distance or ():
        for view in (first, second):
            if not view < len(views):
                raise ValueError(f"--distance must be between photos from 0 to {len(views) - 1}, got {view}")
    if arguments.cameras is None:
        return None
    from geomtx.scene.files import read_cameras
    from geomtx.scene.known.cameras import select_views, warn_of_unknown
    from geomtx.scene.known.model_input import check_given
    from geomtx.scene.known.placing import check_can_align, intrinsics_of_views

    known = select_views(read_cameras(arguments.cameras), views.names)
    intrinsics_of_views(known, views.transforms)
    check_can_align(known)
    if arguments.cameras_fixed and known.cam_from_world is None:
        raise ValueError(f"--cameras-fixed must go with known poses, got none in '{arguments.cameras}'")
    if is_model_input(arguments, known, model):
        check_given(known, model)
    warn_of_unknown(known)
    if known.intrinsics is not None and known.intrinsics.isfinite().all():
        arguments.refine_focal = arguments.refine_focal or ("known" if arguments.refine else None)
    return known


def is_model_input(arguments: argparse.Namespace, known: KnownCameras | None, model: Any) -> bool:
    """Return whether known cameras are an input of the model, or of the alignment of its pairs.

    With windows they are none: these are brought to known poses when they are one scene. Intrinsics alone are an input
    of pairs.
    """
    from geomtx.scene.known.model_input import takes_cameras

    if known is None or arguments.window is not None or not takes_cameras(model):
        return False
    return known.cam_from_world is not None or sees_pairs(model)


def align_scene(
    arguments: argparse.Namespace, scene: Scene, known: KnownCameras | None, *, was_input: bool = False
) -> tuple[Scene, list[str]]:
    """Return the scene in the world and the unit of what is known, and lines that say how well it fits.

    Args:
        arguments: Arguments of the command.
        scene: The scene.
        known: Known cameras; None for none.
        was_input: Whether the model got them, so that the scene is in their world already.
    """
    from geomtx.scene.align import align
    from geomtx.scene.known.placing import place_cameras, use_intrinsics

    if known is None:
        if not arguments.distance:
            return scene, []
        scene = align(scene, distance=arguments.distance)
    else:
        scene = scene if was_input else use_intrinsics(scene, known)
        if known.cam_from_world is None:
            return scene, [f"known intrinsics: {scene.provenance['known_intrinsics']}"]
        scene = scene if was_input else align(scene, poses=known)
        if arguments.cameras_fixed:
            scene = place_cameras(scene, known)
    return scene, [f"aligned: {scene.provenance['alignment']}"]


def find_fixed_views(arguments: argparse.Namespace, known: KnownCameras | None) -> Tensor | None:
    """Return the views whose poses refinement must keep, (S,) bool; None where none were asked for."""
    if known is None or known.cam_from_world is None or not arguments.cameras_fixed:
        return None
    return known.cam_from_world.isfinite().flatten(1).all(1)


def _parse_distance(text: str) -> tuple[int, int, float]:
    try:
        first, second, length = text.split(",")
        return _parse_view(first), _parse_view(second), float(length)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be A,B,LENGTH, two photos and a number, got '{text}'") from None


def _parse_view(text: str) -> int:
    if not text.strip().isdecimal():
        raise ValueError
    return int(text)
