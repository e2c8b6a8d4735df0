"""Which frames of a sequence make a scene; the first one is the reference view."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geomtx.checks import check_positive
from geomtx.data.error import SceneError

__all__ = ["FrameChoice", "rank_by_pose"]


@dataclass(frozen=True)
class FrameChoice:
    """Draw an anchor uniformly, then the other frames: from everywhere, or from near the anchor.

    Near is what a ranking by pose says, if the scene has one, else a window of frame numbers, else everything.

    Args:
        expand_ratio: Radius of the window, in numbers of views; VGGT has 2, for Virtual KITTI 8.
        expand_range: Radius of the window in frames, instead of a ratio.
        num_nearest: How many of a ranking's frames are near; VGGT's author names 256 and 512.
        allow_duplicates: Draw with replacement, which sequences shorter than the number of views need.

    Raises:
        ValueError: If both radii are given, or a number is not positive.
    """

    expand_ratio: float | None = None
    expand_range: int | None = None
    num_nearest: int = 256
    allow_duplicates: bool = True

    def __post_init__(self) -> None:
        if self.expand_ratio is not None and self.expand_range is not None:
            raise ValueError(f"expand_range must be None beside expand_ratio, got {self.expand_range}")
        for name in ("expand_ratio", "expand_range", "num_nearest"):
            value = getattr(self, name)
            if value is not None:
                check_positive(name, value)

    def __call__(
        self, num_frames: int, num_views: int, rng: np.random.Generator, *, ranking: NDArray[np.integer] | None = None
    ) -> NDArray[np.int64]:
        """Choose.

        Args:
            num_frames: Frames of the sequence.
            num_views: How many to choose.
            rng: Source of the draws.
            ranking: (num_frames, K), of `rank_by_pose`.

        Returns:
            (num_views,) frame numbers, the anchor first, the others in no order.

        Raises:
            SceneError: If duplicates are not allowed and there are too few frames to choose from.
            ValueError: If a number is not positive.
        """
        check_positive("num_frames", num_frames)
        check_positive("num_views", num_views)
        anchor = int(rng.integers(num_frames))
        near = self._near(anchor, num_frames, num_views, ranking)
        if not self.allow_duplicates:
            near = near[near != anchor]
            if len(near) < num_views - 1:
                raise SceneError(f"num_views must be at most {len(near) + 1} without duplicates, got {num_views}")
        others = rng.choice(near, num_views - 1, replace=self.allow_duplicates)
        return np.concatenate([[anchor], others]).astype(np.int64)

    def _near(
        self, anchor: int, num_frames: int, num_views: int, ranking: NDArray[np.integer] | None
    ) -> NDArray[np.int64]:
        if ranking is not None:
            return ranking[anchor, : self.num_nearest].astype(np.int64)
        radius = num_frames
        if self.expand_ratio is not None:
            radius = max(int(num_views * self.expand_ratio), 1)
        if self.expand_range is not None:
            radius = self.expand_range
        return np.arange(max(0, anchor - radius), min(num_frames, anchor + radius))


def rank_by_pose(
    cam_from_world: NDArray[np.floating], *, translation_weight: float = 1.0, num_nearest: int | None = None
) -> NDArray[np.int64]:
    """All frames by their distance from each, for sequences whose numbers say nothing about what is near.

    The distance is angle / 180° + weight · (distance of the centres / median distance of all pairs of centres). The
    form is what VGGT's author describes; dividing by the median, which makes the weight independent of units, is ours.

    Args:
        cam_from_world: (N, 3, 4).
        translation_weight: Of the centres.
        num_nearest: Columns to keep, the frame itself included; None = all.

    Returns:
        (N, num_nearest): row i is i, then its neighbours, nearest first.

    Raises:
        ValueError: For another shape, or values that are not finite.
    """
    if cam_from_world.ndim != 3 or cam_from_world.shape[1:] != (3, 4) or len(cam_from_world) == 0:
        raise ValueError(f"cam_from_world must have shape (N, 3, 4), got {cam_from_world.shape}")
    if not np.isfinite(cam_from_world).all():
        raise ValueError("cam_from_world must be finite, got NaN or infinity")
    rotations = cam_from_world[:, :, :3].astype(np.float64)
    centers = -np.einsum("nij,ni->nj", rotations, cam_from_world[:, :, 3])
    apart = np.stack([np.linalg.norm(centers - center, axis=-1) for center in centers])
    pairs = apart[np.triu_indices(len(apart), 1)]
    median = float(np.median(pairs)) if len(pairs) else 0.0
    rows = []
    for index, rotation in enumerate(rotations):
        # From the chord, not the trace: exact for small angles too.
        chord = np.linalg.norm(rotations - rotation, axis=(1, 2))
        distance = 2 * np.arcsin(np.minimum(chord / np.sqrt(8), 1.0)) / np.pi
        if median > 0:
            distance += translation_weight * apart[index] / median
        distance[index] = -1.0  # also before frames at the same place
        rows.append(np.argsort(distance, kind="stable")[:num_nearest])
    return np.stack(rows)
