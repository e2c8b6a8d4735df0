import pytest
import torch

import geomtx
from geometry.random_cameras import random_intrinsics, random_rigid
from geomtx.geometry import compose_rigid, relate_cameras, rotation_angle


def random_cameras(*shape: int) -> geomtx.Cameras:
    return geomtx.Cameras(random_rigid(*shape), random_intrinsics(*shape))


def centers(cameras: geomtx.Cameras) -> torch.Tensor:
    return geomtx.invert_rigid(cameras.cam_from_world)[..., 3]


def test_the_first_input_is_the_world_and_shapes_of_scenes_stay():
    inputs, targets = random_cameras(2, 3), random_cameras(2, 4)
    related = relate_cameras(inputs, targets)
    assert torch.equal(related.inputs.cam_from_world[:, 0], torch.eye(3, 4).double().expand(2, 3, 4))
    before = torch.cdist(centers(inputs), centers(targets))
    after = torch.cdist(centers(related.inputs), centers(related.targets))
    torch.testing.assert_close(after * related.scale[:, None, None], before)
    turned = [c.cam_from_world[..., :3] for c in (*related[:2], inputs, targets)]
    relative = [b[:, :1] @ a[:, 1:2].mT for a, b in (turned[:2], turned[2:])]
    assert rotation_angle(*relative).max() < 1e-6
    assert related.targets.intrinsics is targets.intrinsics


def test_the_scale_is_of_the_farthest_input_camera():
    inputs, targets = random_cameras(2, 3), random_cameras(2, 1)
    related = relate_cameras(inputs, targets)
    farthest = (centers(inputs) - centers(inputs)[:, :1]).norm(dim=-1).amax(1)
    torch.testing.assert_close(related.scale, 1.35 * farthest)
    other = relate_cameras(inputs, random_cameras(2, 5))
    assert torch.equal(other.scale, related.scale)  # targets have no part in it


def test_one_view_and_cameras_in_one_place_have_scale_1():
    targets = random_cameras(1, 2)
    inputs = random_cameras(1, 1)
    assert relate_cameras(inputs, targets).scale.tolist() == [1]
    twice = geomtx.Cameras(torch.eye(3, 4).expand(1, 2, 3, 4), torch.eye(3).expand(1, 2, 3, 3))
    apart = geomtx.Cameras(*(t.float() for t in targets))
    assert relate_cameras(twice, apart).scale.tolist() == [1]


def test_any_similarity_of_the_world_gives_the_same():
    inputs, targets = random_cameras(2, 3), random_cameras(2, 2)
    world = random_rigid(2, 1)

    def move(cameras: geomtx.Cameras) -> geomtx.Cameras:
        moved = compose_rigid(cameras.cam_from_world, world.expand_as(cameras.cam_from_world)).clone()
        moved[..., 3] *= 7.0
        return cameras._replace(cam_from_world=moved)

    related, again = relate_cameras(inputs, targets), relate_cameras(move(inputs), move(targets))
    torch.testing.assert_close(again.inputs.cam_from_world, related.inputs.cam_from_world)
    torch.testing.assert_close(again.targets.cam_from_world, related.targets.cam_from_world)
    torch.testing.assert_close(again.scale, 7 * related.scale)


def test_a_scale_of_depth():
    inputs, targets = random_cameras(2, 3), random_cameras(2, 2)
    scale = torch.tensor([2.0, 5.0]).double()
    related = relate_cameras(inputs, targets, scale=scale)
    unscaled = relate_cameras(inputs, targets, scale=torch.ones_like(scale))
    assert torch.equal(related.scale, scale)
    torch.testing.assert_close(
        related.targets.cam_from_world[..., 3] * scale[:, None, None], unscaled.targets.cam_from_world[..., 3]
    )


@pytest.mark.usefixtures("unchecked")
def test_errors():
    inputs = random_cameras(2, 3)
    with pytest.raises(
        ValueError, match=r"^targets.cam_from_world must have shape \(2, T, 3, 4\), got \(1, 1, 3, 4\)$"
    ):
        relate_cameras(inputs, random_cameras(1, 1))
    with pytest.raises(ValueError, match=r"^inputs.intrinsics must have shape \(2, 3, 3, 3\), got \(2, 1, 3, 3\)$"):
        relate_cameras(inputs._replace(intrinsics=inputs.intrinsics[:, :1]), inputs)
    with pytest.raises(ValueError, match=r"^scale must "):
        relate_cameras(inputs, inputs, scale=torch.ones(2, 1))
