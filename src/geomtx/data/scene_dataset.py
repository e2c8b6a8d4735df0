"""Base class of all datasets of files, which assembles the scene that a sampler requests."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from geomtx.checks import check_at_least, check_option, check_positive
from geomtx.data.augmentation import ColorAugmentation
from geomtx.data.frame_geometry import Frame, FrameTransform
from geomtx.data.sampling import FrameChoice, SceneRequest
from geomtx.data.scene_check import SceneError, check_cameras
from geomtx.data.tracks import build_track_labels
from geomtx.geometry.camera import compose_rigid, invert_rigid
from geomtx.geometry.projection import unproject
from geomtx.types import Cameras, SceneBatch

__all__ = ["SampleOptions", "SceneDataset", "SceneRecord", "assemble_scene"]

logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]


class SceneRecord(NamedTuple):
    """List entry of a sequence of N frames, before any of its pictures is decoded.

    Attributes:
        name: Unique name of the sequence, also for messages.
        images: Paths of the N pictures.
        cam_from_world: Camera poses, (N, 3, 4) float64.
        intrinsics: Intrinsics in pixels, (N, 3, 3) float64.
        ranking: Neighbours of each frame as by `rank_by_pose`, (N, K); None if not known.
    """

    name: str
    images: tuple[str, ...]
    cam_from_world: NDArray[np.float64]
    intrinsics: NDArray[np.float64]
    ranking: NDArray[np.integer] | None = None


@dataclass(frozen=True)
class SampleOptions:
    """Options by which a sequence becomes a scene.

    Args:
        size: Width of the images in pixels; the height is `size` times the requested aspect, in whole patches. Defaults
            to 518.
        patch_size: Side of the model's patches in pixels; defaults to 14.
        choice: Choice of the frames; defaults to that of the dataset.
        transform: Crop and resize; use `FrameTransform.plain()` for validation.
        color: Colour augmentation; defaults to none, which suits validation and losses that compare colours of views.
        num_tracks: Number of tracks to build from depth; defaults to 0.
    """

    size: int = 518
    patch_size: int = 14
    choice: FrameChoice | None = None
    transform: FrameTransform = field(default_factory=FrameTransform)
    color: ColorAugmentation | None = None
    num_tracks: int = 0

    def __post_init__(self) -> None:
        check_positive("patch_size", self.patch_size)
        if self.size < self.patch_size or self.size % self.patch_size:
            raise ValueError(f"size must be a multiple of patch_size = {self.patch_size}, got {self.size}")
        check_at_least("num_tracks", self.num_tracks, 0)

    def image_hw(self, aspect: float) -> tuple[int, int]:
        """Return height and width of the images for an aspect (height over width).

        Raises:
            ValueError: If the height is less than a patch.
        """
        # Rounding may leave a product slightly below a whole number of patches.
        height = math.floor(self.size * aspect / self.patch_size + 1e-6) * self.patch_size
        if height < 1:
            raise ValueError(f"aspect must be at least a patch, {self.patch_size / self.size:.3f}, got {aspect}")
        return height, self.size


class SceneDataset(Dataset[SceneBatch], ABC):
    """Dataset that is indexed by a request (scene, number of views, aspect[, seed]) and returns a `SceneBatch`, B = 1.

    The world frame of a scene is the camera of its first view. All random numbers come from the request's seed and
    scene, so that equal requests give equal scenes in any process.

    Args:
        root: Folder of the data.
        records: Sequences of the dataset.
        options: Options by which sequences become scenes.

    Attributes:
        usual_choice: Choice of frames if the options have none.
    """

    usual_choice: ClassVar[FrameChoice] = FrameChoice()

    def __init__(self, root: Path, records: Sequence[SceneRecord], *, options: SampleOptions) -> None:
        if not records:
            missing = "" if Path(root).is_dir() else ", which is no folder"
            raise ValueError(f"root must hold sequences that can be used, got none in '{root}'{missing}")
        self.root = root
        self.records = tuple(records)
        self.options = options

    @abstractmethod
    def read_frame(self, record: SceneRecord, index: int) -> Frame:
        """Decode one frame.

        Raises:
            SceneError: If a file is missing or damaged.
        """

    def finish_frame(self, record: SceneRecord, index: int, frame: Frame) -> Frame:
        """Complete a frame after it was resized; by default it is returned as it is. Sparse depth is added here."""
        return frame

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self.records)

    def __getitem__(self, request: SceneRequest | tuple[int, int, float]) -> SceneBatch:
        """Load the requested scene.

        Raises:
            SceneError: If the scene cannot be used.
            IndexError: If there is no such sequence.
        """
        request = SceneRequest(*request)
        if not 0 <= request.scene < len(self):
            raise IndexError(f"scene must be in 0 … {len(self) - 1}, got {request.scene}")
        record, options = self.records[request.scene], self.options
        image_hw = options.image_hw(request.aspect)
        rng = np.random.default_rng([request.seed, request.scene])
        try:
            choice = options.choice or self.usual_choice
            chosen = choice(len(record.images), request.num_views, rng, ranking=record.ranking)
            frames = [
                self.finish_frame(record, int(i), options.transform(self.read_frame(record, int(i)), image_hw, rng))
                for i in chosen
            ]
            generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
            return assemble_scene(frames, color=options.color, num_tracks=options.num_tracks, generator=generator)
        except SceneError as error:
            raise SceneError(f"scene '{record.name}': {error}") from error


def assemble_scene(
    frames: Sequence[Frame],
    *,
    color: ColorAugmentation | None = None,
    num_tracks: int = 0,
    generator: torch.Generator | None = None,
) -> SceneBatch:
    """Assemble frames of one size to a scene, B = 1, in the first frame's camera.

    Depth, points and tracks are None if a frame has no depth.

    Args:
        frames: Frames of the S views.
        color: Colour augmentation; defaults to none.
        num_tracks: Number of tracks to build from depth; defaults to 0.
        generator: Source of random numbers; defaults to torch's global one.

    Raises:
        SceneError: If frames have depth, but none of its pixels is known.
    """
    images = torch.from_numpy(np.stack([frame.image for frame in frames])).permute(0, 3, 1, 2)[None] / 255
    if color is not None:
        images = color(images, generator=generator)
    poses = torch.from_numpy(np.stack([frame.cam_from_world for frame in frames]))
    poses = compose_rigid(poses, invert_rigid(poses[:1]).expand_as(poses))
    # The first camera is exactly the identity, without rounding errors.
    poses[0] = torch.eye(3, 4, dtype=poses.dtype)
    intrinsics = torch.from_numpy(np.stack([frame.intrinsics for frame in frames]))
    cameras = Cameras(poses.float()[None], intrinsics.float()[None])
    if any(frame.depth is None for frame in frames):
        return SceneBatch(images, cameras)
    depth = torch.from_numpy(np.stack([frame.depth for frame in frames if frame.depth is not None]))
    mask = depth > 1e-8
    for index, frame in enumerate(frames):
        if frame.mask is not None:
            mask[index] &= torch.from_numpy(frame.mask)
    if not mask.any():
        raise SceneError("depth must be known somewhere, got not a pixel")
    depth = torch.where(mask, depth, 0)
    points = unproject(depth.double(), intrinsics, poses).float()
    scene = SceneBatch(images, cameras, None, depth[None], points[None], mask[None])
    if num_tracks == 0:
        return scene
    tracks = build_track_labels(depth[None], cameras, mask[None], num_tracks=num_tracks, generator=generator)
    return scene._replace(tracks=tracks)


def collect_records(
    names: Iterable[str], load: Callable[[str], SceneRecord], *, min_frames: int, on_error: OnError
) -> list[SceneRecord]:
    """Load the records of sequences, without those that are too short.

    Args:
        names: Names of the sequences.
        load: Function from a name to its record.
        min_frames: Sequences with fewer frames are left out.
        on_error: Whether a broken sequence raises ("raise") or is left out with a warning ("skip").

    Raises:
        SceneError: For the first broken sequence if `on_error` is "raise".
    """
    check_option("on_error", on_error, ("raise", "skip"))
    if not isinstance(min_frames, Integral):
        raise ValueError(f"min_frames must be a whole number, got {min_frames!r}")
    check_positive("min_frames", min_frames)
    records, short, broken = [], 0, 0
    for name in names:
        try:
            record = load(name)
            _check_record(record)
        except SceneError as error:
            if on_error == "raise":
                raise
            broken += 1
            logger.warning("left out a sequence: %s", error)
            continue
        if len(record.images) < min_frames:
            short += 1
        else:
            records.append(record)
    if short or broken:
        logger.warning("left out %d sequences under %d frames and %d broken ones", short, min_frames, broken)
    return records


def check_extent(frame: Frame, name: str) -> Frame:
    """Require that depth and mask have the size of the picture."""
    for part, array in (("depth", frame.depth), ("mask", frame.mask)):
        if array is not None and array.shape != frame.image_hw:
            raise SceneError(f"{part} of '{name}' must have the picture's size {frame.image_hw}, got {array.shape}")
    return frame


def _check_record(record: SceneRecord) -> None:
    num_frames = len(record.images)
    if record.cam_from_world.shape != (num_frames, 3, 4) or record.intrinsics.shape != (num_frames, 3, 3):
        found = f"{record.cam_from_world.shape} and {record.intrinsics.shape}"
        raise SceneError(f"cameras of '{record.name}' must be one a picture, {num_frames}, got {found}")
    if num_frames == 0:
        return
    try:
        check_cameras(Cameras(torch.from_numpy(record.cam_from_world), torch.from_numpy(record.intrinsics)))
    except ValueError as error:
        raise SceneError(f"cameras of '{record.name}': {error}") from error
    ranking = record.ranking
    if ranking is not None and (
        ranking.ndim != 2
        or len(ranking) != num_frames
        or ranking.dtype.kind not in "iu"
        or not ((ranking >= 0) & (ranking < num_frames)).all()
    ):
        raise SceneError(f"ranking of '{record.name}' must have frame numbers, a row a picture, got {ranking.shape}")
