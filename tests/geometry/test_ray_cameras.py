import pytest
import torch

import geomtx
from geomtx.geometry import cameras_from_rays, invert_rigid, quat_to_matrix

IMAGE_HW = (40, 64)


@pytest.fixture
def cameras() -> geomtx.Cameras:
    """Two cameras that look about the same way, with principal points off the centre."""
    quats = torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.05, -0.2, 0.1, 1.0]], dtype=torch.float64)
    centers = torch.tensor([[0.0, 0.0, 0.0], [1.0, -0.3, 0.2]], dtype=torch.float64)
    world_from_cam = torch.cat([quat_to_matrix(quats), centers[..., None]], dim=-1)
    intrinsics = torch.tensor(
        [
            [[60.0, 0.0, 30.0], [0.0, 55.0, 22.0], [0.0, 0.0, 1.0]],
            [[45.0, 0.0, 35.0], [0.0, 50.0, 18.0], [0.0, 0.0, 1.0]],
        ]
    )
    return geomtx.Cameras(invert_rigid(world_from_cam)[None], intrinsics[None].double())


def draw_rays(cameras: geomtx.Cameras) -> torch.Tensor:
    """Rays of a map of half the image's size; corners of the image are at 0 and at its size."""
    rows, columns = (torch.arange(size // 2, dtype=torch.float64) * 2 + 1 for size in IMAGE_HW)
    pixels = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    pixels = torch.cat([pixels, torch.ones_like(pixels[..., :1])], dim=-1)
    world_from_cam = invert_rigid(cameras.cam_from_world)
    directions = pixels @ (world_from_cam[..., :3] @ cameras.intrinsics.inverse()).mT[:, :, None]
    return torch.cat([directions, world_from_cam[:, :, None, None, :, 3].expand_as(directions)], dim=-1)


def test_true_rays_give_the_true_cameras(cameras):
    rays = draw_rays(cameras)
    found = cameras_from_rays(rays, torch.ones_like(rays[..., 0]), IMAGE_HW)
    torch.testing.assert_close(found.cam_from_world, cameras.cam_from_world, atol=1e-9, rtol=0)
    torch.testing.assert_close(found.intrinsics, cameras.intrinsics, atol=1e-7, rtol=0)


def test_the_published_decomposition_needs_centred_principal_points(cameras):
    centred = cameras.intrinsics.clone()
    centred[..., 0, 2], centred[..., 1, 2] = 32, 20
    for intrinsics, exact in ((centred, True), (cameras.intrinsics, False)):
        rays = draw_rays(cameras._replace(intrinsics=intrinsics))
        found = cameras_from_rays(rays, torch.ones_like(rays[..., 0]), IMAGE_HW, decomposition="ql")
        assert torch.allclose(found.intrinsics, intrinsics, atol=1e-7) == exact
        assert torch.allclose(found.cam_from_world, cameras.cam_from_world, atol=1e-7) == exact


def test_outliers_and_unsure_rays_have_little_influence(cameras):
    rays = draw_rays(cameras)
    confidence = torch.ones_like(rays[..., 0])
    wrong = torch.rand(confidence.shape) < 0.15
    rays[..., :3][wrong] = torch.randn_like(rays[..., :3][wrong])
    rays[:, :, -2:, :, 3:] += 5
    confidence[:, :, -2:] = 0
    found = cameras_from_rays(rays.float(), confidence.float(), IMAGE_HW)
    torch.testing.assert_close(found.cam_from_world.double(), cameras.cam_from_world, atol=2e-2, rtol=0)


def test_the_same_cameras_every_time_and_in_half_precision(cameras):
    rays = draw_rays(cameras)
    confidence = torch.ones_like(rays[..., 0])
    first = cameras_from_rays(rays.bfloat16(), confidence.bfloat16(), IMAGE_HW)
    again = cameras_from_rays(rays.bfloat16(), confidence.bfloat16(), IMAGE_HW)
    assert torch.equal(first.cam_from_world, again.cam_from_world)
    assert first.intrinsics.dtype == torch.float32
    torch.testing.assert_close(first.intrinsics.double(), cameras.intrinsics, atol=1.0, rtol=0)


@pytest.mark.usefixtures("unchecked")
def test_arguments_of_another_kind(cameras):
    rays = draw_rays(cameras)
    with pytest.raises(ValueError, match=r"^decomposition must be one of 'qr', 'ql', got 'lq'"):
        cameras_from_rays(rays, rays[..., 0], IMAGE_HW, decomposition="lq")
    with pytest.raises(ValueError, match=r"^confidence must have shape"):
        cameras_from_rays(rays, rays[..., 0, 0], IMAGE_HW)
