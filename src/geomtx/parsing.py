"""Dataclasses from plain values, as YAML and JSON have them: every key is known, every value of its field's type."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from geomtx.checks import close_matches

__all__ = ["UnknownKeyError", "parse_dataclass", "parse_fields", "parse_value", "replace_fields"]

Value = TypeVar("Value")


class UnknownKeyError(ValueError):
    """An unknown key; the message has the known ones that are close to it.

    Args:
        path: Dotted path of the key.
        key: The key.
        known: Known keys.
    """

    def __init__(self, path: str, key: str, known: Iterable[str]) -> None:
        self.path, self.key, self.known = path, key, list(known)
        names = ", ".join(self.known)
        super().__init__(f"config key must be one of {names}, got '{path}'{close_matches(key, self.known)}")


def parse_dataclass(kind: type[Value], values: Any, path: str = "") -> Value:
    """Build a dataclass from nested plain values; fields that are not given have their defaults.

    Lists become tuples where the field is annotated as one, and mappings become dataclasses. Text becomes a number
    where one is wanted, as YAML 1.1 takes 1e-4 for text.

    Args:
        kind: The dataclass.
        values: Mapping of field names to plain values.
        path: Dotted path of the values within the configuration, for errors; defaults to the top.

    Raises:
        ValueError: For an unknown key, with names that are close to it; for a missing one, a value of another type, and
            for what the dataclass itself refuses. Messages begin with the path of the key.
    """
    fields = parse_fields(kind, values, path)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name not in fields and field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{_prefix(path)}{field.name} must be given, got none")
    return _construct(lambda: kind(**fields), path)


def replace_fields(value: Value, changes: Any, path: str) -> Value:
    """Return a copy of a dataclass with some fields replaced by plain values; arguments and errors as above."""
    fields = parse_fields(type(value), changes, path)
    return _construct(lambda: dataclasses.replace(value, **fields), path)  # type: ignore[type-var]


def _construct(build: Callable[[], Value], path: str) -> Value:
    """Call a constructor, whose errors begin with the name of a field."""
    try:
        return build()
    except UnknownKeyError as error:
        raise UnknownKeyError(f"{_prefix(path)}{error.path}", error.key, error.known) from error
    except ValueError as error:
        raise ValueError(f"{_prefix(path)}{error}") from error


def parse_fields(kind: type, values: Any, path: str) -> dict[str, Any]:
    """Parse the values of some fields of a dataclass; arguments and errors as for `parse_dataclass`."""
    if not isinstance(values, dict):
        raise ValueError(f"{path or 'config'} must be a mapping of keys, got {values!r}")
    hints = get_type_hints(kind)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            raise UnknownKeyError(f"{_prefix(path)}{key}", str(key), fields)
    return {key: parse_value(fields[key], value, f"{_prefix(path)}{key}") for key, value in values.items()}


def parse_value(kind: Any, value: Any, path: str) -> Any:
    """Parse one value.

    Args:
        kind: Annotated type: a dataclass, a scalar, an optional, literal, dict, tuple or sequence of these, or Any.
        value: Plain value.
        path: Dotted path of the value, for errors.

    Raises:
        ValueError: As for `parse_dataclass`.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else parse_dataclass(kind, value, path)  # type: ignore[arg-type]
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


def _prefix(path: str) -> str:
    return f"{path}." if path else ""


def _parse_tuple(parts: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{path} must be a list, got {value!r}")
    if parts[-1] is Ellipsis:
        return tuple(parse_value(parts[0], item, path) for item in value)
    if len(value) != len(parts):
        raise ValueError(f"{path} must have {len(parts)} values, got {value!r}")
    return tuple(parse_value(part, item, path) for part, item in zip(parts, value, strict=True))


def _parse_key(kind: type, key: Any, path: str) -> Any:
    """Keys that come from overrides are text, for instance the 2 in data.views.2=1."""
    return int(key) if kind is int and isinstance(key, str) and key.isdecimal() else _parse_scalar(kind, key, path)


def _parse_scalar(kind: type, value: Any, path: str) -> Any:
    if kind is float and not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{path} must be a number, got {value!r}") from None
        if not math.isfinite(number):
            raise ValueError(f"{path} must be a finite number, got {number}")
        return number
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    wanted = {float: "a number", int: "a whole number", bool: "true or false", str: "a string"}[kind]
    raise ValueError(f"{path} must be {wanted}, got {value!r}")
