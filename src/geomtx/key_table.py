"""A two-way table of parameter names."""

from __future__ import annotations

import dataclasses
import functools
import re

__all__ = ["KeyTable"]

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")


@dataclasses.dataclass(frozen=True)
class KeyTable:
    """Pairs of names, (published, geomtx); `{i}` stands for the same number on both sides, at most once a name.

    Tables of components are put together with `+` and `under`.
    """

    pairs: tuple[tuple[str, str], ...]

    @classmethod
    def of_layers(cls, layers: dict[str, str]) -> KeyTable:
        """A table of layers that have a weight and a bias each."""
        leaves = ("weight", "bias")
        return cls(tuple((f"{a}.{leaf}", f"{b}.{leaf}") for a, b in layers.items() for leaf in leaves))

    def __add__(self, other: KeyTable) -> KeyTable:
        return KeyTable(self.pairs + other.pairs)

    def under(self, published: str, geomtx: str) -> KeyTable:
        """The same table with prefixes; an empty prefix adds nothing."""

        def join(prefix: str, name: str) -> str:
            return f"{prefix}.{name}" if prefix else name

        return KeyTable(tuple((join(published, a), join(geomtx, b)) for a, b in self.pairs))

    def to_geomtx(self, name: str) -> str | None:
        """Our name of a published one; None if the table doesn't have it."""
        return _translate(name, self._forward)

    def to_published(self, name: str) -> str | None:
        """The published name of one of ours; None if the table doesn't have it."""
        return _translate(name, self._backward)

    @functools.cached_property
    def _forward(self) -> dict[str, str]:
        return dict(self.pairs)

    @functools.cached_property
    def _backward(self) -> dict[str, str]:
        return {b: a for a, b in self.pairs}


def _translate(name: str, table: dict[str, str]) -> str | None:
    if name in table:
        return table[name]
    for number in _NUMBER.finditer(name):
        template = table.get(f"{name[: number.start()]}{{i}}{name[number.end() :]}")
        if template is not None:
            return template.replace("{i}", number.group())
    return None
