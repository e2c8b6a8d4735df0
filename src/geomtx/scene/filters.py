"""Which pixels of a scene take part: in clouds, in exports, and in what is computed from several views."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from geomtx.checks import check_range
from geomtx.geometry.edges import depth_edges
from geomtx.geometry.projection import project, unproject
from geomtx.scene.points import NoPointsError
from geomtx.types import Bool, DenseMap, Predictions

__all__ = [
    "PixelFilter",
    "PixelScene",
    "agreeing_pixels",
    "filter_pixels",
    "most_shared_view",
    "sky_pixels",
    "still_pixels",
    "valid_pixels",
]

AnyScene = TypeVar("AnyScene", bound=Any)

_BLUE, _WHITE, _SMOOTH = 0.35, 0.75, 0.06  # of colours in 0 … 1
_SAMPLE = 1024  # pixels of a view that say what it shares with others


@runtime_checkable
class PixelScene(Protocol):
    """What filters read of a scene, whose content is made with them."""

    @property
    def images(self) -> Tensor:
        """Images that the model saw, (S, 3, H, W) uint8."""

    @property
    def masks(self) -> Tensor:
        """Pixels of the photos, (S, H, W) bool."""

    @property
    def predictions(self) -> Predictions:
        """Predictions without the batch axis."""

    @property
    def moving(self) -> Tensor | None:
        """Pixels that move by themselves, (S, H, W) bool; None where nobody looked for them."""

    def point_map(self) -> DenseMap:
        """Return the point and the confidence of each pixel."""

    def __len__(self) -> int:
        """Return the number of views."""


class PixelFilter(NamedTuple):
    """What else than masks and confidence a pixel must pass to give a point.

    Attributes:
        edges: Whether pixels between two surfaces are left out, see `geomtx.geometry.depth_edges`. A scene without
            depth or cameras has no edges.
        min_confidence: Smallest confidence; None for any. Its range differs from model to model, which
            `Scene.points(percentile)` doesn't depend on.
        agreement: Share, 0 to 1, of the views that should see a point which must see it there, see
            `agreeing_pixels`; None for no such test.
        sky: Whether pixels that look like sky are kept, see `sky_pixels`.
        moving: Whether pixels that move by themselves are kept, where the scene knows them.
    """

    edges: bool = True
    min_confidence: float | None = None
    agreement: float | None = None
    sky: bool = True
    moving: bool = False


def valid_pixels(scene: PixelScene, which: PixelFilter | None = None) -> Bool[Tensor, "s h w"]:
    """Return which pixels of the model's images may give points, (S, H, W) bool: those of the masks that pass a filter.

    Args:
        scene: Scene with depth and cameras, or with points.
        which: Tests that pixels must pass; defaults to `PixelFilter()`, which leaves out edges of depth.

    Raises:
        NoPointsError: If no pixel passes; a ValueError that names what leaves none.
        ValueError: If an agreement is not in 0 … 1, or asked of a scene without depth or cameras.
    """
    which = PixelFilter() if which is None else which
    depth, cameras = scene.predictions.depth, scene.predictions.cameras
    valid = scene.masks
    if not valid.any():
        raise NoPointsError("no points: masks and padding leave no pixel")
    if not which.moving and scene.moving is not None:
        valid = _require_some(still_pixels(scene), "what moves")
    if not which.sky:
        valid = _require_some(valid & ~sky_pixels(scene), "what looks like sky")
    if which.edges and depth is not None and cameras is not None:
        # A view at a time: for hundreds of views the intermediate maps would take more memory than the scene.
        views = zip(depth.value, cameras.intrinsics, valid, strict=True)
        edges = torch.stack([depth_edges(*view) for view in views])
        valid = _require_some(valid & ~edges, "edges of depth")
    if which.min_confidence is not None:
        confidence = scene.point_map().confidence
        largest = confidence[valid & confidence.isfinite()]
        reach = f"{float(largest.max()):.4g}" if len(largest) else "none"
        sure = confidence >= which.min_confidence
        valid = _require_some(valid & sure, f"the smallest confidence, {which.min_confidence:g}, of at most {reach},")
    if which.agreement is not None:
        check_range("agreement", which.agreement, 0, 1)
        valid = _require_some(agreeing_pixels(scene, valid, which.agreement), "views that don't agree")
    return valid


def still_pixels(scene: PixelScene) -> Bool[Tensor, "s h w"]:
    """Return the pixels of the masks that don't move by themselves, (S, H, W) bool; all of them where none are known.

    Args:
        scene: Any scene.
    """
    return scene.masks if scene.moving is None else scene.masks & ~scene.moving


def filter_pixels(scene: AnyScene, which: PixelFilter | None = None) -> AnyScene:
    """Return a scene whose masks hold only the pixels that pass, for its clouds and all that is made of it.

    Args:
        scene: A `Scene`.
        which: Tests that pixels must pass, see `valid_pixels`.

    Raises:
        ValueError: See `valid_pixels`.
    """
    return replace(scene, masks=valid_pixels(scene, which))


def _require_some(valid: Tensor, what: str) -> Tensor:
    if not valid.any():
        raise NoPointsError(f"no points: {what} leave{'s' if what.endswith((',', 'sky', 'moves')) else ''} no pixel")
    return valid


def agreeing_pixels(
    scene: PixelScene, valid: Bool[Tensor, "s h w"], share: float = 0.5, *, tolerance: float = 0.05
) -> Bool[Tensor, "s h w"]:
    """Return which pixels the views that should see their points agree on, (S, H, W) bool.

    A view should see a point that projects to one of its valid pixels, unless its own depth there is smaller: then
    something hides the point. It agrees if its depth is that of the point, and contradicts if it looks through the
    point. Points that no other view should see are kept.

    Args:
        scene: Scene with depth and cameras.
        valid: Mask of the pixels that take part, (S, H, W) bool.
        share: Share of the views that should see a point which must agree, 0 to 1.
        tolerance: Difference in depth up to which they do, as a share of the depth.

    Raises:
        ValueError: If the scene has no depth or no cameras.
    """
    agreeing = valid.clone()
    for view in range(len(scene)):
        pixels = valid[view].flatten().nonzero()[:, 0]
        points = _points_of(scene, view, pixels)
        expected, agrees = torch.zeros(2, len(pixels))
        for other in range(len(scene)):
            if other != view:
                should, does = _look(scene, other, valid[other], points, tolerance)
                expected += should
                agrees += does
        agreeing[view].view(-1)[pixels] = agrees >= share * expected
    return agreeing


def most_shared_view(scene: PixelScene, *, tolerance: float = 0.05) -> int:
    """Return the view of whose points the other views see most, by a sample of 1,024 pixels of each.

    Args:
        scene: Scene with depth and cameras.
        tolerance: Largest relative difference of depth, see `agreeing_pixels`.

    Raises:
        ValueError: If the scene has no depth or no cameras.
    """
    shared = []
    for view in range(len(scene)):
        pixels = scene.masks[view].flatten().nonzero()[:, 0]
        pixels = pixels[:: max(1, len(pixels) // _SAMPLE)]
        points = _points_of(scene, view, pixels)
        others = (other for other in range(len(scene)) if other != view)
        seen = sum(int(_look(scene, other, scene.masks[other], points, tolerance)[1].sum()) for other in others)
        shared.append(seen / max(1, len(pixels)))
    return max(range(len(scene)), key=lambda view: shared[view])


def _points_of(scene: PixelScene, view: int, pixels: Tensor) -> Tensor:
    """Return the points (N, 3) of pixels given by their numbers in a view; NaN where the depth is not positive."""
    if scene.predictions.depth is None or scene.predictions.cameras is None:
        raise ValueError("scene must have depth and cameras to compare views, but the model ran without those heads")
    (value, _), cameras = scene.predictions.depth, scene.predictions.cameras
    in_front = value[view].where(value[view] > 0, torch.nan)
    return unproject(in_front, cameras.intrinsics[view], cameras.cam_from_world[view]).flatten(0, 1)[pixels]


def _look(scene: PixelScene, view: int, valid: Tensor, points: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Return which points (N, 3) a view should see, and which of them it sees in their place, (N,) bool each."""
    depth, cameras = scene.predictions.depth, scene.predictions.cameras
    assert depth is not None
    assert cameras is not None
    value = depth.value[view]
    coords, z = project(points, cameras.intrinsics[view], cameras.cam_from_world[view])
    column, row = coords.nan_to_num(-1e6).round().clamp(-1e6, 1e6).long().unbind(-1)
    height, width = value.shape
    inside = (z > 0) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    row, column = row.clamp(0, height - 1), column.clamp(0, width - 1)
    own = value[row, column]
    inside &= valid[row, column] & (own > 0) & own.isfinite()
    should = inside & (z <= (1 + tolerance) * own)
    return should, should & (z >= (1 - tolerance) * own)


def sky_pixels(scene: PixelScene) -> Bool[Tensor, "s h w"]:
    """Return which pixels look like sky, (S, H, W) bool: a rule of thumb without a network, which may be wrong.

    They are smooth, blue or bright, and joined to the upper border of the photo by pixels that are so too. In a view
    where these pixels are not farther away and less sure than the others, by the medians of depth and confidence, they
    are taken for a wall or a ceiling, and there is no sky.

    Args:
        scene: Scene with depth.

    Raises:
        ValueError: If the scene has no depth.
    """
    depth = scene.predictions.depth
    if depth is None:
        raise ValueError("scene must have depth to find sky, but the model ran without its depth head")
    return torch.stack([_sky_of(*view) for view in zip(scene.images, scene.masks, *depth, strict=True)])


def _sky_of(image: Tensor, mask: Tensor, depth: Tensor, confidence: Tensor) -> Tensor:
    """Return which pixels of a view look like sky, (H, W) bool."""
    colors = image.float() / 255
    red, green, blue = colors
    is_blue = (blue >= red) & (blue >= green - 0.05) & (blue > _BLUE)
    candidates = mask & (is_blue | (colors.amin(0) > _WHITE)) & _is_smooth(colors)
    sky = _joined(candidates, mask & (mask.cumsum(-2) == 1))
    others = mask & ~sky
    if not (sky.any() and others.any()):
        return torch.zeros_like(mask)
    depth, confidence = depth.nan_to_num(), confidence.nan_to_num()
    farther = depth[sky].median() > depth[others].median()
    return sky & farther & (confidence[sky].median() < confidence[others].median())


def _is_smooth(colors: Tensor) -> Tensor:
    """Return which pixels (3, H, W) differ little from the next ones below and to the right, (H, W) bool."""
    right = (colors.diff(dim=-1).abs() < _SMOOTH).all(0)
    below = (colors.diff(dim=-2).abs() < _SMOOTH).all(0)
    pad = torch.nn.functional.pad
    return pad(right, (0, 1), value=True) & pad(below, (0, 0, 0, 1), value=True)


def _joined(candidates: Tensor, seeds: Tensor) -> Tensor:
    """Return the candidates (H, W) that are joined to a seed by candidates, along rows and columns."""
    reached = candidates & seeds
    while True:
        grown = _fill_runs(candidates, _fill_runs(candidates, reached, -2), -1)
        if torch.equal(grown, reached):
            return reached
        reached = grown


def _fill_runs(candidates: Tensor, reached: Tensor, dim: int) -> Tensor:
    """Return the candidates in runs along an axis of which one pixel is reached."""
    run = (~candidates).cumsum(dim)
    shape = list(candidates.shape)
    shape[dim] += 1
    hit = torch.zeros(shape, dtype=torch.uint8).scatter_reduce_(dim, run, reached.to(torch.uint8), "amax")
    return candidates & hit.gather(dim, run).bool()
