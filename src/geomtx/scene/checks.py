"""Checks of a scene: whether its query points lie in the photos, whether it fits into memory, and whether its
predictions make sense.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_shape
from geomtx.inference.plan import LEAN_PLAN, PassSize, estimate_bytes, free_bytes, is_known
from geomtx.scene.scene import Scene
from geomtx.types import Float
from geomtx.views import ViewTransform
from geomtx.views.transform import lies_inside

__all__ = [
    "check_scene_memory",
    "queries_to_model",
    "require_usable",
    "warn_of_size",
    "warn_of_unusable",
]


def queries_to_model(
    query_points: Tensor,
    transforms: Sequence[ViewTransform],
    names: Sequence[str],
) -> Float[Tensor, "n 3"]:
    """Check query points and map them into the model's images.

    Args:
        query_points: (N, 3) as (view, x, y) in original pixels.
        transforms: Transforms of the S views.
        names: Names of the S views, for messages.

    Returns:
        Query points (N, 3) as (view, x, y) in pixels of the model's images.

    Raises:
        ValueError: If the view of a query doesn't exist, or the query lies outside its photo or in a part of the photo
            that was cropped away.
    """
    check_shape("query_points", query_points, ("N", 3))
    if len(query_points) == 0:
        raise ValueError("query_points must have at least one point, got none")
    return torch.stack(
        [_to_model(index, query, transforms, names) for index, query in enumerate(query_points.double())]
    ).float()


def _to_model(index: int, query: Tensor, transforms: Sequence[ViewTransform], names: Sequence[str]) -> Tensor:
    number, x, y = query.tolist()
    where = f"query {index} ({number:g}, {x:g}, {y:g})"
    if number not in range(len(transforms)):
        raise ValueError(f"{where} must name a view from 0 to {len(transforms) - 1}, got view {number:g}")
    view = int(number)
    height, width = transforms[view].original_hw
    if not lies_inside(query[1:], (height, width)):
        raise ValueError(f"{where} must lie inside {names[view]}, {width} x {height} pixels, got x {x:g}, y {y:g}")
    coords = transforms[view].from_original(query[1:])
    if not lies_inside(coords, transforms[view].image_hw):
        raise ValueError(f"{where} must lie in the part of {names[view]} that the model sees, but was cropped away")
    return torch.cat([query[:1], coords])


logger = logging.getLogger(__name__)

_STORED_BYTES = 4  # a pixel: 8-bit colours and mask of the scene, beside the views
_MAP_NUMBERS = {"camera": 0, "depth": 2, "sky": 1, "tracks": 0}  # a pixel, in float32; points and added heads have 4


def check_scene_memory(
    model: Any,
    image_hw: tuple[int, int],
    heads: Sequence[str],
    device: torch.device,
    *,
    num_views: int,
    at_once: int,
    element_size: int,
) -> None:
    """Refuse a scene that can't fit into what is free, however its pass is divided.

    What is counted is a lower bound: the views themselves are there already, and the estimate for the pass may be twice
    of what it takes.

    Args:
        model: The model, on any device, also on "meta", see `estimate_bytes`; of models whose memory isn't known only
            the results are counted.
        image_hw: Height and width of the images in pixels.
        heads: Names of the heads that run.
        device: Device that the model runs on.
        num_views: Number of views of the scene.
        at_once: Number of views of a pass on this device.
        element_size: Bytes of a number in the model's precision.

    Raises:
        ValueError: With what is needed and what is free.
    """
    pixels = math.prod(image_hw)
    numbers = sum(_MAP_NUMBERS.get(head, 4) for head in heads)
    host = num_views * pixels * (_STORED_BYTES + 4 * numbers)
    size = PassSize(at_once, image_hw, tuple(heads), element_size=element_size, device=device.type)
    # Networks of one model run one after the other.
    passes = [(each.model, size._replace(heads=each.heads)) for each in getattr(model, "networks", {}).values()]
    known = (estimate_bytes(each, LEAN_PLAN, own) // 2 for each, own in passes or [(model, size)] if is_known(each))
    on_device = max(known, default=0)
    needed = {torch.device("cpu"): host}
    # On the CPU both are in the same memory, and the estimate has the maps of the pass in it.
    needed[device] = max(host, on_device) if device.type == "cpu" else on_device
    for place, size_needed in needed.items():
        free = free_bytes(place)
        if free is not None and size_needed > free:
            raise ValueError(
                f"size of the images must be small enough for memory, got {image_hw[1]}x{image_hw[0]}: "
                f"{num_views} views need at least {size_needed / 2**30:.3g} GiB on {place}, and {free / 2**30:.3g} GiB "
                "are free; use a smaller size (--size), fewer photos or windows (--window)"
            )


def warn_of_size(config: Any, image_hw: tuple[int, int]) -> None:
    """Log a warning for images more than twice as large as those that a model is made for."""
    made_for, side = getattr(config, "image_size", None), max(image_hw)
    if made_for and side > 2 * made_for:
        logger.warning(
            "images of %d pixels are %.1f times as large as those that the model is made for (%d pixels): it takes "
            "long, and the results may be worse than with smaller images (size=, --size)",
            side,
            side / made_for,
            made_for,
        )


_LONGEST_FOCAL = 100  # sides of the image, a field of view of half a degree
_MAX_NAMED = 20


class _Prediction(NamedTuple):
    """One kind of prediction, and whether some and whether all of its numbers are finite in each view, (S,) bool."""

    name: str
    some: Tensor
    all: Tensor


def require_usable(scene: Scene, advice: str = "the weights may be damaged") -> None:
    """Require some finite numbers of each kind of prediction that a scene has.

    Args:
        scene: Scene to check.
        advice: End of the error message, which says what to do.

    Raises:
        ValueError: If one of them is NaN or infinite in every view, or no view has focal lengths above 0, as where the
            points of a model that predicts no focal lengths fit no camera.
    """
    failed = [each.name for each in _predictions(scene) if not each.some.any()]
    if failed:
        raise ValueError(f"predictions must be finite, got NaN or infinity everywhere in {', '.join(failed)}; {advice}")
    positive = _has_positive_focal(scene)
    if positive is not None and not positive.any():
        raise ValueError(f"predicted focal lengths must be above 0, got none such in any view; {advice}")


def warn_of_unusable(scene: Scene) -> None:
    """Log a warning that names the views with NaN or infinity in their predictions, or a focal length that can't be."""
    found: dict[int, list[str]] = {}
    for each in _predictions(scene):
        for view, finite in enumerate(each.all.tolist()):
            if not finite:
                found.setdefault(view, []).append(each.name)
    _warn_of_views(
        scene,
        "predictions are not finite",
        {view: f"{scene.names[view]} ({', '.join(each)})" for view, each in found.items()},
    )
    positive = _has_positive_focal(scene)
    if positive is not None:
        wrong = (~positive).nonzero().flatten().tolist()
        _warn_of_views(scene, "predicted focal lengths are not above 0", {view: scene.names[view] for view in wrong})
        cameras = scene.predictions.cameras
        assert cameras is not None, "which have the focal lengths"
        long = cameras.intrinsics[:, [0, 1], [0, 1]].amax(1) > _LONGEST_FOCAL * max(scene.images.shape[-2:])
        _warn_of_views(
            scene,
            f"predicted focal lengths are more than {_LONGEST_FOCAL} times as long as the image's side",
            {view: scene.names[view] for view in long.nonzero().flatten().tolist()},
        )


def _warn_of_views(scene: Scene, fault: str, views: Mapping[int, str]) -> None:
    """Log a warning that names views with a fault, the first of them; nothing without such views."""
    if views:
        named = [views[view] for view in sorted(views)[:_MAX_NAMED]]
        more = f" and {len(views) - _MAX_NAMED} more" if len(views) > _MAX_NAMED else ""
        logger.warning("%s in %d of %d views: %s%s", fault, len(views), len(scene), ", ".join(named), more)


def _has_positive_focal(scene: Scene) -> Tensor | None:
    """Return which views have focal lengths above 0, or none that are numbers, (S,) bool; None without cameras."""
    cameras = scene.predictions.cameras
    return None if cameras is None else ~(cameras.intrinsics[:, [0, 1], [0, 1]] <= 0).any(-1)


def _predictions(scene: Scene) -> Iterator[_Prediction]:
    """Return the predictions that a scene has; maps count within the masks."""
    cameras, _, depth, points, tracks, *_ = scene.predictions
    if cameras is not None:
        finite = cameras.cam_from_world.isfinite().flatten(1).all(1) & cameras.intrinsics.isfinite().flatten(1).all(1)
        yield _Prediction("camera", finite, finite)
    for name, maps in (("depth", depth), ("points", points)):
        if maps is not None and scene.masks.any():
            finite = maps.value.isfinite().reshape(*scene.masks.shape, -1).all(-1) & maps.confidence.isfinite()
            yield _Prediction(name, (finite & scene.masks).flatten(1).any(1), (finite | ~scene.masks).flatten(1).all(1))
    if tracks is not None and tracks.coords_px.numel():
        finite = tracks.coords_px.isfinite().all(-1)
        yield _Prediction("tracks", finite.any(1), finite.all(1))
