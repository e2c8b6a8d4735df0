"""Dataclasses from the plain values of YAML: every key known, every value of its field's type."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from geomtx.checks import close_matches

__all__ = ["parse_fields", "parse_section", "parse_value", "unknown_key"]


def unknown_key(path: str, key: str, known: Iterable[str]) -> str:
    """The error for a key that there isn't."""
    known = list(known)
    return f"config key must be one of {', '.join(known)}, got '{path}'{close_matches(key, known)}"


def parse_section(section: Any, values: Any, path: str) -> Any:
    """A dataclass of nested values.

    Args:
        section: Class of the dataclass.
        values: By field.
        path: Dotted, of the section, for errors.

    Raises:
        ValueError: For an unknown key, one that is missing, or a value of another type than the field's.
    """
    prefix = f"{path}." if path else ""
    fields = parse_fields(section, values, path)
    for field in dataclasses.fields(section):
        if field.name not in fields and field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{prefix}{field.name} must be given, got none")
    return section(**fields)


def parse_fields(section: Any, values: Any, path: str) -> dict[str, Any]:
    """The values of some fields of a dataclass, as `parse_section` has them."""
    if not isinstance(values, dict):
        raise ValueError(f"{path} must be a mapping of keys, got {values!r}")
    hints = get_type_hints(section)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(section)}
    prefix = f"{path}." if path else ""
    for key in values:
        if key not in fields:
            raise ValueError(unknown_key(f"{prefix}{key}", str(key), fields))
    return {key: parse_value(fields[key], value, f"{prefix}{key}") for key, value in values.items()}


def parse_value(kind: Any, value: Any, path: str) -> Any:
    """A value of the annotated type, from what YAML has for it. Errors as in `parse_section`."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return parse_section(kind, value, path)
    if origin in (Union, types.UnionType):
        inner = next(part for part in parts if part is not type(None))
        return None if value is None else parse_value(inner, value, path)
    if origin is Literal:
        if value not in parts:
            raise ValueError(f"{path} must be one of {', '.join(map(repr, parts))}, got {value!r}")
        return value
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{path} must be a mapping, got {value!r}")
        return {_parse_key(parts[0], k, path): parse_value(parts[1], v, f"{path}.{k}") for k, v in value.items()}
    if origin is tuple:
        return _parse_tuple(parts, value, path)
    if origin is Sequence:
        return _parse_tuple((parts[0], Ellipsis), value, path)
    return _parse_scalar(kind, value, path)


def _parse_tuple(parts: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{path} must be a list, got {value!r}")
    if parts[-1] is Ellipsis:
        return tuple(parse_value(parts[0], item, path) for item in value)
    if len(value) != len(parts):
        raise ValueError(f"{path} must have {len(parts)} values, got {value!r}")
    return tuple(parse_value(part, item, path) for part, item in zip(parts, value, strict=True))


def _parse_key(kind: type, key: Any, path: str) -> Any:
    """Keys of overrides are text, like the 2 of data.views.2=1."""
    return int(key) if kind is int and isinstance(key, str) and key.isdecimal() else _parse_scalar(kind, key, path)


def _parse_scalar(kind: type, value: Any, path: str) -> Any:
    if kind is float and not isinstance(value, bool):
        try:
            number = float(value)  # YAML 1.1 takes 1e-4, without a point, for a string
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{path} must be a number, got {value!r}") from None
        if not math.isfinite(number):
            raise ValueError(f"{path} must be a finite number, got {number}")
        return number
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    wanted = {float: "a number", int: "a whole number", bool: "true or false", str: "a string"}[kind]
    raise ValueError(f"{path} must be {wanted}, got {value!r}")
