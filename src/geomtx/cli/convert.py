"""`geomtx convert`: other formats of a scene that was reconstructed."""

from __future__ import annotations

import argparse
from pathlib import Path

from geomtx.cli.options import formats, masks
from geomtx.cli.parser import add_output, parse_name
from geomtx.files import user_path

__all__ = ["add_parser"]


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
    masks.add_filter_options(parser)
    formats.add_options(parser, default=None)


def run(arguments: argparse.Namespace) -> None:
    """Read the scene, find its photos where they are needed, and write the formats, all or none."""
    masks.check_filter(arguments)
    from geomtx.scene import Scene
    from geomtx.scene.files.save import save_scene

    what = formats.read_options(arguments, arguments.photos)
    scene = masks.apply_filter(arguments, Scene.load(arguments.scene))
    source = user_path(arguments.scene)
    output: Path = arguments.output or (source if source.is_dir() else source.parent)
    saved = save_scene(scene, output, what, overwrite=arguments.overwrite, formats_alone=True)
    print("\n".join([f"wrote {output}: {', '.join(saved.names)}", *saved.notes]))
