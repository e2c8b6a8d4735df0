"""`geomtx track`: points of a video or of photos in all of its frames, with pictures of them."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geomtx.cli.device import check_device_name, choose_device
from geomtx.cli.options import video
from geomtx.cli.output import NANO_WEIGHTS, RANDOM_WEIGHTS, Stages
from geomtx.cli.parser import add_output, parse_count, parse_name, parse_query
from geomtx.cli.reconstruct import add_weights, check_weights, choose_output, name_weights, random_model
from geomtx.cli.weights import check_image_side
from geomtx.files import LISTING, check_writable, list_inputs, staged_folder

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from geomtx.scene import Scene
    from geomtx.views import Views

__all__ = ["add_parser"]

_MOST_FRAMES = 64
_FILES = ("tracks.json", "tracks.npz", "tracks.mp4", "tracks.png", LISTING)
_LEAST_TAIL, _MOST_TAIL = 4, 30  # frames; in between, those of a second


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "track",
        help="points through all frames of a video, or through photos",
        description="Write tracks.json, tracks.npz (arrays as in TAP-Vid), and tracks.mp4, the video with the paths "
        "of the points: discs where they are seen, rings where they are hidden. For photos, tracks.png shows the "
        "points in each.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "photos", nargs="+", type=parse_name, metavar="VIDEO|PHOTOS",
        help="a video, a folder of photos, or several files",
    )  # fmt: skip
    add_output(parser, "folder for the results", rule="NAME-tracks here, for a video or a folder NAME")
    points = parser.add_mutually_exclusive_group(required=True)
    points.add_argument(
        "--query", type=parse_query, action="append", metavar="VIEW,X,Y",
        help="track the point at pixel x, y of a frame or a photo, all counted from 0; can be given again",
    )  # fmt: skip
    points.add_argument(
        "--grid", type=parse_count, metavar="N", help="track a grid of N x N points over the first frame or photo"
    )
    add_weights(parser, "weights with tracks: of a VGGT, whose head knows no order in time, or of a VideoTracker")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, mps, … (the accelerator if there is one)")
    parser.add_argument(
        "--size", type=parse_count, metavar="N",
        help="longer side of the images in pixels, a multiple of the model's patch (what the model is made for)",
    )  # fmt: skip
    video.add_options(parser, f"all frames, at most {_MOST_FRAMES} in all")


def run(arguments: argparse.Namespace) -> None:
    """Check everything that is quick to check, then do the work, then write."""
    video.check_options(arguments)
    check_device_name(arguments.device)
    check_weights(arguments)
    check_image_side(arguments.size, arguments.weights)
    arguments.output = arguments.output or choose_output(arguments.photos, "tracks", overwrite=True)
    check_writable(arguments.output, _FILES, overwrite=arguments.overwrite, inputs=list_inputs(arguments.weights))
    config = _read_config(arguments)
    device = choose_device(arguments.device)
    with video.photo_files(arguments, most=_MOST_FRAMES) as photos:
        check_writable(arguments.output, _FILES, overwrite=arguments.overwrite, inputs=photos.inputs)
        _track(arguments, photos, config, device)


def _track(arguments: argparse.Namespace, photos: video.PhotoFiles, config: Any, device: torch.device) -> None:
    from geomtx.report.text import count
    from geomtx.scene import track
    from geomtx.scene.checks import queries_to_model, require_usable
    from geomtx.views import load_views

    stages = Stages(4)
    with stages.stage("load the frames"):
        views = load_views(photos.paths, size=arguments.size, model=config)
        queries = _queries(arguments, views)
        queries_to_model(queries, views.transforms, views.names)
    with stages.stage("load the weights"):
        model = _load_model(arguments, config, device)
    with stages.stage("track"):
        scene = track(model, views, queries)
    require_usable(scene)
    made = {"weights": name_weights(arguments), **scene.provenance}
    if photos.plan is not None:
        made |= photos.describe()
    notice = RANDOM_WEIGHTS if arguments.preset else NANO_WEIGHTS if arguments.weights == "nano" else ""
    scene = dataclasses.replace(scene, provenance=made, notice=notice)
    with (
        stages.stage("write the results"),
        staged_folder(arguments.output, _FILES, overwrite=arguments.overwrite) as folder,
    ):
        names = _write(scene, folder, is_video=photos.plan is not None)
    seconds = stages.finish()
    if notice:
        print(f"geomtx: warning: {notice}", file=sys.stderr)
    points, frames = count(len(queries), "point"), count(len(scene), "view" if photos.plan is None else "frame")
    print(
        f"wrote {arguments.output}: {', '.join(names)}\n{points}, {frames}, {_share_seen(scene)} seen, {seconds:.1f} s"
    )


def _read_config(arguments: argparse.Namespace) -> Any:
    """Return the configuration of a model that tracks.

    Raises:
        ValueError: For weights of another one.
    """
    from geomtx.models.registry import find_family
    from geomtx.models.vggt import VGGT, VGGTConfig
    from geomtx.models.video_tracker import VideoTracker

    if arguments.preset:
        return VGGTConfig.tiny()
    family = find_family(arguments.weights).model
    if family is VideoTracker:
        return VideoTracker.read_config(arguments.weights)
    if family is not VGGT:
        raise ValueError(
            f"--weights must be of a model that tracks, a VGGT or a VideoTracker, got those of a {family.__name__}"
        )
    config = VGGT.read_config(arguments.weights)
    if "tracks" not in config.heads:
        raise ValueError(
            f"--weights must have a head that tracks, got a VGGT with the heads {', '.join(config.heads) or 'none'}"
        )
    return config


def _load_model(arguments: argparse.Namespace, config: Any, device: torch.device) -> nn.Module:
    from geomtx.models.registry import load_model
    from geomtx.models.vggt import VGGTConfig

    if arguments.preset:
        only = dataclasses.replace(config, heads=("tracks",))
        return random_model(only, arguments.random_seed).to(device)
    heads = ("tracks",) if isinstance(config, VGGTConfig) else None
    return load_model(arguments.weights, device=device, heads=heads)


def _queries(arguments: argparse.Namespace, views: Views) -> Tensor:
    """Return the points to track, (N, 3) as (view, x, y) in original pixels; those of a grid row by row."""
    import torch

    if arguments.query:
        return torch.tensor(arguments.query)
    height, width = views.transforms[0].original_hw
    steps = (torch.arange(arguments.grid) + 0.5) / arguments.grid
    y, x = torch.meshgrid(steps * height - 0.5, steps * width - 0.5, indexing="ij")
    return torch.stack([torch.zeros_like(x), x, y], dim=-1).flatten(0, 1)


def _write(scene: Scene, folder: Path, *, is_video: bool) -> tuple[str, ...]:
    """Write tracks and a picture of them into an existing folder, and return the names of the files."""
    from geomtx.files import save_picture
    from geomtx.report.tracks import draw_track_frames, draw_track_sheet
    from geomtx.scene.files.save import write_listing
    from geomtx.scene.files.tracks import write_track_arrays, write_tracks

    write_tracks(folder / "tracks.json", scene)
    write_track_arrays(folder / "tracks.npz", scene)
    if is_video and len(scene) > 1:
        from geomtx.views import write_video

        fps = min(max((len(scene) - 1) / scene.times[-1], 1.0), 60.0)
        tail = min(max(round(fps), _LEAST_TAIL), _MOST_TAIL)
        write_video(folder / "tracks.mp4", draw_track_frames(scene, tail=tail), fps=fps)
    else:
        save_picture(draw_track_sheet(scene), folder / "tracks.png", "tracks")
    write_listing(folder, "tracks")
    return tuple(name for name in _FILES[:-1] if (folder / name).exists())


def _share_seen(scene: Scene) -> str:
    from geomtx.scene.files.tracks import seen_tracks

    return f"{100 * seen_tracks(scene).double().mean():.1f} %"
