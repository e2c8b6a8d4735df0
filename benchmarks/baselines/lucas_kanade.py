"""Pyramidal Lucas-Kanade tracking (Bouguet 2001) with OpenCV: the classical baseline of point tracking."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geomtx.checks import check_count, check_finite_positive, check_floating, check_shape
from geomtx.tracking.queries import check_queries

__all__ = ["track_lucas_kanade"]


def track_lucas_kanade(
    frames: Tensor,
    queries: Tensor,
    *,
    window: int = 15,
    num_levels: int = 3,
    max_error_px: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Track points from frame to frame, from their query frame to both ends of the video.

    A point is visible as long as every step stays in the frame and, tracked backwards, returns to its start. A lost
    point stays lost, since it can't be recognised. The result is deterministic.

    Args:
        frames: Frames in [0, 1], (S, 3, H, W).
        queries: Frame index, x and y of every query, (Q, 3), in pixels of `frames`, pixel centres at integers.
        window: Side of the square window that is compared, pixels, at least 3. Defaults to 15.
        num_levels: Number of pyramid levels beside the frames themselves, each half as large. Defaults to 3.
        max_error_px: Largest forward-backward error of a step, pixels, positive. Defaults to 1.

    Returns:
        Positions (S, Q, 2), pixels, and visibility (S, Q) bool, on the device of the frames, as `evaluate_tapvid`
        requires.

    Raises:
        ImportError: Without OpenCV: `pip install "geomtx[bench]"`.
        ValueError: For other shapes, or a query outside of the video.
    """
    check_shape("frames", frames, ("S", 3, "H", "W"))
    check_floating("frames", frames)
    check_shape("queries", queries, ("Q", 3))
    check_count("window", window, 3)
    check_count("num_levels", num_levels, 0)
    check_finite_positive("max_error_px", max_error_px)
    image_hw = (frames.shape[-2], frames.shape[-1])
    check_queries(queries, len(frames), image_hw, name="queries", view="frame", on_any_device=True)
    step = _Step(window, num_levels, max_error_px)
    start, first = queries[:, 1:].float().cpu().numpy(), queries[:, 0].long().cpu().numpy()
    weights = frames.new_tensor([0.299, 0.587, 0.114])[:, None, None]
    grey = ((frames * weights).sum(1).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    coords = np.repeat(start[None], len(grey), axis=0)
    visible = np.zeros(coords.shape[:2], dtype=np.bool_)
    visible[first, np.arange(len(first))] = True
    last = len(grey) - 1
    for index in range(last):
        _advance(step, grey, coords, visible, first <= index, index, index + 1)
    for index in range(last, 0, -1):
        _advance(step, grey, coords, visible, first >= index, index, index - 1)
    return torch.from_numpy(coords).to(frames.device), torch.from_numpy(visible).to(frames.device)


class _Step:
    """One step of tracking between two frames, with a check backwards."""

    def __init__(self, window: int, num_levels: int, max_error_px: float) -> None:
        try:
            import cv2
        except ImportError as error:
            raise ImportError('Lucas-Kanade tracking needs OpenCV: pip install "geomtx[bench]"') from error
        self.flow: Any = cv2.calcOpticalFlowPyrLK
        stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 0.01)
        self.numbers = {"winSize": (window, window), "maxLevel": num_levels, "criteria": stop}
        self.max_error_px = max_error_px

    def __call__(
        self, here: NDArray[np.uint8], there: NDArray[np.uint8], points: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return the positions in `there` of points (N, 2) of `here`, and whether the backward check holds, (N,)."""
        moved, found, _ = self.flow(here, there, points[:, None], None, **self.numbers)
        back, found_back, _ = self.flow(there, here, moved, None, **self.numbers)
        moved, miss = moved[:, 0], np.linalg.norm(back[:, 0] - points, axis=-1)
        limit = np.array(there.shape[::-1]) - 0.5
        inside = ((moved >= -0.5) & (moved < limit)).all(-1)
        return moved, (found[:, 0] == 1) & (found_back[:, 0] == 1) & (miss < self.max_error_px) & inside


def _advance(
    step: _Step,
    grey: NDArray[np.uint8],
    coords: NDArray[np.float32],
    visible: NDArray[np.bool_],
    active: NDArray[np.bool_],
    here: int,
    there: int,
) -> None:
    """Track the active points that are not lost; lost points keep their last position."""
    coords[there, active] = coords[here, active]
    followed = np.flatnonzero(active & visible[here])
    if len(followed):
        moved, seen = step(grey[here], grey[there], np.ascontiguousarray(coords[here, followed]))
        coords[there, followed] = moved
        visible[there, followed] = seen
