"""Lengths of a scene beside those that are known of it: depth from a sensor, distances between cameras or points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from geomtx.checks import check_name, check_range, check_shape
from geomtx.geometry.camera import invert_rigid
from geomtx.scene.checks import queries_to_model
from geomtx.scene.known.cameras import match_views
from geomtx.scene.scene import Scene
from geomtx.types import DenseMap

__all__ = ["Distance", "KnownDepth", "Place", "depth_pairs", "distance_pairs"]

Place = int | str | Sequence[float]
"""A camera by the index or the name of its view, or the surface at (view, x, y) in original pixels."""
Distance = tuple[Place, Place, float]
"""Two places and the distance between them."""
KnownDepth = Tensor | Sequence[Tensor | DenseMap | None] | Mapping[str, Tensor | DenseMap]
"""Known depth of the views in their order, or by the names of the photos."""

_MOST_PIXELS = 20_000  # of a view; more would not change a scale


def depth_pairs(scene: Scene, depth: KnownDepth) -> tuple[Tensor, Tensor]:
    """Return predicted and known depth (N,) of the pixels that have both; of a view at most 20,000, evenly.

    Args:
        scene: Scene with depth.
        depth: Known depth, see `geomtx.align`.

    Raises:
        ValueError: If the scene has no depth, a map has another size, or no pixel has both.
    """
    if scene.predictions.depth is None:
        raise ValueError("scene must have depth to be aligned to depth, but the model ran without its depth head")
    if isinstance(depth, Mapping):
        maps, order = list(depth.values()), match_views(list(depth), scene.names, "depth")
        depth = [None if index is None else maps[index] for index in order]
    if len(depth) != len(scene):
        raise ValueError(f"depth must have one map per view ({len(scene)}), got {len(depth)}")
    pairs = [_view_pairs(scene, view, each) for view, each in enumerate(depth) if each is not None]
    source, known = (
        torch.cat([torch.empty(0, dtype=torch.float64), *(pair[part] for pair in pairs)]) for part in (0, 1)
    )
    if len(source) == 0:
        raise ValueError("depth must be finite and positive in a pixel that the scene has depth of, got none")
    return source, known


def _view_pairs(scene: Scene, view: int, known: Tensor | DenseMap) -> tuple[Tensor, Tensor]:
    known = torch.as_tensor(known.value if isinstance(known, DenseMap) else known).cpu()
    transform = scene.transforms[view]
    check_shape(f"depth of '{scene.names[view]}'", known, transform.original_hw, transform.image_hw)
    assert scene.predictions.depth is not None
    predicted, mask = scene.predictions.depth.value[view], scene.masks[view]
    if tuple(known.shape) == tuple(transform.original_hw):
        predicted = transform.depth_to_original(predicted)
        mask = transform.depth_to_original(mask, mode="nearest", fill=False)
    both = mask & known.isfinite() & (known > 0) & predicted.isfinite() & (predicted > 0)
    pixels = both.flatten().nonzero()[:, 0]
    pixels = pixels[:: max(1, -(-len(pixels) // _MOST_PIXELS))]
    return predicted.flatten()[pixels].double(), known.flatten()[pixels].double()


def distance_pairs(scene: Scene, distances: Any) -> tuple[Tensor, Tensor]:
    """Return lengths in the scene and known lengths (N,).

    Args:
        scene: Scene with cameras, and with depth or points for distances between points.
        distances: One known distance or several, see `geomtx.align`.

    Raises:
        ValueError: If a place is none of the scene's, has no finite point, or is the same as the other, or a length is
            not finite and positive.
    """
    several = [distances] if _is_distance(distances) else list(distances)
    if not several or not all(map(_is_distance, several)):
        raise ValueError(f"distance must be (a, b, length) or several of these, got {distances!r}")
    pairs = []
    for first, second, length in several:
        if not (math.isfinite(length) and length > 0):
            raise ValueError(f"distance must be finite and positive, got {length}")
        found = float((_find_place(scene, first) - _find_place(scene, second)).norm())
        if not found > 0:
            raise ValueError(f"distance must be between two different places, got {first} and {second}")
        pairs.append((found, float(length)))
    source, known = torch.tensor(pairs, dtype=torch.float64).unbind(-1)
    return source, known


def _is_distance(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) == 3 and isinstance(value[2], int | float)


def _find_place(scene: Scene, place: Place) -> Tensor:
    """Return the centre of a camera, or the point of a pixel, (3,) in float64."""
    if isinstance(place, str):
        check_name("place", place, scene.names)
        place = scene.names.index(place)
    if isinstance(place, int):
        if scene.predictions.cameras is None:
            raise ValueError("scene must have cameras for distances between them, but the model ran without them")
        check_range("view of a distance", place, 0, len(scene) - 1)
        found = invert_rigid(scene.predictions.cameras.cam_from_world[place].double())[:, 3]
    else:
        query = torch.tensor([list(place)], dtype=torch.float64)
        view, x, y = queries_to_model(query, scene.transforms, scene.names)[0].round().long().tolist()
        found = scene.point_map().value[view, y, x].double()
    if not found.isfinite().all():
        raise ValueError(f"distance must be between finite places, got {place}, of which nothing is predicted")
    return found
