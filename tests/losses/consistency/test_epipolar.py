import pytest
import torch
from torch import Tensor

from geomtx import Cameras, project
from geomtx.losses import EpipolarSettings, ViewPairs, epipolar_loss
from losses.consistency.plane_scene import intrinsics, moved_camera

PAIRS = ViewPairs(torch.tensor([[1], [0]]))


def stereo(baseline: float = 0.5, points: int = 30) -> tuple[Tensor, Cameras]:
    """Two cameras side by side, and where random points are in them: in the same row."""
    shift = [(0.0, 0.0, 0.0), (-baseline, 0.0, 0.0)]
    cameras = Cameras(torch.stack([moved_camera(t, (0.0, 0.0, 1.0), 0.0) for t in shift]), intrinsics(2))
    x = torch.randn(points, 3, dtype=torch.float64) + torch.tensor([0.0, 0.0, 6.0])
    coords, _ = project(x, cameras.intrinsics, cameras.cam_from_world)
    return coords[None], Cameras(*(value[None] for value in cameras))


@pytest.mark.parametrize("rows", [1.0, -4.0])
def test_error_by_hand(rows):
    """Rows that differ by d are d / √2 apart, by Huber's loss."""
    coords, cameras = stereo()
    coords[0, 1, :, 1] += rows
    distance = abs(rows) / 2**0.5
    expected = distance**2 / 2 if distance < 1 else distance - 0.5
    assert epipolar_loss(coords, cameras, PAIRS).item() == pytest.approx(expected)
    assert epipolar_loss(coords, cameras, PAIRS, settings=EpipolarSettings(delta=5.0)).item() == pytest.approx(
        distance**2 / 2
    )


def test_correspondences_get_no_gradient():
    coords, cameras = stereo()
    coords = (coords + torch.randn_like(coords)).requires_grad_()
    inputs = [x.requires_grad_() for x in cameras]
    epipolar_loss(coords, Cameras(*inputs), PAIRS).backward()
    assert coords.grad is None
    assert inputs[0].grad[..., 3].any()
    assert inputs[1].grad[..., 1, 1].any()


def test_cameras_in_one_place_do_not_count():
    coords, cameras = stereo(1e-4)
    coords[0, 1, :, 1] += 3
    assert epipolar_loss(coords, cameras, PAIRS) == 0
    assert epipolar_loss(coords, cameras, PAIRS, settings=EpipolarSettings(min_baseline=1e-5)) > 1
    same = Cameras(cameras.cam_from_world[:, [0, 0]].requires_grad_(), cameras.intrinsics)
    loss = epipolar_loss(coords, same, PAIRS)
    (gradient,) = torch.autograd.grad(loss, same.cam_from_world)
    assert loss == 0
    assert not gradient.any()


def test_pairs_with_few_points_do_not_count():
    coords, cameras = stereo()
    coords[0, 1, :, 1] += 1
    visible = torch.zeros(1, 2, 30, dtype=torch.bool)
    visible[0, 0, :20] = visible[0, 1, 13:] = True  # 7 in both
    assert epipolar_loss(coords, cameras, PAIRS, visible=visible) == 0
    assert epipolar_loss(
        coords, cameras, PAIRS, visible=visible, settings=EpipolarSettings(min_points=7)
    ).item() == pytest.approx(0.25)


def test_unreduced():
    coords, cameras = stereo()
    coords[0, 1] += torch.randn(30, 2)
    visible = torch.rand(1, 2, 30) > 0.2
    each = epipolar_loss(coords, cameras, PAIRS, visible=visible, reduction="none")
    both = visible.all(1)[:, None, None].expand_as(each)
    assert each.shape == (1, 2, 1, 30)
    assert not each[~both].any()
    torch.testing.assert_close(each[both].mean(), epipolar_loss(coords, cameras, PAIRS, visible=visible))


@pytest.mark.usefixtures("unchecked")
def test_wrong_arguments():
    coords, cameras = stereo()
    with pytest.raises(ValueError, match=r"^coords_px must have shape \(B, S, N, 2\), got \(2, 30, 2\)$"):
        epipolar_loss(coords[0], cameras, PAIRS)
    with pytest.raises(ValueError, match=r"^visible must have shape \(1, 2, 30\), got \(2, 30\)$"):
        epipolar_loss(coords, cameras, PAIRS, visible=torch.ones(2, 30) > 0)
    for name, value in (("delta", 0.0), ("min_baseline", -1.0), ("min_points", 0)):
        with pytest.raises(ValueError, match=rf"^{name} must be positive, got {value}$"):
            EpipolarSettings(**{name: value})
    with pytest.raises(ValueError, match=r"^reduction must be one of 'mean', 'none', got 'sum'$"):
        epipolar_loss(coords, cameras, PAIRS, reduction="sum")
