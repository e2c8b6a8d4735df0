"""What the cross-view losses have in common: zero for exact geometry, gradients that repair, masks that select."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from geometry.random_cameras import rodrigues
from geomtx import Cameras, invert_rigid, project, unproject
from geomtx.losses import (
    PhotometricSettings,
    ViewPairs,
    depth_consistency_loss,
    draw_pairs,
    epipolar_loss,
    photometric_loss,
    track_point_loss,
)
from geomtx.types import TrackLabels
from losses.consistency.plane_scene import (
    BOARD,
    HEIGHT,
    SLANTED,
    WALL,
    WIDTH,
    PlaneScene,
    distances,
    shifted_views,
    turned_views,
)

PAIRS = ViewPairs(torch.tensor([[1, 2], [0, 2], [0, 1]]))


def tracks_of(scene: PlaneScene, count: int = 200) -> TrackLabels:
    """The same pixels of view 0 every time, drawn at random, followed by their true points; without occlusion."""
    pixels = torch.randint(0, HEIGHT * WIDTH, (count,), generator=torch.Generator().manual_seed(1))
    points = unproject(scene.depth[0, 0], scene.cameras.intrinsics[0, 0], scene.cameras.cam_from_world[0, 0])
    coords, _ = project(points.flatten(0, 1)[pixels], scene.cameras.intrinsics[0], scene.cameras.cam_from_world[0])
    inside = ((coords >= 0) & (coords <= torch.tensor([WIDTH - 1, HEIGHT - 1]))).all(-1)
    return TrackLabels(coords[None], inside[None], torch.ones(1, count, dtype=torch.bool))


def points_of(scene: PlaneScene) -> Tensor:
    return unproject(scene.depth, scene.cameras.intrinsics, scene.cameras.cam_from_world)


def photometric(scene: PlaneScene, **options) -> Tensor:
    return photometric_loss(scene.images, scene.depth, scene.cameras, PAIRS, **options)


def consistent_depth(scene: PlaneScene, **options) -> Tensor:
    return depth_consistency_loss(scene.depth, scene.cameras, PAIRS, **options)


def epipolar(scene: PlaneScene, **options) -> Tensor:
    """True tracks, whatever the scene's cameras are."""
    labels = tracks_of(turned_views())
    return epipolar_loss(labels.coords_px, scene.cameras, PAIRS, visible=labels.visible, **options)


def track_points(scene: PlaneScene, **options) -> Tensor:
    truth = turned_views()
    return track_point_loss(points_of(scene), points_of(truth), tracks_of(truth), **options)


LOSSES = {"photometric": photometric, "depth": consistent_depth, "epipolar": epipolar, "track points": track_points}


def moved(scene: PlaneScene, step: Tensor, direction: tuple[float, float, float]) -> PlaneScene:
    """The camera of view 1 in another place."""
    offset = torch.zeros(1, 3, 3, 4, dtype=torch.float64)
    offset[0, 1, :, 3] = torch.tensor(direction)
    return scene._replace(cameras=scene.cameras._replace(cam_from_world=scene.cameras.cam_from_world + step * offset))


def turned(scene: PlaneScene, step: Tensor) -> PlaneScene:
    """The camera of view 1 turned about its vertical axis."""
    axis = torch.tensor([[0.0, 0, 1], [0, 0, 0], [-1, 0, 0]], dtype=torch.float64)
    rotation = torch.matrix_exp(step * axis)
    cameras = scene.cameras.cam_from_world
    return scene._replace(
        cameras=scene.cameras._replace(
            cam_from_world=torch.stack([cameras[:, 0], rotation @ cameras[:, 1], cameras[:, 2]], dim=1)
        )
    )


def zoomed(scene: PlaneScene, step: Tensor) -> PlaneScene:
    """The focal length of view 1 times exp(step)."""
    factor = torch.ones(1, 3, 3, 3, dtype=torch.float64)
    factor[0, 1, :2, :2] = 0
    focal = scene.cameras.intrinsics * (1 - factor) * torch.exp(step)
    return scene._replace(cameras=scene.cameras._replace(intrinsics=scene.cameras.intrinsics * factor + focal))


def scaled(scene: PlaneScene, step: Tensor) -> PlaneScene:
    """The depth map of view 1 times exp(step)."""
    view_1 = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)[:, None, None]
    return scene._replace(depth=scene.depth * torch.exp(step * view_1))


CHANGES: dict[str, Callable[[PlaneScene, Tensor], PlaneScene]] = {
    "moved up": lambda scene, step: moved(scene, step, (0.0, 1.0, 0.0)),
    "moved ahead": lambda scene, step: moved(scene, step, (0.0, 0.0, 1.0)),
    "turned": turned,
    "zoomed": zoomed,
    "scaled depth": scaled,
}


@pytest.mark.parametrize("name", ["depth", "epipolar", "track points"])
def test_exact_geometry_has_no_loss(name):
    assert LOSSES[name](turned_views((SLANTED,))) < 1e-5


@pytest.mark.parametrize("auto_mask", [True, False])
def test_exact_geometry_has_no_photometric_loss(auto_mask):
    """Where pictures move by whole pixels; elsewhere what remains is the interpolation of colours."""
    scene = shifted_views()
    assert photometric(scene, settings=PhotometricSettings(auto_mask=auto_mask)) < 1e-5
    assert photometric(turned_views(), settings=PhotometricSettings(auto_mask=auto_mask)) < 2e-3


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        *(("photometric", change) for change in CHANGES),
        *(("depth", change) for change in ("moved ahead", "turned", "scaled depth")),
        *(("epipolar", change) for change in ("moved up", "turned", "zoomed")),
        *(("track points", change) for change in CHANGES),
    ],
)
def test_a_perturbation_raises_the_loss_and_the_gradient_undoes_it(name, change, sign):
    scene, size = turned_views((SLANTED,)), 0.03
    step = torch.tensor(sign * size, dtype=torch.float64, requires_grad=True)
    loss = LOSSES[name](CHANGES[change](scene, step))
    assert loss > LOSSES[name](scene) + 5e-5
    (gradient,) = torch.autograd.grad(loss, step)
    assert gradient * sign > 0
    with torch.no_grad():
        assert LOSSES[name](CHANGES[change](scene, step * 0.7)) < loss


def test_epipolar_loss_needs_no_depth():
    scene = turned_views()
    depth = scene.depth.requires_grad_()
    assert not epipolar(scene._replace(depth=depth)).requires_grad


def hidden_in_view_1(scene: PlaneScene) -> Tensor:
    """Pixels of view 0 between whose points and camera 1 the board is, (H, W), by casting rays."""
    points = points_of(scene)[0, 0]
    origin = invert_rigid(scene.cameras.cam_from_world[0, 1])[:, 3]
    return distances(origin, points - origin, (WALL, BOARD)) < 1 - 1e-9


@pytest.mark.parametrize("name", ["photometric", "depth"])
def test_what_is_hidden_in_the_other_view_does_not_contribute(name):
    scene = shifted_views((WALL, BOARD))
    hidden = hidden_in_view_1(scene)
    assert hidden.sum() > 20

    def errors(images: Tensor, depth: Tensor) -> Tensor:
        """Of view 0, which is compared with view 1 alone."""
        pairs = ViewPairs(torch.tensor([[1], [0], [0]]))
        if name == "photometric":
            loss = photometric_loss(
                images, depth, scene.cameras, pairs, settings=PhotometricSettings(auto_mask=False), reduction="none"
            )
        else:
            loss = depth_consistency_loss(depth, scene.cameras, pairs, reduction="none")[:, :, 0]
        return loss[0, 0]

    images, depth = scene.images.clone().requires_grad_(), scene.depth.clone().requires_grad_()
    loss = errors(images, depth)
    assert not loss[hidden].any()
    gradients = torch.autograd.grad(loss.sum(), (images, depth), allow_unused=True)
    assert not any(gradient[0, 0, ..., hidden].any() for gradient in gradients if gradient is not None)
    with torch.no_grad():  # any wall, as long as it is behind the board
        images[0, 0, :, hidden] = torch.rand(3, int(hidden.sum()), dtype=torch.float64)
        depth[0, 0, hidden] *= 1.03
    assert torch.equal(errors(images, depth), loss)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30, -1.0])
@pytest.mark.parametrize("name", ["photometric", "depth"])
def test_masked_pixels_have_no_influence(name, garbage):
    scene = scaled(turned_views(), torch.tensor(0.02, dtype=torch.float64))
    mask = torch.ones_like(scene.depth, dtype=torch.bool)
    mask[0, 0, 5:12, 8:20] = False
    mask[0, 2, :, 30:] = False
    inputs = [x.clone().requires_grad_() for x in (scene.images, scene.depth, *scene.cameras)]
    clean = LOSSES[name](PlaneScene(inputs[0], inputs[1], Cameras(*inputs[2:])), mask=mask)
    expected = torch.autograd.grad(clean, inputs, allow_unused=True)
    dirty = [x.detach().clone() for x in inputs]
    dirty[1][~mask] = garbage
    dirty[0].movedim(2, -1)[~mask] = garbage
    dirty = [x.requires_grad_() for x in dirty]
    loss = LOSSES[name](PlaneScene(dirty[0], dirty[1], Cameras(*dirty[2:])), mask=mask)
    assert torch.equal(loss, clean)
    assert loss > 0
    for x, gradient in zip(dirty, expected, strict=True):
        (got,) = torch.autograd.grad(loss, x, allow_unused=True, retain_graph=True)
        assert (got is None) == (gradient is None)
        if got is not None:
            torch.testing.assert_close(got, gradient, rtol=0, atol=1e-12)
    (got,) = torch.autograd.grad(loss, dirty[1])
    assert not got[~mask].any()


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_points_that_are_not_seen_have_no_influence(garbage):
    scene = turned(turned_views(), torch.tensor(0.03, dtype=torch.float64))
    labels = tracks_of(turned_views())
    dirty = labels.coords_px.clone()
    dirty[~labels.visible] = garbage
    extrinsics = scene.cameras.cam_from_world.requires_grad_()
    cameras = Cameras(extrinsics, scene.cameras.intrinsics)
    losses = [epipolar_loss(c, cameras, PAIRS, visible=labels.visible) for c in (labels.coords_px, dirty)]
    gradients = [torch.autograd.grad(loss, extrinsics, retain_graph=True)[0] for loss in losses]
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(gradients[0], gradients[1])
    assert gradients[0].any()


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_points_off_the_mask_have_no_influence(garbage):
    scene, truth = scaled(turned_views(), torch.tensor(0.02, dtype=torch.float64)), turned_views()
    labels, mask = tracks_of(truth), torch.ones(1, 3, HEIGHT, WIDTH, dtype=torch.bool)
    mask[0, 1, :16] = mask[0, 0, :, 30:] = False
    points, target = points_of(scene), points_of(truth)
    clean = track_point_loss(points, target, labels, mask)
    dirty, dirty_target, coords = points.clone(), target.clone(), labels.coords_px.clone()
    dirty[~mask] = dirty_target[~mask] = garbage
    coords[~labels.visible] = garbage
    dirty.requires_grad_()
    loss = track_point_loss(dirty, dirty_target, labels._replace(coords_px=coords), mask)
    loss.backward()
    assert torch.equal(loss, clean)
    assert loss > 0
    assert dirty.grad.isfinite().all()
    assert not dirty.grad[~mask].any()


@pytest.mark.parametrize("name", ["photometric", "depth", "epipolar"])
def test_unknown_cameras_have_no_influence(name):
    known = torch.tensor([[True, True, False]])
    scene = turned(turned_views(), torch.tensor(0.03, dtype=torch.float64))
    labels, pairs = tracks_of(turned_views()), ViewPairs(torch.tensor([[1], [0]]))
    images, depth, cameras = scene.images[:, :2], scene.depth[:, :2], Cameras(*(x[:, :2] for x in scene.cameras))
    if name == "photometric":
        clean = photometric_loss(images, depth, cameras, pairs)
    elif name == "depth":
        clean = depth_consistency_loss(depth, cameras, pairs)
    else:
        clean = epipolar_loss(labels.coords_px[:, :2], cameras, pairs, visible=labels.visible[:, :2])
    extrinsics, intrinsics = (x.clone() for x in scene.cameras)
    extrinsics[0, 2] = intrinsics[0, 2] = float("nan")
    extrinsics.requires_grad_()
    loss = LOSSES[name](scene._replace(cameras=Cameras(extrinsics, intrinsics)), camera_mask=known)
    loss.backward()
    torch.testing.assert_close(loss.detach(), clean)
    assert loss > 0
    assert extrinsics.grad.isfinite().all()
    assert extrinsics.grad[0, :2].any()
    assert not extrinsics.grad[0, 2].any()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_nothing_is_a_zero_with_a_graph(reduction):
    scene, labels, options = turned_views(), tracks_of(turned_views()), {"reduction": reduction}
    nothing = torch.zeros_like(scene.depth, dtype=torch.bool)
    depth = torch.full_like(scene.depth, float("nan")).requires_grad_()
    points = torch.full_like(points_of(scene), float("nan")).requires_grad_()
    extrinsics = scene.cameras.cam_from_world.requires_grad_()
    cameras = scene.cameras._replace(cam_from_world=extrinsics)
    unseen = torch.zeros_like(labels.visible)
    losses = [
        photometric_loss(scene.images, depth, cameras, PAIRS, mask=nothing, **options),
        depth_consistency_loss(depth, cameras, PAIRS, mask=nothing, **options),
        epipolar_loss(labels.coords_px, cameras, PAIRS, visible=unseen, **options),
        track_point_loss(points, points.detach(), labels, nothing, **options),
        track_point_loss(points, points.detach(), labels._replace(visible=unseen), nothing, **options),
    ]
    assert not any(loss.any() for loss in losses)
    sum(loss.sum() for loss in losses).backward()
    assert not any(x.grad.any() for x in (depth, points, extrinsics))


def test_a_single_view_is_a_zero_with_a_graph():
    scene = turned_views()
    labels = tracks_of(scene)
    depth = scene.depth[:, :1].requires_grad_()
    extrinsics = scene.cameras.cam_from_world[:, :1].requires_grad_()
    cameras = Cameras(extrinsics, scene.cameras.intrinsics[:, :1])
    losses = [
        photometric_loss(scene.images[:, :1], depth, cameras, draw_pairs(1)),
        depth_consistency_loss(depth, cameras, draw_pairs(1)),
        epipolar_loss(labels.coords_px[:, :1], cameras, draw_pairs(1)),
    ]
    for loss in losses:
        loss.backward()
        assert loss == 0
    assert not extrinsics.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_is_the_mean_over_its_scenes(name):
    """Of scenes in which as many pairs and points count."""
    truth, pairs = turned_views(), PAIRS
    steps = [torch.tensor(step, dtype=torch.float64) for step in (0.01, -0.02)]
    scenes = [scaled(turned(truth, step), step) for step in steps]
    images, depth = (torch.cat(x) for x in zip(*((s.images, s.depth) for s in scenes), strict=True))
    both = PlaneScene(images, depth, Cameras(*(torch.cat(x) for x in zip(*(s.cameras for s in scenes), strict=True))))
    labels = tracks_of(truth)
    two = TrackLabels(*(x.repeat(2, *(1,) * (x.ndim - 1)) for x in labels))

    def loss(scene: PlaneScene, labels: TrackLabels) -> Tensor:
        if name == "photometric":
            return photometric_loss(scene.images, scene.depth, scene.cameras, pairs)
        if name == "depth":
            return depth_consistency_loss(scene.depth, scene.cameras, pairs)
        if name == "epipolar":
            return epipolar_loss(labels.coords_px, scene.cameras, pairs, visible=labels.visible)
        target = points_of(truth).expand_as(points_of(scene))
        return track_point_loss(points_of(scene), target, labels)

    alone = torch.stack([loss(scene, labels) for scene in scenes])
    assert alone[0] != alone[1]
    torch.testing.assert_close(loss(both, two), alone.mean())


def lowered(scene: PlaneScene, dtype: torch.dtype) -> PlaneScene:
    return PlaneScene(scene.images.to(dtype), scene.depth.to(dtype), Cameras(*(x.to(dtype) for x in scene.cameras)))


@pytest.mark.parametrize("name", ["photometric", "depth", "epipolar"])
def test_half_precision_is_computed_in_float32(name):
    scene = lowered(turned(turned_views(), torch.tensor(0.02, dtype=torch.float64)), torch.bfloat16)
    wide = lowered(scene, torch.float32)
    labels = tracks_of(turned_views())
    labels = labels._replace(coords_px=labels.coords_px.float())

    def loss(scene: PlaneScene) -> Tensor:
        if name == "epipolar":
            return epipolar_loss(labels.coords_px, scene.cameras, PAIRS, visible=labels.visible)
        return LOSSES[name](scene)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = loss(scene)
    assert half.dtype == torch.float32
    assert half > 0
    torch.testing.assert_close(half, loss(wide))


def test_half_precision_points_are_compared_in_float32():
    truth, labels = turned_views(), tracks_of(turned_views())
    points = points_of(scaled(truth, torch.tensor(0.02, dtype=torch.float64))).bfloat16()
    target = points_of(truth).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = track_point_loss(points, target, labels)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, track_point_loss(points.float(), target, labels))


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck(name):
    """Along random directions in all inputs, away from kinks."""
    scene = turned(turned_views(), torch.tensor(0.02, dtype=torch.float64))
    # Where views agree exactly, absolute values have a kink.
    scene = scene._replace(depth=scene.depth * (1.03 + 0.01 * torch.rand_like(scene.depth)))
    directions = [torch.randn_like(x) for x in (scene.depth, *scene.cameras)]
    directions[2][..., 2, :] = 0

    def loss(steps: Tensor) -> Tensor:
        depth, extrinsics, intrinsics = (
            x + 1e-3 * step * d for x, step, d in zip((scene.depth, *scene.cameras), steps, directions, strict=True)
        )
        return LOSSES[name](PlaneScene(scene.images, depth, Cameras(extrinsics, intrinsics)))

    steps = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(loss(steps), steps)[0].any()
    torch.autograd.gradcheck(loss, (steps,), atol=1e-7, rtol=1e-4)


def test_rotations_of_the_scene_are_rotations():
    scene = turned(turned_views(), torch.tensor(0.3, dtype=torch.float64))
    rotation = scene.cameras.cam_from_world[0, 1, :, :3] @ turned_views().cameras.cam_from_world[0, 1, :, :3].T
    torch.testing.assert_close(rotation, rodrigues(torch.tensor([0.0, 1.0, 0.0]), 0.3))
