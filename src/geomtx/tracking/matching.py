"""Maps of descriptors of two images → pixels that show the same (MASt3R, Leroy et al. 2024, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_count, check_finite_positive, check_shape
from geomtx.types import Float, Int, show_shapes

__all__ = [
    "DescriptorMaps",
    "Matches",
    "find_reciprocal",
    "follow_pixels",
    "join_passes",
    "match_descriptors",
    "match_pass",
    "mutual_neighbours",
    "pixel_grid",
]

# Descriptors of both images that are compared at a time: as many as a processor's cache holds, which takes less than
# half the time of all of the other image at once, or as many as keep an accelerator busy.
_TILE_OF_CPU, _TILE = (1024, 2048), (8192, 16384)


@show_shapes
class DescriptorMaps(NamedTuple):
    """Descriptors of both images of a pair as one pass of a model gives them.

    Attributes:
        first: Descriptors of the first image, (H₁, W₁, C); alike where their product is large.
        second: Descriptors of the second image, (H₂, W₂, C).
        confidence1: Confidence of the first image's descriptors, (H₁, W₁).
        confidence2: Confidence of the second image's descriptors, (H₂, W₂).
    """

    first: Float[Tensor, "h1 w1 c"]
    second: Float[Tensor, "h2 w2 c"]
    confidence1: Float[Tensor, "h1 w1"]
    confidence2: Float[Tensor, "h2 w2"]


@show_shapes
class Matches(NamedTuple):
    """Pixels of two images that show the same.

    Attributes:
        coords1_px: Pixels (x, y) of the first image, (M, 2) int64.
        coords2_px: Pixels of the second image, (M, 2) int64.
        confidence: Confidence of each match, (M,), which ranks them.
    """

    coords1_px: Int[Tensor, "m 2"]
    coords2_px: Int[Tensor, "m 2"]
    confidence: Float[Tensor, " m"]


def match_descriptors(
    maps: DescriptorMaps, swapped: DescriptorMaps | None = None, *, subsample: int = 8, max_rounds: int = 10
) -> Matches:
    """Return matches found from a grid of pixels of each image, without duplicates.

    Args:
        maps: Descriptors of the pass with the images in order.
        swapped: Descriptors of the same images, in the same order, of the pass with the images exchanged; its matches
            are added. Defaults to none.
        subsample: Distance of the pixels of the grid.
        max_rounds: Largest number of rounds, see `find_reciprocal`.

    Returns:
        Matches. The confidence is the smaller one of the two pixels with one pass, and the geometric mean of both with
        two; a match found more than once has that of the first pass that has it.
    """
    if swapped is not None:
        return join_passes([match_pass(each, subsample=subsample, max_rounds=max_rounds) for each in (maps, swapped)])
    coords1, coords2, own = _search(maps, subsample, max_rounds)
    return Matches(coords1, coords2, torch.minimum(*own))


def match_pass(maps: DescriptorMaps, *, subsample: int = 8, max_rounds: int = 10) -> Matches:
    """Return the matches of one of the two passes of a pair, whose confidence is the geometric mean of both pixels.

    Args:
        maps: Descriptors of the pass.
        subsample: Distance of the pixels of the grid that the search starts from.
        max_rounds: Largest number of rounds, see `find_reciprocal`.
    """
    coords1, coords2, own = _search(maps, subsample, max_rounds)
    return Matches(coords1, coords2, (own[0] * own[1]).sqrt())


def join_passes(passes: Sequence[Matches]) -> Matches:
    """Return the matches of several passes of one pair of images, each once, as the first pass has it.

    Args:
        passes: Matches of the same images in the same order.
    """
    coords1, coords2, confidence = (torch.cat(each) for each in zip(*passes, strict=True))
    size = 1 + int(torch.cat([coords1, coords2]).max()) if len(coords1) else 1
    (x1, y1), (x2, y2) = coords1.unbind(1), coords2.unbind(1)
    kept = _first_of_each(y1 * size + x1, y2 * size + x2, size * size)
    return Matches(coords1[kept], coords2[kept], confidence[kept])


def _search(maps: DescriptorMaps, subsample: int, max_rounds: int) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Return the matches from a grid of pixels of both images, and the confidences of their pixels."""
    _check(maps)
    flat1, flat2 = maps.first.flatten(0, 1), maps.second.flatten(0, 1)
    forth = find_reciprocal(flat1, flat2, pixel_grid(maps.first, subsample), max_rounds=max_rounds)
    back = find_reciprocal(flat2, flat1, pixel_grid(maps.second, subsample), max_rounds=max_rounds)
    first, second = torch.cat([forth[0], back[1]]), torch.cat([forth[1], back[0]])
    kept = _first_of_each(first, second, len(flat2))
    first, second = first[kept], second[kept]
    own = maps.confidence1.flatten()[first], maps.confidence2.flatten()[second]
    return _to_pixels(first, maps.first.shape[1]), _to_pixels(second, maps.second.shape[1]), own


def find_reciprocal(
    first: Float[Tensor, "n c"],
    second: Float[Tensor, "m c"],
    start: Int[Tensor, " k"],
    *,
    max_rounds: int = 10,
    by_distance: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return pairs of mutual nearest neighbours that are reached from some descriptors.

    Each descriptor goes to its nearest neighbour in the other image, and from there back, until it comes back to where
    it was. All of them move together.

    Args:
        first: Descriptors of the first image, (N, C).
        second: Descriptors of the second image, (M, C).
        start: Indices of the first image's descriptors to start from, (K,).
        max_rounds: Largest number of round trips; what has not come to rest by then is left out.
        by_distance: Whether the nearest is the one at the smallest distance, as of points in space, in place of the one
            with the largest product.

    Returns:
        Indices in the first and in the second image, (J,) each, without duplicates.
    """
    check_count("max_rounds", max_rounds)
    here, found1, found2 = start, [], []
    for _ in range(max_rounds):
        there = _nearest(first[here], second, by_distance=by_distance)
        back = _nearest(second[there], first, by_distance=by_distance)
        rests = back == here
        found1.append(here[rests])
        found2.append(there[rests])
        here = back[~rests].unique()
        if not len(here):
            break
    one, two = torch.cat(found1), torch.cat(found2)
    kept = _first_of_each(one, two, len(second))
    return one[kept], two[kept]


def mutual_neighbours(first: Float[Tensor, "n c"], second: Float[Tensor, "m c"]) -> tuple[Tensor, Tensor]:
    """Return all pairs of descriptors that are each other's nearest neighbours, as indices (J,) and (J,).

    Args:
        first: Descriptors of the first image, (N, C).
        second: Descriptors of the second image, (M, C).
    """
    there, back = _nearest(first, second), _nearest(second, first)
    here = torch.arange(len(first), device=first.device)
    mutual = back[there] == here
    return here[mutual], there[mutual]


def follow_pixels(
    maps: DescriptorMaps, coords_px: Int[Tensor, "k 2"], *, tolerance_px: float = 3.0
) -> tuple[Tensor, Tensor]:
    """Return where pixels of the first image are in the second one, for those that one round trip brings back.

    Args:
        maps: Descriptors of both images.
        coords_px: Pixels (x, y) of the first image, (K, 2) int64.
        tolerance_px: Distance in pixels from its start at which a round trip must end closer.

    Returns:
        The pixels of the first image that came back, (J, 2), and those of the second one, (J, 2).
    """
    _check(maps)
    check_shape("coords_px", coords_px, ("K", 2))
    check_finite_positive("tolerance_px", tolerance_px)
    width1, width2 = maps.first.shape[1], maps.second.shape[1]
    first, second = maps.first.flatten(0, 1), maps.second.flatten(0, 1)
    there = _nearest(first[coords_px[:, 1] * width1 + coords_px[:, 0]], second)
    back = _to_pixels(_nearest(second[there], first), width1)
    kept = (back - coords_px).double().norm(dim=1) < tolerance_px
    return coords_px[kept], _to_pixels(there[kept], width2)


def _check(maps: DescriptorMaps) -> None:
    check_shape("first", maps.first, ("H", "W", "C"))
    check_shape("second", maps.second, ("H", "W", maps.first.shape[-1]))
    check_shape("confidence1", maps.confidence1, tuple(maps.first.shape[:2]))
    check_shape("confidence2", maps.confidence2, tuple(maps.second.shape[:2]))


def pixel_grid(maps: Tensor, subsample: int) -> Int[Tensor, " k"]:
    """Return the indices, row by row, of every so many pixels of a map (H, W, …) along both axes, (K,).

    Args:
        maps: The map.
        subsample: Distance of the pixels.
    """
    check_count("subsample", subsample)
    height, width = maps.shape[:2]
    y, x = (torch.arange(subsample // 2, size, subsample, device=maps.device) for size in (height, width))
    return (y[:, None] * width + x).flatten()


def _nearest(queries: Tensor, others: Tensor, *, by_distance: bool = False) -> Tensor:
    """Return the index of the other descriptor with the largest product with each, the first one of those alike."""
    rows, columns = _TILE_OF_CPU if queries.device.type == "cpu" else _TILE
    # The product less half the other's square is largest where the distance is smallest.
    less = others.square().sum(1) / 2 if by_distance else None
    found = [queries.new_zeros(0, dtype=torch.long)]
    for some in queries.split(rows):
        largest = some.new_full((len(some),), -torch.inf)
        index = torch.zeros(len(some), dtype=torch.long, device=some.device)
        for start in range(0, len(others), columns):
            part = slice(start, start + columns)
            if less is None:
                product = some @ others[part].mT
            else:
                product = torch.addmm(less[part], some, others[part].mT, beta=-1)
            value, place = product.max(1)
            nearer = value > largest
            largest, index = torch.where(nearer, value, largest), torch.where(nearer, place + start, index)
        found.append(index)
    return torch.cat(found)


def _first_of_each(one: Tensor, two: Tensor, size: int) -> Tensor:
    """Return the place of the first appearance of each pair of indices, sorted by pair."""
    key = one * size + two
    order = key.argsort(stable=True)
    ranked = key[order]
    return order[ranked.diff(prepend=ranked[:1] - 1) != 0]


def _to_pixels(index: Tensor, width: int) -> Tensor:
    return torch.stack([index % width, index // width], dim=-1)
