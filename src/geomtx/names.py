"""Patterns and misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

__all__ = ["close_matches", "match_names"]


def close_matches(name: str, known: Iterable[str]) -> str:
    """A question that ends an error: the name, or pattern, within a part that has it, else names that are alike."""
    known = list(known)
    matches = _within(name, known) or difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, matches))}?" if matches else ""


def _within(pattern: str, known: Iterable[str]) -> list[str]:
    """The pattern with what has to be before it to match, the shortest of those."""
    parts = [name.split(".") for name in known]
    prefixes = {
        ".".join(part[:cut])
        for part in parts
        for cut in range(1, len(part))
        if fnmatchcase(".".join(part[cut:]), pattern)
    }
    return [f"{prefix}.{pattern}" for prefix in sorted(prefixes, key=lambda prefix: (prefix.count("."), prefix))[:1]]


def match_names(patterns: Iterable[str], names: Iterable[str], *, what: str) -> dict[str, list[str]]:
    """Pattern → the names that it matches; "*" stands for any characters, dots too.

    Args:
        patterns: As of a shell.
        names: Dotted.
        what: Name of the patterns, for the error.

    Raises:
        ValueError: For a pattern that matches nothing, and a string in place of patterns.
    """
    if isinstance(patterns, str):
        raise ValueError(f"{what} must be a sequence of patterns, got {patterns!r}")
    names = list(names)
    matched = {pattern: [name for name in names if fnmatchcase(name, pattern)] for pattern in patterns}
    for pattern, found in matched.items():
        if not found:
            raise ValueError(f"{what} must match a name of the model, got '{pattern}'{close_matches(pattern, names)}")
    return matched
