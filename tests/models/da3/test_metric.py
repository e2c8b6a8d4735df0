import torch

from geomtx import Cameras, DenseMap
from geomtx.models.da3 import depth_in_metres, fill_sky, scale_to_metres


def test_metres_are_in_proportion_to_the_focal_length():
    intrinsics = torch.tensor([[200.0, 0.0, 0.0], [0.0, 400.0, 0.0], [0.0, 0.0, 1.0]]).repeat(1, 2, 1, 1)
    intrinsics[:, 1] *= 2
    metres = depth_in_metres(torch.full((1, 2, 2, 2), 3.0), intrinsics)
    assert metres[0, :, 0, 0].tolist() == [3.0, 6.0]


def test_sky_is_put_behind_everything():
    depth, sky = 1 + torch.rand(2, 2, 8, 8), torch.zeros(2, 2, 8, 8)
    sky[0, 1, :4] = 0.3
    sky[1, 0, 0, :10] = 1.0  # too few pixels
    filled = fill_sky(depth, sky)
    ground = sky < 0.3
    assert torch.equal(filled[1], depth[1])
    assert torch.equal(filled[0][ground[0]], depth[0][ground[0]])
    assert torch.equal(filled[0][~ground[0]], torch.quantile(depth[0][ground[0]], 0.99).expand(32))


def test_scenes_are_brought_to_metres_each_by_its_scale():
    depth, sky = 1 + torch.rand(2, 3, 6, 8), torch.zeros(2, 3, 6, 8)
    sky[:, :, :1] = 0.9
    confidence = 1 + torch.rand(2, 3, 6, 8)
    intrinsics = torch.tensor([[300.0, 0.0, 0.0], [0.0, 300.0, 0.0], [0.0, 0.0, 1.0]]).repeat(2, 3, 1, 1)
    cameras = Cameras(torch.cat([torch.eye(3), torch.ones(3, 1)], dim=1).repeat(2, 3, 1, 1), intrinsics)
    metric = depth * torch.tensor([2.0, 5.0])[:, None, None, None]
    metric[confidence < 1.3] = 100.0  # which the confident half doesn't see
    found = scale_to_metres(DenseMap(depth, confidence), cameras, metric, sky)
    torch.testing.assert_close(found.scale, torch.tensor([2.0, 5.0]))
    torch.testing.assert_close(
        found.cameras.cam_from_world[..., 3], torch.tensor([2.0, 5.0])[:, None, None].expand(2, 3, 3)
    )
    ground = sky < 0.3
    torch.testing.assert_close(found.depth.value[1][ground[1]], 5 * depth[1][ground[1]])
    assert (found.depth.value[0][~ground[0]] >= 0.95 * found.depth.value[0].amax()).all()
    assert (found.depth.confidence[~ground] == 1).all()
    assert torch.equal(found.depth.confidence[ground], confidence[ground])
