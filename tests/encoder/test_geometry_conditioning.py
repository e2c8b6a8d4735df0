import pytest
import torch

from geometry.random_cameras import random_rigid
from geomtx import unproject
from geomtx.encoder import GeometryConditioning, PatchEmbedding
from geomtx.encoder.geometry_conditioning import KnownGeometry, check_geometry, pixel_slopes, prepare_geometry
from geomtx.geometry import compose_rigid, invert_rigid

HW = (28, 42)


def known(**changes: torch.Tensor | None) -> KnownGeometry:
    """Two scenes of four views, all of it known, in float64."""
    intrinsics = torch.tensor([[40.0, 0.0, 20.0], [0.0, 44.0, 13.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    poses = random_rigid(2, 4)
    depth = 1 + torch.rand(2, 4, *HW, dtype=torch.float64)
    values = {"cam_from_world": poses, "intrinsics": intrinsics.expand(2, 4, 3, 3), "depth": depth}
    return check_geometry(KnownGeometry(**values | changes), torch.zeros(2, 4, 3, *HW))


@pytest.mark.parametrize("with_depth", [False, True])
def test_neither_the_world_nor_the_unit_counts(with_depth):
    given = known() if with_depth else known(depth=None)
    hints = prepare_geometry(given)
    assert hints.poses is not None
    torch.testing.assert_close(hints.poses[:, 0], torch.eye(3, 4, dtype=torch.float64).expand(2, 3, 4))
    moved = compose_rigid(given.cam_from_world, random_rigid(2, 1))
    moved = torch.cat([moved[..., :3], 7 * moved[..., 3:]], dim=-1)
    depth = None if given.depth is None else 7 * given.depth
    other = prepare_geometry(given._replace(cam_from_world=moved, depth=depth))
    torch.testing.assert_close(other.poses, hints.poses, rtol=1e-6, atol=1e-6)
    if with_depth:
        torch.testing.assert_close(other.depth, hints.depth, rtol=1e-6, atol=0)


def test_the_unit_is_the_mean_of_known_depths_or_the_mean_distance_of_cameras():
    given = known()
    depth = given.depth.clone()
    depth[0, 0, :5] = 0.0
    depth[0, 1] = torch.nan
    hints = prepare_geometry(given._replace(depth=depth))
    unit = depth[0][depth[0] > 0].mean()
    torch.testing.assert_close(hints.depth[0].max(), depth[0].nan_to_num().max() / unit)
    assert (hints.depth[0, 1] == 0).all()
    relative = compose_rigid(given.cam_from_world, invert_rigid(given.cam_from_world[:, :1]))
    torch.testing.assert_close(hints.poses[0, :, :, 3], relative[0, :, :, 3] / unit)
    alone = prepare_geometry(given._replace(depth_mask=torch.zeros(2, 4, dtype=torch.bool)))
    torch.testing.assert_close(alone.poses[:, 1:, :, 3].norm(dim=-1).mean(1), torch.ones(2, dtype=torch.float64))
    near = torch.cat([given.cam_from_world[..., :3], torch.zeros(2, 4, 3, 1, dtype=torch.float64)], dim=-1)
    assert (prepare_geometry(known(cam_from_world=near, depth=None)).poses[..., 3] == 0).all()


def test_poses_that_are_unknown():
    given = known(depth=None)
    poses = given.cam_from_world.clone()
    poses[0, 0] = torch.nan  # the second view is the first that is known
    poses[1, 1:] = torch.nan  # a single pose tells nothing
    hints = prepare_geometry(given._replace(cam_from_world=poses))
    assert hints.pose_mask.tolist() == [[False, True, True, True], [False] * 4]
    torch.testing.assert_close(hints.poses[0, 1], torch.eye(3, 4, dtype=torch.float64))
    torch.testing.assert_close(hints.poses[0, 2:, :, 3].norm(dim=-1).mean(), torch.ones((), dtype=torch.float64))
    assert hints.poses.isfinite().all()
    filled = given._replace(cam_from_world=poses.nan_to_num(0.0), pose_mask=poses.isfinite().flatten(2).all(-1))
    torch.testing.assert_close(prepare_geometry(filled), hints)


def test_intrinsics_that_are_unknown():
    given = known(depth=None)
    given = given._replace(intrinsics=given.intrinsics.clone())
    for row, value in ((0, torch.nan), (1, 0.0)):
        given.intrinsics[0, row, row, row] = value
    given.intrinsics_mask[0, 2] = False
    hints = prepare_geometry(given)
    assert hints.intrinsics_mask.tolist() == [[False, False, False, True], [True] * 4]
    assert pixel_slopes(hints.intrinsics.flatten(0, 1), HW).isfinite().all()


def test_rays_go_through_the_pixels():
    given = known()
    slopes = pixel_slopes(given.intrinsics[0], HW)
    points = unproject(torch.ones(4, *HW, dtype=torch.float64), given.intrinsics[0])
    torch.testing.assert_close(slopes.movedim(1, -1), points[..., :2])


@torch.no_grad()
def test_views_of_which_nothing_is_used_get_zero():
    embed = GeometryConditioning(PatchEmbedding(16, in_channels=2), PatchEmbedding(16, in_channels=2)).double()
    masks = torch.tensor([[True, False, True, False], [False, False, True, True]])
    given = known(depth_mask=masks, intrinsics_mask=masks.flip(0))
    shift = embed(prepare_geometry(given), HW)
    assert shift.shape == (2, 4, 6, 16)
    assert torch.equal(shift.abs().amax((-2, -1)) > 0, masks | masks.flip(0))
    assert embed(prepare_geometry(known(depth=None, intrinsics=None)), HW) is None
    alone = embed(prepare_geometry(given._replace(intrinsics=None, intrinsics_mask=None)), HW)
    rays = embed(prepare_geometry(given._replace(depth=None, depth_mask=None)), HW)
    torch.testing.assert_close(alone + rays, shift)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": torch.ones(2, 4, 14, 14)}, r"^depth must have shape \(2, 4, 28, 42\), got \(2, 4, 14, 14\)$"),
        ({"cam_from_world": torch.ones(2, 3, 3, 4)}, r"^cam_from_world must have shape \(2, 4, 3, 4\)"),
        ({"depth_mask": torch.ones(2, 3, dtype=torch.bool)}, r"^depth_mask must have shape \(2, 4\)"),
        ({"pose_mask": torch.ones(2, 4)}, r"^pose_mask must be bool"),
        ({"depth": None, "depth_mask": torch.ones(2, 4, dtype=torch.bool)}, r"^depth_mask must be None without depth"),
    ],
)
def test_what_is_known_has_the_shapes_of_the_images(changes, message):
    with pytest.raises(ValueError, match=message):
        known(**changes)
