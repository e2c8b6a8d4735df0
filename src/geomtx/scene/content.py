"""What a scene holds: photos, and cameras, depth, tracks and points in the pixels of the original photos."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.files import escape_name, unique_names
from geomtx.geometry.projection import unproject
from geomtx.scene.filters import PixelFilter, valid_pixels
from geomtx.scene.points import NoPointsError, PointCloud, select_points
from geomtx.types import Bool, Cameras, DenseMap, Float, Int, Predictions, Tracks, UInt8, show_shapes
from geomtx.views import ViewTransform

__all__ = ["FIRST_CAMERA", "MatchedPixels", "SceneContent"]

FIRST_CAMERA = "the first view's camera, as the model predicts it"
"""The world of a scene, unless it was aligned with another."""


@show_shapes
class MatchedPixels(NamedTuple):
    """Pixels of photos that see the same points, from the matches of pairs of photos.

    Attributes:
        view: View of each observation, (K,) int64.
        point: Point of each observation, (K,) int64; observations are sorted by point, then by view.
        coords_px: Pixel (x, y) in which the view sees the point, (K, 2) float64, in original pixels.
    """

    view: Int[Tensor, " k"]
    point: Int[Tensor, " k"]
    coords_px: Float[Tensor, "k 2"]


@dataclass(frozen=True, eq=False)
class SceneContent:
    """The values of a `Scene`, whose docstring says what they are, and its predictions in original pixels.

    Files and reports are made of this; `Scene` adds what makes another scene of one, and reading and writing.
    """

    names: tuple[str, ...]
    transforms: tuple[ViewTransform, ...]
    images: UInt8[Tensor, "s 3 h w"]
    masks: Bool[Tensor, "s h w"]
    predictions: Predictions
    query_points: Float[Tensor, "n 3"] | None = None
    units: str = "up to scale"
    notice: str = ""
    paths: tuple[Path | None, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    refined: bool = False
    first_cameras: Cameras | None = None
    times: tuple[float, ...] = ()
    matched: MatchedPixels | None = None
    moving: Bool[Tensor, "s h w"] | None = None

    def __post_init__(self) -> None:
        # Every file of the scene can hold these strings then.
        object.__setattr__(self, "names", unique_names(self.names))
        for name in ("units", "notice"):
            object.__setattr__(self, name, escape_name(getattr(self, name)))
        made = {escape_name(name): escape_name(value) for name, value in self.provenance.items()}
        object.__setattr__(self, "provenance", made)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        found = [name for name, value in self.predictions._asdict().items() if value is not None]
        height, width = self.images.shape[-2:]
        return f"Scene({len(self)} views of {width}x{height}, {', '.join(found) or 'empty'}; {self.units})"

    @property
    def world(self) -> str:
        """What the world's frame is: the first view's camera, unless `align` or a reference view say otherwise."""
        return self.provenance.get("world", FIRST_CAMERA)

    @property
    def cameras(self) -> Cameras | None:
        """Cameras: `cam_from_world` (S, 3, 4), and `intrinsics` (S, 3, 3) in original pixels."""
        if self.predictions.cameras is None:
            return None
        cam_from_world, intrinsics = self.predictions.cameras
        views = zip(self.transforms, intrinsics, strict=True)
        return Cameras(cam_from_world, torch.stack([transform.intrinsics_to_original(k) for transform, k in views]))

    @property
    def depth(self) -> tuple[DenseMap, ...] | None:
        """Depth and confidence of each view in original pixels, (H_s, W_s) each; interpolated at every access."""
        if self.predictions.depth is None:
            return None
        return tuple(self.view_depth(index) for index in range(len(self)))

    def view_depth(self, index: int) -> DenseMap:
        """Return depth and confidence of one view, both (H_s, W_s) in original pixels.

        Both are 0 in pixels that were cropped away before the model saw the photo.

        Args:
            index: Index of the view.

        Raises:
            ValueError: If the scene has no depth.
        """
        if self.predictions.depth is None:
            raise ValueError("scene must have depth, but the model ran without its depth head")
        value, confidence = (self.transforms[index].depth_to_original(each[index]) for each in self.predictions.depth)
        return DenseMap(value, confidence)

    @property
    def extra(self) -> dict[str, tuple[DenseMap, ...]] | None:
        """Name of an added head (`VGGT.add_head`) → its map of each view in original pixels.

        Values are (H_s, W_s) or (H_s, W_s, C), confidences (H_s, W_s). They are interpolated at every access, and 0
        where the photo was cropped. Moving or scaling the scene leaves them as they are, as only the head knows what
        they mean.
        """
        if self.predictions.extra is None:
            return None
        return {
            name: tuple(
                DenseMap(*(_to_original(each[index], transform) for each in maps))
                for index, transform in enumerate(self.transforms)
            )
            for name, maps in self.predictions.extra.items()
        }

    @property
    def tracks(self) -> Tracks | None:
        """Tracks in original pixels: `coords_px` (S, N, 2), `visibility` and `confidence` (S, N)."""
        if self.predictions.tracks is None:
            return None
        coords, visibility, confidence = self.predictions.tracks
        views = zip(self.transforms, coords, strict=True)
        return Tracks(torch.stack([transform.to_original(xy) for transform, xy in views]), visibility, confidence)

    def points(
        self, percentile: float = 20.0, *, max_points: int | None = None, which: PixelFilter | None = None
    ) -> PointCloud:
        """Return the confident points of all views in the first camera's frame.

        Points are the depth maps unprojected with the predicted cameras or, if one of the two is missing, those of the
        point head. A pixel gives a point if it is in `masks`, isn't in `moving`, lies in front of the camera and on no
        edge of depth, has finite values, and has a confidence at or above the percentile over all such pixels.

        Args:
            percentile: Percentile of confidence, 0 to 100; 20 leaves out the least confident fifth.
            max_points: Largest number of points, chosen at random but the same in every call; defaults to no limit.
            which: Further tests of a pixel, such as a smallest confidence or the agreement of the views; defaults to
                `PixelFilter()`, which leaves out edges of depth, where points would fly between two surfaces.

        Raises:
            ValueError: If the scene has neither depth and cameras nor points, an argument is out of range, or no pixel
                gives a point. The message names the cause: predictions that are not finite, no positive depth, or
                masks that leave no pixel.
        """
        depth = self.predictions.depth
        points, confidence = self.point_map()
        if depth is not None and self.predictions.cameras is not None:
            value = depth.value[self.masks]
            if value.isfinite().any() and not (value > 0).any():
                raise NoPointsError("no points: the predicted depth is not positive anywhere")
        valid = valid_pixels(self, which)
        return select_points(points, confidence, self.images, valid, percentile=percentile, max_points=max_points)

    def point_map(self) -> DenseMap:
        """Return a point (S, H, W, 3) and a confidence (S, H, W) for each pixel of the model's images, see `points`.

        The point is NaN where the depth is not positive.

        Raises:
            ValueError: If the scene has neither depth and cameras nor points.
        """
        depth, cameras = self.predictions.depth, self.predictions.cameras
        if depth is not None and cameras is not None:
            in_front = depth.value.where(depth.value > 0, torch.nan)
            return DenseMap(unproject(in_front, cameras.intrinsics, cameras.cam_from_world), depth.confidence)
        if self.predictions.points is None:
            raise ValueError("scene must have depth and cameras, or points, but the model ran without those heads")
        return self.predictions.points


def _to_original(map_: Tensor, transform: ViewTransform) -> Tensor:
    """Bring a map (H, W) or (H, W, C) from the model's pixels to those of the photo."""
    if map_.ndim == 2:
        return transform.depth_to_original(map_)
    return transform.depth_to_original(map_.movedim(-1, 0)).movedim(0, -1)
