"""Checks of arguments, each of which raises a ValueError of one line, "NAME must …, got …", and suggestions for
misspelt names; and names in the text of an error.
"""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Kind = TypeVar("Kind")

_MOST_NAMED = 3

__all__ = [
    "check_at_least",
    "check_count",
    "check_divisible",
    "check_finite_positive",
    "check_floating",
    "check_images",
    "check_mask",
    "check_name",
    "check_option",
    "check_positive",
    "check_range",
    "check_shape",
    "close_matches",
    "enumerate_names",
    "match_names",
    "suggest_keywords",
]


def check_shape(name: str, tensor: Tensor, *shapes: Sequence[int | str]) -> None:
    """Require a tensor to have one of several shapes.

    Example: `check_shape("images", images, ("S", 3, "H", "W"), ("B", "S", 3, "H", "W"))`.

    Args:
        name: Name of the argument.
        tensor: Tensor to check.
        shapes: Shapes that are allowed. A number is the exact size of an axis, a string an axis of any size, and "..."
            in front any number of axes.
    """
    _check_tensor(name, tensor)
    if any(_matches(tuple(tensor.shape), tuple(shape)) for shape in shapes):
        return
    wanted = " or ".join("(" + ", ".join(map(str, shape)) + ")" for shape in shapes)
    raise ValueError(f"{name} must have shape {wanted}, got {tuple(tensor.shape)}")


def _matches(got: tuple[int, ...], want: tuple[int | str, ...]) -> bool:
    if want[0] == "...":
        want = want[1:]
        got = got[-len(want) :] if len(got) >= len(want) else ()
    return len(got) == len(want) and all(isinstance(w, str) or g == w for g, w in zip(got, want, strict=True))


def _check_tensor(name: str, value: object) -> None:
    """Require a tensor, known by what it can do, as torch is not imported here."""
    if not hasattr(value, "is_floating_point"):
        kind = type(value)
        found = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
        raise ValueError(f"{name} must be a tensor, got {found}")


def check_floating(name: str, tensor: Tensor) -> None:
    """Require a floating point tensor, as images are in [0, 1] and not in 0 … 255."""
    _check_tensor(name, tensor)
    if not tensor.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {tensor.dtype}")


def check_images(name: str, images: Tensor) -> None:
    """Require floating point images (B, S, 3, H, W), or (S, 3, H, W) of one scene."""
    check_shape(name, images, ("B", "S", 3, "H", "W"), ("S", 3, "H", "W"))
    check_floating(name, images)


def check_mask(name: str, mask: Tensor, *shapes: Sequence[int | str]) -> None:
    """Require a bool tensor of one of several shapes; integers and probabilities are refused."""
    check_shape(name, mask, *shapes)
    if str(mask.dtype) != "torch.bool":
        raise ValueError(f"{name} must be bool, got {mask.dtype}")


def check_option(name: str, value: object, options: Iterable[object]) -> None:
    """Require a value to be one of several options."""
    options = tuple(options)
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")


def check_name(name: str, value: str, known: Iterable[str]) -> None:
    """Require a known name; the error suggests names that are spelt alike."""
    known = tuple(known)
    if value not in known:
        hint = close_matches(str(value), known)
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}{hint}")


def suggest_keywords(cls: type[Kind]) -> type[Kind]:
    """Decorate a dataclass, so that a keyword that it does not have is an error with names that are spelt alike."""
    init = cls.__init__

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **values: Any) -> None:
        known = cls.__dataclass_fields__  # type: ignore[attr-defined]
        for name in values:
            if name not in known:
                raise TypeError(f"{cls.__name__} has no field {name!r}{close_matches(name, known)}")
        init(self, *args, **values)

    cls.__init__ = checked  # type: ignore[method-assign]
    return cls


def check_positive(name: str, value: float) -> None:
    """Require a positive number."""
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")


def check_finite_positive(name: str, value: float) -> None:
    """Require a finite positive number."""
    check_positive(name, value)
    _check_finite(name, value)


def check_at_least(name: str, value: float, low: float) -> None:
    """Require a finite number that is at least `low`."""
    if not value >= low:
        raise ValueError(f"{name} must be at least {low:g}, got {value}")
    _check_finite(name, value)


def check_count(name: str, value: int, low: int = 1) -> None:
    """Require a whole number that is at least `low`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"{name} must be a whole number, at least {low}, got {value!r}")


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Require a number from `low` to `high`, both included."""
    if not low <= value <= high:
        raise ValueError(f"{name} must be in {low:g} … {high:g}, got {value}")


def _check_finite(name: str, value: float) -> None:
    if math.isinf(value):
        raise ValueError(f"{name} must be finite, got {value}")


def check_divisible(name: str, value: float, divisor: int) -> None:
    """Require a multiple of a positive divisor."""
    if divisor < 1 or value % divisor != 0:
        raise ValueError(f"{name} must be a multiple of {divisor}, got {value}")


def close_matches(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message that suggests the known names closest to a misspelt one, or ""."""
    known = list(known)
    matches = _within(name, known) or difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, matches))}?" if matches else ""


def _within(pattern: str, known: Iterable[str]) -> list[str]:
    """Return the pattern with the shortest prefix that makes it match a known name, in a list; [] if none does."""
    parts = [name.split(".") for name in known]
    prefixes = {
        ".".join(part[:cut])
        for part in parts
        for cut in range(1, len(part))
        if fnmatchcase(".".join(part[cut:]), pattern)
    }
    return [f"{prefix}.{pattern}" for prefix in sorted(prefixes, key=lambda prefix: (prefix.count("."), prefix))[:1]]


def match_names(patterns: Iterable[str], names: Iterable[str], *, what: str) -> dict[str, list[str]]:
    """Return a mapping of each pattern to the names that it matches.

    Args:
        patterns: Shell patterns; "*" stands for any characters, dots included.
        names: Dotted names.
        what: Name of the argument that holds the patterns, for the error.

    Raises:
        ValueError: If a pattern matches nothing, or a string is given in place of a sequence of patterns.
    """
    if isinstance(patterns, str):
        raise ValueError(f"{what} must be a sequence of patterns, got {patterns!r}")
    names = list(names)
    matched = {pattern: [name for name in names if fnmatchcase(name, pattern)] for pattern in patterns}
    for pattern, found in matched.items():
        if not found:
            raise ValueError(f"{what} must match a name of the model, got '{pattern}'{close_matches(pattern, names)}")
    return matched


def enumerate_names(names: Sequence[str]) -> str:
    """Return the first three names in quotes, and how many more there are: "'a', 'b', 'c' and 2 more"."""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(f"'{name}'" for name in names[:_MOST_NAMED]) + more
