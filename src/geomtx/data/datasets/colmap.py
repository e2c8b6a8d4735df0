"""Folders reconstructed by COLMAP: pictures with cameras, and sparse depth of the triangulated points."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from geomtx.checks import check_finite_positive
from geomtx.data.datasets.colmap_model import (
    ColmapImage,
    ColmapModel,
    camera_intrinsics,
    check_distortion,
    distort_points,
    find_colmap_model,
    read_colmap_model,
    undistort_image,
)
from geomtx.data.files import find_missing, read_image
from geomtx.data.frame_geometry import Frame
from geomtx.data.sampling import FrameChoice, rank_by_pose
from geomtx.data.scene_check import SceneError
from geomtx.data.scene_dataset import (
    OnError,
    SampleOptions,
    SceneDataset,
    SceneRecord,
    collect_records,
)
from geomtx.files import user_path
from geomtx.geometry.rotation import quat_to_matrix

__all__ = ["ColmapDataset"]

_CHUNK_POINTS = 4096


class ColmapDataset(SceneDataset):
    """A scene that COLMAP reconstructed, or a folder of such scenes.

    ```
    ROOT/images/NAME.jpg             the pictures, in folders, too
    ROOT/sparse/0/cameras.bin        and images.bin, points3D.bin; or .txt; or in ROOT/sparse, or in ROOT
    ```

    Without ROOT/images, each folder in ROOT is a scene. Depth is sparse: the z-depth of the triangulated points at the
    pixels of their key points; all other pixels are unknown. Views are drawn from the 32 frames that share most points
    with the first, then by distance of the cameras (`rank_by_pose`).

    The camera models SIMPLE_PINHOLE, PINHOLE, SIMPLE_RADIAL, RADIAL and OPENCV are supported; distorted pictures are
    undistorted when they are read. As in COLMAP, no EXIF orientation is applied. Lengths are in the arbitrary unit of
    the reconstruction, so that scenes should be normalised before a loss.

    Args:
        root: Folder of the scene or of the scenes; nothing is written into it.
        max_error_px: Largest reprojection error in pixels of a key point whose depth is used; defaults to 2.
        min_frames: Scenes with fewer frames are left out; defaults to 2.
        on_error: Whether a scene with an incomplete model or pictures raises ("raise") or is left out ("skip");
            defaults to "raise".
        options: Options by which sequences become scenes; `num_tracks` must be 0, because tracks need dense depth.

    Raises:
        SceneError: A ValueError, depending on `on_error`.
        ValueError: If no scene is left, or `num_tracks` is not 0.
    """

    usual_choice = FrameChoice(num_nearest=32)

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        max_error_px: float = 2.0,
        min_frames: int = 2,
        on_error: OnError = "raise",
        options: SampleOptions | None = None,
    ) -> None:
        root, options = user_path(root), options or SampleOptions()
        check_finite_positive("max_error_px", max_error_px)
        if options.num_tracks:
            raise ValueError(f"num_tracks must be 0 for sparse depth of COLMAP, got {options.num_tracks}")
        self.max_error_px = max_error_px
        self._models: dict[str, ColmapModel] = {}
        is_scene = (root / "images").is_dir()
        folders = [root] if is_scene else sorted(path.parent for path in root.glob("*/images") if path.is_dir())
        names = [folder.relative_to(root).as_posix() for folder in folders]
        records = collect_records(
            names, lambda name: self._load_scene(root / name, name), min_frames=min_frames, on_error=on_error
        )
        super().__init__(root, records, options=options)

    def read_frame(self, record: SceneRecord, index: int) -> Frame:
        """Decode one frame.

        Raises:
            SceneError: If a file is missing or damaged.
        """
        model = self._models[record.name]
        camera = model.cameras[model.images[index].camera]
        name = record.images[index]
        image = read_image(self.root / record.name / "images" / name)
        if image.shape[:2] != camera.image_hw:
            raise SceneError(f"picture '{name}' must have its camera's size {camera.image_hw}, got {image.shape[:2]}")
        coords_px, _ = self._project(record, index)
        pose, intrinsics = record.cam_from_world[index], record.intrinsics[index]
        return Frame(undistort_image(camera, image), pose, intrinsics, tracks_px=coords_px)

    def finish_frame(self, record: SceneRecord, index: int, frame: Frame) -> Frame:
        """Write the depth of the points, which were transformed as tracks, to their pixels."""
        _, depth = self._project(record, index)
        assert frame.tracks_px is not None
        pixels = np.floor(frame.tracks_px + 0.5).astype(np.int64)
        inside = ((pixels >= 0) & (pixels < frame.image_hw[::-1])).all(-1)
        x, y = pixels[inside].T
        nearest = np.full(frame.image_hw, np.inf, dtype=np.float32)
        np.minimum.at(nearest, (y, x), depth[inside].astype(np.float32))
        return frame._replace(depth=np.where(np.isfinite(nearest), nearest, 0), tracks_px=None)

    def _project(self, record: SceneRecord, index: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Project the frame's points: pixels (M, 2) of the undistorted picture and z-depth (M,), without outliers."""
        model = self._models[record.name]
        image = model.images[index]
        pose, k = record.cam_from_world[index], record.intrinsics[index]
        points = model.points[image.points] @ pose[:, :3].T + pose[:, 3]
        ahead = points[:, 2] > 1e-8
        rays = points[:, :2] / np.where(ahead, points[:, 2], 1.0)[:, None]
        # Key points are in pixels of the distorted picture, with the first pixel's centre at (0.5, 0.5).
        miss = distort_points(model.cameras[image.camera], rays) - (image.keypoints_px - 0.5)
        good = ahead & (np.linalg.norm(miss, axis=-1) < self.max_error_px)
        coords = rays[good] * [k[0, 0], k[1, 1]] + [k[0, 2], k[1, 2]]
        return coords, points[good, 2]

    def _load_scene(self, folder: Path, name: str) -> SceneRecord:
        model = read_colmap_model(find_colmap_model(folder))
        missing = find_missing(folder / "images", [image.name for image in model.images])
        if missing:
            raise SceneError(f"pictures of '{name}' must exist, got none for {len(missing)}, the first '{missing[0]}'")
        if not model.images:
            raise SceneError(f"model of '{name}' must hold pictures, got none")
        for camera in model.cameras.values():
            camera_intrinsics(camera)
            check_distortion(camera)
        self._models[name] = model
        poses = np.stack([_pose(image) for image in model.images])
        intrinsics = np.stack([camera_intrinsics(model.cameras[image.camera]) for image in model.images])
        return SceneRecord(name, tuple(image.name for image in model.images), poses, intrinsics, _rank(model, poses))


def _rank(model: ColmapModel, poses: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rank all frames for each frame by the number of shared points, then by pose."""
    by_pose = rank_by_pose(poses)
    frames = np.repeat(np.arange(len(poses)), [len(image.points) for image in model.images])
    points = np.concatenate([image.points for image in model.images])
    order = np.argsort(points, kind="stable")
    frames, points = frames[order], points[order]
    shared = np.zeros((len(poses), len(poses)), dtype=np.float32)
    # In chunks of points, because the table of frames and points is as large as the scene.
    for start in range(0, len(model.points), _CHUNK_POINTS):
        low, high = np.searchsorted(points, [start, start + _CHUNK_POINTS])
        seen = np.zeros((len(poses), _CHUNK_POINTS), dtype=np.float32)
        seen[frames[low:high], points[low:high] - start] = 1
        shared += seen @ seen.T
    np.fill_diagonal(shared, np.inf)
    order = np.argsort(-np.take_along_axis(shared, by_pose, axis=1), axis=1, kind="stable")
    return np.take_along_axis(by_pose, order, axis=1)


def _pose(image: ColmapImage) -> NDArray[np.float64]:
    rotation = quat_to_matrix(torch.from_numpy(image.quat_xyzw)).numpy()
    return np.concatenate([rotation, image.translation[:, None]], axis=1)
