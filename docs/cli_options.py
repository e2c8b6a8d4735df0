"""Tables of options on docs/api/cli.md, made of the parser when the site is built (`hooks` in mkdocs.yml)."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[1] / "src"
sys.path.insert(0, str(SOURCE))

from geomtx.cli import build_parser  # noqa: E402 - of this checkout

PLACE = re.compile(r"<!-- options: (\w+) -->")


def on_page_markdown(markdown: str, **context: Any) -> str:
    """Called by mkdocs for every page."""
    markdown = markdown.replace("<!-- recipes -->", ", ".join(f"`{name}`" for name in recipe_names()))
    return PLACE.sub(lambda found: describe_command(found[1]), markdown)


def recipe_names() -> list[str]:
    """Configurations of `geomtx train` that come with the package."""
    return sorted(path.stem for path in (SOURCE / "geomtx" / "training" / "configs").glob("*.yaml"))


def describe_command(name: str) -> str:
    """How the command is called, and a table of its arguments with their defaults."""
    parser = command_parsers()[name]
    usage = " ".join(parser.format_usage().removeprefix("usage: ").replace("[-h] ", "").split())
    lines = [f"```\n{wrap(usage)}\n```\n", "| option | meaning | default |", "|---|---|---|"]
    arguments = [action for group in parser._action_groups for action in group._group_actions]
    lines += [
        f"| {spell(action)} | {explain(action)} | {describe_default(action)} |"
        for action in arguments
        if not isinstance(action, argparse._HelpAction)
    ]
    return "\n".join(lines) + "\n"


def command_parsers() -> dict[str, argparse.ArgumentParser]:
    """Name → parser of each command."""
    (commands,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(commands.choices)


def wrap(usage: str, width: int = 88) -> str:
    """Usage in lines that fit the page, broken between arguments."""
    lines = [""]
    for part in re.findall(r"\[[^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*\]|\([^()]*\)|\S+", usage):
        if len(lines[-1]) + len(part) >= width:
            lines.append("   ")
        lines[-1] += f" {part}" if lines[-1] else part
    return "\n".join(lines)


def spell(action: argparse.Action) -> str:
    """The argument's names, and what it takes."""
    names = [f"`{name}`" for name in action.option_strings]
    if not names:
        return f"`{action.metavar or action.dest}`"
    takes = action.metavar or (f"{{{','.join(map(str, action.choices))}}}" if action.choices else "")
    if takes:
        names[-1] = f"`{action.option_strings[-1]} {takes}`"
    return ", ".join(names)


def explain(action: argparse.Action) -> str:
    """The help without the default in brackets at its end, which has a column of its own."""
    text = action.help or ""
    default = describe_default(action).strip("`")
    return (text.removesuffix(f" ({default})") if default else text).replace("|", "\\|")


def describe_default(action: argparse.Action) -> str:
    """The parser's own; none for flags, and where the help says what takes its place."""
    if action.required or any(action.default is nothing for nothing in (None, False, argparse.SUPPRESS)):
        return ""
    value = action.default
    if isinstance(value, list):
        return ""
    return f"`{int(value) if isinstance(value, float) and value.is_integer() else value}`"
