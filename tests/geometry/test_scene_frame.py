import pytest
import torch
from torch import Tensor

from geometry.random_cameras import random_intrinsics, random_rigid
from geomtx import Cameras, SceneBatch, TrackLabels, normalize_scene, project, unproject
from geomtx.geometry import compose_rigid, invert_rigid, transform_points
from geomtx.geometry.scene_frame import known_pixels

B, S, H, W = 2, 3, 4, 5
NAN = float("nan")


def random_scene(*, b: int = B, s: int = S) -> SceneBatch:
    cameras = Cameras(random_rigid(b, s), random_intrinsics(b, s))
    depth = torch.rand(b, s, H, W, dtype=torch.float64) * 3 + 0.5
    mask = torch.rand(b, s, H, W) > 0.3
    points = unproject(depth, cameras.intrinsics, cameras.cam_from_world)
    return SceneBatch(torch.rand(b, s, 3, H, W), cameras, depth=depth, points=points, mask=mask)


def assert_same(a: SceneBatch, b: SceneBatch) -> None:
    for x, y in zip((*a.cameras, a.depth, a.points), (*b.cameras, b.depth, b.points), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-12)


def mean_distance(batch: SceneBatch, b: int) -> Tensor:
    return batch.points[b][batch.mask[b]].norm(dim=-1).mean()


def test_the_mean_distance_of_points_is_one():
    batch, scale = normalize_scene(random_scene())
    for b in range(B):
        count = batch.mask[b].sum().double()
        torch.testing.assert_close(mean_distance(batch, b), (count + 1e-3) / count)
    assert scale.shape == (B,)
    assert scale.dtype == torch.float64


def test_the_first_camera_is_exactly_the_identity():
    scene = random_scene()
    scene = scene._replace(cameras=Cameras(*(x.float() for x in scene.cameras)), depth=None, points=None)
    first = normalize_scene(scene)[0].cameras.cam_from_world[:, 0]
    assert torch.equal(first, torch.eye(3, 4).expand(B, 3, 4))


def test_depth_points_and_cameras_still_belong_together():
    """In the new frame and unit, depth unprojects to the points, and all views keep their pixels."""
    scene = random_scene()
    batch, scale = normalize_scene(scene)
    points = unproject(batch.depth, batch.cameras.intrinsics, batch.cameras.cam_from_world)
    torch.testing.assert_close(points, batch.points, rtol=0, atol=1e-10)
    before = project(
        scene.points[:, 1].flatten(1, 2), scene.cameras.intrinsics[:, 2], scene.cameras.cam_from_world[:, 2]
    )
    after = project(
        batch.points[:, 1].flatten(1, 2), batch.cameras.intrinsics[:, 2], batch.cameras.cam_from_world[:, 2]
    )
    torch.testing.assert_close(after[0], before[0], rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(after[1] * scale[:, None], before[1], rtol=0, atol=1e-10)


def test_the_world_and_the_unit_of_the_input_do_not_matter():
    scene = random_scene()
    new_from_old, unit = random_rigid(B), torch.tensor([0.01, 700.0], dtype=torch.float64)
    moved = compose_rigid(scene.cameras.cam_from_world, invert_rigid(new_from_old)[:, None].expand(B, S, 3, 4))
    moved[..., 3] *= unit[:, None, None]
    points = transform_points(new_from_old, scene.points.flatten(1, 3)).view_as(scene.points)
    other = scene._replace(
        cameras=Cameras(moved, scene.cameras.intrinsics),
        depth=scene.depth * unit[:, None, None, None],
        points=points * unit[:, None, None, None, None],
    )
    (batch, scale), (again, other_scale) = normalize_scene(scene), normalize_scene(other)
    torch.testing.assert_close(other_scale, scale * unit)
    assert_same(again, batch)


def test_twice_is_once_but_for_the_margin_of_the_count():
    batch, _ = normalize_scene(random_scene())
    again, scale = normalize_scene(batch)
    torch.testing.assert_close(scale, torch.ones_like(scale), rtol=0, atol=1e-4)
    torch.testing.assert_close(again.depth, batch.depth, rtol=1e-4, atol=0)


def test_scenes_of_a_batch_do_not_know_of_each_other():
    scene = random_scene()
    batch, scale = normalize_scene(scene)
    for b in range(B):
        cameras = Cameras(*(x[b : b + 1] for x in scene.cameras))
        parts = {name: getattr(scene, name)[b : b + 1] for name in ("images", "depth", "points", "mask")}
        alone, alone_scale = normalize_scene(SceneBatch(cameras=cameras, **parts))
        assert alone_scale == scale[b]
        assert torch.equal(alone.points[0], batch.points[b])


def test_points_are_made_of_depth():
    scene = random_scene()
    assert_same(normalize_scene(scene._replace(points=None))[0], normalize_scene(scene)[0])


def test_the_rest_is_handed_through():
    labels = TrackLabels(torch.rand(B, S, 2, 2), torch.ones(B, S, 2).bool(), torch.ones(B, 2).bool())
    scene = random_scene()._replace(tracks=labels)
    batch, _ = normalize_scene(scene)
    assert batch.images is scene.images
    assert batch.mask is scene.mask
    assert batch.tracks is labels
    assert batch.camera_mask is None
    assert batch.cameras.intrinsics is scene.cameras.intrinsics


def test_frame_without_unit():
    scene = random_scene()
    batch, scale = normalize_scene(scene, by_points=False)
    assert (scale == 1).all()
    assert torch.equal(batch.depth, scene.depth)
    by_points, scale = normalize_scene(scene)
    torch.testing.assert_close(batch.points, by_points.points * scale[:, None, None, None, None])


@pytest.mark.parametrize("value", [NAN, float("inf"), 1e30])
@pytest.mark.parametrize("with_points", [True, False])
def test_what_the_mask_hides_has_no_influence(value, with_points):
    scene = random_scene()
    scene = scene if with_points else scene._replace(points=None)
    clean, scale = normalize_scene(scene)
    dirty = scene._replace(depth=torch.where(scene.mask, scene.depth, value))
    if with_points:
        dirty = dirty._replace(points=torch.where(scene.mask[..., None], scene.points, value))
    batch, dirty_scale = normalize_scene(dirty)
    assert torch.equal(dirty_scale, scale)
    assert torch.equal(batch.cameras.cam_from_world, clean.cameras.cam_from_world)
    assert torch.equal(batch.depth[batch.mask], clean.depth[clean.mask])
    assert torch.equal(batch.points[batch.mask], clean.points[clean.mask])
    assert batch.depth.isfinite().all()
    assert batch.points.isfinite().all()


@pytest.mark.parametrize("value", [0.0, -1.0, NAN, float("inf")])
@pytest.mark.parametrize("with_points", [True, False])
@pytest.mark.parametrize("with_cameras", [True, False])
def test_without_a_mask_depth_says_what_is_known(value, with_points, with_cameras):
    scene = random_scene()
    scene = scene if with_points else scene._replace(points=None)
    scene = scene if with_cameras else scene._replace(cameras=None)
    expected, scale = normalize_scene(scene)
    bare = scene._replace(depth=torch.where(scene.mask, scene.depth, value), mask=None)
    batch, bare_scale = normalize_scene(bare)
    assert torch.equal(known_pixels(bare), scene.mask)
    assert torch.equal(batch.mask, scene.mask)
    assert torch.equal(bare_scale, scale)
    assert batch.depth.isfinite().all()
    assert torch.equal(batch.depth[batch.mask], expected.depth[batch.mask])


def test_known_pixels_of_what_has_no_depth():
    scene = random_scene()._replace(depth=None)
    assert torch.equal(known_pixels(scene), scene.mask)
    assert known_pixels(scene._replace(mask=None)).all()
    assert normalize_scene(scene._replace(mask=None))[0].mask is None


def test_a_known_nan_is_not_hushed_up():
    scene = random_scene()
    scene.mask[0] = True
    scene.points[0, 1, 2, 3] = NAN
    batch, scale = normalize_scene(scene)
    assert scale.isnan().tolist() == [True, False]
    assert batch.depth[0].isnan().all()
    assert batch.depth[1].isfinite().all()


def test_cameras_alone_are_scaled_by_their_distances():
    scene = random_scene()._replace(depth=None, points=None, mask=None)
    batch, scale = normalize_scene(scene)
    world_from_cam = invert_rigid(scene.cameras.cam_from_world)
    centres = world_from_cam[..., 3]
    torch.testing.assert_close(scale, (centres[:, 1:] - centres[:, :1]).norm(dim=-1).mean(-1))
    torch.testing.assert_close(batch.cameras.cam_from_world[:, 1:, :, 3].norm(dim=-1).mean(-1), torch.ones_like(scale))


def test_a_scene_without_known_pixels_is_scaled_by_its_cameras():
    scene = random_scene()
    scene.mask[0] = False
    _, scale = normalize_scene(scene)
    _, by_cameras = normalize_scene(scene._replace(depth=None, points=None, mask=None))
    _, by_points = normalize_scene(scene._replace(mask=torch.ones_like(scene.mask)))
    assert scale[0] == by_cameras[0]
    assert scale[1] != by_cameras[1]
    assert scale[1] != by_points[1]


@pytest.mark.parametrize("s", [1, 3])
def test_cameras_in_one_place_are_scaled_by_one(s):
    scene = random_scene(s=s)._replace(depth=None, points=None, mask=None)
    scene.cameras.cam_from_world[:] = scene.cameras.cam_from_world[:, :1]
    batch, scale = normalize_scene(scene)
    assert (scale == 1).all()
    assert torch.equal(batch.cameras.cam_from_world[:, 0], torch.eye(3, 4).double().expand(B, 3, 4))


def test_unknown_cameras_have_no_influence_and_become_the_identity():
    scene = random_scene()
    known = torch.tensor([[True, True, False], [True, False, True]])
    scene = scene._replace(camera_mask=known)
    clean, scale = normalize_scene(scene)
    cameras = Cameras(*(torch.where(known[..., None, None], x, NAN) for x in scene.cameras))
    batch, dirty_scale = normalize_scene(scene._replace(cameras=cameras))
    assert torch.equal(dirty_scale, scale)
    assert torch.equal(batch.cameras.cam_from_world, clean.cameras.cam_from_world)
    assert torch.equal(batch.cameras.cam_from_world[~known], torch.eye(3, 4).double().expand(2, 3, 4))
    assert torch.equal(batch.camera_mask, known)
    # The points are labels of their own here, known whatever is known of the camera.
    assert torch.equal(batch.mask, scene.mask)
    alone = scene._replace(depth=None, points=None, mask=None)
    _, distance = normalize_scene(alone)
    _, of_pair = normalize_scene(
        alone._replace(
            cameras=Cameras(*(x[:, :2] for x in scene.cameras)), camera_mask=None, images=scene.images[:, :2]
        )
    )
    assert distance[0] == of_pair[0]


def test_depth_of_an_unknown_camera_makes_no_points():
    scene = random_scene()._replace(points=None, camera_mask=torch.tensor([[True, False, True]] * B))
    batch, scale = normalize_scene(scene)
    assert not batch.mask[:, 1].any()
    assert torch.equal(batch.mask[:, ::2], scene.mask[:, ::2])
    both = scene._replace(
        cameras=Cameras(*(x[:, ::2] for x in scene.cameras)),
        **{name: getattr(scene, name)[:, ::2] for name in ("images", "camera_mask", "depth", "mask")},
    )
    torch.testing.assert_close(scale, normalize_scene(both)[1])


def test_a_scene_without_its_first_camera_is_masked():
    scene = random_scene()
    clean, scale = normalize_scene(scene)
    known = torch.tensor([[False, True, True], [True, True, True]])
    scene.cameras.cam_from_world[0, 0] = NAN
    batch, masked_scale = normalize_scene(scene._replace(camera_mask=known))
    assert batch.camera_mask.tolist() == [[False] * 3, [True] * 3]
    assert not batch.mask[0].any()
    assert masked_scale.tolist() == [1.0, scale[1].item()]
    assert batch.depth.isfinite().all()
    assert batch.points.isfinite().all()
    assert batch.cameras.cam_from_world.isfinite().all()
    torch.testing.assert_close(batch.points[1], clean.points[1])
    assert torch.equal(batch.mask[1], clean.mask[1])


def test_depth_without_cameras_is_scaled_by_its_mean():
    scene = random_scene()._replace(cameras=None, points=None)
    batch, scale = normalize_scene(scene)
    for b in range(B):
        expected = scene.depth[b][scene.mask[b]].sum() / (scene.mask[b].sum() + 1e-3)
        torch.testing.assert_close(scale[b], expected)
        torch.testing.assert_close(batch.depth[b], scene.depth[b] / expected)
    assert batch.cameras is None
    assert batch.points is None


def test_images_alone_are_left_alone():
    batch, scale = normalize_scene(SceneBatch(torch.rand(B, S, 3, H, W)))
    assert scale.tolist() == [1.0] * B
    assert batch._replace(images=None) == SceneBatch(None)


def test_vector():
    """Two cameras without rotation, two points and one; as the published code has it."""
    cameras = torch.eye(3, 4).repeat(1, 2, 1, 1)
    cameras[0, 0, :, 3], cameras[0, 1, :, 3] = torch.tensor([1.0, 0, 0]), torch.tensor([0, 0, 2.0])
    points = torch.tensor([[-1.0, 0, 3], [-1, 4, 0], [-1, 0, 5], [70, 80, 90]]).view(1, 2, 1, 2, 3)
    mask = torch.tensor([True, True, True, False]).view(1, 2, 1, 2)
    intrinsics = torch.eye(3).expand(1, 2, 3, 3)
    batch, scale = normalize_scene(
        SceneBatch(
            torch.zeros(1, 2, 3, 1, 2),
            Cameras(cameras, intrinsics),
            depth=torch.full((1, 2, 1, 2), 4.0),
            points=points,
            mask=mask,
        )
    )
    torch.testing.assert_close(scale, torch.tensor([12 / 3.001]))
    translation = torch.tensor([[0, 0, 0], [-0.2501, 0, 0.5002]])
    torch.testing.assert_close(batch.cameras.cam_from_world[0, :, :, 3], translation, rtol=0, atol=5e-5)
    expected = torch.tensor([[0, 0, 0.7502], [0, 1.0003, 0], [0, 0, 1.2504]])
    torch.testing.assert_close(batch.points[mask], expected, rtol=0, atol=6e-5)
    torch.testing.assert_close(batch.depth, torch.full((1, 2, 1, 2), 1.0003), rtol=0, atol=5e-5)


@pytest.mark.parametrize("size", [1, 8, 64, 160])
def test_the_unit_of_a_float64_batch_has_its_precision(size):
    """The sum over the count plus a thousandth, to the last digits however many pixels there are."""
    depth = torch.full((1, 1, size, size), 1e3, dtype=torch.float64)
    points = torch.stack([depth, depth, depth], dim=-1)
    images = torch.rand(1, 1, 3, size, size)
    count = size * size
    for batch, length in ((SceneBatch(images, points=points), 3**0.5 * 1e3), (SceneBatch(images, depth=depth), 1e3)):
        _, scale = normalize_scene(batch)
        assert scale.item() == pytest.approx(length * count / (count + 1e-3), rel=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_out_as_float32(dtype):
    scene = random_scene()
    half = scene._replace(
        cameras=Cameras(*(x.to(dtype) for x in scene.cameras)),
        depth=scene.depth.to(dtype),
        points=scene.points.to(dtype),
    )
    wide = half._replace(
        cameras=Cameras(*(x.float() for x in half.cameras)), depth=half.depth.float(), points=half.points.float()
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        batch, scale = normalize_scene(half)
    expected, expected_scale = normalize_scene(wide)
    assert torch.equal(scale, expected_scale)
    assert torch.equal(batch.points, expected.points)
    assert torch.equal(batch.cameras.cam_from_world, expected.cameras.cam_from_world)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("images", torch.zeros(B, 3, H, W), r"^images must have shape \(B, S, 3, H, W\), got \(2, 3, 4, 5\)$"),
        ("depth", torch.zeros(B, S, H, W, 1), r"^depth must have shape \(2, 3, 4, 5\), got \(2, 3, 4, 5, 1\)$"),
        ("points", torch.zeros(B, S, H, W), r"^points must have shape \(2, 3, 4, 5, 3\), got \(2, 3, 4, 5\)$"),
        ("mask", torch.ones(B, S).bool(), r"^mask must have shape \(2, 3, 4, 5\), got \(2, 3\)$"),
        ("mask", torch.ones(B, S, H, W), r"^mask must be bool, got torch.float32$"),
        ("camera_mask", torch.ones(B).bool(), r"^camera_mask must have shape \(2, 3\), got \(2,\)$"),
        (
            "cameras",
            Cameras(torch.zeros(B, S, 4, 4), torch.zeros(B, S, 3, 3)),
            r"^cam_from_world must have shape \(2, 3, 3, 4\), got \(2, 3, 4, 4\)$",
        ),
        (
            "cameras",
            Cameras(torch.zeros(B, S, 3, 4), torch.zeros(B, S, 4)),
            r"^intrinsics must have shape \(2, 3, 3, 3\), got \(2, 3, 4\)$",
        ),
    ],
)
def test_wrong_shapes(name, value, message):
    with pytest.raises(ValueError, match=message):
        normalize_scene(random_scene()._replace(**{name: value}))
