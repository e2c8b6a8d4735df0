"""Where the observations, views, points and parameters of a bundle adjustment lie.

Observations lie in rows of a fixed length, each of one view, so that all that belongs to a view is one number a row and
sums over views are batched matrix products. Scenes of a batch lie one behind the other in the same rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.types import Float, Int, show_shapes

__all__ = ["ROW", "Layout", "lay_out"]

ROW = 128
"""Number of observations in a row: short enough that views with few observations waste little."""
_LARGEST_MATRIX = 1 << 25  # numbers of the matrix of which the Schur complement is a product: 256 MiB of float64


@show_shapes
class Layout(NamedTuple):
    """Where observations, views, points and parameters of a problem lie; the same for all steps.

    Attributes:
        sizes: Numbers of scenes B, of views S, of points N, of parameters P of the cameras of a scene.
        view: View of each row, (T,), from 0 to B·S - 1.
        scene: Scene of each row, (T,).
        point: Point of each place, (T·L,), from 0 to B·N - 1.
        coords_px: Observations less the principal point, (T, 2, L).
        weight: Weights, (T, L); 0 at places without an observation.
        group: Group of focal lengths of each view, (V,).
        block: Place of each view's A parameters among those of all scenes, (V, A): rotation, translation, focal.
        free: Whether each parameter of the cameras is refined, (B, P) as 1 and 0.
        chunks: Consecutive rows and the points that they see: (first row, last row + 1, first point, number).
        scatter: Place of each product of a parameter and a point in the matrix of its chunk, (T_c, A, 3, L) a chunk.
    """

    sizes: tuple[int, int, int, int]
    view: Int[Tensor, " t"]
    scene: Int[Tensor, " t"]
    point: Int[Tensor, " k"]
    coords_px: Float[Tensor, "t 2 l"]
    weight: Float[Tensor, "t l"]
    group: Int[Tensor, " v"]
    block: Int[Tensor, "v a"]
    free: Float[Tensor, "b p"]
    chunks: tuple[tuple[int, int, int, int], ...]
    scatter: tuple[Tensor, ...]


def lay_out(
    view: Int[Tensor, "b m"],
    point: Int[Tensor, "b m"],
    observed: tuple[Float[Tensor, "b m 2"], Float[Tensor, "b m"]],
    *,
    sizes: tuple[int, int, int],
    block: Int[Tensor, "s a"],
    free: Float[Tensor, "b p"],
    group: Int[Tensor, " v"],
) -> Layout:
    """Sort observations into rows of one view each.

    Args:
        view: View of each observation within its scene.
        point: Point of each observation within its scene.
        observed: Coordinates of the observations in pixels less the principal point, and their weights.
        sizes: Numbers of scenes, views and points.
        block: Place of each view's parameters among those of its scene.
        free: Whether each parameter is refined, as 1 and 0.
        group: Group of focal lengths of each view of all scenes.
    """
    (num_scenes, num_views, num_points), num_parameters = sizes, free.shape[1]
    device = view.device
    scene = torch.arange(num_scenes, device=device)[:, None]
    flat_view, flat_point = (view + num_views * scene).flatten(), (point + num_points * scene).flatten()
    at_once = max(1, min(num_points, _LARGEST_MATRIX // max(1, 3 * num_scenes * num_parameters)))
    num_chunks = -(-num_points // at_once)
    key = flat_view if num_chunks == 1 else flat_view + num_scenes * num_views * (point // at_once).flatten()
    source, filled, row_key, ends = _fill_rows(key, num_scenes * num_views * num_chunks)
    row_view = row_key % (num_scenes * num_views)
    coords, weight = (each.flatten(0, 1)[source] for each in observed)
    weight = torch.where(filled, weight, 0.0).unflatten(0, (-1, ROW))
    # Coordinates that don't count may be NaN.
    coords = torch.where(weight[:, None] > 0, coords.unflatten(0, (-1, ROW)).mT, 0.0)
    chunks = [(0, len(row_view), 0, num_points)]
    if num_chunks > 1:
        bounds = [0, *(int(end) for end in ends[num_scenes * num_views - 1 :: num_scenes * num_views])]
        starts = range(0, num_points, at_once)
        chunks = [
            (first, last, start, min(at_once, num_points - start))
            for first, last, start in zip(bounds, bounds[1:], starts, strict=False)
        ]
    flat_block = (block[None] + num_parameters * scene[..., None]).flatten(0, 1)
    layout = Layout(
        (num_scenes, num_views, num_points, num_parameters),
        *(row_view, row_view // num_views, flat_point[source], coords.contiguous(), weight),
        *(group, flat_block, free, tuple(chunks), ()),
    )
    return layout._replace(scatter=tuple(_place_products(layout, *chunk) for chunk in chunks))


def _fill_rows(key: Tensor, num_keys: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Put numbers of one key each into rows.

    Returns:
        For each place of all rows the index of what lies there, and whether something does; the key of each row; and
        the number of rows up to each key.
    """
    num = len(key)
    order = torch.argsort(key, stable=True)
    counts = key.new_zeros(num_keys).index_add_(0, key, torch.ones_like(key))
    rows = (counts + ROW - 1) // ROW
    ends = rows.cumsum(0)
    ordered = key[order]
    rank = torch.arange(num, device=key.device) - (counts.cumsum(0) - counts)[ordered]
    place = (ends - rows)[ordered] * ROW + rank
    # No more rows are needed, and the host need not ask the device how many are.
    num_rows = num // ROW + min(num_keys, num)
    source = key.new_zeros(num_rows * ROW).scatter_(0, place, order)
    filled = torch.zeros_like(source, dtype=torch.bool).scatter_(0, place, True)
    row_key = torch.searchsorted(ends, torch.arange(num_rows, device=key.device), right=True).clamp(max=num_keys - 1)
    return source, filled, row_key, ends


def _place_products(layout: Layout, first: int, last: int, start: int, count: int) -> Tensor:
    """Return the place of each product in the matrix (B, P, 3, count) of a chunk."""
    num_points = layout.sizes[2]
    row = layout.block[layout.view[first:last]] * (3 * count)
    column = layout.point[first * ROW : last * ROW] % num_points - start
    # Places without an observation may name a point of another chunk.
    column = column.clamp(0, count - 1).unflatten(0, (-1, ROW))
    axis = count * torch.arange(3, device=row.device)
    return row[:, :, None, None] + axis[:, None] + column[:, None, None]
