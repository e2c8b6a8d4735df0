"""Every value that crosses a folder, and the axis legend.

Axes in shapes, always in this order:

| letter | meaning |
|---|---|
| b (B) | scenes |
| s (S) | views of a scene |
| p (P) | tokens of a view: special tokens first, then patches row by row |
| c (C) | channels |
| h, w (H, W) | pixels, rows then columns |
| n (N) | tracks (query points) |
| i | refinement iterations |

Conventions are in the names: `cam_from_world` is 3x4, OpenCV axes (x right, y down, z forward), x_cam = R x_world + t;
`coords_px` is (x, y) with pixel centres at integers; `quat_xyzw` has the scalar last; `*_hw` is (rows, columns).
Lengths are in units of the scene (the mean distance of its points from the first camera is about 1).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.utils._pytree import tree_map_only

if TYPE_CHECKING or os.environ.get("GEOMTX_CHECK_SHAPES"):
    from jaxtyping import Bool, Float, Int, UInt8
else:

    class Bool:
        """`Bool[Tensor, "b s"]` is plain `Tensor` at run time; the test suite checks the shapes with jaxtyping."""

        def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
            return item[0]

    Float = Int = UInt8 = Bool

__all__ = [
    "Bool",
    "CameraPrediction",
    "Cameras",
    "DenseMap",
    "EmbeddedViews",
    "Float",
    "Int",
    "Predictions",
    "ProjectedTokens",
    "SceneBatch",
    "Tokens",
    "TrackIterations",
    "TrackLabels",
    "TrackPrediction",
    "TrackWindows",
    "Tracks",
    "UInt8",
    "VideoTracks",
]


class Tokens(NamedTuple):
    """What an encoder hands to the heads.

    Attributes:
        layers: The tapped layers, index → (B, S, P, C). Only layers that were asked for are kept.
        num_special: How many of the P tokens of a view come before its patches; token 0 is the camera token.
        image_hw: Height and width of the images, pixels.
        grid_hw: Rows and columns of patches.
        mask: (B, S, P) bool, True = the token takes part; None = all do.
    """

    layers: dict[int, Tensor]
    num_special: int
    image_hw: tuple[int, int]
    grid_hw: tuple[int, int]
    mask: Tensor | None = None

    def layer(self, index: int) -> Tensor:
        """All tokens of one tapped layer, (B, S, P, C). ValueError names the layers that were kept."""
        if index not in self.layers:
            raise ValueError(f"layer must be one of the tapped layers {sorted(self.layers)}, got {index}")
        return self.layers[index]

    def patch_map(self, index: int) -> Tensor:
        """The patches of one tapped layer as a map, (B, S, C, rows, columns); zero where they take no part."""
        patches = self.layer(index)[:, :, self.num_special :]
        if self.mask is not None:
            patches = patches.masked_fill(~self.mask[:, :, self.num_special :, None], 0.0)
        return rearrange(patches, "b s (r q) c -> b s c r q", r=self.grid_hw[0])

    def patch_mask(self) -> Tensor | None:
        """The mask of the patches with views as the batch, (B·S, patches)."""
        return None if self.mask is None else self.mask[:, :, self.num_special :].flatten(0, 1)

    def select_views(self, views: slice) -> Tokens:
        """Return those of some views."""
        layers = {index: layer[:, views] for index, layer in self.layers.items()}
        return self._replace(layers=layers, mask=None if self.mask is None else self.mask[:, views])

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Tokens:
        """Return them on a device; in `dtype`, which defaults to their own."""
        layers = {index: layer.to(device, dtype or layer.dtype) for index, layer in self.layers.items()}
        return self._replace(layers=layers)

    @property
    def views(self) -> tuple[int, int]:
        """Number of scenes and of views, (B, S)."""
        layer = next(iter(self.layers.values()))
        return layer.shape[0], layer.shape[1]


class EmbeddedViews(NamedTuple):
    """Views of scenes as tokens, before the first block that mixes views.

    Attributes:
        x: Tokens, (B, S, P, C): special tokens first, then patches row by row.
        num_special: Number of special tokens of a view.
        image_hw: Height and width of the images in pixels.
        grid_hw: Rows and columns of patches.
        mask: Which tokens are valid, (B, S, P) bool; None for all.
        first_view: Index in its scene of the first view in `x`; above 0 where other processes hold earlier views.
    """

    x: Float[Tensor, "b s p c"]
    num_special: int
    image_hw: tuple[int, int]
    grid_hw: tuple[int, int]
    mask: Tensor | None = None
    first_view: int = 0

    def without_layers(self) -> Tokens:
        """Return the `Tokens` of these views, without any layer yet."""
        return Tokens({}, self.num_special, self.image_hw, self.grid_hw, self.mask)


class ProjectedTokens(NamedTuple):
    """The tapped layers as a DPT decoder needs them: its projections, which are smaller than the tokens.

    Attributes:
        maps: One map for every tap, (B·S, channels, rows, columns), on any device.
        views: (B, S).
        image_hw: Height and width of the images in pixels.
        mask: Which views are valid, (B, S, 1) bool; None for all.
    """

    maps: tuple[Tensor, ...]
    views: tuple[int, int]
    image_hw: tuple[int, int]
    mask: Tensor | None = None

    def select_views(self, views: slice) -> ProjectedTokens:
        """Return those of some views."""
        # Scene by scene, which keeps the maps' memory format.
        parts = [[scene[views] for scene in each.unflatten(0, self.views).unbind()] for each in self.maps]
        maps = tuple(each[0] if len(each) == 1 else torch.cat(each) for each in parts)
        count = len(range(self.views[1])[views])
        mask = None if self.mask is None else self.mask[:, views]
        return self._replace(maps=maps, views=(self.views[0], count), mask=mask)

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> ProjectedTokens:
        """Return them on a device; in `dtype`, which defaults to their own."""
        maps = tuple(each.to(device, dtype or each.dtype, non_blocking=True) for each in self.maps)
        return self._replace(maps=maps)


class Cameras(NamedTuple):
    """Pinhole cameras.

    Attributes:
        cam_from_world: (..., 3, 4), [R | t] with x_cam = R x_world + t, OpenCV axes. World = the first view's camera
            as the model predicts it, up to scale.
        intrinsics: (..., 3, 3) in pixels of the images that the cameras belong to, zero skew.
    """

    cam_from_world: Float[Tensor, "*batch 3 4"]
    intrinsics: Float[Tensor, "*batch 3 3"]


class DenseMap(NamedTuple):
    """A value and a confidence a pixel.

    Attributes:
        value: (..., H, W) for depth (z-depth, scene units) or (..., H, W, 3) for points (first camera's frame).
        confidence: (..., H, W), above 1; larger is surer. Not a probability: compare ranks within a scene.
    """

    value: Tensor
    confidence: Tensor


class Tracks(NamedTuple):
    """Where query points are in every view.

    Attributes:
        coords_px: (B, S, N, 2), x and y in pixels, pixel centres at integers; may lie outside the image.
        visibility: (B, S, N), probability that the point is seen.
        confidence: (B, S, N), probability that the position is right.
    """

    coords_px: Float[Tensor, "*batch s n 2"]
    visibility: Float[Tensor, "*batch s n"]
    confidence: Float[Tensor, "*batch s n"]


class TrackIterations(NamedTuple):
    """What a track loss needs beyond `Tracks`: all refinements and the logits.

    Attributes:
        coords_px: (I, B, S, N, 2) after each iteration.
        visibility_logits: (B, S, N) after the last.
        confidence_logits: (B, S, N) after the last.
    """

    coords_px: Float[Tensor, "i b s n 2"]
    visibility_logits: Float[Tensor, "b s n"]
    confidence_logits: Float[Tensor, "b s n"]


class TrackWindows(NamedTuple):
    """Every refinement of tracks that are followed through a video in K overlapping windows of W views.

    Attributes:
        coords_px: (K, I, B, W, N, 2) after each iteration.
        visibility_logits: (K, I, B, W, N).
        confidence_logits: (K, I, B, W, N).
        views: (K, W) int, which views of the video a window has; -1 beyond its end, where values mean nothing.
    """

    coords_px: Float[Tensor, "k i b w n 2"]
    visibility_logits: Float[Tensor, "k i b w n"]
    confidence_logits: Float[Tensor, "k i b w n"]
    views: Int[Tensor, "k w"]


class VideoTracks(NamedTuple):
    """Output of a tracker in video: the tracks, and the windows of the pass forwards in time, for the loss."""

    tracks: Tracks
    windows: TrackWindows


class CameraPrediction(NamedTuple):
    """Output of `CameraHead`: the cameras of the last iteration and the encodings of all, (I, B, S, 9)."""

    cameras: Cameras
    pose_encodings: Float[Tensor, "i b s 9"]


class TrackPrediction(NamedTuple):
    """Output of `TrackHead`."""

    tracks: Tracks
    iterations: TrackIterations


class Predictions(NamedTuple):
    """Output of a model. A head that was not asked for gives None.

    Attributes:
        cameras: `cam_from_world` (B, S, 3, 4) and `intrinsics` (B, S, 3, 3) in pixels of the model's images.
        pose_encodings: (I, B, S, 9), see `geomtx.encode_pose`; every refinement, for the loss.
        depth: `value` and `confidence` (B, S, H, W).
        points: `value` (B, S, H, W, 3) in the first camera's frame, `confidence` (B, S, H, W).
        tracks: `coords_px` (B, S, N, 2), `visibility` and `confidence` (B, S, N).
        track_iterations: Every refinement and the logits, for the loss.
        extra: What heads of your own gave, by name, see `VGGT.add_head`.
    """

    cameras: Cameras | None = None
    pose_encodings: Tensor | None = None
    depth: DenseMap | None = None
    points: DenseMap | None = None
    tracks: Tracks | None = None
    track_iterations: TrackIterations | None = None
    extra: dict[str, Any] | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Predictions:
        """Return the predictions with a function applied to every tensor."""
        return tree_map_only(Tensor, function, self)

    def select_views(self, views: slice) -> Predictions:
        """Return the predictions of some views."""
        return _map_with_view_axis(lambda axis, value: value[(slice(None),) * axis + (views,)], self)

    @staticmethod
    def cat(parts: Sequence[Predictions]) -> Predictions:
        """Concatenate predictions along their views; all must have the same heads and scenes."""
        return _map_with_view_axis(lambda axis, *values: torch.cat(values, dim=axis), *parts)


def _map_with_view_axis(function: Callable[..., Tensor], *values: Any, name: str = "") -> Any:
    """Apply `function(axis of views, tensors…)` to tensors in the same place of nested tuples and dicts."""
    first = values[0]
    if isinstance(first, Tensor):
        # What is of every iteration has the iterations as its first axis.
        return function(2 if name in ("pose_encodings", "TrackIterations.coords_px") else 1, *values)
    if isinstance(first, dict):
        return {key: _map_with_view_axis(function, *(value[key] for value in values)) for key in first}
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        prefix = "TrackIterations." if isinstance(first, TrackIterations) else ""
        fields = zip(first._fields, *values, strict=True)
        return type(first)(*(_map_with_view_axis(function, *each, name=prefix + field) for field, *each in fields))
    return first


class TrackLabels(NamedTuple):
    """True tracks. Of unordered views, the query of a track is where it is in view 0, and a valid track is visible
    there. Of videos, any frame in which a track is visible can be its query's, and view 0 may not see it.

    Attributes:
        coords_px: (B, S, N, 2), x and y in pixels, pixel centres at integers; where the point is not seen, the place
            of the hidden point, or NaN if nobody knows it.
        visible: (B, S, N) bool.
        valid: (B, N) bool; False = the slot is empty or a negative, which is never visible.
    """

    coords_px: Float[Tensor, "b s n 2"]
    visible: Bool[Tensor, "b s n"]
    valid: Bool[Tensor, "b n"]


class SceneBatch(NamedTuple):
    """Pictures and what is known of them, for training and evaluation. What a dataset doesn't have is None.

    Attributes:
        images: (B, S, 3, H, W) in [0, 1].
        cameras: `cam_from_world` (B, S, 3, 4), `intrinsics` (B, S, 3, 3) in pixels of `images`.
        camera_mask: (B, S) bool, True = the camera is known; None = all are.
        depth: (B, S, H, W), z-depth in the unit of the cameras' translations.
        points: (B, S, H, W, 3) in the world of the cameras.
        mask: (B, S, H, W) bool, True = depth and points are known; what they hold elsewhere counts for nothing.
        tracks: True tracks.
        query_views: (B, N) int, the view in which a track's query is; None = view 0.
    """

    images: Float[Tensor, "b s 3 h w"]
    cameras: Cameras | None = None
    camera_mask: Tensor | None = None
    depth: Tensor | None = None
    points: Tensor | None = None
    mask: Tensor | None = None
    tracks: TrackLabels | None = None
    query_views: Tensor | None = None
