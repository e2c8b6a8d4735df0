from __future__ import annotations

import pytest
import torch

from geometry.random_cameras import random_intrinsics, random_rigid
from geomtx.geometry import (
    from_colmap,
    from_kornia,
    from_nerfstudio,
    from_opengl,
    invert_rigid,
    project,
    to_colmap,
    to_kornia,
    to_nerfstudio,
    to_opengl,
    transform_points,
)

APPLIED = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0]], dtype=torch.float64)


def test_round_trips() -> None:
    torch.manual_seed(0)
    poses, k = random_rigid(2, 5), random_intrinsics(2, 5)
    for got, want in (
        (from_colmap(*to_colmap(poses, k)), (poses, k)),
        (from_kornia(*to_kornia(poses, k)), (poses, k)),
        ((from_opengl(to_opengl(poses)),), (poses,)),
        ((from_opengl(to_opengl(poses)[..., :3, :]),), (poses,)),
        ((from_nerfstudio(to_nerfstudio(poses), APPLIED),), (poses,)),
    ):
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


def test_colmap_has_the_scalar_first_and_the_image_begin_at_zero() -> None:
    """By its formula: x_cam = q x q⁻¹ + t, and the upper left corner of the image is (0, 0)."""
    quarter = torch.tensor([[0.0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3]], dtype=torch.float64)  # about z
    k = random_intrinsics(1)[0]
    quat, translation, intrinsics = to_colmap(quarter, k)
    torch.testing.assert_close(quat, torch.tensor([0.5**0.5, 0, 0, 0.5**0.5], dtype=torch.float64))
    assert translation.tolist() == [1, 2, 3]
    torch.testing.assert_close(intrinsics - k, torch.tensor([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]).double())


def test_an_opengl_camera_looks_along_minus_z_with_y_up() -> None:
    torch.manual_seed(1)
    pose = random_rigid(1)[0]
    matrix = to_opengl(pose)
    ahead, above = (
        transform_points(pose, (matrix @ torch.tensor(point).double())[None, :3])[0]
        for point in ([0.0, 0, -1, 1], [0.0, 1, 0, 1])
    )
    torch.testing.assert_close(ahead, torch.tensor([0.0, 0, 1]).double())  # forward in OpenCV
    torch.testing.assert_close(above, torch.tensor([0.0, -1, 0]).double())  # up is -y in OpenCV
    torch.testing.assert_close(matrix[:3, 3], invert_rigid(pose)[:, 3])


def test_nerfstudio_saves_a_world_with_z_up() -> None:
    torch.manual_seed(2)
    pose = random_rigid(1)[0]
    center = invert_rigid(pose)[:, 3]
    saved = to_nerfstudio(pose)
    torch.testing.assert_close(saved[:3, 3], torch.stack([center[0], center[2], -center[1]]))
    up = -invert_rigid(pose)[:, 1]
    torch.testing.assert_close(saved[:3, 1], torch.stack([up[0], up[2], -up[1]]))


def test_kornia_projects_to_the_same_pixels() -> None:
    from kornia.geometry.camera import PinholeCamera

    torch.manual_seed(3)
    poses, k = random_rigid(4), random_intrinsics(4)
    points = invert_rigid(poses)[..., 3] + 5 * poses[:, 2, :3] + 0.3 * torch.randn(4, 3).double()
    size = torch.tensor([48.0] * 4), torch.tensor([64.0] * 4)
    camera = PinholeCamera(*to_kornia(poses, k), *size)
    expected, _ = project(points[:, None], k, poses)
    torch.testing.assert_close(camera.project(points[:, None]), expected)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"world_from_cam must have shape \(..., 4, 4\) or .*, got \(2, 4\)"):
        from_opengl(torch.eye(2, 4))
