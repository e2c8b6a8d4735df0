import pytest
import torch
from torch import Tensor

from geomtx import Cameras, invert_rigid, project, unproject
from geomtx.losses import ViewPairs, draw_pairs
from geomtx.losses.consistency.warp import relative_error, sample_maps, warp_pixels
from losses.consistency.plane_scene import BOARD, HEIGHT, SLANTED, WALL, WIDTH, distances, shifted_views, turned_views

PAIRS = ViewPairs(torch.tensor([[1, 2], [0, 2], [0, 1]]))


def test_pixels_land_where_their_points_are_seen():
    _, depth, cameras = turned_views()
    warp = warp_pixels(depth, cameras, PAIRS)
    for i in range(3):
        points = unproject(depth[0, i], cameras.intrinsics[0, i], cameras.cam_from_world[0, i]).flatten(0, 1)
        for k, j in enumerate(PAIRS.sources[i].tolist()):
            coords, _ = project(points, cameras.intrinsics[0, j], cameras.cam_from_world[0, j])
            valid = warp.valid[0, i, k]
            torch.testing.assert_close(warp.coords_px[0, i, k][valid], coords.view(HEIGHT, WIDTH, 2)[valid])
            inside = (coords >= 1).all(-1) & (coords[:, 0] <= WIDTH - 2) & (coords[:, 1] <= HEIGHT - 2)
            assert torch.equal(valid, inside.view(HEIGHT, WIDTH))
            assert valid.double().mean() > 0.4


def test_depths_of_a_plane_agree_exactly():
    _, depth, cameras = turned_views((SLANTED,))
    warp = warp_pixels(depth, cameras, PAIRS)
    torch.testing.assert_close(warp.depth_ratio[warp.valid], torch.ones(int(warp.valid.sum()), dtype=torch.float64))


@pytest.mark.parametrize("views", [shifted_views, turned_views])
def test_hidden_points_are_not_valid(views):
    planes = (WALL, BOARD)
    _, depth, cameras = views(planes)
    warp = warp_pixels(depth, cameras, PAIRS, max_error=0.1)
    hidden = torch.zeros_like(warp.valid)
    for i in range(3):
        points = unproject(depth[0, i], cameras.intrinsics[0, i], cameras.cam_from_world[0, i])
        for k, j in enumerate(PAIRS.sources[i].tolist()):
            origin = invert_rigid(cameras.cam_from_world[0, j])[:, 3]
            hidden[0, i, k] = distances(origin, points - origin, planes) < 1 - 1e-9
    assert hidden.sum() > 50
    assert not (warp.valid & hidden).any()
    agree = (warp.depth_ratio - 1).abs() < 1e-9
    assert (agree & ~hidden & warp.valid).sum() > 0.9 * warp.valid.sum()


def test_what_is_behind_or_has_no_depth_is_not_valid():
    _, depth, cameras = shifted_views()
    depth[0, 1] = 0.0
    depth[0, 2, :5] = float("nan")
    cameras.cam_from_world[0, 2] = torch.tensor([[-1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 0]])  # looks back
    warp = warp_pixels(depth, cameras, PAIRS)
    assert not warp.valid.any()
    assert warp.coords_px.isfinite().all()


def test_a_point_beside_the_camera_has_a_finite_gradient():
    _, depth, cameras = shifted_views()
    depth, extrinsics = depth.float(), cameras.cam_from_world.float()
    # Camera 1 looks along x: the middle column of view 0, where x is 0, is at a depth of almost nothing.
    extrinsics[0, 1] = torch.tensor([[0.0, 0, -1, 0], [0, 1, 0, 0], [1, 0, 0, 1e-25]])
    inputs = [x.requires_grad_() for x in (depth, extrinsics)]
    warp = warp_pixels(depth, Cameras(extrinsics, cameras.intrinsics.float()), PAIRS)
    (warp.coords_px.sum() + warp.depth_ratio.sum()).backward()
    assert all(x.grad.isfinite().all() for x in inputs)


def test_neighbours_of_unknown_pixels_are_not_valid():
    _, depth, cameras = turned_views()
    mask = torch.ones_like(depth, dtype=torch.bool)
    mask[0, 1, 10:20, 10:20] = False
    warp, free = warp_pixels(depth, cameras, PAIRS, mask=mask), warp_pixels(depth, cameras, PAIRS)
    x, y = free.coords_px[0, 0, 0].unbind(-1)
    touches = (x > 9) & (x < 20) & (y > 9) & (y < 20)
    assert touches.any()
    assert torch.equal(warp.valid[0, 0, 0], free.valid[0, 0, 0] & ~touches)
    assert not warp.valid[0, 1, :, 10:20, 10:20].any()
    assert torch.equal(warp.valid[0, 0, 1], free.valid[0, 0, 1])


def test_unknown_cameras_have_no_influence():
    _, depth, cameras = turned_views()
    known = torch.tensor([[True, False, True]])
    extrinsics, intrinsics = (x.clone() for x in cameras)
    extrinsics[0, 1], intrinsics[0, 1] = float("nan"), float("inf")
    inputs = [x.requires_grad_() for x in (depth, extrinsics, intrinsics)]
    warp = warp_pixels(depth, Cameras(extrinsics, intrinsics), PAIRS, camera_mask=known)
    assert warp.valid[0, [0, 2], [1, 0]].any()
    assert not warp.valid[0, 1].any()
    assert not warp.valid[0, [0, 2], [0, 1]].any()
    warp.depth_ratio[warp.valid].sum().backward()
    assert all(x.grad.isfinite().all() for x in inputs)
    assert all(not x.grad[0, 1].any() for x in inputs[1:])


def test_frozen_pairs_look_up_depth_that_gets_no_gradient():
    _, depth, cameras = turned_views()
    depth.requires_grad_()
    for frozen in (True, False):
        pairs = PAIRS._replace(frozen=torch.full((3, 2), frozen))
        warp = warp_pixels(depth, cameras, pairs)
        only_second_view = warp.depth_ratio[0, 0, 0][warp.valid[0, 0, 0]].sum()
        (gradient,) = torch.autograd.grad(only_second_view, depth)
        assert gradient[0, 0].any()
        assert gradient[0, 1].any() == (not frozen)


def test_pairs_may_stay_on_the_cpu():
    """`draw_pairs` draws there, whatever device pictures are on; the meta device refuses mixtures as a GPU does."""
    _, depth, cameras = turned_views()
    warp = warp_pixels(depth.to("meta"), Cameras(*(x.to("meta") for x in cameras)), draw_pairs(3))
    assert {x.device.type for x in warp} == {"meta"}


def test_look_up():
    maps = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    rows, columns = torch.meshgrid(torch.arange(5.0), torch.arange(6.0), indexing="ij")
    grid = torch.stack([columns, rows], dim=-1).double().expand(2, 3, 5, 6, 2)
    torch.testing.assert_close(sample_maps(maps, grid), maps)
    between = sample_maps(maps, grid[..., :-1, :-1, :] + torch.tensor([0.25, 0.5]))
    top, bottom = (0.75 * m[..., :-1] + 0.25 * m[..., 1:] for m in (maps[..., :-1, :], maps[..., 1:, :]))
    torch.testing.assert_close(between, (top + bottom) / 2)


def test_relative_error():
    z, other = torch.rand(2, 50, dtype=torch.float64) + 0.1
    torch.testing.assert_close(relative_error(z / other), (z - other).abs() / (z + other))


def test_one_view_has_nowhere_to_go():
    _, depth, cameras = turned_views()
    alone = Cameras(*(x[:, :1] for x in cameras))
    assert warp_pixels(depth[:, :1], alone, draw_pairs(1)).valid.shape == (1, 1, 0, HEIGHT, WIDTH)


def refuse(message: str, **changes: Tensor | ViewPairs) -> None:
    _, depth, (extrinsics, intrinsics) = turned_views()
    arguments = {"depth": depth, "extrinsics": extrinsics, "intrinsics": intrinsics, "pairs": PAIRS} | changes
    cameras = Cameras(arguments.pop("extrinsics"), arguments.pop("intrinsics"))
    with pytest.raises(ValueError, match=message):
        warp_pixels(arguments.pop("depth"), cameras, arguments.pop("pairs"), **arguments)


@pytest.mark.usefixtures("unchecked")
def test_wrong_shapes():
    refuse(r"^depth must have shape \(B, S, H, W\), got \(3, 4\)$", depth=torch.ones(3, 4))
    refuse(
        r"^cameras.cam_from_world must have shape \(1, 3, 3, 4\), got \(1, 2, 3, 4\)$",
        extrinsics=torch.ones(1, 2, 3, 4),
    )
    refuse(r"^cameras.intrinsics must have shape \(1, 3, 3, 3\), got \(3, 3\)$", intrinsics=torch.ones(3, 3))
    refuse(r"^camera_mask must have shape \(1, 3\), got \(3,\)$", camera_mask=torch.ones(3) > 0)
    refuse(r"^mask must have shape \(1, 3, 32, 40\), got \(1, 3\)$", mask=torch.ones(1, 3) > 0)
    refuse(
        r"^pairs.sources must have shape \(3, K\), got \(2, 1\)$", pairs=ViewPairs(torch.zeros(2, 1, dtype=torch.int64))
    )
    refuse(r"^pairs.frozen must have shape \(3, 2\), got \(3, 1\)$", pairs=PAIRS._replace(frozen=torch.ones(3, 1) > 0))
