"""What the configurations of all models have in common: they become plain values and come back from them."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from geomtx.parsing import parse_dataclass

__all__ = ["ModelConfig"]

Config = TypeVar("Config", bound="ModelConfig")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Base of the configurations of models."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings and lists, for JSON; the configuration of a model inside is a mapping."""
        return {field.name: _to_plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls: type[Config], values: dict[str, Any]) -> Config:
        """Build a configuration from what `to_dict` returns.

        Raises:
            ValueError: For an unknown key, a value of another type, or one that makes no model.
        """
        return parse_dataclass(cls, values)


def _to_plain(value: Any) -> Any:
    if isinstance(value, ModelConfig):
        return value.to_dict()
    return list(value) if isinstance(value, tuple) else value
