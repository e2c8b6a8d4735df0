from __future__ import annotations

import pytest
import torch
from torch import Tensor

from data.plane_scenes import plane_depth, plane_scene
from geometry.random_cameras import rodrigues
from geomtx.data import check_batch, check_cameras, check_values
from geomtx.geometry import invert_rigid
from geomtx.types import Cameras, SceneBatch


def with_pose(scene: SceneBatch, poses: Tensor) -> SceneBatch:
    return scene._replace(cameras=scene.cameras._replace(cam_from_world=poses))


def test_a_rigid_scene_agrees() -> None:
    scene = plane_scene()
    found = check_batch(scene)
    torch.testing.assert_close(found.agreement, torch.ones(1, dtype=torch.float64))
    assert 0.7 < found.overlap.item() < 1


def test_overlap_of_known_displacement() -> None:
    """Two views 5 px of 40 apart, every pixel taken: 7/8 meet."""
    scene = plane_scene(num_views=2)
    poses = scene.cameras.cam_from_world.clone()
    poses[:, 1, :, 3] = torch.tensor([-0.5, 0, 0])
    found = check_batch(with_pose(scene, poses), stride=1)
    torch.testing.assert_close(found.overlap, torch.tensor([7 / 8], dtype=torch.float64))


@pytest.mark.parametrize("mistake", ["inverse", "swapped views", "unit", "other axes"])
def test_wrong_conventions_disagree(mistake: str) -> None:
    scene = plane_scene()
    turn = torch.stack([rodrigues(torch.tensor([0.0, 1, 0]), angle) for angle in (0.0, 0.35, -0.35)])
    poses = scene.cameras.cam_from_world.clone()
    poses[0, :, :, :3] = turn
    scene = with_pose(scene, poses)
    scene = scene._replace(depth=plane_depth(scene.cameras, scene.depth.shape[-2:]))
    good = check_batch(scene).agreement.item()
    assert good > 0.99
    if mistake == "inverse":
        scene = with_pose(scene, invert_rigid(poses))
    if mistake == "swapped views":
        scene = with_pose(scene, poses[:, [1, 2, 0]])
    if mistake == "unit":
        scene = scene._replace(depth=scene.depth * torch.tensor([1.0, 1.2, 0.8]).double()[:, None, None])
    if mistake == "other axes":  # x left, y up
        scene = with_pose(scene, poses * torch.tensor([-1.0, -1, 1]).double()[:, None])
    assert check_batch(scene).agreement.item() < 0.6


def test_scenes_are_checked_apart_and_masks_hide() -> None:
    one, other = plane_scene(), plane_scene()
    depth = torch.cat([one.depth, other.depth * torch.tensor([1.0, 2.0, 1.0])[:, None, None]])
    both = SceneBatch(
        torch.cat([one.images, other.images]),
        Cameras(*(part.repeat(2, 1, 1, 1) for part in one.cameras)),
        depth=depth,
        mask=torch.ones_like(depth, dtype=torch.bool),
    )
    found = check_batch(both)
    assert found.agreement[0] == 1
    assert found.agreement[1] < 0.5
    mask = both.mask.clone()
    mask[1, 1] = False
    depth = depth.clone()
    depth[1, 1] = torch.nan
    found = check_batch(both._replace(mask=mask, depth=depth))
    assert found.agreement.tolist() == [1, 1]
    camera_mask = torch.ones(2, 3, dtype=torch.bool)
    camera_mask[1, 1] = False
    assert check_batch(both._replace(camera_mask=camera_mask)).agreement.tolist() == [1, 1]


@pytest.mark.parametrize("apart", ["one view", "back to back"])
def test_views_that_share_nothing(apart: str) -> None:
    scene = plane_scene(num_views=1 if apart == "one view" else 2)
    if apart == "back to back":
        poses = scene.cameras.cam_from_world.clone()
        poses[:, 1, :, :3] = rodrigues(torch.tensor([0.0, 1, 0]), torch.pi)
        scene = with_pose(scene, poses)
    found = check_batch(scene)
    assert found.agreement.isnan().all()
    assert found.overlap.tolist() == [0]


def test_unknown_depth_without_a_mask_is_zero() -> None:
    scene = plane_scene()
    depth = scene.depth.clone()
    depth[:, :, :, ::3] = 0
    found = check_batch(scene._replace(mask=None, depth=depth), stride=1)
    assert found.agreement.item() == 1


def poison(tensor: Tensor, value: float) -> Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[tensor.numel() // 2] = value
    return tensor


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite(value: float) -> None:
    scene = plane_scene()
    points = torch.rand(1, 3, 32, 40, 3)
    check_values(scene._replace(points=points))
    cases = {
        "images must be in": scene._replace(images=poison(scene.images, value)),
        "depth must be finite and positive": scene._replace(depth=poison(scene.depth, value)),
        "points must be finite": scene._replace(points=poison(points, value)),
        "cam_from_world must be finite": with_pose(scene, poison(scene.cameras.cam_from_world, value)),
        "intrinsics must be finite": scene._replace(
            cameras=scene.cameras._replace(intrinsics=poison(scene.cameras.intrinsics, value))
        ),
    }
    for message, batch in cases.items():
        with pytest.raises(ValueError, match=f"^{message}.*, got "):
            check_values(batch)
        with pytest.raises(ValueError, match=f"^{message}.*, got "):
            check_batch(batch)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -1.0, 0.0])
def test_masked_values_may_be_anything(value: float) -> None:
    scene = plane_scene()
    mask = scene.mask.clone()
    mask[0, 1, 3, 4] = False
    camera_mask = torch.tensor([[True, True, False]])
    poses = scene.cameras.cam_from_world.clone()
    poses[0, 2] = value
    depth, points = scene.depth.clone(), torch.rand(1, 3, 32, 40, 3)
    depth[0, 1, 3, 4], points[0, 1, 3, 4] = value, value
    check_values(with_pose(scene, poses)._replace(mask=mask, depth=depth, points=points, camera_mask=camera_mask))


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_depth_is_positive_where_it_is_known(value: float) -> None:
    scene = plane_scene()
    with pytest.raises(ValueError, match=r"^depth must be finite and positive where it is known, got other values$"):
        check_values(scene._replace(depth=poison(scene.depth, value)))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -1.0])
def test_without_a_mask_depth_must_be_depth(value: float) -> None:
    scene = plane_scene()
    depth = scene.depth.clone()
    depth[0, 1, 3, 4] = value
    with pytest.raises(ValueError, match=r"^depth must be finite and positive, or 0 for not known, got other values"):
        check_values(scene._replace(mask=None, depth=depth))


def test_without_a_mask_depth_says_what_is_known() -> None:
    scene = plane_scene()
    points = torch.rand(1, 3, 32, 40, 3)
    depth = scene.depth.clone()
    depth[0, 1, 3, 4], points[0, 1, 3, 4] = 0, torch.nan
    check_values(scene._replace(mask=None, depth=depth, points=points))
    depth[:] = 0
    with pytest.raises(ValueError, match=r"^depth must have a known pixel in every scene, got none in scene 0$"):
        check_values(scene._replace(mask=None, depth=depth))


def test_an_empty_mask() -> None:
    scene = plane_scene()
    images, mask = scene.images.repeat(2, 1, 1, 1, 1), scene.mask.repeat(2, 1, 1, 1)
    mask[1] = False
    with pytest.raises(ValueError, match=r"^mask must have a known pixel in every scene, got none in scene 1$"):
        check_values(SceneBatch(images, mask=mask))


@pytest.mark.parametrize("matrix", ["reflection", "scaled", "sheared", "zero"])
def test_a_matrix_that_is_no_rotation(matrix: str) -> None:
    scene = plane_scene()
    poses = scene.cameras.cam_from_world.clone()
    poses[0, 1, :, :3] = {
        "reflection": torch.diag(torch.tensor([1.0, 1, -1])),
        "scaled": torch.eye(3) * 1.01,
        "sheared": torch.eye(3) + torch.tensor([[0.0, 0.01, 0], [0, 0, 0], [0, 0, 0]]),
        "zero": torch.zeros(3, 3),
    }[matrix]
    with pytest.raises(ValueError, match=r"^cam_from_world must have rotations, got another matrix for camera 1$"):
        check_cameras(with_pose(scene, poses).cameras)


def test_focal_lengths() -> None:
    scene = plane_scene()
    intrinsics = scene.cameras.intrinsics.clone()
    intrinsics[0, 1, 1, 1] = -40
    with pytest.raises(ValueError, match=r"^intrinsics must have positive focal lengths, got others$"):
        check_cameras(scene.cameras._replace(intrinsics=intrinsics))


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ((2, 2), 0.0, "the last row 0, 0, 1, got 0, 0, 0 for camera 4"),
        ((2, 0), 0.5, "the last row 0, 0, 1, got 0.5, 0, 1 for camera 4"),
        ((0, 1), 50.0, "no skew, got 50 for camera 4"),
        ((1, 0), -50.0, "no skew, got -50 for camera 4"),
    ],
)
def test_a_matrix_that_is_no_pinhole_camera(entry: tuple[int, int], value: float, message: str) -> None:
    scene = plane_scene()
    intrinsics = scene.cameras.intrinsics.repeat(2, 1, 1, 1)
    poses = scene.cameras.cam_from_world.repeat(2, 1, 1, 1)
    intrinsics[1, 1][entry] = value
    with pytest.raises(ValueError, match=rf"^intrinsics must have {message}$"):
        check_cameras(Cameras(poses, intrinsics))
    mask = torch.ones(2, 3, dtype=torch.bool)
    mask[1, 1] = False
    check_cameras(Cameras(poses, intrinsics), mask)


def test_half_precision_rotations_pass() -> None:
    rotation = rodrigues(torch.tensor([1.0, 2, 3]), 0.7).half()
    pose = torch.cat([rotation, torch.zeros(3, 1, dtype=torch.float16)], dim=-1)
    check_cameras(Cameras(pose, torch.eye(3)))


def test_what_check_batch_needs() -> None:
    scene = plane_scene()
    with pytest.raises(ValueError, match=r"^batch must have cameras and depth, got no depth$"):
        check_batch(scene._replace(depth=None))
    with pytest.raises(ValueError, match=r"^batch must have cameras and depth, got no cameras$"):
        check_batch(scene._replace(cameras=None))
    with pytest.raises(ValueError, match=r"^stride must be positive, got 0$"):
        check_batch(scene, stride=0)
    with pytest.raises(ValueError, match=r"^tolerance must be positive, got 0.0$"):
        check_batch(scene, tolerance=0.0)
