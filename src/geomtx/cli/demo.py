"""`geomtx demo`: photos that the command draws itself, through the same path as yours."""

from __future__ import annotations

import argparse
import dataclasses
import sys

from geomtx.cli.output import RANDOM_WEIGHTS, Stages, write_scene
from geomtx.cli.parser import parse_name
from geomtx.cli.reconstruct import random_model

__all__ = ["add_parser"]


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "demo",
        help="draw photos of a small room and run them through a model",
        description="Draws five photos of a room and runs them through a tiny model with RANDOM weights, in seconds: "
        "it shows what geomtx writes, not what a trained model finds.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "-o", "--output", type=parse_name, default="geomtx-demo", metavar="OUT",
        help="folder for the results (geomtx-demo)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    """Draw, reconstruct, write."""
    from geomtx.cli.demo_scene import render_room, save_photos
    from geomtx.export import SCENE_FILES
    from geomtx.models.vggt import VGGTConfig
    from geomtx.scene import reconstruct
    from geomtx.staging import check_writable, staged_folder
    from geomtx.views import load_views

    check_writable(arguments.output, SCENE_FILES)
    _say_loudly()
    stages = Stages(3)
    with staged_folder(arguments.output, SCENE_FILES) as folder:
        with stages.stage("draw photos"):
            views = load_views(save_photos(render_room(), folder / "photos"), size=168)
        with stages.stage("encode and run heads"):
            model = random_model(VGGTConfig.tiny(), seed=0)
            scene = reconstruct(model, views, query_points=[(0, 200, 150), (0, 105, 160)])
            scene = dataclasses.replace(scene, notice=RANDOM_WEIGHTS)
        with stages.stage("write"):
            summary = write_scene(scene, folder)
    seconds = stages.finish()
    print(f"wrote {arguments.output}: photos, {summary}, {seconds:.1f} s")


def _say_loudly() -> None:
    """On both streams: whoever keeps only one of them must not miss it."""
    line = f"***  {RANDOM_WEIGHTS}  ***"
    banner = "\n".join(("*" * len(line), line, "*" * len(line)))
    for stream in (sys.stdout, sys.stderr):
        print(banner, file=stream, flush=True)
