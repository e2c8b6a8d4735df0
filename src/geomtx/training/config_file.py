"""Training configurations as YAML: strict, with overrides from the command line."""

from __future__ import annotations

import dataclasses
import os
import types
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from geomtx.models.config import VGGTConfig
from geomtx.training.config import TrainingConfig
from geomtx.training.names import close_matches
from geomtx.training.requirements import import_extra

__all__ = ["load_config", "parse_config", "save_config", "shipped_configs"]


def load_config(source: str | os.PathLike[str], overrides: Iterable[str] = ()) -> TrainingConfig:
    """Read a configuration.

    Args:
        source: A YAML file, or the name of a shipped configuration ("nano", "finetune").
        overrides: "dotted.key=value" each, the value in YAML.

    Raises:
        ValueError: For broken YAML, an unknown key (named with its path, and with what it may have been meant to be),
            and a value of another type or out of range.
        FileNotFoundError: If there is no such file or name.
    """
    yaml = import_extra("yaml")
    shipped = shipped_configs()
    if str(source) in shipped:
        text = shipped[str(source)]
    elif Path(source).is_file():
        text = Path(source).read_text(encoding="utf-8")
    else:
        raise FileNotFoundError(f"config must be a YAML file or one of {', '.join(shipped)}, got '{source}'")
    values = _read_yaml(yaml, text, str(source))
    if not isinstance(values, dict):
        raise ValueError(f"config must be a mapping of keys, got '{source}' with {type(values).__name__}")
    for override in overrides:
        _set_value(values, override, yaml)
    return parse_config(values)


def shipped_configs() -> dict[str, str]:
    """Name → text of the configurations that come with geomtx."""
    folder = resources.files("geomtx.training") / "configs"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name)
    return {file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8") for file in files}


def save_config(config: TrainingConfig, path: Path) -> None:
    """Write all values as YAML, those that are defaults too."""
    yaml = import_extra("yaml")
    text = yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True, width=120)
    path.write_text(text, encoding="utf-8")


def parse_config(values: dict[str, Any]) -> TrainingConfig:
    """The configuration of plain values; the inverse of `TrainingConfig.to_dict`. Errors as in `load_config`."""
    config = _parse_section(TrainingConfig, values, "")
    known = [field.name for field in dataclasses.fields(VGGTConfig)]
    for key in config.model.numbers:
        if key not in known:
            raise ValueError(_unknown_key(f"model.numbers.{key}", key, known))
    return config


def _read_yaml(yaml: Any, text: str, source: str) -> Any:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"config must be YAML, got '{source}' with {' '.join(str(error).split())}") from error
    return {} if values is None else values


def _set_value(values: dict[str, Any], override: str, yaml: Any) -> None:
    """Put "a.b=value" into nested values."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ValueError(f"--set must be like optimiser.lr=1e-4, got '{override}'")
    *parents, key = path.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ValueError(f"--set must name a key, got '{override}', where {parent} holds no keys")
    values[key] = _read_yaml(yaml, text, override) if text else None


def _unknown_key(path: str, key: str, known: Iterable[str]) -> str:
    known = list(known)
    return f"config key must be one of {', '.join(known)}, got '{path}'{close_matches(key, known)}"


def _parse_section(section: Any, values: Any, path: str) -> Any:
    """A dataclass of nested values."""
    if not isinstance(values, dict):
        raise ValueError(f"{path} must be a mapping of keys, got {values!r}")
    hints = get_type_hints(section)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(section)}
    for key in values:
        if key not in fields:
            raise ValueError(_unknown_key(f"{path}{'.' if path else ''}{key}", str(key), fields))
    prefix = f"{path}." if path else ""
    for field in dataclasses.fields(section):
        if field.name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{prefix}{field.name} must be given, got none")
    return section(**{key: _parse_value(fields[key], value, f"{prefix}{key}") for key, value in values.items()})


def _parse_value(kind: Any, value: Any, path: str) -> Any:
    """A value of the annotated type, from what YAML has for it."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _parse_section(kind, value, path)
    if origin in (Union, types.UnionType):
        inner = next(part for part in parts if part is not type(None))
        return None if value is None else _parse_value(inner, value, path)
    if origin is Literal:
        if value not in parts:
            raise ValueError(f"{path} must be one of {', '.join(map(repr, parts))}, got {value!r}")
        return value
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{path} must be a mapping, got {value!r}")
        return {_parse_scalar(parts[0], k, path): _parse_value(parts[1], v, f"{path}.{k}") for k, v in value.items()}
    if origin is tuple:
        return _parse_tuple(parts, value, path)
    return _parse_scalar(kind, value, path)


def _parse_tuple(parts: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{path} must be a list, got {value!r}")
    if parts[-1] is Ellipsis:
        return tuple(_parse_value(parts[0], item, path) for item in value)
    if len(value) != len(parts):
        raise ValueError(f"{path} must have {len(parts)} values, got {value!r}")
    return tuple(_parse_value(part, item, path) for part, item in zip(parts, value, strict=True))


def _parse_scalar(kind: type, value: Any, path: str) -> Any:
    if kind is float and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 takes 1e-4, without a point, for a string
        except (TypeError, ValueError):
            pass
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    wanted = {float: "a number", int: "a whole number", bool: "true or false", str: "a string"}[kind]
    raise ValueError(f"{path} must be {wanted}, got {value!r}")
