"""Training configurations as YAML: strict, with overrides from the command line."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from geomtx.data.files import read_text
from geomtx.files import TRAINING_HEADER, user_path
from geomtx.models.vggt.config import VGGTConfig
from geomtx.parsing import parse_dataclass, parse_fields
from geomtx.training.config import TrainingConfig
from geomtx.training.distributed import import_extra
from geomtx.training.tasks.task import build_task

__all__ = ["CONFIG_FILE", "load_config", "parse_config", "save_config", "shipped_configs"]

CONFIG_FILE = "config.yaml"
"""Name of the configuration's file in the folder of a run."""


def load_config(source: str | os.PathLike[str], overrides: Iterable[str] = ()) -> TrainingConfig:
    """Read a configuration.

    Args:
        source: A YAML file, or the name of a configuration that comes with geomtx, for instance "nano" or "finetune".
        overrides: Values in place of the file's, "dotted.key=value" each, the value in YAML.

    Raises:
        ValueError: For broken YAML, an unknown key (with its path, and keys that are close to it), and a value of
            another type or out of range.
        FileNotFoundError: If there is no such file or name.
    """
    yaml = import_extra("yaml")
    shipped = shipped_configs()
    if str(source) in shipped:
        text = shipped[str(source)]
    elif user_path(source).is_file():
        text = read_text(user_path(source))
    else:
        raise FileNotFoundError(f"config must be a YAML file or one of {', '.join(shipped)}, got '{source}'")
    values = _read_yaml(yaml, text, str(source))
    values = {} if values is None else values  # an empty file
    if not isinstance(values, dict):
        raise ValueError(f"config must be a mapping of keys, got '{source}' with {type(values).__name__}")
    for override in overrides:
        _set_value(values, override, yaml)
    return parse_config(values)


def shipped_configs() -> dict[str, str]:
    """Return the configurations that come with geomtx, name → YAML."""
    folder = resources.files("geomtx.training") / "configs"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name)
    return {file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8") for file in files}


def save_config(config: TrainingConfig, path: Path) -> None:
    """Write all values as YAML, defaults included, unless the file has just these already."""
    yaml = import_extra("yaml")
    text = yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True, width=120)
    text = TRAINING_HEADER + text
    if not path.is_file() or path.read_bytes() != text.encode():
        path.write_text(text, encoding="utf-8", newline="\n")


def parse_config(values: dict[str, Any]) -> TrainingConfig:
    """Return the configuration of plain values, as `TrainingConfig.to_dict` makes them. Errors as for `load_config`."""
    config = parse_dataclass(TrainingConfig, values)
    build_task(config.model.kind, config.task)
    if config.model.kind == "vggt":  # other kinds have other numbers
        parse_fields(VGGTConfig, config.model.numbers, "model.numbers")
    return config


def _read_yaml(yaml: Any, text: str, source: str) -> Any:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"config must be YAML, got '{source}' with {' '.join(str(error).split())}") from error
    return values


def _set_value(values: dict[str, Any], override: str, yaml: Any) -> None:
    """Set the value of an override like "a.b=value" in nested values."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ValueError(f"--set must be like optimiser.lr=1e-4, got '{override}'")
    *parents, key = path.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ValueError(f"--set must name a key, got '{override}', where {parent} holds no keys")
    values[key] = _read_yaml(yaml, text, override)
