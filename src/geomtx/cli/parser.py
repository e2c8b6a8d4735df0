"""Arguments of the command line: kinds of values that several commands take, and errors in one line."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from geomtx.checks import close_matches
from geomtx.files import user_path

__all__ = [
    "Parser",
    "add_output",
    "join_queries",
    "parse_count",
    "parse_list",
    "parse_name",
    "parse_names",
    "parse_positive",
    "parse_query",
]


class Parser(argparse.ArgumentParser):
    """The parser of argparse, for subcommands too, whose errors are one line and suggest what was meant."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with code 2."""
        self.exit(2, f"geomtx: error: {' '.join(message.split())} ({self.prog} --help shows the options)\n")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse all arguments; an option that does not exist is an error that names those that are spelt alike."""
        arguments, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parser = self._parser_of(getattr(arguments, "command", None))
            # Without the dashes, which would make any two short names alike.
            known = {name.lstrip("-"): name for action in parser._actions for name in action.option_strings}
            option = next((each.partition("=")[0] for each in unknown if each.startswith("-")), "")
            hint = re.sub(r"'([^']+)'", lambda bare: f"'{known[bare[1]]}'", close_matches(option.lstrip("-"), known))
            parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return arguments

    def _parser_of(self, command: str | None) -> argparse.ArgumentParser:
        """Return the parser of a command, or this one where there is no such command."""
        choices = (action.choices for action in self._actions if isinstance(action, argparse._SubParsersAction))
        return next((parsers[command] for parsers in choices if parsers and command in parsers), self)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Require one of the choices of an argument; the error names those that are spelt alike."""
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            hint = close_matches(str(value), known)
            raise argparse.ArgumentError(action, f"invalid choice: {value!r} (choose from {', '.join(known)}){hint}")


def join_queries(argv: Iterable[str]) -> list[str]:
    """Write `--query -1,2,3` as `--query=-1,2,3`: argparse would take the numbers for an option."""
    joined: list[str] = []
    for argument in argv:
        if joined and joined[-1] == "--query" and re.match(r"-[\d.]", argument):
            joined[-1] = f"--query={argument}"
        else:
            joined.append(argument)
    return joined


def parse_name(text: str) -> str:
    """Return a path or a hub id as it is; an empty one, which would mean the current folder, is an error."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def parse_list(text: str) -> tuple[str, ...]:
    """Return names that are separated by commas, each once."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",")))


def parse_names(text: str, *, known: Sequence[str]) -> tuple[str, ...]:
    """Return known names that are separated by commas, each once."""
    names = parse_list(text)
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(
                f"must be of {', '.join(known)}, separated by commas, got '{name}'{close_matches(name, known)}"
            )
    return names


def parse_count(text: str) -> int:
    """Return a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got '{text}'")
    return int(text)


def parse_positive(text: str) -> float:
    """Return a finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got '{text}'")
    return number


def parse_query(text: str) -> tuple[float, float, float]:
    """Return the number of a view and the pixel x, y in it."""
    try:
        view, x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be VIEW,X,Y, three numbers, got '{text}'") from None
    return view, x, y


def add_output(parser: argparse.ArgumentParser, what: str, default: str | None = None, *, rule: str = "") -> None:
    """Add the options of a command that writes: its folder and `--overwrite`.

    Args:
        parser: Parser of the command.
        what: Description of the folder in the help.
        default: Name of the folder where none is given; None where the command chooses one by `rule`.
        rule: Description of how the command chooses the folder, for the help.
    """
    parser.add_argument(
        "-o", "--output", type=_parse_folder, default=default, metavar="OUT", help=f"{what} ({default or rule})"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files in OUT that have names of results, whoever wrote them"
    )


def _parse_folder(text: str) -> Path:
    return user_path(parse_name(text))
