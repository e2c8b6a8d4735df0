from __future__ import annotations

import pytest
import torch
from torch import Tensor

from data.plane_scenes import PLANE_Z, plane_cameras, plane_depth, plane_scene
from geometry.random_cameras import random_rigid, rodrigues
from geomtx.data import build_track_labels, choose_tracks
from geomtx.geometry import compose_rigid, invert_rigid, project, unproject
from geomtx.geometry.epipolar import fundamental_matrix, sampson_distance
from geomtx.types import Cameras, TrackLabels


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def turned_scene(image_hw: tuple[int, int] = (48, 64)) -> tuple[Tensor, Cameras]:
    """Two scenes of three cameras that look at the plane from different directions."""
    cameras = plane_cameras([(0.1, 0.0, 0.2), (-0.4, 0.1, 0.0), (0.3, -0.2, 0.1)], 55.0, image_hw)
    angles = torch.tensor([[0.1, -0.15, 0.12], [0.05, 0.2, -0.1]], dtype=torch.float64)
    axes = torch.tensor([[0.0, 1, 0], [1, 0.3, 0], [0, 1, 1]])
    rotations = torch.stack(
        [torch.stack([rodrigues(a, t.item()) for a, t in zip(axes, row, strict=True)]) for row in angles]
    )
    poses = torch.cat([rotations, cameras.cam_from_world[..., 3:].expand(2, -1, -1, -1)], dim=-1)
    cameras = Cameras(poses, cameras.intrinsics.expand(2, -1, -1, -1).clone())
    return plane_depth(cameras, image_hw), cameras


def test_vector_of_a_plane() -> None:
    """A plane at z = 4, f = 40, 32x40 pixels, the second camera half a unit to the right."""
    cameras = plane_cameras([(0, 0, 0), (-0.5, 0, 0)], 40.0, (32, 40))
    depth = torch.full((1, 2, 32, 40), 4.0, dtype=torch.float64)
    labels = build_track_labels(depth, cameras, num_tracks=648, generator=seeded())
    assert labels.valid.all()
    assert labels.visible.all()
    assert len(labels.coords_px[0, 0].unique(dim=0)) == 27 * 24
    torch.testing.assert_close(
        labels.coords_px[:, 1] - labels.coords_px[:, 0],
        torch.tensor([-5.0, 0.0], dtype=torch.float64).expand(1, 648, 2),
    )
    more = build_track_labels(depth, cameras, num_tracks=649, generator=seeded())
    assert len(more.coords_px[0, 0].unique(dim=0)) == 648, "there is not one more"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_vector_holds_in_any_world(dtype: torch.dtype) -> None:
    """Turned and moved, coordinates are whole numbers but for rounding, which mustn't push them over the border."""
    cameras = plane_cameras([(0, 0, 0), (-0.5, 0, 0)], 40.0, (32, 40))
    turned = compose_rigid(cameras.cam_from_world, random_rigid(6, 1).expand(6, 2, 3, 4))
    cameras = Cameras(turned.to(dtype), cameras.intrinsics.expand(6, -1, -1, -1).to(dtype))
    labels = build_track_labels(torch.full((6, 2, 32, 40), 4.0, dtype=dtype), cameras, num_tracks=2000)
    assert labels.coords_px.dtype == dtype
    assert [len(scene[0].unique(dim=0)) for scene in labels.coords_px] == [648] * 6


def test_autocast_changes_nothing() -> None:
    depth, cameras = turned_scene()
    arguments = depth.float(), Cameras(*(part.float() for part in cameras))
    plain = build_track_labels(*arguments, num_tracks=20, neg_ratio=0.3, generator=seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = build_track_labels(*arguments, num_tracks=20, neg_ratio=0.3, generator=seeded())
    assert torch.equal(plain.coords_px, cast.coords_px)


def test_tracks_follow_points_of_the_scene() -> None:
    depth, cameras = turned_scene()
    labels = build_track_labels(depth, cameras, num_tracks=50, generator=seeded())
    assert labels.coords_px.shape == (2, 3, 50, 2)
    assert labels.visible[:, 0].all()
    assert (labels.visible.sum(1) >= 2).all()
    points = unproject(depth, cameras.intrinsics, cameras.cam_from_world)[:, 0]
    for scene in range(2):
        x, y = labels.coords_px[scene, 0].long().unbind(-1)
        mine = points[scene, y, x]
        torch.testing.assert_close(mine[:, 2], torch.full_like(mine[:, 2], PLANE_Z))
        expected, _ = project(mine.expand(3, -1, -1), cameras.intrinsics[scene], cameras.cam_from_world[scene])
        torch.testing.assert_close(labels.coords_px[scene], expected)


def test_visible_is_what_lies_inside_the_border() -> None:
    """On a plane nothing is hidden, so the border alone decides; coordinates outside are kept."""
    depth, cameras = turned_scene()
    labels = build_track_labels(depth, cameras, num_tracks=3000, generator=seeded())
    x, y = labels.coords_px.unbind(-1)
    inside = (x >= 4) & (x < 60) & (y >= 4) & (y < 44)
    torch.testing.assert_close(labels.visible, inside)
    assert not inside.all()
    assert ((x < 0) | (x > 63) | (y < 0) | (y > 47)).any()


def test_a_wall_in_front_hides() -> None:
    """In view 1 a wall at half the depth covers the left half: no track is visible there."""
    scene = plane_scene(num_views=3)
    depth = scene.depth.clone()
    depth[:, 1, :, :20] /= 2
    labels = build_track_labels(depth, scene.cameras, num_tracks=400, generator=seeded())
    x = labels.coords_px[0, 1, :, 0]
    assert not labels.visible[0, 1, x < 19].any()
    assert labels.visible[0, 1, x > 21].any()
    assert (x < 19).any(), "such tracks are kept, for view 2 sees them"


@pytest.mark.parametrize(("factor", "seen"), [(1.049, True), (1.051, False), (0.953, True), (0.951, False)])
def test_depth_may_differ_by_five_percent(factor: float, seen: bool) -> None:
    """Of the smaller of the two depths."""
    scene = plane_scene(num_views=2)
    depth = scene.depth.clone()
    depth[:, 1] *= factor
    labels = build_track_labels(depth, scene.cameras, num_tracks=10, generator=seeded())
    assert labels.valid.all().item() is seen


def test_one_of_four_pixels_is_enough() -> None:
    """Half a pixel between a near and a far column: the near one makes the point visible."""
    cameras = plane_cameras([(0, 0, 0), (0.05, 0, 0)], 40.0, (32, 40))  # by half a pixel
    depth = torch.full((1, 2, 32, 40), 4.0, dtype=torch.float64)
    depth[:, 1, :, 1::2] = 9.0
    labels = build_track_labels(depth, cameras, num_tracks=2000, generator=seeded())
    assert labels.visible.all()
    assert len(labels.coords_px[0, 0].unique(dim=0)) == 32 * 24


def test_masked_depth_counts_for_nothing() -> None:
    depth, cameras = turned_scene()
    mask = torch.rand(depth.shape) < 0.7
    clean = build_track_labels(torch.where(mask, depth, 0), cameras, num_tracks=60, generator=seeded())
    for garbage in (torch.nan, torch.inf, -1.0, 1e30):
        dirty = build_track_labels(torch.where(mask, depth, garbage), cameras, mask, num_tracks=60, generator=seeded())
        for one, other in zip(clean, dirty, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    x, y = clean.coords_px[0, 0].long().unbind(-1)
    assert mask[0, 0, y, x].all()


def test_points_behind_a_camera_are_not_seen() -> None:
    scene = plane_scene(num_views=2)
    cameras = scene.cameras
    poses = cameras.cam_from_world.clone()
    poses[:, 1, :, :3] = rodrigues(torch.tensor([0.0, 1, 0]), torch.pi)
    labels = build_track_labels(scene.depth, cameras._replace(cam_from_world=poses), num_tracks=5)
    assert not labels.valid.any()


@pytest.mark.parametrize("case", ["empty mask", "one view", "nan depth"])
def test_nothing_to_follow(case: str) -> None:
    scene = plane_scene(num_views=1 if case == "one view" else 2)
    mask = torch.zeros_like(scene.mask) if case == "empty mask" else scene.mask
    depth = torch.full_like(scene.depth, torch.nan) if case == "nan depth" else scene.depth
    labels = build_track_labels(depth, scene.cameras, mask, num_tracks=7, neg_ratio=0.0)
    assert labels.coords_px.shape == (1, depth.shape[1], 7, 2)
    assert labels.coords_px.isfinite().all()
    assert not labels.visible.any()
    assert not labels.valid.any()


def test_few_tracks_are_repeated() -> None:
    scene = plane_scene(num_views=2)
    mask = torch.zeros_like(scene.mask)
    mask[:, 1] = True
    mask[:, 0, 16, 20:23] = True
    labels = build_track_labels(scene.depth, scene.cameras, mask, num_tracks=8, generator=seeded())
    unique, counts = labels.coords_px[0, 0].unique(dim=0, return_counts=True)
    assert unique.tolist() == [[20, 16], [21, 16], [22, 16]]
    assert sorted(counts.tolist()) == [2, 3, 3]
    assert labels.valid.all()


def test_candidates_are_drawn_from_all_over() -> None:
    scene = plane_scene(num_views=2, image_hw=(300, 300))
    labels = build_track_labels(scene.depth, scene.cameras, num_tracks=90_000, generator=seeded())
    start = labels.coords_px[0, 0].unique(dim=0)
    assert 60_000 < len(start) <= 65_536
    assert start.amin() < 10
    assert start.amax(0).amin() > 290


def test_long_tracks_are_preferred() -> None:
    """Views 1 and 2 see everything, view 3 only the left: with tracks to spare, all drawn are of its half."""
    scene = plane_scene(num_views=4)
    mask = scene.mask.clone()
    mask[:, 3, :, 16:] = False
    labels = build_track_labels(scene.depth, scene.cameras, mask, num_tracks=60, generator=seeded())
    shares = labels.visible[0].sum(0)
    everything = build_track_labels(scene.depth, scene.cameras, mask, num_tracks=2000, generator=seeded())
    counts = everything.visible[0].sum(0)[: len(everything.coords_px[0, 0].unique(dim=0))]
    assert counts.min() < counts.max()
    assert shares.min() >= counts.median()


def test_scenes_of_a_batch_and_seeds() -> None:
    depth, cameras = turned_scene()
    both = build_track_labels(depth, cameras, num_tracks=20, generator=seeded(3))
    again = build_track_labels(depth, cameras, num_tracks=20, generator=seeded(3))
    other = build_track_labels(depth, cameras, num_tracks=20, generator=seeded(4))
    first = build_track_labels(depth[:1], Cameras(*(c[:1] for c in cameras)), num_tracks=20, generator=seeded(3))
    torch.testing.assert_close(both.coords_px, again.coords_px, rtol=0, atol=0)
    torch.testing.assert_close(both.coords_px[:1], first.coords_px)
    assert not torch.equal(both.coords_px, other.coords_px)


@pytest.mark.parametrize("rotated", [False, True])
def test_negatives_are_far_from_epipolar_lines(rotated: bool) -> None:
    if rotated:
        depth, cameras = turned_scene()
    else:
        scene = plane_scene(num_views=3)
        depth, cameras = scene.depth, scene.cameras
    labels = build_track_labels(depth, cameras, num_tracks=40, neg_ratio=0.5, generator=seeded())
    assert labels.valid.sum(-1).tolist() == [20] * len(depth)
    negatives = ~labels.valid
    assert not labels.visible.transpose(1, 2)[negatives].any()
    relative = compose_rigid(cameras.cam_from_world[:, 1:], invert_rigid(cameras.cam_from_world[:, :1]))
    k = cameras.intrinsics
    fundamental = fundamental_matrix(k[:, :1], k[:, 1:], relative)
    distance = sampson_distance(labels.coords_px[:, :1], labels.coords_px[:, 1:], fundamental)
    assert (distance.transpose(1, 2)[negatives] > 4 - 1e-6).all()
    assert (distance.transpose(1, 2)[labels.valid] < 1e-6).all()
    start = labels.coords_px[:, 0][negatives]
    torch.testing.assert_close(start, start.round())


def test_negatives_between_views_from_one_place() -> None:
    """No baseline, no epipolar line: a negative is what is over 4 px from where the point really is."""
    scene = plane_scene(num_views=1)
    same = Cameras(*(part.repeat(1, 24, 1, 1) for part in scene.cameras))
    labels = build_track_labels(scene.depth.repeat(1, 24, 1, 1), same, num_tracks=30, neg_ratio=1.0, generator=seeded())
    moved = (labels.coords_px[:, 1:] - labels.coords_px[:, :1]).norm(dim=-1)
    assert not labels.valid.any(), "lines in 23 views would leave none"
    assert (moved > 4).all()


def test_positives_fill_up_what_negatives_are_missing() -> None:
    """32x24 pixels in 24 views: hardly a random track is 4 px off in all of them."""
    scene = plane_scene(num_views=24, image_hw=(24, 32))
    labels = build_track_labels(scene.depth, scene.cameras, num_tracks=20, neg_ratio=0.9, generator=seeded())
    assert labels.valid.shape == (1, 20)
    assert labels.valid.sum() > 2


def test_choose_tracks() -> None:
    visible = torch.rand(2, 3, 12) < 0.6
    visible[:, 0, :8] = True
    visible[:, 0, 8:] = False
    valid = torch.ones(2, 12, dtype=torch.bool)
    valid[1] = False
    coords_px = torch.arange(12.0).expand(2, 3, 12)[..., None].repeat(1, 1, 1, 2)
    tracks = TrackLabels(coords_px, visible, valid)
    few = choose_tracks(tracks, 6, generator=seeded())
    numbers = few.coords_px[0, 0, :, 0].long()
    assert len(numbers.unique()) == 6
    assert (numbers < 8).all()
    torch.testing.assert_close(few.visible[0], visible[0][:, numbers])
    many = choose_tracks(tracks, 100, generator=seeded())
    assert set(many.coords_px[0, 0, :, 0].tolist()) == set(range(8))
    assert not few.valid[1].any()
    assert not few.visible[1].any()
    with pytest.raises(ValueError, match=r"^num_tracks must be positive, got 0$"):
        choose_tracks(tracks, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_tracks": 0}, r"^num_tracks must be positive, got 0$"),
        ({"border": 0}, r"^border must be positive, got 0$"),
        ({"tolerance": 0.0}, r"^tolerance must be positive, got 0.0$"),
        ({"neg_ratio": 1.5}, r"^neg_ratio must be in 0 … 1, got 1.5$"),
        ({"neg_ratio": -0.1}, r"^neg_ratio must be in 0 … 1, got -0.1$"),
        ({"depth": torch.ones(1, 2, 32, 40, dtype=torch.int32)}, r"^depth must be floating point, got torch.int32$"),
        ({"depth": torch.ones(2, 32, 40)}, r"^depth must have shape \(B, S, H, W\), got \(2, 32, 40\)$"),
        ({"depth": torch.ones(1, 3, 32, 40)}, r"^cam_from_world must have shape \(1, 3, 3, 4\), got \(1, 2, 3, 4\)$"),
        ({"mask": torch.ones(1, 2, 32, 39, dtype=torch.bool)}, r"^mask must have shape \(1, 2, 32, 40\), got "),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_refused_arguments(changes: dict, message: str) -> None:
    scene = plane_scene(num_views=2)
    arguments = {"depth": scene.depth, "cameras": scene.cameras, **changes}
    with pytest.raises(ValueError, match=message):
        build_track_labels(**arguments)


@pytest.mark.usefixtures("unchecked")
def test_intrinsics_of_another_batch_are_refused() -> None:
    scene = plane_scene(num_views=2)
    cameras = scene.cameras._replace(intrinsics=scene.cameras.intrinsics[:, :1])
    with pytest.raises(ValueError, match=r"^intrinsics must have shape \(1, 2, 3, 3\), got \(1, 1, 3, 3\)$"):
        build_track_labels(scene.depth, cameras)
