"""`geomtx match`: pixels of two photos that show the same, as a picture and as numbers."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geomtx.cli.device import check_device_name, choose_device
from geomtx.cli.output import Stages
from geomtx.cli.parser import add_output, parse_count, parse_name
from geomtx.cli.weights import check_image_side, check_weights_name
from geomtx.files import check_writable, list_inputs, staged_folder, user_path
from geomtx.views.listing import list_photos

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from geomtx.views import Views

__all__ = ["add_parser"]

_PHOTO_SIDE = 1280  # pixels of the longer side to which very large photos are reduced for the picture


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "match",
        help="pixels of two photos that show the same",
        description="Write a picture of two photos side by side with lines between pixels that show the same, and all "
        "matches in pixels of the photos as JSON beside it. Weights are of a model that sees pairs: MASt3R matches by "
        "its descriptors, DUSt3R by its points.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("first", type=parse_name, metavar="A", help="the first photo")
    parser.add_argument("second", type=parse_name, metavar="B", help="the second photo")
    add_output(parser, "file of the picture; that of the matches is beside it, NAME.json", "matches.png")
    parser.add_argument(
        "--weights", type=parse_name, metavar="W", required=True,
        help="hub id, folder, a .safetensors or .pth file of a MASt3R or a DUSt3R",
    )  # fmt: skip
    parser.add_argument(
        "--min-confidence", type=float, metavar="C",
        help="confidence that both pixels of a match must be above (0 for descriptors, 3 for points)",
    )  # fmt: skip
    parser.add_argument("--lines", type=parse_count, default=100, metavar="N", help="largest number of lines (100)")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, mps, … (the accelerator if there is one)")
    parser.add_argument(
        "--size", type=parse_count, metavar="N",
        help="longer side of the images in pixels, a multiple of the model's patch (what the model is made for)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    """Check everything that is quick to check, then match, then write both files."""
    output: Path = arguments.output
    if output.suffix.lower() != ".png":
        raise ValueError(f"--output must be a file that ends in .png, got '{output}'")
    least = arguments.min_confidence
    if least is not None and not (math.isfinite(least) and least >= 0):
        raise ValueError(f"--min-confidence must be finite and at least 0, got {least}")
    check_device_name(arguments.device)
    check_weights_name(arguments.weights)
    check_image_side(arguments.size, arguments.weights)
    photos = [user_path(each) for each in (arguments.first, arguments.second)]
    for photo in photos:
        if photo.is_dir():
            raise ValueError(f"photos must be two files, got the folder '{photo}'")
    names = (output.name, output.with_suffix(".json").name)
    inputs = [*list_photos(photos), *list_inputs(arguments.weights)]
    check_writable(output.parent, names, overwrite=arguments.overwrite, inputs=inputs)
    from geomtx.inference import PairModel
    from geomtx.models.registry import find_family

    family = find_family(arguments.weights).model
    if not issubclass(family, PairModel):
        raise ValueError(f"--weights must be of a model that sees pairs, MASt3R or DUSt3R, got a {family.__name__}'s")
    device = choose_device(arguments.device)
    _match(arguments, photos, family, device, names)


def _match(
    arguments: argparse.Namespace, photos: list[Path], family: Any, device: torch.device, names: tuple[str, str]
) -> None:
    """Match the photos and write the picture and the matches.

    Args:
        arguments: Arguments of the command, checked.
        photos: Files of the two photos.
        family: Class of the model.
        device: Device that it runs on.
        names: Names of the files that are written.
    """
    from geomtx.files import save_picture
    from geomtx.report.matches import draw_matches
    from geomtx.report.text import count
    from geomtx.scene.pairs import match_photos
    from geomtx.scene.pairs.matches.match_file import write_matches
    from geomtx.scene.run_record import describe_run
    from geomtx.views import load_views

    output, overwrite = arguments.output, arguments.overwrite
    stages = Stages(4)
    with stages.stage("load the photos"):
        views = load_views(photos, size=arguments.size, model=family.read_config(arguments.weights))
    with stages.stage("load the weights"):
        model = family.from_pretrained(arguments.weights, device=device)
    with stages.stage("match"):
        found = match_photos(model, views, min_confidence=arguments.min_confidence)
    if not len(found.confidence):
        least = "by default 0 for descriptors, 3 for points" if arguments.min_confidence is None else "lower it"
        raise ValueError(f"photos must have pixels that match, got none above --min-confidence ({least})")
    sizes = [transform.original_hw for transform in views.transforms]
    number = count(len(found.confidence), "matched pixel")
    with stages.stage("write the results"), staged_folder(output.parent, names, overwrite=overwrite) as folder:
        pictures = [_open(views, index) for index in range(2)]
        coords = [each.numpy() for each in found[:2]]
        caption = f"{views.names[0]} and {views.names[1]}: {number}"
        save_picture(draw_matches(pictures, sizes, coords, caption=caption, most=arguments.lines), folder / names[0],
                     "matches")  # fmt: skip
        write_matches(folder / names[1], views.names, sizes, found, describe_run(model, views))
    print(f"wrote {output.parent}: {', '.join(names)}\n{number}, {stages.finish():.1f} s")


def _open(views: Views, index: int) -> Image.Image:
    from geomtx.views.pictures import read_picture

    path = views.paths[index]
    assert path is not None, "views of files"
    return read_picture(path, min_side=_PHOTO_SIDE).image
