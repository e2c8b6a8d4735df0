"""Errors and warnings for predictions that are not finite."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from geomtx.scene.scene import Scene

__all__ = ["require_finite", "warn_of_nonfinite"]

logger = logging.getLogger(__name__)

_MAX_NAMED = 20


class _Prediction(NamedTuple):
    """One kind of prediction, and whether some and whether all of its numbers are finite in each view, (S,) bool."""

    name: str
    some: Tensor
    all: Tensor


def require_finite(scene: Scene, advice: str = "the weights may be damaged") -> None:
    """Require some finite numbers of each kind of prediction that a scene has.

    Args:
        scene: Scene to check.
        advice: End of the error message, which says what to do.

    Raises:
        ValueError: If one of them is NaN or infinite in every view.
    """
    failed = [each.name for each in _predictions(scene) if not each.some.any()]
    if failed:
        raise ValueError(f"predictions must be finite, got NaN or infinity everywhere in {', '.join(failed)}; {advice}")


def warn_of_nonfinite(scene: Scene) -> None:
    """Log a warning that names the views with NaN or infinity in their predictions."""
    found: dict[int, list[str]] = {}
    for each in _predictions(scene):
        for view, finite in enumerate(each.all.tolist()):
            if not finite:
                found.setdefault(view, []).append(each.name)
    if found:
        named = [f"{scene.names[view]} ({', '.join(found[view])})" for view in sorted(found)[:_MAX_NAMED]]
        more = f" and {len(found) - _MAX_NAMED} more" if len(found) > _MAX_NAMED else ""
        logger.warning(
            "predictions are not finite in %d of %d views: %s%s", len(found), len(scene), ", ".join(named), more
        )


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
