"""The values that parts of the library hand to one another, and the letters of their axes.

Axes of shapes, always in this order:

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
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

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
    "show_shapes",
]

_Class = TypeVar("_Class", bound=type)
_MOST_NUMBERS = 4  # a tensor of as many is shown itself


def show_shapes(cls: _Class) -> _Class:
    """Have `repr` of a named tuple's values show types and shapes of tensors in place of their numbers.

    Fields that are None are left out. Use it as a decorator:

        @show_shapes
        class Result(NamedTuple):
            total: Tensor
    """
    cls.__repr__ = _describe_fields  # type: ignore[method-assign, assignment]
    return cls


def _describe_fields(value: Any) -> str:
    shown = [f"{name}={_describe(field)}" for name, field in value._asdict().items() if field is not None]
    return f"{type(value).__name__}({', '.join(shown)})"


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        # Tensors without numbers (meta, fake) and those of an accelerator, which would have to be waited for, have
        # their shape alone.
        if type(value) is Tensor and value.device.type == "cpu" and value.ndim < 2 and value.numel() <= _MOST_NUMBERS:
            numbers = [f"{float(number):.4g}" for number in value.flatten()]
            return numbers[0] if value.ndim == 0 else f"[{', '.join(numbers)}]"
        place = "" if value.device.type == "cpu" else f" on {value.device}"
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}{place}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_describe(each)}" for key, each in value.items()) + "}"
    if type(value) in (list, tuple):
        left, right = "[]" if isinstance(value, list) else "()"
        return left + ", ".join(map(_describe, value)) + right
    return repr(value)


@show_shapes
class Tokens(NamedTuple):
    """The tokens that an encoder gives to the heads.

    Attributes:
        layers: Index of a tapped layer → its tokens (B, S, P, C). Only the layers that were asked for are kept.
        num_special: Number of special tokens of a view, which come before its patches; token 0 is the camera token.
        image_hw: Height and width of the images in pixels.
        grid_hw: Number of rows and columns of patches.
        mask: Boolean mask of the valid tokens, (B, S, P); None for all.
    """

    layers: dict[int, Tensor]
    num_special: int
    image_hw: tuple[int, int]
    grid_hw: tuple[int, int]
    mask: Tensor | None = None

    def layer(self, index: int) -> Tensor:
        """Return all tokens of one tapped layer, (B, S, P, C).

        Raises:
            ValueError: If the layer was not kept; the message names those that were.
        """
        if index not in self.layers:
            raise ValueError(f"layer must be one of the tapped layers {sorted(self.layers)}, got {index}")
        return self.layers[index]

    def patch_map(self, index: int) -> Tensor:
        """Return the patches of one tapped layer as a map (B, S, C, rows, columns), zero where they are masked."""
        patches = self.layer(index)[:, :, self.num_special :]
        if self.mask is not None:
            patches = patches.masked_fill(~self.mask[:, :, self.num_special :, None], 0.0)
        return rearrange(patches, "b s (r q) c -> b s c r q", r=self.grid_hw[0])

    def patch_mask(self) -> Tensor | None:
        """Return the mask of the patches with views as the batch, (B·S, patches); None where all are valid."""
        return None if self.mask is None else self.mask[:, :, self.num_special :].flatten(0, 1)

    def take_views(self, views: slice) -> Tokens:
        """Return the tokens of some views."""
        layers = {index: layer[:, views] for index, layer in self.layers.items()}
        return self._replace(layers=layers, mask=None if self.mask is None else self.mask[:, views])

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Tokens:
        """Return the tokens on a device, in `dtype`, which defaults to their own."""
        layers = {index: layer.to(device, dtype or layer.dtype) for index, layer in self.layers.items()}
        return self._replace(layers=layers)

    @property
    def views(self) -> tuple[int, int]:
        """The number of scenes and the number of views, (B, S)."""
        layer = next(iter(self.layers.values()))
        return layer.shape[0], layer.shape[1]


@show_shapes
class EmbeddedViews(NamedTuple):
    """Views of scenes as tokens, before the first block that mixes views.

    Attributes:
        x: Tokens, (B, S, P, C): special tokens first, then patches row by row.
        num_special: Number of special tokens of a view.
        image_hw: Height and width of the images in pixels.
        grid_hw: Rows and columns of patches.
        mask: Boolean mask of the valid tokens, (B, S, P); None for all.
        first_view: Index in its scene of the first view in `x`; above 0 where other processes hold earlier views.
        poses: Known `cam_from_world` of the views, (B, S, 3, 4), for blocks that inject poses; None for none.
        posed: Mask of the views whose pose is known, (B, S) bool; None without poses.
    """

    x: Float[Tensor, "b s p c"]
    num_special: int
    image_hw: tuple[int, int]
    grid_hw: tuple[int, int]
    mask: Tensor | None = None
    first_view: int = 0
    poses: Tensor | None = None
    posed: Tensor | None = None

    def without_layers(self) -> Tokens:
        """Return the `Tokens` of these views, without any layer yet."""
        return Tokens({}, self.num_special, self.image_hw, self.grid_hw, self.mask)


@show_shapes
class ProjectedTokens(NamedTuple):
    """The tapped layers as a DPT decoder needs them: its projections, which are smaller than the tokens.

    Attributes:
        maps: One map for every tap, (B·S, channels, rows, columns), on any device.
        views: Number of scenes and number of views, (B, S).
        image_hw: Height and width of the images in pixels.
        mask: Boolean mask of the valid views, (B, S, 1); None for all.
    """

    maps: tuple[Tensor, ...]
    views: tuple[int, int]
    image_hw: tuple[int, int]
    mask: Tensor | None = None

    def take_views(self, views: slice) -> ProjectedTokens:
        """Return the maps of some views."""
        # Scene by scene, which keeps the maps' memory format.
        parts = [[scene[views] for scene in each.unflatten(0, self.views).unbind()] for each in self.maps]
        maps = tuple(each[0] if len(each) == 1 else torch.cat(each) for each in parts)
        count = len(range(self.views[1])[views])
        mask = None if self.mask is None else self.mask[:, views]
        return self._replace(maps=maps, views=(self.views[0], count), mask=mask)

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> ProjectedTokens:
        """Return the maps on a device, in `dtype`, which defaults to their own."""
        maps = tuple(each.to(device, dtype or each.dtype, non_blocking=True) for each in self.maps)
        return self._replace(maps=maps)


@show_shapes
class Cameras(NamedTuple):
    """Pinhole cameras.

    Attributes:
        cam_from_world: Poses (..., 3, 4), [R | t] with x_cam = R x_world + t, OpenCV axes. The world of predictions is
            the first view's camera, up to scale.
        intrinsics: Intrinsics (..., 3, 3) without skew, in pixels of the images that the cameras belong to.
    """

    cam_from_world: Float[Tensor, "*batch 3 4"]
    intrinsics: Float[Tensor, "*batch 3 3"]

    def to(self, device: torch.device) -> Cameras:
        """Return the cameras on a device."""
        return Cameras(self.cam_from_world.to(device), self.intrinsics.to(device))


@show_shapes
class DenseMap(NamedTuple):
    """A value and its confidence for every pixel.

    Attributes:
        value: Depth (..., H, W), the z coordinate in the camera in units of the scene, or points (..., H, W, 3) in the
            first camera's frame.
        confidence: Confidence (..., H, W), above 1. It ranks the pixels of a scene and is not a probability.
    """

    value: Tensor
    confidence: Tensor


@show_shapes
class Tracks(NamedTuple):
    """Positions of query points in every view.

    Attributes:
        coords_px: Positions (B, S, N, 2) as x and y in pixels, pixel centres at integers; they may lie outside the
            image.
        visibility: Probability (B, S, N) that the point is seen.
        confidence: Probability (B, S, N) that the position is right.
    """

    coords_px: Float[Tensor, "*batch s n 2"]
    visibility: Float[Tensor, "*batch s n"]
    confidence: Float[Tensor, "*batch s n"]


@show_shapes
class TrackIterations(NamedTuple):
    """All refinements of tracks and their logits, for a loss.

    Attributes:
        coords_px: Positions (I, B, S, N, 2) in pixels after each iteration.
        visibility_logits: Logits (B, S, N) of the visibility after the last iteration.
        confidence_logits: Logits (B, S, N) of the confidence after the last iteration.
    """

    coords_px: Float[Tensor, "i b s n 2"]
    visibility_logits: Float[Tensor, "b s n"]
    confidence_logits: Float[Tensor, "b s n"]


@show_shapes
class TrackWindows(NamedTuple):
    """All refinements of tracks that are followed through a video in K overlapping windows of W frames.

    Attributes:
        coords_px: Positions (K, I, B, W, N, 2) in pixels after each iteration.
        visibility_logits: Logits (K, I, B, W, N) of the visibility after each iteration.
        confidence_logits: Logits (K, I, B, W, N) of the confidence after each iteration.
        views: Index (K, W) in the video of each frame of a window; -1 beyond the end of the video, where the other
            values are undefined.
    """

    coords_px: Float[Tensor, "k i b w n 2"]
    visibility_logits: Float[Tensor, "k i b w n"]
    confidence_logits: Float[Tensor, "k i b w n"]
    views: Int[Tensor, "k w"]


@show_shapes
class VideoTracks(NamedTuple):
    """Output of a tracker in video.

    Attributes:
        tracks: Tracks through the whole video.
        windows: Refinements in the windows of the pass forwards in time, for the loss.
    """

    tracks: Tracks
    windows: TrackWindows


@show_shapes
class CameraPrediction(NamedTuple):
    """Output of `CameraHead`.

    Attributes:
        cameras: Cameras of the last iteration.
        pose_encodings: Encodings (I, B, S, 9) of the cameras of all iterations, for the loss.
    """

    cameras: Cameras
    pose_encodings: Float[Tensor, "i b s 9"]


@show_shapes
class TrackPrediction(NamedTuple):
    """Output of `TrackHead`.

    Attributes:
        tracks: Tracks after the last iteration.
        iterations: Tracks after each iteration and logits, for the loss.
    """

    tracks: Tracks
    iterations: TrackIterations


@show_shapes
class Predictions(NamedTuple):
    """Output of a model. What belongs to a head that did not run is None.

    Attributes:
        cameras: `cam_from_world` (B, S, 3, 4) and `intrinsics` (B, S, 3, 3) in pixels of the model's images.
        pose_encodings: Encodings (I, B, S, 9) of the cameras after each refinement, for the loss; see
            `geomtx.encode_pose`.
        depth: `value` and `confidence` (B, S, H, W).
        points: `value` (B, S, H, W, 3) in the first camera's frame, and `confidence` (B, S, H, W).
        tracks: `coords_px` (B, S, N, 2), `visibility` and `confidence` (B, S, N).
        track_iterations: Tracks after each refinement and logits, for the loss.
        extra: Name of an added head → its output, see `VGGT.add_head`.
        rays: `value` (B, S, h, w, 6) and `confidence` (B, S, h, w) of the ray through each pixel of a map that covers
            the image with fewer pixels: its direction, as long as that its z coordinate in the camera is 1, and its
            origin, the camera's centre, both in the world of `cameras`.
        sky: Score (B, S, H, W) of being sky, at least 0; above 0.3 a pixel counts as sky.
        scene_embedding: Vector (B, D) of unit length for all views of a scene together, in a space of texts. None for
            predictions of some views, or put together.
        points_cam: `value` (B, S, H, W, 3) in each view's own camera, and `confidence` (B, S, H, W).
        metric_scale: Factor (B,) by which lengths of a scene were multiplied, which brings them to metres.
    """

    cameras: Cameras | None = None
    pose_encodings: Tensor | None = None
    depth: DenseMap | None = None
    points: DenseMap | None = None
    tracks: Tracks | None = None
    track_iterations: TrackIterations | None = None
    extra: dict[str, Any] | None = None
    rays: DenseMap | None = None
    sky: Tensor | None = None
    scene_embedding: Tensor | None = None
    points_cam: DenseMap | None = None
    metric_scale: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Predictions:
        """Return the predictions with a function applied to every tensor."""
        return tree_map_only(Tensor, function, self)

    def take_views(self, views: slice | list[int]) -> Predictions:
        """Return the predictions of some views, in the order of a list."""
        return _map_with_view_axis(lambda axis, value: value[(slice(None),) * axis + (views,)], self)

    @staticmethod
    def cat(parts: Sequence[Predictions]) -> Predictions:
        """Concatenate predictions of the same heads and scenes along their views."""
        return _map_with_view_axis(lambda axis, *values: torch.cat(values, dim=axis), *parts)


def _map_with_view_axis(function: Callable[..., Tensor], *values: Any, name: str = "") -> Any:
    """Apply `function(axis of views, tensors…)` to the tensors in the same place of nested tuples and mappings."""
    first = values[0]
    if name == "scene_embedding":
        return None
    if name == "metric_scale":  # one for all views of a scene
        return first
    if isinstance(first, Tensor):
        # Tensors of all iterations have the iterations as their first axis.
        return function(2 if name in ("pose_encodings", "TrackIterations.coords_px") else 1, *values)
    if isinstance(first, dict):
        return {key: _map_with_view_axis(function, *(value[key] for value in values)) for key in first}
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        prefix = "TrackIterations." if isinstance(first, TrackIterations) else ""
        fields = zip(first._fields, *values, strict=True)
        return type(first)(*(_map_with_view_axis(function, *each, name=prefix + field) for field, *each in fields))
    return first


@show_shapes
class TrackLabels(NamedTuple):
    """True tracks.

    In unordered views, the query of a track is its position in view 0, where a valid track is visible. In a video, the
    query can be in any frame that sees the point, and frame 0 may not see it.

    Attributes:
        coords_px: Positions (B, S, N, 2) as x and y in pixels, pixel centres at integers. Where the point is not seen,
            its hidden position, or NaN where that is unknown.
        visible: Whether the point is seen, (B, S, N) bool.
        valid: (B, N) bool. False marks a slot that is empty or a negative, a point that is never visible.
    """

    coords_px: Float[Tensor, "b s n 2"]
    visible: Bool[Tensor, "b s n"]
    valid: Bool[Tensor, "b n"]


@show_shapes
class SceneBatch(NamedTuple):
    """Images and their ground truth, for training and evaluation. What a dataset doesn't have is None.

    Attributes:
        images: RGB images (B, S, 3, H, W) in [0, 1].
        cameras: `cam_from_world` (B, S, 3, 4), and `intrinsics` (B, S, 3, 3) in pixels of `images`.
        camera_mask: Boolean mask of the known cameras, (B, S); None for all.
        depth: Depth (B, S, H, W), the z coordinate in the camera, in the unit of the cameras' translations.
        points: Points (B, S, H, W, 3) in the world of the cameras.
        mask: Mask of the pixels with known depth and points, (B, S, H, W) bool; elsewhere they may hold anything.
        tracks: True tracks.
        query_views: View (B, N) of each track's query; None for view 0.
    """

    images: Float[Tensor, "b s 3 h w"]
    cameras: Cameras | None = None
    camera_mask: Tensor | None = None
    depth: Tensor | None = None
    points: Tensor | None = None
    mask: Tensor | None = None
    tracks: TrackLabels | None = None
    query_views: Tensor | None = None
