"""The command line: `geomtx COMMAND`, one file a command.

Commands import torch when they run, so that `geomtx --help` doesn't wait for it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from geomtx import __version__
from geomtx.cli import convert, demo, info, match, reconstruct, track, train, view
from geomtx.cli.failure import printable_output, run_command
from geomtx.cli.parser import Parser, join_queries

__all__ = ["build_parser", "main"]


def build_parser() -> Parser:
    """The parser of all commands, of which the documentation's tables of options are made too."""
    parser = Parser(
        prog="geomtx", description="Cameras, depth, points and tracks from photos, in one pass of a network."
    )
    parser.add_argument("--version", action="version", version=f"geomtx {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for module in (reconstruct, demo, convert, view, track, match, train, info):
        module.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Arguments without the program's name; defaults to those of the process.

    Returns:
        The exit code: 0; 1 after an unexpected error; 2 after an expected one (a line on stderr says which) or wrong
        usage; 130 after Ctrl-C, 143 after SIGTERM. With GEOMTX_DEBUG=1 in the environment, errors are raised instead.
    """
    parser = build_parser()
    with printable_output():
        try:
            arguments = parser.parse_args(join_queries(sys.argv[1:] if argv is None else argv))
        except SystemExit as exit_:  # argparse has said what there is to say
            return int(exit_.code or 0)
        return run_command(arguments.run, arguments)
