"""Arguments of the command line: errors in one line, like those of the commands."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from geomtx.files import user_path

__all__ = ["Parser", "add_output", "join_queries", "parse_name"]


class Parser(argparse.ArgumentParser):
    """argparse's parser, for subcommands too, without the lines of usage before an error."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2 and one line."""
        self.exit(2, f"geomtx: error: {' '.join(message.split())} ({self.prog} --help shows the options)\n")


def join_queries(argv: Iterable[str]) -> list[str]:
    """`--query -1,2,3` as `--query=-1,2,3`: argparse would take the numbers for an option."""
    joined: list[str] = []
    for argument in argv:
        if joined and joined[-1] == "--query" and re.match(r"-[\d.]", argument):
            joined[-1] = f"--query={argument}"
        else:
            joined.append(argument)
    return joined


def parse_name(text: str) -> str:
    """A path or a hub id; an empty one would mean the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def add_output(parser: argparse.ArgumentParser, what: str, default: str | None = None) -> None:
    """Add the options of a command that writes: its folder, required without a default, and `--overwrite`."""
    parser.add_argument(
        "-o", "--output", required=default is None, type=_parse_folder, default=default, metavar="OUT",
        help=what if default is None else f"{what} ({default})",
    )  # fmt: skip
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files in OUT that have names of results, whoever wrote them"
    )


def _parse_folder(text: str) -> Path:
    return user_path(parse_name(text))
