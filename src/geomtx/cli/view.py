"""`geomtx view`: reconstructed scenes in a browser."""

from __future__ import annotations

import argparse
import time

from geomtx.checks import check_range
from geomtx.cli.parser import parse_count, parse_name

__all__ = ["add_parser"]

_ONLY_HERE = ("127.0.0.1", "::1", "localhost")


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "view",
        help="a scene that was reconstructed, in a browser",
        description="Show scenes in 3-D on a page for the browser of this machine, until Ctrl-C: points, photos, "
        "depth, tracks, distances, videos of camera paths. Needs the extra viewer: pip install 'geomtx[viewer]'.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "scenes", nargs="+", type=parse_name, metavar="OUT", help="folders that geomtx reconstruct or geomtx demo wrote"
    )
    parser.add_argument(
        "--host", type=parse_name, default="127.0.0.1", metavar="ADDRESS",
        help="address to listen at; 0.0.0.0 lets other machines connect (127.0.0.1)",
    )  # fmt: skip
    parser.add_argument("--port", type=int, default=0, metavar="N", help="port to listen at (a free one)")
    parser.add_argument(
        "--max-points", type=parse_count, default=300_000, metavar="N",
        help="largest number of points of a scene; more are thinned evenly at random (300000)",
    )  # fmt: skip
    parser.add_argument("--open", action="store_true", help="open the page in the default browser, too")


def run(arguments: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C, which is the ordinary end."""
    check_range("--port", arguments.port, 0, 65535)
    from geomtx.report.viewer import open_viewer

    viewer = open_viewer(*arguments.scenes, host=arguments.host, port=arguments.port, max_points=arguments.max_points)
    try:
        with viewer:
            if arguments.host not in _ONLY_HERE:
                print("everyone who can connect to this machine sees the scene, as there is no password")
            print(f"showing {', '.join(arguments.scenes)} at {viewer.url} - Ctrl-C ends it", flush=True)
            if arguments.open:
                import webbrowser

                webbrowser.open(viewer.url)
            while True:
                time.sleep(3600)
    except KeyboardInterrupt as stop:
        if type(stop) is not KeyboardInterrupt:  # SIGTERM, whose exit code says so
            raise
    print("stopped")
