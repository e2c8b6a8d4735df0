"""Known cameras as an input of a model or of its pairs' alignment, and the world of the scene that comes of them."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from torch import Tensor

from geomtx.checks import check_shape, enumerate_names
from geomtx.inference.pair_maps import PairModel
from geomtx.scene.align import align
from geomtx.scene.files.cameras import read_cameras
from geomtx.scene.known.cameras import KnownCameras, check_poses, select_views
from geomtx.scene.known.placing import check_can_align, intrinsics_of_views, place_cameras, use_intrinsics
from geomtx.scene.scene import Scene
from geomtx.types import Cameras
from geomtx.views import Views

__all__ = [
    "GivenCameras",
    "check_given",
    "in_held_world",
    "in_known_world",
    "known_of_views",
    "takes_cameras",
    "to_model",
]

GivenCameras = KnownCameras | Cameras | str | os.PathLike[str]
"""Known cameras by the names of the photos, of the views in their order, or as a file, see `read_cameras`."""


def takes_cameras(model: Any) -> bool:
    """Return whether known cameras are an input: of the model, for all views; of the alignment of pairs, for any."""
    return isinstance(model, PairModel) or bool(getattr(model, "takes_cameras", False))


def known_of_views(model: Any, views: Views, cameras: GivenCameras) -> KnownCameras:
    """Return known cameras of the views in their order, for a model that takes them.

    Args:
        model: The model.
        views: The views.
        cameras: Known cameras with intrinsics in pixels of the original photos.

    Raises:
        ValueError: For a model that takes none, and as `check_given`.
    """
    if not takes_cameras(model):
        raise ValueError(
            f"cameras must be None for this {type(model).__name__}, which takes none, got some; "
            "geomtx.align(scene, poses=…) brings a scene to known ones"
        )
    if isinstance(cameras, str | os.PathLike):
        cameras = read_cameras(cameras)
    if isinstance(cameras, Cameras):
        check_shape("cam_from_world", cameras.cam_from_world, (len(views), 3, 4))
        check_shape("intrinsics", cameras.intrinsics, (len(views), 3, 3))
        poses, intrinsics = (each.detach().double().cpu() for each in cameras)
        sizes = tuple(transform.original_hw for transform in views.transforms)
        cameras = KnownCameras(views.names, poses, intrinsics, sizes, units="metres")
    known = select_views(cameras, views.names)
    if known.cam_from_world is not None and not known.cam_from_world.isfinite().any():
        known = known._replace(cam_from_world=None)
    check_given(known, model)
    return known


def check_given(known: KnownCameras, model: Any) -> None:
    """Require known cameras that a model, or the alignment of its pairs, can take.

    Args:
        known: Known cameras of the views, see `select_views`.
        model: The model.

    Raises:
        ValueError: For poses that are no rotations, a single pose, and cameras that are all in one place; for a model
            that sees all views at once, also for photos without a pose or intrinsics.
    """
    if not isinstance(model, PairModel):
        _require_all(known)
    if known.cam_from_world is not None:
        check_poses("known poses", known.cam_from_world, known.names)
    check_can_align(known)


def _require_all(known: KnownCameras) -> None:
    for what, values in (("a pose", known.cam_from_world), ("intrinsics", known.intrinsics)):
        missing = known.names if values is None else _unknown(known.names, values)
        if missing:
            raise ValueError(
                f"known cameras must have {what} for all {len(known.names)} photos, as this model takes those of all "
                f"or none, got none for {enumerate_names(missing)}"
            )


def _unknown(names: tuple[str, ...], values: Tensor) -> list[str]:
    return [name for name, value in zip(names, values, strict=True) if not value.isfinite().all()]


def to_model(known: KnownCameras, views: Views) -> Cameras:
    """Return known cameras of all views as a model takes them, with the B axis and in pixels of its images.

    Args:
        known: Known cameras from `known_of_views`.
        views: The views.

    Raises:
        ValueError: If a known camera is of a photo of another shape.
    """
    intrinsics = intrinsics_of_views(known, views.transforms)
    assert known.cam_from_world is not None, "required"
    assert intrinsics is not None, "required"
    return Cameras(known.cam_from_world[None].float(), intrinsics[None].float())


def in_held_world(scene: Scene, known: KnownCameras) -> Scene:
    """Return a scene that was made around known poses as one in their unit, with the very poses in it.

    Args:
        scene: Scene in the world of the known poses.
        known: Known cameras of its views.
    """
    scene = place_cameras(scene, known)
    number = scene.provenance["known_poses"]
    made = {"world": "that of the known poses", "alignment": f"around the known poses {number}, which were held"}
    return replace(scene, units=known.units, provenance={**scene.provenance, **made})


def in_known_world(scene: Scene, known: KnownCameras) -> Scene:
    """Return a scene in the world and the unit of known cameras, which take the place of the predicted ones.

    Args:
        scene: Scene with predicted cameras.
        known: Known cameras of all its views.

    Raises:
        ValueError: As `geomtx.align`.
    """
    return place_cameras(use_intrinsics(align(scene, poses=known), known), known)
