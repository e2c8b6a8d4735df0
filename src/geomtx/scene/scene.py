"""What a reconstruction gives: cameras, depth, tracks and points in the pixels of the original photos."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from geomtx.files import escape_name, unique_names
from geomtx.geometry.projection import unproject
from geomtx.scene.pointcloud import NoPointsError, PointCloud, select_points
from geomtx.types import Bool, Cameras, DenseMap, Float, Predictions, Tracks, UInt8
from geomtx.views import ViewTransform

__all__ = ["Scene"]


@dataclass(frozen=True, eq=False)
class Scene:
    r"""One scene: S photos and what a model predicts of them, on the CPU.

    All lengths are up to scale and all points in the first camera's frame, OpenCV axes; see `rescale`. `predictions`
    are in pixels of the model's images; the properties `cameras`, `depth` and `tracks` are in pixels of the original
    photos, pixel centres at integers. What the model has no head for is None.

    Attributes:
        names: Names of the views, unique; bytes of file names that are not UTF-8 are escaped as `\xe9`.
        transforms: From original to model pixels, one a view.
        images: (S, 3, H, W) uint8, as the model saw them.
        masks: (S, H, W) bool, True = photo, False = padding, masked, or in a patch that the model left out for that.
        predictions: Without the batch axis; no `track_iterations`.
        query_points: (N, 3) as (view, x, y) in original pixels, or None.
        units: Of lengths, "up to scale" unless `rescale` says otherwise.
        notice: A warning that every exported file repeats, or "".
    """

    names: tuple[str, ...]
    transforms: tuple[ViewTransform, ...]
    images: UInt8[Tensor, "s 3 h w"]
    masks: Bool[Tensor, "s h w"]
    predictions: Predictions
    query_points: Float[Tensor, "n 3"] | None = None
    units: str = "up to scale"
    notice: str = ""

    def __post_init__(self) -> None:
        # Every file of the scene can hold these strings then.
        object.__setattr__(self, "names", unique_names(self.names))
        for field in ("units", "notice"):
            object.__setattr__(self, field, escape_name(getattr(self, field)))

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        found = [name for name, value in self.predictions._asdict().items() if value is not None]
        height, width = self.images.shape[-2:]
        return f"Scene({len(self)} views of {width}x{height}, {', '.join(found) or 'empty'}; {self.units})"

    @property
    def cameras(self) -> Cameras | None:
        """`cam_from_world` (S, 3, 4), up to scale, and `intrinsics` (S, 3, 3) in original pixels."""
        if self.predictions.cameras is None:
            return None
        cam_from_world, intrinsics = self.predictions.cameras
        views = zip(self.transforms, intrinsics, strict=True)
        return Cameras(cam_from_world, torch.stack([transform.intrinsics_to_original(k) for transform, k in views]))

    @property
    def depth(self) -> tuple[DenseMap, ...] | None:
        """Depth and confidence of each view in original pixels, (H_s, W_s) each: computed in every access."""
        if self.predictions.depth is None:
            return None
        return tuple(self.view_depth(index) for index in range(len(self)))

    def view_depth(self, index: int) -> DenseMap:
        """Depth (up to scale) and confidence of one view, both (H_s, W_s) in original pixels.

        Pixels that the model did not see (cropped away) are 0 in both.

        Raises:
            ValueError: Without a depth head.
        """
        if self.predictions.depth is None:
            raise ValueError("scene must have depth, but the model ran without its depth head")
        value, confidence = (self.transforms[index].depth_to_original(each[index]) for each in self.predictions.depth)
        return DenseMap(value, confidence)

    @property
    def extra(self) -> dict[str, tuple[DenseMap, ...]] | None:
        """Maps of heads that were added (`VGGT.add_head`), by name, of each view in original pixels.

        Values (H_s, W_s) or (H_s, W_s, C) and confidences (H_s, W_s), interpolated and 0 where the model did not see;
        what they mean is the head's: they are neither scaled nor turned with the scene. Computed in every access.
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

    def points(self, percentile: float = 20.0, *, max_points: int | None = None) -> PointCloud:
        """The sure points of all views, up to scale, in the first camera's frame.

        They are the depth maps unprojected with the predicted cameras, or the point head's if one of the two is
        missing. Kept are pixels in `masks` and in front of the camera, with finite values and a confidence at or above
        the percentile over all such pixels.

        Args:
            percentile: 0 to 100; 20 leaves out the least sure fifth.
            max_points: At most so many, chosen at random but the same in every call.

        Raises:
            ValueError: Without both (depth, cameras) and points; for other arguments; if there is no such pixel, with
                the cause: predictions that are not finite, no positive depth, or nothing left by the masks.
        """
        depth = self.predictions.depth
        points, confidence = self.point_map()
        if depth is not None and self.predictions.cameras is not None:
            value = depth.value[self.masks]
            if value.isfinite().any() and not (value > 0).any():
                raise NoPointsError("no points: the predicted depth is not positive anywhere")
        return select_points(points, confidence, self.images, self.masks, percentile=percentile, max_points=max_points)

    def point_map(self) -> DenseMap:
        """A point (S, H, W, 3) and a confidence (S, H, W) for each pixel of the model's images, see `points`.

        Where the depth is not positive, the point is NaN.

        Raises:
            ValueError: Without both (depth, cameras) and points.
        """
        depth, cameras = self.predictions.depth, self.predictions.cameras
        if depth is not None and cameras is not None:
            in_front = depth.value.where(depth.value > 0, torch.nan)
            return DenseMap(unproject(in_front, cameras.intrinsics, cameras.cam_from_world), depth.confidence)
        if self.predictions.points is None:
            raise ValueError("scene must have depth and cameras, or points, but the model ran without those heads")
        return self.predictions.points

    def rescale(self, factor: float, *, units: str | None = None) -> Scene:
        """Scale depth, points and camera translations together: everything projects to the same pixels as before.

        Args:
            factor: New units for one old unit, such as a known distance over the same distance in the scene.
            units: Name of the new units, "metres" for instance. None = keep the name.

        Raises:
            ValueError: Unless factor is finite and positive.
        """
        if not (math.isfinite(factor) and factor > 0):
            raise ValueError(f"factor must be finite and positive, got {factor}")
        cameras, encodings, depth, points, *_ = self.predictions
        if cameras is not None:
            cameras = cameras._replace(cam_from_world=_scale_translation(cameras.cam_from_world, factor))
        if encodings is not None:
            encodings = torch.cat([encodings[..., :3] * factor, encodings[..., 3:]], dim=-1)
        if depth is not None:
            depth = depth._replace(value=depth.value * factor)
        if points is not None:
            points = points._replace(value=points.value * factor)
        predictions = self.predictions._replace(cameras=cameras, pose_encodings=encodings, depth=depth, points=points)
        return replace(self, predictions=predictions, units=self.units if units is None else units)

    def save(
        self,
        folder: str | Path,
        *,
        percentile: float = 20.0,
        max_points: int | None = None,
        maps: Literal["original", "network"] = "original",
        report: bool = True,
        overwrite: bool = False,
    ) -> tuple[Path, ...]:
        """Write the scene: all files or none, the same bytes every time; other files in the folder are left alone.

        `scene.safetensors` (every map; `Scene.load` reads it), `cameras.json`, `points.ply`, `report.png`, and
        `tracks.json` where there are tracks. What the predictions don't allow is left out, with a warning in the log
        if there are no finite points.

        Args:
            folder: Made if it doesn't exist.
            percentile: For the point cloud, see `points`.
            max_points: For the point cloud, see `points`.
            maps: "original" adds depth in original pixels to scene.safetensors, "network" leaves it out.
            report: False leaves out report.png.
            overwrite: Whether files of these names that geomtx did not write may be replaced. Those of an earlier
                `save`, recognised by what they hold, always are.

        Returns:
            The paths written.

        Raises:
            FileExistsError: If there are files of these names that geomtx did not write, and `overwrite` is False.
            OSError: If the folder can't be written.
        """
        from geomtx.export import save_scene

        return save_scene(
            self,
            folder,
            percentile=percentile,
            max_points=max_points,
            maps=maps,
            report=report,
            overwrite=overwrite,
        )

    @classmethod
    def load(cls, folder: str | Path) -> Scene:
        """Read what `save` wrote: a folder, or its scene.safetensors.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If the file isn't a scene.
        """
        from geomtx.export import load_scene

        return load_scene(folder)


def _to_original(map_: Tensor, transform: ViewTransform) -> Tensor:
    """(H, W) or (H, W, C) in the model's pixels → the photo's."""
    if map_.ndim == 2:
        return transform.depth_to_original(map_)
    return transform.depth_to_original(map_.movedim(-1, 0)).movedim(0, -1)


def _scale_translation(cam_from_world: Float[Tensor, "*batch 3 4"], factor: float) -> Tensor:
    return torch.cat([cam_from_world[..., :3], cam_from_world[..., 3:] * factor], dim=-1)
