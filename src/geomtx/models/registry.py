"""All families of models: which class some weights are for, and which weights are known by name."""

from __future__ import annotations

import fnmatch
import inspect
import os
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import nn

from geomtx.checkpoint.files import Checkpoint, SkippedInitialisation
from geomtx.inference.pair_maps import PairModel
from geomtx.models.da3 import DepthAnything3, NestedDepthAnything3
from geomtx.models.da3.keys import describe_da3, describe_nested, is_da3_name, is_nested_name
from geomtx.models.dust3r import CroCo, DUSt3R, MASt3R
from geomtx.models.dust3r.keys import describe_pairs, is_croco_name, is_dust3r_name
from geomtx.models.nvs import VGGTForNVS
from geomtx.models.omega import VGGTOmega
from geomtx.models.omega.keys import OMEGA_KEYS, describe_omega
from geomtx.models.pi3 import Pi3
from geomtx.models.pi3.keys import describe_pi3, is_pi3_name
from geomtx.models.published import NESTED_PAIRS, PUBLISHED, PublishedWeights, kind_of_names, open_weights
from geomtx.models.saved_model import build_heads, stored_kind
from geomtx.models.scene_model import SceneModel
from geomtx.models.vggt import VGGT
from geomtx.models.vggt.keys import VGGT_KEYS, describe_vggt, is_vggt
from geomtx.models.video_tracker import VideoTracker

__all__ = ["FAMILIES", "Family", "empty_model", "find_family", "list_models", "load_model"]


class Family(NamedTuple):
    """A class of models, as `load_model` finds it.

    Attributes:
        model: Class with `from_pretrained(source, device=…, dtype=…)`; its name is the "kind" in a `config.json`.
        is_name: Whether a name, published or geomtx's, is one of the model's tensors.
        describe: Function from the names of a checkpoint to whose they are, "published", "geomtx" or "unknown", and the
            names of the heads that it has tensors of, see `KeyTable.describe`.
        own_test: Whether the names of a checkpoint's tensors are this family's, for one without a line in
            `published.MARKS`.
    """

    model: Any
    is_name: Callable[[str], bool]
    describe: Callable[[Collection[str]], tuple[str, tuple[str, ...]]]
    own_test: Callable[[Collection[str]], bool] | None = None

    def recognises(self, names: Collection[str]) -> bool:
        """Return whether the names of a checkpoint's tensors are this family's, for files that say no kind."""
        return kind_of_names(names) == self.model.__name__ if self.own_test is None else self.own_test(names)

    @property
    def has_heads(self) -> bool:
        """Whether `from_pretrained` takes `heads`, the names of the heads to load."""
        return "heads" in inspect.signature(self.model.from_pretrained).parameters


def _has_part(*parts: str) -> Callable[[Collection[str]], bool]:
    """Whether each of some modules is among those that the names lead through."""
    return lambda names: all(any(part in name.split(".")[:-1] for name in names) for part in parts)


_VGGT = (VGGT_KEYS.__contains__, describe_vggt)

# The first that recognises a file takes it. So a model that contains another one is listed before that one.
FAMILIES = (
    Family(VGGTForNVS, *_VGGT, _has_part("ray_embedding", "rgb_head")),
    Family(NestedDepthAnything3, is_nested_name, describe_nested),
    Family(DepthAnything3, is_da3_name, describe_da3),
    Family(VGGTOmega, OMEGA_KEYS.__contains__, describe_omega),
    Family(Pi3, is_pi3_name, describe_pi3),
    Family(MASt3R, is_dust3r_name, describe_pairs),
    Family(DUSt3R, is_dust3r_name, describe_pairs),
    Family(CroCo, is_croco_name, describe_pairs),
    Family(VideoTracker, *_VGGT, _has_part("features", "refiner")),
    Family(VGGT, *_VGGT, is_vggt),
)
"""The families that geomtx has. A new one is a line here, one in `published.MARKS`, and one for each of its weights in
`published.PUBLISHED`."""


def load_model(
    source: str | os.PathLike[str],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    heads: tuple[str, ...] | None = None,
) -> nn.Module:
    """Load a model of any family; its class comes from the weights.

    Args:
        source: Name in `list_models()`, hub id, folder or file, see [Weights](../weights.md).
        device: Device of the parameters; defaults to the CPU.
        dtype: Type of the parameters; defaults to that in the file.
        heads: Names of the heads to load; defaults to all. For families with heads that can be left out.

    Returns:
        The model in evaluation mode, for instance a `VGGT`.

    Raises:
        ValueError: For weights of no family that geomtx knows, `heads` for a family that loads whole, and as
            `from_pretrained` of the class.
        FileNotFoundError: If there are no such weights.
    """
    family = find_family(source)
    if not family.has_heads and stored_kind(open_weights(source)) is None:
        raise ValueError(
            f"weights must have a configuration, got '{source}' with tensors of a {family.model.__name__} alone; the "
            "config.json that save_pretrained wrote belongs beside them"
        )
    options = {} if heads is None else {"heads": heads}
    if options and not family.has_heads:
        raise ValueError(f"heads must be None for weights of a {family.model.__name__}, got {heads!r}")
    model: nn.Module = family.model.from_pretrained(source, device=device, dtype=dtype, **options)
    return model


def empty_model(source: str | os.PathLike[str]) -> Any:
    """Return the model that some weights are of, on the meta device and without values; quick, for questions of size.

    Added heads whose classes geomtx doesn't know are left out.

    Raises:
        ValueError: For weights of no family that geomtx knows, and as `read_config` of the class.
        FileNotFoundError: If there are no such weights.
    """
    kind = find_family(source).model
    if not issubclass(kind, SceneModel | NestedDepthAnything3 | PairModel):
        kind = VGGT  # which says what it doesn't take
    with torch.device("meta"), SkippedInitialisation():
        model = kind(kind.read_config(source))
    if not issubclass(kind, PairModel) and str(source) not in NESTED_PAIRS:
        model.extra_heads.update(build_heads(open_weights(source)))
    return model


def find_family(source: str | os.PathLike[str]) -> Family:
    """Return the family of some weights: by their configuration, else by the names of their tensors.

    Raises:
        ValueError: If it is none that geomtx knows.
        FileNotFoundError: If there are no such weights.
    """
    if str(source) in NESTED_PAIRS:
        return next(family for family in FAMILIES if family.model is NestedDepthAnything3)
    checkpoint = open_weights(source)
    kind = stored_kind(checkpoint)
    for family in FAMILIES:
        if family.model.__name__ == kind or (kind is None and family.recognises(checkpoint.shapes)):
            return family
    families = ", ".join(family.model.__name__ for family in FAMILIES)
    raise ValueError(f"weights must be of one of {families}, got '{source}' {_describe(checkpoint, kind)}")


def _describe(checkpoint: Checkpoint, kind: str | None) -> str:
    first = ", ".join(list(checkpoint.shapes)[:3])
    return f"of a {kind}" if kind is not None else f"with tensors of other names, such as {first}"


def list_models(pattern: str = "*") -> list[PublishedWeights]:
    """Return the weights that are known by name, with class, number of parameters, size and licence.

    Args:
        pattern: Pattern of names as of a shell, with or without the owner on the hub: "vggt*" finds what
            "facebook/vggt*" finds. Letters of either case match. Defaults to all names.
    """
    return [weights for name, weights in PUBLISHED.items() if _matches(name.lower(), pattern.lower())]


def _matches(name: str, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(part, pattern) for part in (name, name.rpartition("/")[2]))
