"""Cameras and observed points of a scene, as sparse models of COLMAP and the trainers that read them need them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.scene.content import SceneContent
from geomtx.scene.observations import ObservedPoints
from geomtx.scene.surfaces import are_cameras
from geomtx.types import Float, show_shapes

__all__ = ["LEAST_POINTS", "Box", "SparseModel", "build_sparse_model", "centred_boxes", "share_intrinsics"]

logger = logging.getLogger(__name__)

LEAST_POINTS = 10
"""Number of points that a view of a sparse model sees at least."""

Box = tuple[int, int, int, int]
"""Part of a photo that is kept: x from the first to before the third number, y from the second to before the fourth."""

_MOST_SKEW = 1e-3  # share of the focal length
_MAX_NAMED = 5


@show_shapes
class SparseModel(NamedTuple):
    """The views of a scene that see enough points, and these points.

    Attributes:
        views: Index of each of the V views in the scene.
        sizes: Height and width of each photo, cropped where boxes were given.
        cam_from_world: Poses, (V, 3, 4) float64.
        intrinsics: Intrinsics in pixels of the photos, pixel centres at integers, (V, 3, 3) float64.
        points: Points with the V views' observations.
        errors: Mean reprojection error of each point in pixels, (M,) float64.
    """

    views: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    cam_from_world: Float[Tensor, "v 3 4"]
    intrinsics: Float[Tensor, "v 3 3"]
    points: ObservedPoints
    errors: Float[Tensor, " m"]


def build_sparse_model(
    scene: SceneContent, observed: ObservedPoints, boxes: Sequence[Box] | None = None, *, least: int = LEAST_POINTS
) -> SparseModel:
    """Leave out views that see few points, or have no camera, with a warning that names them.

    Args:
        scene: Scene with cameras.
        observed: Its points, see `observe_points`.
        boxes: Part of each photo that is kept, see `centred_boxes`; defaults to whole photos.
        least: Number of points that a view must see; defaults to 10, 0 keeps all views that have a camera.

    Raises:
        ValueError: If the scene has no cameras, no view sees enough points, or a camera has skew, which the camera
            models of COLMAP have not.
    """
    poses, intrinsics = _cameras_of(scene)
    sizes = [transform.original_hw for transform in scene.transforms]
    if boxes is not None:
        sizes = [(bottom - top, right - left) for left, top, right, bottom in boxes]
        corners = torch.tensor([box[:2] for box in boxes], dtype=torch.float64)
        intrinsics[:, :2, 2] -= corners
        observed = _crop(observed, corners, torch.tensor(sizes, dtype=torch.float64))
    offsets = _project(observed, poses, intrinsics) - observed.coords_px
    observed = _keep(observed, offsets.isfinite().all(-1))
    counts = torch.bincount(observed.view, minlength=len(scene))
    usable = (counts >= least) & are_cameras(poses, intrinsics)
    kept = usable.nonzero()[:, 0]
    if not len(kept) or not len(observed.view):
        raise ValueError(f"no view sees {max(least, 1)} points or more, so that there is no sparse model to write")
    left_out = [name for name, good in zip(scene.names, usable.tolist(), strict=True) if not good]
    _warn_of_left_out(left_out, f"see fewer than {least} points" if least else "have no camera that can be used")
    skew = intrinsics[kept, 0, 1].abs() / intrinsics[kept, 0, 0]
    if (skew > _MOST_SKEW).any():
        raise ValueError(f"intrinsics must have no skew for COLMAP's cameras, got {skew.max():.3g} of the focal length")
    new = torch.full((len(scene),), -1)
    new[kept] = torch.arange(len(kept))
    points = _keep(observed._replace(view=new[observed.view]), new[observed.view] >= 0)
    views = tuple(kept.tolist())
    model = SparseModel(
        views, tuple(sizes[view] for view in views), poses[kept], intrinsics[kept], points, torch.empty(0)
    )
    return model._replace(errors=_mean_errors(model))


def centred_boxes(scene: SceneContent) -> tuple[Box, ...]:
    """Return the largest part of each photo whose centre is within half a pixel of the principal point.

    Photos whose camera is not finite, which sparse models leave out, stay whole.

    Args:
        scene: Scene with cameras.

    Raises:
        ValueError: If the scene has no cameras, or a principal point lies outside its photo.
    """
    _, intrinsics = _cameras_of(scene)
    boxes = []
    for name, transform, k in zip(scene.names, scene.transforms, intrinsics, strict=True):
        height, width = transform.original_hw
        if not k.isfinite().all():
            boxes.append((0, 0, width, height))
            continue
        spans = [_centred_span(k[axis, 2].item() + 0.5, size) for axis, size in ((0, width), (1, height))]
        if any(last - first < 2 for first, last in spans):
            raise ValueError(
                f"principal point of '{name}' must lie inside the photo to crop it, got {k[:2, 2].tolist()}"
            )
        (left, right), (top, bottom) = spans
        boxes.append((left, top, right, bottom))
    return tuple(boxes)


def share_intrinsics(scene: SceneContent) -> SceneContent:
    """Return the scene with the mean intrinsics, in original pixels, of all views whose cameras are finite.

    Args:
        scene: Scene with cameras, whose photos have one size.

    Raises:
        ValueError: If the scene has no cameras.
    """
    _, intrinsics = _cameras_of(scene)
    finite = intrinsics.isfinite().flatten(1).all(1)
    mean = intrinsics[finite].mean(0)
    shared = torch.stack([transform.intrinsics_from_original(mean) for transform in scene.transforms])
    cameras = scene.predictions.cameras
    assert cameras is not None
    return replace(scene, predictions=scene.predictions._replace(cameras=cameras._replace(intrinsics=shared)))


def _cameras_of(scene: SceneContent) -> tuple[Tensor, Tensor]:
    """Poses and intrinsics in original pixels, both in float64."""
    if scene.predictions.cameras is None:
        raise ValueError("scene must have cameras, but the model ran without its camera head")
    poses, intrinsics = (part.double() for part in scene.predictions.cameras)
    pairs = zip(scene.transforms, intrinsics, strict=True)
    return poses, torch.stack([transform.intrinsics_to_original(k) for transform, k in pairs])


def _centred_span(center: float, size: int) -> tuple[int, int]:
    """First pixel and the one after the last of the longest span around a position, which counts from the edge."""
    length = int(min(2 * center, 2 * (size - center), size) + 0.5)
    return (0, length) if 2 * center <= size else (size - length, size)


def _crop(observed: ObservedPoints, corners: Tensor, sizes: Tensor) -> ObservedPoints:
    """Move observations into cropped photos, and leave out those beside them."""
    coords = observed.coords_px - corners[observed.view]
    inside = ((coords >= -0.5) & (coords <= sizes[observed.view].flip(-1) - 0.5)).all(-1)
    return _keep(observed._replace(coords_px=coords), inside)


def _keep(observed: ObservedPoints, kept: Tensor) -> ObservedPoints:
    """Keep some observations, (K,) bool, and the points that have one."""
    points, point = observed.point[kept].unique(return_inverse=True)
    return ObservedPoints(
        observed.xyz[points],
        observed.rgb[points],
        observed.view[kept],
        point,
        observed.coords_px[kept],
        observed.confidence[kept],
    )


def _project(observed: ObservedPoints, poses: Tensor, intrinsics: Tensor) -> Tensor:
    """Projections (K, 2) of the points into the views that see them; NaN behind a camera.

    Entry by entry, so that the number of threads doesn't change them.
    """
    x, y, z = observed.xyz[observed.point].unbind(-1)
    pose, k = poses[observed.view], intrinsics[observed.view]
    u, v, depth = (pose[:, i, 0] * x + pose[:, i, 1] * y + pose[:, i, 2] * z + pose[:, i, 3] for i in range(3))
    depth = depth.where(depth > 0, torch.nan)
    return torch.stack([k[:, 0, 0] * u / depth + k[:, 0, 2], k[:, 1, 1] * v / depth + k[:, 1, 2]], dim=-1)


def _mean_errors(model: SparseModel) -> Tensor:
    """Mean reprojection error of each point in pixels."""
    points = model.points
    miss_x, miss_y = (_project(points, model.cam_from_world, model.intrinsics) - points.coords_px).unbind(-1)
    miss = (miss_x.square() + miss_y.square()).sqrt()
    count = torch.bincount(points.point, minlength=len(points.xyz))
    return torch.bincount(points.point, miss, minlength=len(points.xyz)) / count


def _warn_of_left_out(names: Sequence[str], why: str) -> None:
    if names:
        more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
        logger.warning("left out, as they %s: %s%s", why, ", ".join(names[:_MAX_NAMED]), more)
