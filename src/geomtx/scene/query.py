"""Query points: from pixels of an original photo to pixels of the model's image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from geomtx.checks import check_shape
from geomtx.types import Float
from geomtx.views import ViewTransform
from geomtx.views.transform import lies_inside

__all__ = ["queries_to_model"]


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
