"""Options of `geomtx reconstruct` for models that see a scene as pairs of photos: DUSt3R, MASt3R, MonST3R."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from geomtx.cli.device import num_processes
from geomtx.cli.parser import parse_name

if TYPE_CHECKING:
    import torch

    from geomtx.scene import KnownCameras
    from geomtx.views import Views

__all__ = ["add_options", "check_options", "check_scene", "load_tracker", "read_options", "sees_pairs"]

# Options that say how one pass over all photos runs, with their values where nobody gives them.
_OF_PASSES: dict[str, Any] = {
    **dict.fromkeys(("heads", "query", "key_views", "local_layers")),
    "key_stride": 1,
    "reference": "first",
    "memory": "auto",
    "view_chunk": "auto",
    "compile": False,
}
_OF_PAIRS = ("pairs", "pair_folder", "alignment", "moving")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to the command."""
    group = parser.add_argument_group("pairs", "For models that see two photos at a time (DUSt3R, MASt3R, MonST3R).")
    group.add_argument(
        "--pairs", type=parse_name, metavar="GRAPH",
        help="which photos are paired: complete, all; swin-N, each with the N after it; logwin-N, with N of those "
        "1, 2, 4, … after it; swinstride-N, 1, 3, 5, …; swin2stride-N, 1, 4, 7, …; oneref-K, all with photo K, counted "
        "from 0; after the last photo comes the first, but for names that end in -noncyclic (complete up to 20 photos, "
        "beyond logwin-5, of a video swinstride-5-noncyclic)",
    )  # fmt: skip
    group.add_argument(
        "--pair-folder", type=parse_name, metavar="DIR",
        help="folder in which what the model predicts is kept: it needs no memory, and a run that was stopped goes on "
        "from there (memory)",
    )  # fmt: skip
    group.add_argument(
        "--alignment", choices=("points", "matches"),
        help="what pairs are brought together by: the points of all pixels, or pixels matched by their descriptors "
        "(matches where the weights have descriptors, as MASt3R's do)",
    )  # fmt: skip
    group.add_argument(
        "--moving", type=parse_name, metavar="WEIGHTS",
        help="weights of a VideoTracker, whose optical flow finds what moves in a video: cameras are placed by what "
        "stands still, and clouds are of that alone; the alignment is then by points, and of one focal length",
    )  # fmt: skip


def sees_pairs(model: Any) -> bool:
    """Return whether a model sees a scene as pairs of photos."""
    from geomtx.inference import PairModel

    return isinstance(model, PairModel)


def check_options(arguments: argparse.Namespace, model: Any) -> None:
    """Require options that the model knows.

    Args:
        arguments: Arguments of the command.
        model: The model, also without values.

    Raises:
        ValueError: Otherwise.
    """
    kind = type(model).__name__
    if not sees_pairs(model):
        given = next((name for name in _OF_PAIRS if getattr(arguments, name) is not None), None)
        if given is not None:
            raise ValueError(
                f"--{given.replace('_', '-')} must be left out for a {kind}, which sees all photos at once"
            )
        return
    for name, default in _OF_PASSES.items():
        if getattr(arguments, name) != default:
            raise ValueError(f"--{name.replace('_', '-')} must be left out for a {kind}, which sees pairs of photos")
    if arguments.refine_from == "tracks":
        raise ValueError(f"--refine-from tracks must be left out for a {kind}, which has no tracks")
    if arguments.moving is not None:
        from geomtx.models.video_tracker import VideoTracker

        VideoTracker.read_config(arguments.moving)
        if arguments.alignment == "matches":
            raise ValueError("--alignment must be points with --moving, got matches")
    if num_processes() > 1:
        raise ValueError(f"processes must be one for a {kind}, which sees pairs of photos, got {num_processes()}")


def check_scene(
    arguments: argparse.Namespace, model: Any, views: Views, device: torch.device, cameras: KnownCameras | None
) -> None:
    """Refuse pairs that don't exist or don't fit into memory, and known cameras that contradict each other.

    Args:
        arguments: Arguments of the command.
        model: The model without values.
        views: The views, of which windows are looked at by the first.
        device: Device that the model will run on.
        cameras: Known cameras that alignment gets; None for none.

    Raises:
        ValueError: Otherwise.
    """
    from geomtx.scene.pairs.reconstruction import check_pairs_of_views

    if arguments.window is not None:
        views = views[: arguments.window]
    tracked = arguments.moving is not None
    check_pairs_of_views(views, model, device, cameras=cameras, tracked=tracked, **read_options(arguments))


def read_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of `geomtx.reconstruct` that the options stand for."""
    from geomtx.scene.pairs import AlignmentOptions, SparseOptions
    from geomtx.scene.pairs.video import VIDEO_ALIGNMENT

    if arguments.moving is not None:
        return {"graph": arguments.pairs or "auto", "folder": arguments.pair_folder, "alignment": VIDEO_ALIGNMENT}
    ways = {None: None, "points": AlignmentOptions(), "matches": SparseOptions()}
    return {
        "graph": arguments.pairs or "auto",
        "folder": arguments.pair_folder,
        "alignment": ways[arguments.alignment],
    }


def load_tracker(arguments: argparse.Namespace, device: torch.device) -> Any:
    """Return the tracker of `--moving`; None without that option."""
    from geomtx.models.video_tracker import VideoTracker

    return None if arguments.moving is None else VideoTracker.from_pretrained(arguments.moving, device=device)
