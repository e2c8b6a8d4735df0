"""Problems of bundle adjustment with known truth: cameras on a circle that look at points in a cube.

The numbers are drawn as in the problem with published costs, so the order of the draws must stay.
"""

from typing import NamedTuple

import numpy as np
import torch

from geomtx.geometry import BundleProblem
from geomtx.types import Cameras

FOCAL, CENTER, WIDTH, HEIGHT = 500.0, (320.0, 240.0), 640, 480


class Arrays(NamedTuple):
    """R, C, X are the truth: rotations (V, 3, 3), centres (V, 3), points (N, 3); R0, C0, X0 the start.

    Each observation is of a view, of a point, and has pixels (M, 2).
    """

    R: np.ndarray
    C: np.ndarray
    X: np.ndarray
    R0: np.ndarray
    C0: np.ndarray
    X0: np.ndarray
    view: np.ndarray
    point: np.ndarray
    pixels: np.ndarray


def draw_arrays(
    seed: int = 20260729,
    num_views: int = 20,
    num_points: int = 2000,
    *,
    keep: float = 0.5,
    noise: float = 1.0,
    turn: float = 2.0,
    shift: float = 0.02,
) -> Arrays:
    """The start is off by `turn` degrees, and by `shift` of the cube's edge in each axis; `noise` is in pixels."""
    g = np.random.default_rng(seed)
    X = g.uniform(-1, 1, (num_points, 3))
    a = 2 * np.pi * np.arange(num_views) / num_views
    C = np.stack([4 * np.cos(a), 0.5 * np.sin(3 * a), 4 * np.sin(a)], axis=1)
    R = np.stack([looking_at_the_origin(c) for c in C])
    Y = np.einsum("vij,vpj->vpi", R, X[None] - C[:, None])
    uv = Y[..., :2] / Y[..., 2:] * FOCAL + np.array(CENTER)
    seen = (Y[..., 2] > 0.1) & (uv >= 0).all(-1) & (uv[..., 0] < WIDTH) & (uv[..., 1] < HEIGHT)
    seen &= g.random(seen.shape) < keep
    view, point = np.nonzero(seen)
    pixels = uv[view, point] + g.normal(0, noise, (len(view), 2))
    w = g.normal(size=(num_views, 3))
    w *= np.deg2rad(turn) / np.linalg.norm(w, axis=1, keepdims=True)
    R0 = exponential(w) @ R
    C0 = C + g.normal(0, 2 * shift, C.shape)
    X0 = X + g.normal(0, 2 * shift, X.shape)
    return Arrays(R, C, X, R0, C0, X0, view, point, pixels)


def looking_at_the_origin(center: np.ndarray) -> np.ndarray:
    """Rows are the camera's axes: right, down, ahead."""
    z = -center / np.linalg.norm(center)
    x = np.cross([0, 1.0, 0], z)
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z])


def exponential(w: np.ndarray) -> np.ndarray:
    """Rotations (V, 3, 3) of rotation vectors (V, 3)."""
    cross = torch.linalg.cross(
        torch.from_numpy(w)[:, None], torch.eye(3, dtype=torch.float64)[None].expand(len(w), 3, 3)
    )
    return torch.matrix_exp(cross.mT).numpy()


def poses(R: np.ndarray, C: np.ndarray) -> torch.Tensor:
    """[R | -R C], (V, 3, 4)."""
    return torch.from_numpy(np.concatenate([R, -R @ C[..., None]], axis=-1))


def to_problem(arrays: Arrays, *, at_truth: bool = False) -> BundleProblem:
    """With a batch axis of one, in float64."""
    R, C, X = arrays[:3] if at_truth else arrays[3:6]
    intrinsics = torch.tensor([[FOCAL, 0, CENTER[0]], [0, FOCAL, CENTER[1]], [0, 0, 1]], dtype=torch.float64)
    cameras = Cameras(poses(R, C)[None], intrinsics.expand(1, len(R), 3, 3))
    rest = (torch.from_numpy(each)[None] for each in (X, arrays.view, arrays.point, arrays.pixels))
    return BundleProblem(cameras, *rest)


def draw_problem(seed: int = 20260729, num_views: int = 20, num_points: int = 2000, **options: float) -> BundleProblem:
    return to_problem(draw_arrays(seed, num_views, num_points, **options))
