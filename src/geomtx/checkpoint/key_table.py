"""Names of parameters: a two-way table, published ↔ geomtx, and names as wrappers of modules change them."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

__all__ = ["KeyTable", "Unwrapped", "drop_wrappers", "unwrap_names"]

# Parts of names that modules around modules add: DistributedDataParallel and DataParallel (also an averaged model),
# torch.compile, FSDP, activation checkpointing, Fabric.
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})

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

    def __contains__(self, name: str) -> bool:
        """Whether the table has a name, a published one or one of geomtx's."""
        return self.to_geomtx(name) is not None or self.to_published(name) is not None

    def describe(self, names: Iterable[str], heads: Mapping[Any, str]) -> tuple[str, tuple[str, ...]]:
        """Whose some tensors' names are, and the heads that they are of, see `geomtx.models.registry.Family`.

        Some names are the same in both, so those count that only one has.

        Args:
            names: Names of the tensors, published ones or geomtx's.
            heads: Name of a head → the attribute of the model that holds it.

        Returns:
            "published", "geomtx", or "unknown" if neither has half of the names; and the names of the heads.
        """
        names = tuple(names)
        theirs, ours = [self.to_geomtx(name) for name in names], [self.to_published(name) for name in names]
        published = sum(a is not None and b is None for a, b in zip(theirs, ours, strict=True))
        own = sum(b is not None and a is None for a, b in zip(theirs, ours, strict=True))
        parts = {(a or name).partition(".")[0] for a, name in zip(theirs, names, strict=True)}
        found = tuple(head for head, module in heads.items() if module in parts)
        if max(published, own) < len(names) / 2:
            return "unknown", found
        return "published" if published > own else "geomtx", found

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


class Unwrapped(NamedTuple):
    """The tensors of a file that belong to one model.

    Attributes:
        names: Stored name → name in the model, without the prefix that all share and without what wrappers add.
        prefix: Prefix of the stored names, "" or a text that ends in a point.
        ignored: Stored names that don't begin with the prefix, or that belong to another copy of the model.
    """

    names: dict[str, str]
    prefix: str
    ignored: tuple[str, ...]


def drop_wrappers(name: str, *, private: bool = False) -> str:
    """A parameter's name without the parts that wrappers of modules add: "encoder._orig_mod.norm" → "encoder.norm".

    Args:
        name: The name.
        private: Take only those off that no module of a user's own would have, which begin with "_".
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS or (private and part[0] != "_"))


def unwrap_names(names: Iterable[str], known: Callable[[str], bool]) -> Unwrapped:
    """Find the prefix under which a file has a model's tensors, and take it and the names of wrappers off.

    Args:
        names: Stored names.
        known: Says whether a name is the model's.

    Returns:
        The names as they are where none is the model's under any prefix. Names that aren't the model's keep what
        follows the prefix.

    Raises:
        ValueError: If there are several copies of the model, none of which is the averaged ("ema") one of another.
    """
    names = tuple(names)
    found = {name: split for name in names if (split := _split(name, known)) is not None}
    votes = Counter(prefix for prefix, _ in (_without_wrappers(split) for split in found.values()))
    if not votes:
        return Unwrapped(dict(zip(names, names, strict=True)), "", ())
    main = _choose_copy(votes)
    own = {name: split for name, split in found.items() if _without_wrappers(split)[0] == main}
    prefix = Counter(raw for raw, _ in own.values()).most_common(1)[0][0]
    unwrapped, ignored = {}, []
    for name in names:
        if name in own:
            unwrapped[name] = own[name][1]
        elif name in found or not name.startswith(prefix):
            ignored.append(name)
        else:
            unwrapped[name] = name.removeprefix(prefix)
    return Unwrapped(unwrapped, prefix, tuple(ignored))


def _split(name: str, known: Callable[[str], bool]) -> tuple[str, str] | None:
    """A stored name as a prefix and a name of the model's; None if no end of it is the model's."""
    parts = name.split(".")
    for start, part in enumerate(parts):
        if part in _WRAPPERS:
            continue
        rest = ".".join(parts[start:])
        for candidate in (rest, drop_wrappers(rest)):
            if known(candidate):
                return "".join(f"{each}." for each in parts[:start]), candidate
    return None


def _without_wrappers(split: tuple[str, str]) -> tuple[str, str]:
    prefix, name = split
    return "".join(f"{part}." for part in prefix.split(".") if part and part not in _WRAPPERS), name


def _choose_copy(votes: Counter[str]) -> str:
    """The prefix with most of the model; of equals none at all, else the only one that isn't an averaged copy's."""
    most = max(votes.values())
    best = [prefix for prefix, count in votes.items() if count == most]
    if len(best) == 1 or "" in best:
        return best[0] if len(best) == 1 else ""
    plain = [prefix for prefix in best if not re.search(r"(^|[._])ema($|[._])", prefix)]
    if len(plain) != 1:
        raise ValueError(f"names must be of one model, got several under {', '.join(map(repr, best))}; save one alone")
    return plain[0]
