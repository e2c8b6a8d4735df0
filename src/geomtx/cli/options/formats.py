"""Options for the formats that a scene is written in."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

from geomtx.cli.parser import parse_count, parse_names, parse_positive
from geomtx.files import user_path

if TYPE_CHECKING:
    from geomtx.scene.files.export import SaveOptions

__all__ = ["FORMATS", "add_options", "read_options"]

# As in `geomtx.scene.files.save`, which imports torch; a test compares them.
FORMATS = ("ply", "glb", "colmap", "colmap-text", "nerfstudio", "splat")


def add_options(parser: argparse.ArgumentParser, default: str | None = "ply") -> None:
    """Add the options that say which formats are written, and how.

    Args:
        parser: Parser of a command.
        default: Format that is written where none are named; None where they must be.
    """
    group = parser.add_argument_group("formats", "Files for other programs; models of COLMAP and copies of photos.")
    known = ", ".join(FORMATS)
    group.add_argument(
        "--formats", type=partial(parse_names, known=FORMATS), default=default, required=default is None,
        metavar="FORMATS",
        help=f"formats to write, separated by commas: {known}{'' if default is None else f' ({default})'}",
    )  # fmt: skip
    group.add_argument(
        "--sparse-points", type=parse_count, default=100_000, metavar="N",
        help="largest number of points in colmap, nerfstudio and splat (100000)",
    )  # fmt: skip
    group.add_argument(
        "--merge-within", type=parse_positive, default=0.02, metavar="SHARE",
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


def check_heads(arguments: argparse.Namespace) -> None:
    """Require the predictions that formats are made of, by the heads that will run.

    Raises:
        ValueError: Otherwise.
    """
    heads = arguments.heads
    for name in arguments.formats:
        if name not in ("ply", "glb") and "camera" not in heads:
            raise ValueError(f"heads must hold camera for --formats {name}, got {', '.join(heads)}")


def read_options(arguments: argparse.Namespace, photos: str | None = None) -> SaveOptions:
    """Return what is to be written.

    Args:
        arguments: Arguments of a command with `add_options` and `masks.add_filter_options`.
        photos: Folder of the photos; defaults to where they were when the scene was made.

    Raises:
        ValueError: If an option is out of range.
    """
    from geomtx.scene.files.export import ExportOptions, SaveOptions
    from geomtx.scene.filters import PixelFilter

    return SaveOptions(
        formats=arguments.formats,
        percentile=arguments.percentile,
        max_points=arguments.max_points,
        which=PixelFilter(edges=not arguments.keep_edges),
        maps=getattr(arguments, "maps", "network"),
        export=ExportOptions(
            photos=None if photos is None else user_path(photos),
            max_points=arguments.sparse_points,
            tolerance=arguments.merge_within,
            colmap_files=arguments.colmap_files,
            shared_camera=arguments.shared_camera,
            image_factors=arguments.image_factors or (),
            crop=arguments.crop,
        ),
    )


def _parse_factors(text: str) -> tuple[int, ...]:
    factors = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= 2 for part in factors):
        raise argparse.ArgumentTypeError(f"must be whole numbers from 2, separated by commas, got '{text}'")
    return tuple(dict.fromkeys(map(int, factors)))
