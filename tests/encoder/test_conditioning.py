import math

import pytest
import torch

import geomtx
from geometry.random_cameras import random_intrinsics, random_rigid
from geomtx.encoder import CameraConditioning
from geomtx.types import Cameras

IMAGE_HW = (48, 64)


def random_cameras(*shape: int) -> Cameras:
    return Cameras(random_rigid(*shape).float(), random_intrinsics(*shape).float())


def trained(**options) -> CameraConditioning:
    conditioning = CameraConditioning(8, **options)
    torch.nn.init.normal_(conditioning.contract.weight)
    torch.nn.init.normal_(conditioning.contract.bias)
    return conditioning


def test_it_starts_as_the_model_without():
    cameras = random_cameras(2, 3)
    assert torch.equal(CameraConditioning(8)(cameras, IMAGE_HW), torch.zeros(2, 3, 8))
    model = geomtx.VGGT(geomtx.VGGTConfig.tiny()).eval()
    images = torch.rand(1, 3, 3, 56, 84)
    shift = CameraConditioning(32).eval()(random_cameras(1, 3), (56, 84))
    assert torch.equal(model.encoder(images, camera_shift=shift).layer(3), model.encoder(images).layer(3))


def test_it_is_a_function_of_the_eleven_numbers():
    conditioning, cameras = trained().eval(), random_cameras(2, 3)
    distance = cameras.cam_from_world[..., 3].norm(dim=-1)
    numbers = torch.cat(
        [
            geomtx.encode_pose(*cameras, IMAGE_HW),
            distance.amax(1).log1p()[:, None, None].expand(-1, 3, 1),
            distance.mean(1).log1p()[:, None, None].expand(-1, 3, 1),
        ],
        dim=-1,
    )
    hidden = torch.nn.functional.silu(numbers @ conditioning.expand.weight.T + conditioning.expand.bias)
    expected = hidden @ conditioning.contract.weight.T + conditioning.contract.bias
    torch.testing.assert_close(conditioning(cameras, IMAGE_HW), expected)


def test_unknown_cameras_give_nothing_and_have_no_part_in_others():
    conditioning, cameras = trained().eval(), random_cameras(2, 4)
    mask = torch.tensor([[True, True, False, True], [True, False, False, False]])
    holes = Cameras(*(torch.where(mask[..., None, None], t, math.nan).requires_grad_() for t in cameras))
    shift = conditioning(holes, IMAGE_HW, mask)
    assert (shift[~mask] == 0).all()
    kept = Cameras(*(t[:1, [0, 1, 3]] for t in cameras))
    torch.testing.assert_close(shift[0, [0, 1, 3]], conditioning(kept, IMAGE_HW)[0])
    shift.sum().backward()
    assert all(p.grad.isfinite().all() for p in conditioning.parameters())


def test_cameras_are_withheld_in_training_by_scene_or_by_view():
    cameras = random_cameras(400, 2)
    by_scene = (trained(drop=0.4).train()(cameras, IMAGE_HW) != 0).any(-1)
    assert (by_scene[:, 0] == by_scene[:, 1]).all()
    by_view = (trained(drop=0.4, drop_by="view").train()(cameras, IMAGE_HW) != 0).any(-1)
    assert (by_view[:, 0] != by_view[:, 1]).any()
    for kept in (by_scene, by_view):
        assert abs(kept.float().mean() - 0.6) < 0.1
    assert (trained(drop=0.9).eval()(cameras, IMAGE_HW) != 0).any(-1).all()
    assert (trained(drop=1.0).train()(cameras, IMAGE_HW) == 0).all()


@pytest.mark.usefixtures("unchecked")
def test_errors():
    cameras = random_cameras(2, 3)
    with pytest.raises(ValueError, match=r"^drop must be in 0 … 1, got 2$"):
        CameraConditioning(8, drop=2)
    with pytest.raises(ValueError, match=r"^drop_by must "):
        CameraConditioning(8, drop_by="batch")
    with pytest.raises(ValueError, match=r"^intrinsics must "):
        CameraConditioning(8)(cameras._replace(intrinsics=cameras.intrinsics[:, :1]), IMAGE_HW)
    with pytest.raises(ValueError, match=r"^mask must "):
        CameraConditioning(8)(cameras, IMAGE_HW, torch.ones(2, 3))
