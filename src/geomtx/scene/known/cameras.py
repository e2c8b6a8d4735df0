"""Cameras that are known before a reconstruction, and their match with the views of a scene by name."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.checks import enumerate_names
from geomtx.types import show_shapes

__all__ = [
    "KnownCameras",
    "check_poses",
    "match_views",
    "named_poses",
    "select_views",
    "warn_of_unknown",
]

logger = logging.getLogger(__name__)

_ROTATION_TOLERANCE = 1e-3


@show_shapes
class KnownCameras(NamedTuple):
    """Cameras of photos, by the photos' names. What is not known of one of them is NaN, what isn't of any is None.

    Attributes:
        names: Names of N photos.
        cam_from_world: Poses with OpenCV axes, (N, 3, 4) float64.
        intrinsics: Intrinsics in pixels of the upright photos, (N, 3, 3) float64, pixel centres at integers.
        image_hw: Height and width of each photo in pixels; None where it isn't known.
        units: Unit of lengths, "up to scale" where it is unknown.
        times: Seconds of N frames from the first of their video; () for photos.
    """

    names: tuple[str, ...]
    cam_from_world: Tensor | None
    intrinsics: Tensor | None
    image_hw: tuple[tuple[int, int] | None, ...]
    units: str = "up to scale"
    times: tuple[float, ...] = ()


def match_views(known: Sequence[str], names: Sequence[str], what: str) -> list[int | None]:
    """Return for each view the index of the known name that is the same, or has the same file name; None for no match.

    Args:
        known: Names that something is known of, with or without folders.
        names: Names of the views.
        what: Noun for what is known, for the error.

    Raises:
        ValueError: If a known name is there twice, or none of them matches a view.
    """
    _check_different(known, what)
    exact = {name: index for index, name in enumerate(known)}
    files = Counter(PurePosixPath(name).name for name in known)
    by_file = {PurePosixPath(name).name: index for index, name in enumerate(known)}
    own_files = Counter(PurePosixPath(name).name for name in names)
    found: list[int | None] = []
    for name in names:
        file = PurePosixPath(name).name
        alone = files[file] == own_files[file] == 1
        found.append(exact.get(name, by_file.get(file) if alone else None))
    if all(index is None for index in found):
        theirs, ours = enumerate_names(known), enumerate_names(names)
        raise ValueError(f"{what} must have the name of a photo, got {theirs} for the photos {ours}")
    return found


def select_views(known: KnownCameras, names: Sequence[str]) -> KnownCameras:
    """Return the known cameras of a scene's views in their order; NaN for those that have none.

    Raises:
        ValueError: See `match_views`.
    """
    order = match_views(known.names, names, "known cameras")
    return KnownCameras(
        names=tuple(names),
        cam_from_world=_pick(known.cam_from_world, order),
        intrinsics=_pick(known.intrinsics, order),
        image_hw=tuple(None if index is None else known.image_hw[index] for index in order),
        units=known.units,
    )


def warn_of_unknown(known: KnownCameras) -> None:
    """Log a warning that names the photos of which neither pose nor intrinsics are known.

    Args:
        known: Known cameras of a scene's views, see `select_views`.
    """
    parts = [part for part in (known.cam_from_world, known.intrinsics) if part is not None]
    found = torch.stack([part.isfinite().flatten(1).all(1) for part in parts]).any(0).tolist()
    missing = [name for name, is_known in zip(known.names, found, strict=True) if not is_known]
    if missing:
        logger.warning("%d of %d photos have no known camera: %s", len(missing), len(found), enumerate_names(missing))


def named_poses(known: KnownCameras) -> dict[str, Tensor]:
    """Return the name of each photo with a known pose → its pose (3, 4) in float64.

    Raises:
        ValueError: If there are none, or a name is there twice.
    """
    poses = known.cam_from_world
    finite = [] if poses is None else poses.isfinite().flatten(1).all(1).tolist()
    if poses is None or not any(finite):
        raise ValueError("known cameras must have poses to align a scene to, got none")
    names = [name for name, is_known in zip(known.names, finite, strict=True) if is_known]
    _check_different(names, "known cameras")
    return dict(zip(names, poses[torch.tensor(finite)], strict=True))


def check_poses(name: str, poses: Tensor, names: Sequence[str]) -> None:
    """Require rotations in the finite ones among poses (S, 3, 4), to a thousandth.

    Raises:
        ValueError: Naming the view.
    """
    rotation = poses[..., :3].double()
    off = (rotation @ rotation.mT - torch.eye(3, dtype=torch.float64)).abs().amax((-2, -1))
    determinant = torch.linalg.det(rotation.nan_to_num(0.0, 0.0, 0.0))
    finite = poses.isfinite().flatten(1).all(1)
    wrong = (finite & ((off > _ROTATION_TOLERANCE) | (determinant < 0))).nonzero()[:, 0].tolist()
    if wrong:
        view = wrong[0]
        raise ValueError(
            f"{name} must be [R | t] with rotations R, got a matrix of determinant {determinant[view]:.4g} that is "
            f"{off[view]:.2g} off an orthogonal one for '{names[view]}'"
        )


def _check_different(names: Sequence[str], what: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{what} must have different names, got '{twice[0]}' twice")


def _pick(values: Tensor | None, order: Sequence[int | None]) -> Tensor | None:
    if values is None:
        return None
    picked = values.new_full((len(order), *values.shape[1:]), torch.nan)
    for view, index in enumerate(order):
        if index is not None:
            picked[view] = values[index]
    return picked
