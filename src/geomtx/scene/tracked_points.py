"""Points that a tracker follows through the views of a scene, as correspondences for bundle adjustment."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from geomtx.checks import check_count, check_finite_positive
from geomtx.heads.track import TrackHead, check_track_images, extract_features
from geomtx.inference.chunks import track_in_chunks
from geomtx.inference.engine import EncodedViews
from geomtx.inference.plan import Memory
from geomtx.inference.run import RunOptions, encode_views
from geomtx.layers.precision import at_least_float32
from geomtx.scene.filters import still_pixels
from geomtx.scene.observations import ObservedPoints, merge_observations, observe_points
from geomtx.scene.scene import Scene
from geomtx.scene.surfaces import find_surfaces
from geomtx.types import Bool, Float, Int, show_shapes
from geomtx.views.transform import lies_inside

__all__ = ["TrackedPixels", "farthest_views", "observe_scene", "observed_tracks", "track_points"]

_VISIBLE = 0.5  # probability from which a track counts as seen
_QUERY_CHUNK = 512
_LEAST_TRACKS = 100  # fewer don't cover the photos
_MOST_DENSE_POINTS = 5_000  # more would not change the cameras


@show_shapes
class TrackedPixels(NamedTuple):
    """N tracks in pixels of the model's images.

    Attributes:
        coords_px: Positions (x, y), (S, N, 2).
        seen: Mask of the positions that are observations, (S, N) bool.
        confidence: Confidence of each, (S, N).
        query_view: View of each track's query, (N,).
    """

    coords_px: Float[Tensor, "s n 2"]
    seen: Bool[Tensor, "s n"]
    confidence: Float[Tensor, "s n"]
    query_view: Int[Tensor, " n"]


def observe_scene(scene: Scene) -> ObservedPoints:
    """Return the tracks of a scene as points with their observations.

    Where it has less than a hundred, they are its matched pixels, or else what its dense maps have in common.

    Args:
        scene: Scene with cameras, and with depth or points.

    Raises:
        ValueError: As `observe_points`.
    """
    tracks, queries = scene.predictions.tracks, scene.query_points
    if tracks is None or queries is None or len(queries) < _LEAST_TRACKS:
        if scene.matched is not None and len(scene.matched.view):
            return merge_observations(scene, find_surfaces(scene), scene.matched)
        return observe_points(scene, max_points=_MOST_DENSE_POINTS)
    inside = lies_inside(tracks.coords_px, _image_hw(scene))
    return observed_tracks(
        scene,
        TrackedPixels(
            tracks.coords_px, (tracks.visibility > _VISIBLE) & inside, tracks.confidence, queries[:, 0].long()
        ),
    )


def track_points(
    model: Any,
    scene: Scene,
    *,
    num_query_views: int = 8,
    points_per_view: int = 256,
    tolerance_px: float = 2.0,
    memory: Memory = "auto",
) -> ObservedPoints:
    """Follow corners of some views through all views with the tracker of a model, without gradients.

    Query views are those whose camera tokens are farthest from one another (farthest-point sampling from the first
    view). In each, the image is divided into equal cells, of which each gives its strongest corner. Where a track ends
    in another view, it is followed back to the query's view: an observation counts if it is seen with a probability
    above a half, lies on a pixel of `scene.masks` that isn't in `scene.moving`, and comes back to within a tolerance of
    where it began.

    Args:
        model: Model with `encoder` and `track_head`, as `geomtx.VGGT` has.
        scene: Scene of the views, with cameras, and with depth or points, from which the points start.
        num_query_views: Largest number of views with queries.
        points_per_view: Largest number of queries in a view.
        tolerance_px: Distance up to which a track comes back, in pixels of the model's images.
        memory: Memory of the device for the encoder, which runs again, see `geomtx.inference.RunOptions`.

    Returns:
        The points that two views see, at least, with their observations in original pixels.

    Raises:
        ValueError: If the model has no tracker, the scene lacks cameras, or depth and points, or for another `memory`.
    """
    check_count("num_query_views", num_query_views)
    check_count("points_per_view", points_per_view)
    check_finite_positive("tolerance_px", tolerance_px)
    head = getattr(model, "track_head", None)
    if not isinstance(head, TrackHead):
        raise ValueError(f"model must have a track head, got {type(model).__name__} without one")
    check_track_images(scene.images, [head])
    find_surfaces(scene)  # says what a scene lacks
    scene = dataclasses.replace(scene, masks=still_pixels(scene))
    with torch.inference_mode(False), torch.no_grad():
        encoded = _encode(model, scene, memory)
        read = encoded.read("tracks")
        features = extract_features(head, read, encoded.each_view)
        tokens = features.mean((-2, -1))[0]
        if "camera" in model.heads:
            cameras = encoded.read("camera")
            tokens = cameras.layer(max(cameras.layers))[0, :, 0]
        valid = None if read.mask is None else read.mask[:, :, 0]
        views = farthest_views(at_least_float32(tokens).cpu(), num_query_views)
        parts = [_track_from(head, (features, valid), scene, (view, points_per_view), tolerance_px) for view in views]
    return observed_tracks(scene, TrackedPixels(*(torch.cat(each, dim=-1 if each[0].ndim < 3 else 1) for each in
                                                  zip(*parts, strict=True))))  # fmt: skip


def farthest_views(tokens: Float[Tensor, "s c"], num: int) -> list[int]:
    """Return the indices of views whose tokens are far from one another: each next one is the farthest from all before.

    Args:
        tokens: A token of each view, (S, C); what counts is the angle between them.
        num: Largest number of views.
    """
    directions = F.normalize(tokens, dim=-1)
    chosen, distance = [0], torch.full((len(tokens),), torch.inf, dtype=tokens.dtype)
    while len(chosen) < min(num, len(tokens)):
        distance = torch.minimum(distance, 1 - directions @ directions[chosen[-1]])
        distance[chosen] = -torch.inf
        chosen.append(int(distance.argmax()))
    return chosen


def observed_tracks(scene: Scene, tracks: TrackedPixels) -> ObservedPoints:
    """Return tracks as points with their observations in original pixels.

    A point starts at the surface that the query's view sees there, or where that is unknown, at the mean of those of
    the other views; points of which nothing is known are left out, and those that a single view sees.

    Args:
        scene: Scene with cameras, and with depth or points.
        tracks: Tracks in pixels of the model's images.
    """
    surfaces = find_surfaces(scene)
    num_views, num_tracks = tracks.seen.shape
    coords = tracks.coords_px.double()
    height, width = _image_hw(scene)
    on_map = (coords >= 0).all(-1) & (coords <= coords.new_tensor([width - 1, height - 1])).all(-1)
    view = torch.arange(num_views)[:, None].expand(-1, num_tracks)
    held = torch.where(on_map[..., None], coords, 0.0)
    own = torch.from_numpy(surfaces.unproject_each(view.flatten().numpy(), held.flatten(0, 1).numpy()))
    own = torch.where((on_map & tracks.seen)[..., None], own.view(num_views, num_tracks, 3), torch.nan)
    of_query = own[tracks.query_view, torch.arange(num_tracks)]
    xyz = torch.where(of_query.isfinite().all(-1, keepdim=True), of_query, own.nanmean(0))
    kept = xyz.isfinite().all(-1) & (tracks.seen.sum(0) > 1)
    seen = (tracks.seen & kept).T
    new = kept.cumsum(0) - 1
    point, view = seen.nonzero().unbind(1)
    original = torch.stack([each.to_original(xy) for each, xy in zip(scene.transforms, coords, strict=True)])
    pixel = coords[tracks.query_view, torch.arange(num_tracks)].round().long()
    pixel = pixel.clamp(min=torch.zeros(2, dtype=torch.long), max=torch.tensor([width - 1, height - 1]))[kept]
    return ObservedPoints(
        xyz=xyz[kept],
        rgb=scene.images[tracks.query_view[kept], :, pixel[:, 1], pixel[:, 0]],
        view=view,
        point=new[point],
        coords_px=original[view, point],
        confidence=tracks.confidence[view, point].float(),
    )


def _encode(model: Any, scene: Scene, memory: Memory) -> EncodedViews:
    """Run the encoder for the layers that the tracker and the camera head read."""
    parameter = next(model.parameters())
    patch = model.config.patch_size
    pixels = rearrange(scene.masks, "s (r p) (q o) -> s r q (p o)", p=patch, o=patch)
    patches = pixels.sum(-1) * 2 >= patch * patch
    images = (scene.images.float() / 255).to(parameter.dtype)
    heads = tuple(name for name in ("camera", "tracks") if name in model.heads)
    patch_mask = None if bool(patches.all()) else patches[None]
    return encode_views(model, images[None], patch_mask, heads, RunOptions(memory=memory))


def _track_from(
    head: TrackHead, of_views: tuple[Tensor, Tensor | None], scene: Scene, start: tuple[int, int], tolerance: float
) -> TrackedPixels:
    """Track corners of one view to all views, and back.

    Args:
        head: Head of tracks.
        of_views: Features of all views, and which views are valid, None for all.
        scene: The scene.
        start: View of the queries, and their largest number.
        tolerance: Distance in pixels up to which a track comes back.
    """
    (features, valid), (view, num) = of_views, start
    corners = _find_corners(scene.images[view], scene.masks[view], num).to(features.device)
    queries = torch.cat([torch.full_like(corners[:, :1], view), corners], dim=-1)[None]
    tracks = track_in_chunks(lambda some: head.track(features, some, view_mask=valid).tracks, queries, _QUERY_CHUNK)
    coords = at_least_float32(tracks.coords_px[0])
    seen = (tracks.visibility[0] > _VISIBLE) & _on_masks(scene, coords)
    for other in range(len(scene)):
        rows = seen[other].nonzero()[:, 0]
        if other == view or not len(rows):
            continue
        pair = features[:, [other, view]]
        back_queries = torch.cat([torch.zeros_like(coords[other, rows, :1]), coords[other, rows]], dim=-1)[None]
        back = track_in_chunks(lambda some, pair=pair: head.track(pair, some).tracks, back_queries, _QUERY_CHUNK)  # type: ignore[misc]
        miss = (at_least_float32(back.coords_px[0, 1]) - corners[rows]).norm(dim=-1)
        seen[other, rows] = miss <= tolerance
    seen[view] = True
    confidence = tracks.confidence[0].float().cpu()
    return TrackedPixels(coords.cpu(), seen.cpu(), confidence, torch.full((len(corners),), view))


def _on_masks(scene: Scene, coords: Tensor) -> Tensor:
    """Return which positions (S, N, 2) lie in the images, on pixels that take part, (S, N) bool."""
    height, width = _image_hw(scene)
    inside = lies_inside(coords, (height, width))
    column, row = torch.where(inside[..., None], coords, 0.0).round().long().unbind(-1)
    view = torch.arange(len(coords), device=coords.device)[:, None]
    masks = scene.masks.to(coords.device)
    return inside & masks[view, row.clamp(0, height - 1), column.clamp(0, width - 1)]


def _find_corners(image: Tensor, mask: Tensor, num: int) -> Tensor:
    """Return the strongest corner of each of at most `num` equal cells of an image, (N, 2) as (x, y).

    The strength is the smaller eigenvalue of the structure tensor (Shi and Tomasi 1994), of a window of five pixels.
    """
    gray = image.float().mean(0)[None, None] / 255
    padded = F.pad(gray, (1, 1, 1, 1), mode="replicate")
    across, down = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2], padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    tensor = F.avg_pool2d(torch.cat([across * across, across * down, down * down], dim=1), 5, stride=1, padding=2)
    xx, xy, yy = tensor[0]
    strength = (xx + yy) / 2 - ((xx - yy).square() / 4 + xy.square()).sqrt()
    strength = torch.where(mask, strength, -1.0)
    height, width = mask.shape
    columns = max(1, min(width, round(math.sqrt(num * width / height))))
    rows = max(1, min(height, num // columns))
    best, index = F.adaptive_max_pool2d(strength[None], (rows, columns), return_indices=True)
    index = index[best >= 0]
    return torch.stack([index % width, index // width], dim=-1).float()


def _image_hw(scene: Scene) -> tuple[int, int]:
    height, width = scene.images.shape[-2:]
    return height, width
