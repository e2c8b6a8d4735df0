"""Frames: a picture with depth, mask, camera and tracks, which are cropped, resized and rotated consistently.

Pixel centres are at integers. A resize by f moves the centre of pixel x to (x + 0.5) f - 0.5; principal points and
tracks follow that rule. (VGGT, released data pipeline; its tracks lack the half pixel.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from geomtx.checks import check_at_least
from geomtx.data.scene_check import SceneError

__all__ = [
    "Frame",
    "FrameTransform",
    "crop_exactly",
    "crop_to_principal_point",
    "resize_frame",
    "rotate_frame",
]

_QUARTER_TURN = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


class Frame(NamedTuple):
    """A picture with its ground truth.

    Attributes:
        image: RGB picture, (H, W, 3) uint8.
        cam_from_world: Camera pose, (3, 4) float64, OpenCV axes.
        intrinsics: Intrinsics in pixels of `image` without skew, (3, 3) float64.
        depth: z-depth in the unit of the camera's translation, (H, W) float32, 0 where unknown; None without.
        mask: (H, W) bool, True where known depth is valid; None for everywhere.
        tracks_px: Positions of N tracks as (x, y) in pixels, (N, 2) float64, also outside of the image; None without.
    """

    image: NDArray[np.uint8]
    cam_from_world: NDArray[np.float64]
    intrinsics: NDArray[np.float64]
    depth: NDArray[np.float32] | None = None
    mask: NDArray[np.bool_] | None = None
    tracks_px: NDArray[np.float64] | None = None

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image.shape[0], self.image.shape[1]


@dataclass(frozen=True)
class FrameTransform:
    """Random crop and resize of a frame to a target size, about the principal point (VGGT, released data pipeline).

    Args:
        scale_jitter: Range of the shares of height and width that are kept at first. They are drawn independently and
            limited to 1, so that the aspect changes. None keeps everything. Defaults to (0.8, 1.2).
        zoom: Largest excess of the resized frame over the target, as a share of the target's longer side; the density
            falls linearly to zero. Defaults to 0.3.
        margin: Smallest excess of the resized frame over the target in pixels; defaults to 4.
        turn_portrait: Whether half of the frames that are over 1.25 times higher than wide are rotated by 90° to either
            side, unless the target is square. Defaults to False.

    Raises:
        ValueError: For a range of numbers that are not positive, or a negative number.
    """

    scale_jitter: tuple[float, float] | None = (0.8, 1.2)
    zoom: float = 0.3
    margin: int = 4
    turn_portrait: bool = False

    def __post_init__(self) -> None:
        if self.scale_jitter is not None and not 0 < self.scale_jitter[0] <= self.scale_jitter[1]:
            raise ValueError(f"scale_jitter must be a positive range, got {self.scale_jitter}")
        for name in ("zoom", "margin"):
            check_at_least(name, getattr(self, name), 0)

    @classmethod
    def plain(cls) -> FrameTransform:
        """Return the transform without random numbers, for validation."""
        return cls(scale_jitter=None, zoom=0.0)

    def __call__(self, frame: Frame, target_hw: tuple[int, int], rng: np.random.Generator) -> Frame:
        """Transform one frame.

        Args:
            frame: Frame of any size.
            target_hw: Height and width of the result in pixels.
            rng: Source of random numbers.

        Returns:
            Frame of exactly `target_hw`. Rows at the bottom and columns at the right without content are black and have
            no depth.

        Raises:
            SceneError: If the principal point is outside of the picture.
        """
        height, width = frame.image_hw
        turned = self.turn_portrait and height > 1.25 * width and target_hw[0] != target_hw[1] and rng.random() < 0.5
        if turned:
            target_hw = (target_hw[1], target_hw[0])
        kept_h, kept_w = (1.0, 1.0) if self.scale_jitter is None else np.minimum(rng.uniform(*self.scale_jitter, 2), 1)
        frame = crop_to_principal_point(frame, (kept_h * height, kept_w * width))
        excess = self.margin + (rng.triangular(0.0, 0.0, self.zoom) * max(target_hw) if self.zoom > 0 else 0.0)
        factor = max((target + excess) / size for target, size in zip(target_hw, frame.image_hw, strict=True))
        frame = crop_exactly(resize_frame(frame, factor), target_hw)
        return rotate_frame(frame, clockwise=bool(rng.random() < 0.5)) if turned else frame


def crop_to_principal_point(frame: Frame, crop_hw: tuple[float, float]) -> Frame:
    """Crop a frame so that its principal point is at the centre, as the pose encoding assumes.

    Args:
        frame: Frame of any size.
        crop_hw: Height and width to crop to in pixels. The crop is smaller if a border is nearer than half of it; its
            sides are even.

    Returns:
        Frame whose principal point is less than a pixel to the right of and below (W/2, H/2).

    Raises:
        SceneError: If the principal point is less than a pixel inside the picture.
    """
    starts, sizes = [], []
    for axis, (size, target) in enumerate(zip(frame.image_hw, crop_hw, strict=True)):
        center = float(frame.intrinsics[1 - axis, 2])
        half = math.floor(min(target / 2, center, size - center))
        if half < 1:
            raise SceneError(f"intrinsics must have the principal point inside the picture, got {center} of {size}")
        starts.append(math.floor(center) - half)
        sizes.append(2 * half)
    return _crop(frame, (starts[0], starts[1]), (sizes[0], sizes[1]))


def crop_exactly(frame: Frame, target_hw: tuple[int, int]) -> Frame:
    """Crop a frame to exactly a size, with the principal point as near to the centre as the picture allows.

    Where the picture is smaller, rows at the bottom and columns at the right are black and have no depth.
    """
    starts = []
    for axis, (size, target) in enumerate(zip(frame.image_hw, target_hw, strict=True)):
        start = math.floor(float(frame.intrinsics[1 - axis, 2])) - target // 2
        starts.append(min(max(start, 0), max(size - target, 0)))
    return _crop(frame, (starts[0], starts[1]), target_hw)


def resize_frame(frame: Frame, factor: float) -> Frame:
    """Resize a frame by a factor, with sides rounded down to whole pixels; intrinsics and tracks follow these sides.

    The picture is resampled by Lanczos' kernel if it shrinks and bicubically if it grows. Depth and mask take the
    nearest pixel, because a mean of two surfaces is not a depth.
    """
    height, width = frame.image_hw
    # A product that rounding left below a whole number is that number.
    new_hw = tuple(max(math.floor(size * factor + 1e-6), 1) for size in (height, width))
    f_y, f_x = new_hw[0] / height, new_hw[1] / width
    kernel = Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.BICUBIC
    image = np.asarray(Image.fromarray(frame.image).resize((new_hw[1], new_hw[0]), kernel))
    rows = np.minimum(((np.arange(new_hw[0]) + 0.5) / f_y).astype(int), height - 1)
    columns = np.minimum(((np.arange(new_hw[1]) + 0.5) / f_x).astype(int), width - 1)
    nearest = np.ix_(rows, columns)
    intrinsics = frame.intrinsics.copy()
    intrinsics[0] *= f_x
    intrinsics[1] *= f_y
    intrinsics[0, 2] = (frame.intrinsics[0, 2] + 0.5) * f_x - 0.5
    intrinsics[1, 2] = (frame.intrinsics[1, 2] + 0.5) * f_y - 0.5
    return frame._replace(
        image=image,
        intrinsics=intrinsics,
        depth=None if frame.depth is None else frame.depth[nearest],
        mask=None if frame.mask is None else frame.mask[nearest],
        tracks_px=None if frame.tracks_px is None else (frame.tracks_px + 0.5) * (f_x, f_y) - 0.5,
    )


def rotate_frame(frame: Frame, *, clockwise: bool) -> Frame:
    """Rotate the picture by 90° and the camera about its optical axis with it.

    Clockwise, pixel (x, y) of a picture of height H goes to (H - 1 - y, x); the other direction is the inverse.
    """
    height, width = frame.image_hw
    turn = _QUARTER_TURN if clockwise else _QUARTER_TURN.T
    f_x, f_y, (c_x, c_y) = frame.intrinsics[0, 0], frame.intrinsics[1, 1], frame.intrinsics[:2, 2]
    intrinsics = np.eye(3)
    intrinsics[0, 0], intrinsics[1, 1] = f_y, f_x
    intrinsics[:2, 2] = (height - 1 - c_y, c_x) if clockwise else (c_y, width - 1 - c_x)
    tracks = frame.tracks_px
    if tracks is not None:
        x, y = tracks[:, 0], tracks[:, 1]
        tracks = np.stack((height - 1 - y, x) if clockwise else (y, width - 1 - x), axis=-1)
    turns = -1 if clockwise else 1
    return Frame(
        np.ascontiguousarray(np.rot90(frame.image, turns)),
        turn @ frame.cam_from_world,
        intrinsics,
        None if frame.depth is None else np.ascontiguousarray(np.rot90(frame.depth, turns)),
        None if frame.mask is None else np.ascontiguousarray(np.rot90(frame.mask, turns)),
        tracks,
    )


def _crop(frame: Frame, start_yx: tuple[int, int], size_hw: tuple[int, int]) -> Frame:
    """Crop to a window, with zeros at the right and the bottom where the picture ends."""
    (top, left), (height, width) = start_yx, size_hw

    def cut(array: np.ndarray) -> np.ndarray:
        part = array[top : top + height, left : left + width]
        missing = [(0, height - part.shape[0]), (0, width - part.shape[1])]
        return np.pad(part, missing + [(0, 0)] * (array.ndim - 2))

    intrinsics = frame.intrinsics.copy()
    intrinsics[:2, 2] -= (left, top)
    return frame._replace(
        image=cut(frame.image),
        intrinsics=intrinsics,
        depth=None if frame.depth is None else cut(frame.depth),
        mask=None if frame.mask is None else cut(frame.mask),
        tracks_px=None if frame.tracks_px is None else frame.tracks_px - (left, top),
    )
