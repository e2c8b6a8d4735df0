"""`geomtx convert`: other formats of a scene that is there; and the options for formats, which other commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from geomtx.checks import check_range, close_matches
from geomtx.cli.options import masks
from geomtx.cli.parser import add_output, parse_count, parse_name
from geomtx.files import user_path

if TYPE_CHECKING:
    from geomtx.scene.files.export import ExportOptions

__all__ = ["add_format_options", "add_parser", "read_format_options"]

# As in `geomtx.scene.files.save`, which imports torch; a test compares them.
FORMATS = ("ply", "glb", "colmap", "colmap-text", "nerfstudio", "splat")


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "convert",
        help="other formats of a scene that was reconstructed",
        description="Write a scene in formats of other programs, beside its files. Nothing is computed anew: the "
        "model does not run.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("scene", type=parse_name, metavar="OUT", help="folder that geomtx reconstruct wrote")
    add_output(parser, "folder for the formats", rule="the scene's own")
    parser.add_argument(
        "--photos", type=parse_name, metavar="DIR", help="folder of the photos, for formats that copy them (where they "
        "were when the scene was made)",
    )  # fmt: skip
    parser.add_argument(
        "--percentile", type=float, default=20.0, metavar="P",
        help="share of the points to leave out, least confident first, in percent (20)",
    )  # fmt: skip
    parser.add_argument("--max-points", type=parse_count, metavar="N", help="largest number of points to keep (all)")
    masks.add_filter_options(parser)
    add_format_options(parser, default=None)


def add_format_options(parser: argparse.ArgumentParser, default: str | None = "ply") -> None:
    """Add the options that say which formats are written, and how.

    Args:
        parser: Parser of a command.
        default: Format that is written where none are named; None where they must be.
    """
    group = parser.add_argument_group("formats", "Files for other programs; models of COLMAP and copies of photos.")
    known = ", ".join(FORMATS)
    group.add_argument(
        "--formats", type=_parse_formats, default=default, required=default is None, metavar="FORMATS",
        help=f"formats to write, separated by commas: {known}{'' if default is None else f' ({default})'}",
    )  # fmt: skip
    group.add_argument(
        "--sparse-points", type=parse_count, default=100_000, metavar="N",
        help="largest number of points in colmap, nerfstudio and splat (100000)",
    )  # fmt: skip
    group.add_argument(
        "--merge-within", type=float, default=0.02, metavar="SHARE",
        help="share of the depth within which points of two photos are one with two observations (0.02)",
    )  # fmt: skip
    group.add_argument(
        "--colmap-files", type=int, choices=(3, 5), default=5,
        help="files of a COLMAP model: 5 with rigs and frames (COLMAP 4) or 3 (COLMAP 3) (5)",
    )  # fmt: skip
    group.add_argument(
        "--shared-camera", action="store_true", help="one camera for all photos, the mean of their intrinsics"
    )
    group.add_argument(
        "--image-factors", type=_parse_factors, metavar="N,...",
        help="also copy photos with sides divided by each N to images_N, such as 2,4 (none)",
    )  # fmt: skip
    group.add_argument(
        "--crop", action="store_true",
        help="crop copied photos so that the principal point is their centre, as 3D Gaussian Splatting takes it to be",
    )  # fmt: skip


def read_format_options(arguments: argparse.Namespace, photos: str | None = None) -> ExportOptions:
    """Return what the options stand for.

    Args:
        arguments: Arguments of a command with `add_format_options`.
        photos: Folder of the photos; defaults to where they were when the scene was made.

    Raises:
        ValueError: If one is out of range.
    """
    from geomtx.scene.files.export import ExportOptions

    return ExportOptions(
        photos=None if photos is None else user_path(photos),
        max_points=arguments.sparse_points,
        tolerance=arguments.merge_within,
        colmap_files=arguments.colmap_files,
        shared_camera=arguments.shared_camera,
        image_factors=arguments.image_factors or (),
        crop=arguments.crop,
    )


def run(arguments: argparse.Namespace) -> None:
    """Read the scene, find its photos where they are needed, and write the formats, all or none."""
    check_range("percentile", arguments.percentile, 0, 100)
    masks.check_filter(arguments)
    from geomtx.scene import Scene
    from geomtx.scene.files.save import convert_scene

    scene = masks.apply_filter(arguments, Scene.load(arguments.scene))
    source = user_path(arguments.scene)
    output: Path = arguments.output or (source if source.is_dir() else source.parent)
    export = convert_scene(
        scene,
        output,
        arguments.formats,
        percentile=arguments.percentile,
        max_points=arguments.max_points,
        overwrite=arguments.overwrite,
        options=read_format_options(arguments, arguments.photos),
    )
    print("\n".join([f"wrote {output}: {', '.join(arguments.formats)}", *export.notes]))


def _parse_formats(text: str) -> tuple[str, ...]:
    formats = tuple(part.strip() for part in text.split(","))
    for name in formats:
        if name not in FORMATS:
            known = ", ".join(FORMATS)
            raise argparse.ArgumentTypeError(
                f"must be of {known}, separated by commas, got '{name}'{close_matches(name, FORMATS)}"
            )
    return tuple(dict.fromkeys(formats))


def _parse_factors(text: str) -> tuple[int, ...]:
    factors = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= 2 for part in factors):
        raise argparse.ArgumentTypeError(f"must be whole numbers from 2, separated by commas, got '{text}'")
    return tuple(dict.fromkeys(map(int, factors)))
