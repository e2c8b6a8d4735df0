"""`geomtx demo`: a rendered scene that no model was trained on, through the same path as your photos."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geomtx.cli.device import check_device_name, choose_device
from geomtx.cli.output import Stages, describe_saved
from geomtx.cli.parser import add_output, parse_name
from geomtx.cli.weights import check_weights_name
from geomtx.files import check_writable, list_inputs, save_picture, staged_folder

if TYPE_CHECKING:
    from geomtx.models.vggt import VGGT
    from geomtx.scene import Scene
    from geomtx.types import SceneBatch

__all__ = ["add_parser"]

_MAX_VIEWS = 24
# Five times the size of nano's images: an odd factor, so that its pixels' centres are on those of the photos.
_PHOTO_HW = (240, 320)
_SUPERSAMPLE = 2
_NUM_TRACKS = 24
_NUM_SCENES = 1_000_000
# Chosen by its photos, not by its errors: things stand in a room that one can look into, as no ceiling covers it.
_SCENE = 7
_NUM_GUESS_SCENES, _MAX_GUESS_VIEWS = 24, 4
_FILES = ("truth.png", "errors.json", *(f"photos/view_{index}.png" for index in range(_MAX_VIEWS)))


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "demo",
        help="a rendered scene, and how far a reconstruction is from its truth",
        description="Renders photos of a scene that nano was never trained on, reconstructs it from them, writes the "
        "files of `geomtx reconstruct` and a picture of prediction and truth, and prints the errors beside those of "
        "the best guess that knows none of the photos.",
    )
    parser.set_defaults(run=run)
    add_output(parser, "folder for the results", "geomtx-demo")
    parser.add_argument("--views", type=int, default=8, metavar="N", help=f"number of photos, 2 to {_MAX_VIEWS} (8)")
    parser.add_argument(
        "--scene", type=int, default=_SCENE, metavar="N", help=f"number of the scene, from 0 ({_SCENE})"
    )
    parser.add_argument(
        "--weights", type=parse_name, default="nano", metavar="W",
        help="hub id, folder, a .safetensors or .pt file, or nano (nano)",
    )  # fmt: skip
    parser.add_argument("--device", metavar="D", help="cpu, cuda, mps, … (the accelerator if there is one)")


def run(arguments: argparse.Namespace) -> None:
    """Render photos, reconstruct the scene from them, compare it with the truth, write the results."""
    _check_arguments(arguments)
    from geomtx.cli.demo_errors import compare_with_guess, describe_errors, format_errors, write_errors
    from geomtx.models.registry import find_family, load_model
    from geomtx.models.vggt import VGGT
    from geomtx.report import draw_comparison
    from geomtx.scene.checks import require_usable
    from geomtx.scene.files import SCENE_FILES
    from geomtx.scene.files.export import SaveOptions
    from geomtx.scene.files.save import write_files

    owned = (*SCENE_FILES, *_FILES)
    inputs = list_inputs(arguments.weights)
    check_writable(arguments.output, owned, overwrite=arguments.overwrite, inputs=inputs)
    device = choose_device(arguments.device)
    name = Path(arguments.weights).name
    stages = Stages(5)
    with stages.stage("load the weights"):
        family = find_family(arguments.weights).model
        if family is not VGGT:
            raise ValueError(f"--weights must be of a VGGT, got those of a {family.__name__}")
        model: Any = load_model(arguments.weights, device=device)
    with staged_folder(arguments.output, owned, overwrite=arguments.overwrite) as folder:
        with stages.stage("render the photos"):
            photographed = _render_photos(arguments.scene, arguments.views, folder / "photos")
        with stages.stage("reconstruct"):
            scene, truth = _reconstruct(model, photographed, folder / "photos")
            made = {"weights": name, **scene.provenance, "photos": f"held-out scene {arguments.scene}"}
            scene = dataclasses.replace(scene, provenance=made)
        require_usable(scene)
        with stages.stage("compare with the truth"):
            errors = compare_with_guess(scene, truth, _render_others(truth))
        with stages.stage("write the results"):
            summary = describe_saved(scene, write_files(scene, folder, SaveOptions(), home=arguments.output))
            write_errors(folder / "errors.json", errors, scene=arguments.scene, weights=name)
            title = f"{name} on held-out scene {arguments.scene}: prediction against truth"
            page = draw_comparison(scene, _truth_as_scene(scene, truth), title=title, facts=describe_errors(errors))
            save_picture(page, folder / "truth.png", "comparison")
    seconds = stages.finish()
    print(f"held-out scene {arguments.scene}, {arguments.views} photos, weights {name}\n")
    print(format_errors(errors, name))
    print(f"\nwrote {arguments.output}: photos, truth.png, errors.json, {summary}, {seconds:.1f} s")


def _check_arguments(arguments: argparse.Namespace) -> None:
    """Require arguments that make sense; imports no torch."""
    if not 2 <= arguments.views <= _MAX_VIEWS:
        raise ValueError(f"--views must be in 2 … {_MAX_VIEWS}, got {arguments.views}")
    if not 0 <= arguments.scene < _NUM_SCENES:
        raise ValueError(f"--scene must be in 0 … {_NUM_SCENES - 1}, got {arguments.scene}")
    check_device_name(arguments.device)
    check_weights_name(arguments.weights)


def _render_photos(index: int, num_views: int, folder: Path) -> SceneBatch:
    """Render a scene and write its photos into `folder`; returns the truth in pixels of these photos."""
    from geomtx.data.synthetic.photos import save_photos
    from geomtx.data.synthetic.render import HELD_OUT_SCENES, held_out_seed, render_scenes
    from geomtx.data.synthetic.rooms import RoomStyle

    truth = render_scenes(
        [held_out_seed(HELD_OUT_SCENES["demo"][index])],
        num_views,
        _PHOTO_HW,
        num_tracks=_NUM_TRACKS,
        supersample=_SUPERSAMPLE,
        style=RoomStyle.nano(),
    )
    save_photos(truth.images[0], folder)
    return truth


def _reconstruct(model: VGGT, photographed: SceneBatch, folder: Path) -> tuple[Scene, SceneBatch]:
    """Reconstruct the scene from its files; returns the truth in pixels, frame and unit of the result, too."""
    import torch

    from geomtx.data.synthetic.photos import truth_in_views
    from geomtx.geometry.scene_frame import normalize_scene
    from geomtx.scene import reconstruct
    from geomtx.views import load_views

    assert photographed.tracks is not None
    views = load_views(folder, model=model)
    queries = None
    if "tracks" in model.heads:
        start = photographed.tracks.coords_px[0, 0]
        queries = torch.cat([torch.zeros_like(start[:, :1]), start], dim=-1)
    scene = reconstruct(model, views, query_points=queries)
    return scene, normalize_scene(truth_in_views(photographed, views))[0]


def _render_others(truth: SceneBatch) -> list[SceneBatch]:
    """Render other scenes of the same kind in images of the same size, from which a guess can be learned."""
    from geomtx.data.synthetic.render import render_scenes, training_seed
    from geomtx.data.synthetic.rooms import RoomStyle

    _, num_views, _, height, width = truth.images.shape
    return [
        render_scenes(
            [training_seed(0, 0, index)],
            min(num_views, _MAX_GUESS_VIEWS),
            (height, width),
            num_tracks=_NUM_TRACKS,
            style=RoomStyle.nano(),
        )
        for index in range(_NUM_GUESS_SCENES)
    ]


def _truth_as_scene(scene: Scene, truth: SceneBatch) -> Scene:
    """Return a scene of the same photos with the truth in place of the predictions."""
    import torch

    from geomtx.types import Cameras, DenseMap, Predictions

    assert truth.cameras is not None
    assert truth.depth is not None
    assert truth.mask is not None
    cameras = Cameras(*(part[0] for part in truth.cameras))
    depth = DenseMap(truth.depth[0], torch.ones_like(truth.depth[0]))
    predictions = Predictions(cameras=cameras, depth=depth)
    return dataclasses.replace(scene, predictions=predictions, masks=truth.mask[0], query_points=None)
