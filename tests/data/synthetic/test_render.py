import itertools
import math
from pathlib import Path

import pytest
import torch

from geomtx.cli import demo
from geomtx.data.synthetic.render import (
    FIRST_HELD_OUT_SEED,
    HELD_OUT_SCENES,
    held_out_seed,
    is_held_out,
    render_scenes,
    training_seed,
)
from geomtx.data.synthetic.rooms import Dice, RoomStyle, pick_textures, place_cameras, place_solids
from geomtx.data.synthetic.solids import Solids, cast_rays, clearance, is_blocked
from geomtx.geometry.camera import invert_rigid
from geomtx.geometry.projection import project, unproject
from geomtx.types import Cameras

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
SEEDS = [int(seed) for seed in torch.randint(2**40, (6,), generator=torch.Generator().manual_seed(3))]


def random_room(count=4):
    dice = Dice(SEEDS[:count], torch.device("cpu"), torch.float64)
    solids = place_solids(dice, RoomStyle())
    cameras = place_cameras(dice, solids, RoomStyle(), 3, (20, 30))
    return solids, invert_rigid(cameras.cam_from_world)[..., 3]


def test_a_hit_is_on_a_surface_and_nothing_is_before_it():
    solids, eyes = random_room()
    directions = torch.randn(4, 3, 500, 3, dtype=torch.float64)
    hits = cast_rays(solids, eyes, directions)
    for share in torch.linspace(0, 1 - 1e-6, 40, dtype=torch.float64):
        points = (eyes[:, :, None] + share * hits.distance[..., None] * directions).flatten(1, 2)
        assert clearance(solids, points).min() > -1e-5
        assert (points >= solids.room_low[:, None] - 1e-9).all()
        assert (points <= solids.room_high[:, None] + 1e-9).all()
    points = (eyes[:, :, None] + hits.distance[..., None] * directions).flatten(1, 2)
    surface = hits.surface.flatten(1, 2)
    on_solid = surface >= 6
    assert on_solid.any()
    assert (~on_solid).any()
    assert clearance(solids, points)[on_solid].abs().max() < 1e-6
    to_wall = torch.cat([points - solids.room_low[:, None], solids.room_high[:, None] - points], dim=-1)
    assert to_wall.gather(-1, surface.clamp(max=5)[..., None])[..., 0][~on_solid].abs().max() < 1e-9
    # Just behind a surface is inside of the solid.
    inside = points + 1e-4 * torch.nn.functional.normalize(directions.flatten(1, 2), dim=-1)
    grazing = (hits.normal * torch.nn.functional.normalize(directions, dim=-1)).sum(-1).flatten(1).abs() < 0.1
    assert clearance(solids, inside)[on_solid & ~grazing].max() < 0


def test_rays_along_axes_meet_what_is_ahead():
    """A component of a direction is zero, as it happens in float32 once in a few million pixels."""
    solids, eyes = random_room()
    directions = torch.cat([torch.eye(3), -torch.eye(3)]).to(torch.float64).expand(4, 3, 6, 3)
    hits = cast_rays(solids, eyes, directions)
    nearly = cast_rays(solids, eyes, directions + 1e-9)
    torch.testing.assert_close(hits.distance, nearly.distance, rtol=1e-6, atol=1e-6)
    assert torch.equal(hits.surface, nearly.surface)


def test_normals_are_unit_and_face_the_eye():
    solids, eyes = random_room()
    directions = torch.randn(4, 3, 500, 3, dtype=torch.float64)
    normal = cast_rays(solids, eyes, directions).normal
    torch.testing.assert_close(normal.norm(dim=-1), torch.ones_like(normal[..., 0]))
    assert ((normal * directions).sum(-1) < 1e-9).all()


def test_normals_are_the_slope_of_depth():
    solids, eyes = random_room()
    ahead = torch.nn.functional.normalize(torch.randn(4, 3, 300, 3, dtype=torch.float64), dim=-1)
    hits = cast_rays(solids, eyes, ahead)
    points = ahead * hits.distance[..., None]
    for _ in range(2):
        turned = ahead + 1e-6 * torch.randn_like(ahead)
        near = cast_rays(solids, eyes, turned)
        step = turned * near.distance[..., None] - points
        same = (near.surface == hits.surface) & ((hits.normal - near.normal).norm(dim=-1) < 1e-3)
        slope = (step * hits.normal).sum(-1).abs() / step.norm(dim=-1)
        assert same.float().mean() > 0.9
        assert slope[same].max() < 1e-3


def test_what_is_seen_is_not_blocked_and_what_is_behind_is():
    solids, eyes = random_room()
    directions = torch.randn(4, 3, 400, 3, dtype=torch.float64)
    hits = cast_rays(solids, eyes, directions)
    points = eyes[:, :, None] + hits.distance[..., None] * directions
    assert not is_blocked(solids, eyes, points).any()
    behind = eyes[:, :, None] + 1.01 * hits.distance[..., None] * directions
    on_solid = hits.surface >= 6
    assert is_blocked(solids, eyes, behind)[on_solid].all()


def test_cameras_are_rigid_and_stand_in_free_space():
    solids, eyes = random_room(4)
    batch = render_scenes(SEEDS, 8, (24, 32), dtype=torch.float64)
    rotation = batch.cameras.cam_from_world[..., :3]
    identity = torch.eye(3, dtype=torch.float64).expand_as(rotation)
    torch.testing.assert_close(rotation @ rotation.transpose(-1, -2), identity)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones_like(rotation[..., 0, 0]))
    assert (clearance(solids, eyes) > 0).all()
    k = batch.cameras.intrinsics
    assert (k[..., 0, 2] == 16).all()
    assert (k[..., 1, 2] == 12).all()
    torch.testing.assert_close(k[..., 0, 0], k[..., 1, 1])


def test_depth_and_cameras_of_views_agree():
    """A pixel's point, projected to another view, is where that view's own ray ends, or it is hidden there."""
    batch = render_scenes(SEEDS, 3, (72, 96), dtype=torch.float64)
    points = unproject(batch.depth, batch.cameras.intrinsics, batch.cameras.cam_from_world)
    torch.testing.assert_close(points, batch.points)
    for seen_from in (1, 2):
        target = [t[:, seen_from] for t in batch.cameras]
        coords, depth = project(points[:, 0].flatten(1, 2), target[1], target[0])
        index = coords.round().long()
        inside = (index >= 0).all(-1) & (index[..., 0] < 96) & (index[..., 1] < 72) & (depth > 0.1)
        flat = (index[..., 1] * 96 + index[..., 0]).clamp(0, 72 * 96 - 1)
        there = batch.depth[:, seen_from].flatten(1).gather(1, flat)
        agree = ((there / depth - 1).abs() < 0.05) & inside
        in_front = (there < depth * 1.05) & inside
        assert agree.sum() > 0.3 * inside.sum()
        # Nothing is seen through: but for a pixel's width at edges, the other view's surface is never farther.
        assert in_front.sum() > 0.97 * inside.sum()


def test_tracks_follow_points_and_know_when_they_are_hidden():
    batch = render_scenes(SEEDS, 4, (60, 80), num_tracks=300, dtype=torch.float64)
    tracks = batch.tracks
    assert tracks.coords_px.shape == (6, 4, 300, 2)
    assert tracks.visible[:, 0].all()
    index = tracks.coords_px.round().long()
    inside = (index >= 0).all(-1) & (index[..., 0] < 80) & (index[..., 1] < 60)
    assert not (tracks.visible & ~inside).any()
    # Surfaces are dull, so that a point that is seen has the same colour in all views.
    flat = (index[..., 1] * 80 + index[..., 0]).clamp(0, 60 * 80 - 1)
    color = batch.images.flatten(-2).gather(-1, flat[:, :, None].expand(-1, -1, 3, -1))
    change = (color - color[:, :1]).abs().amax(2)
    assert change[tracks.visible].median() < 0.06
    hidden = inside & ~tracks.visible
    assert hidden.any()
    assert change[hidden].median() > 2 * change[tracks.visible].median()


def test_a_seed_is_a_scene_whatever_it_is_rendered_with():
    alone = render_scenes(SEEDS[2:3], 2, (12, 18), num_tracks=5)
    among = render_scenes(SEEDS, 4, (12, 18), num_tracks=9)
    for ours, theirs in zip(alone.cameras, among.cameras, strict=True):
        torch.testing.assert_close(ours, theirs[2:3, :2])
    torch.testing.assert_close(alone.images, among.images[2:3, :2], atol=1e-5, rtol=0)
    torch.testing.assert_close(alone.depth, among.depth[2:3, :2], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(alone.tracks.coords_px, among.tracks.coords_px[2:3, :2, :5], atol=1e-3, rtol=1e-4)
    again = render_scenes(SEEDS[2:3], 2, (12, 18))
    assert torch.equal(alone.images, again.images)
    assert not torch.equal(render_scenes([SEEDS[2] + 1], 2, (12, 18)).images, alone.images)


def test_a_seed_is_a_scene_in_double_precision_too():
    single, double = (render_scenes(SEEDS, 2, (12, 18), dtype=dtype) for dtype in (torch.float32, torch.float64))
    assert double.depth.dtype == double.images.dtype == torch.float64
    assert ((single.depth / double.depth - 1).abs() < 1e-4).double().mean() > 0.99
    torch.testing.assert_close(single.cameras.cam_from_world.double(), double.cameras.cam_from_world, atol=1e-5, rtol=0)


def test_more_rays_smooth_the_picture_and_leave_the_truth():
    once = render_scenes(SEEDS, 1, (48, 64))
    often = render_scenes(SEEDS, 1, (48, 64), supersample=3)
    assert torch.equal(once.depth, often.depth)
    assert often.images.diff(dim=-1).abs().mean() < once.images.diff(dim=-1).abs().mean()
    torch.testing.assert_close(often.images.mean(), once.images.mean(), atol=0.01, rtol=0)


def test_scenes_are_varied_and_pictures_are_bright_enough():
    batch = render_scenes(range(24), 2, (24, 24))
    assert 0.2 < batch.images.mean() < 0.7
    assert batch.images.std(dim=(2, 3, 4)).min() > 0.01
    assert batch.images.amin() >= 0
    assert batch.images.amax() <= 1
    assert batch.depth.amin() > 0.05
    focal = batch.cameras.intrinsics[:, 0, 0, 0]
    assert focal.max() > 1.5 * focal.min()


def test_shadows_darken_pictures_only():
    plain = render_scenes(SEEDS, 1, (24, 32), style=RoomStyle(shadows=False))
    shaded = render_scenes(SEEDS, 1, (24, 32))
    assert torch.equal(plain.depth, shaded.depth)
    assert (shaded.images <= plain.images + 1e-6).all()
    assert (shaded.images < plain.images - 0.02).any()


@pytest.mark.cuda
def test_scenes_are_the_same_on_a_gpu():
    """In float64, where no more than single pixels on an edge may fall on the other side."""
    there, here = (
        render_scenes(SEEDS, 3, (30, 40), num_tracks=50, supersample=2, device=device, dtype=torch.float64)
        for device in ("cuda", "cpu")
    )
    assert there.images.is_cuda
    torch.testing.assert_close(tuple(t.cpu() for t in there.cameras), tuple(here.cameras), rtol=1e-9, atol=1e-9)
    for name in ("images", "depth", "points"):
        same = torch.isclose(getattr(there, name).cpu(), getattr(here, name), rtol=1e-6, atol=1e-6)
        assert same.double().mean() > 0.999, name
    same = torch.isclose(there.tracks.coords_px.cpu(), here.tracks.coords_px, rtol=1e-6, atol=1e-4).all(-1)
    assert same.double().mean() > 0.99
    assert (there.tracks.visible.cpu() == here.tracks.visible).double().mean() > 0.99


def test_bad_arguments():
    with pytest.raises(ValueError, match="seeds must hold at least one seed"):
        render_scenes([], 2, (8, 8))
    with pytest.raises(ValueError, match="num_views must be in 1 … 24, got 25"):
        render_scenes([1], 25, (8, 8))
    with pytest.raises(ValueError, match="image_hw must be positive"):
        render_scenes([1], 2, (0, 8))
    with pytest.raises(ValueError, match="num_tracks must be in 0 … 1024, got 2000"):
        render_scenes([1], 2, (8, 8), num_tracks=2000)
    with pytest.raises(ValueError, match="height must be"):
        RoomStyle(height=(3.0, 2.0))
    with pytest.raises(ValueError, match="fov must be below 170"):
        RoomStyle(fov=(40.0, 175.0))
    with pytest.raises(ValueError, match=r"num_solids must be in 1 … 16"):
        RoomStyle(num_solids=(3, 40))


@pytest.mark.parametrize(
    ("style", "message"),
    [
        ({"wild": 1.5}, r"^wild must be in 0 … 1, got 1\.5$"),
        ({"wild": math.nan}, r"^wild must be in 0 … 1, got nan$"),
        ({"level": (0.5, 1.5)}, r"^level must be up to 1, the ceiling, got \(0\.5, 1\.5\)$"),
        ({"aim": -0.1}, r"^aim must be at least 0, got -0\.1$"),
        ({"roll": math.inf}, r"^roll must be finite, got inf$"),
        ({"half_width": (0.2, 3.0)}, r"^half_width must be above 0\.5, where cameras have room, got \(0\.2, 3\.0\)$"),
        ({"dolly": (1.0, math.inf)}, r"^dolly must be \(least, most\), both positive, got \(1\.0, inf\)$"),
    ],
)
def test_bad_styles(style: dict, message: str):
    with pytest.raises(ValueError, match=message):
        RoomStyle(**style)


def test_rooms_that_are_not_wild_have_bright_ceilings_and_darker_floors():
    ceiling, floor, wall = 1, 4, 0  # low y, high y, low x
    tame, wild = (
        pick_textures(Dice(range(200), torch.device("cpu"), torch.float64), RoomStyle(wild=wild)).colors.mean(-1)
        for wild in (0.0, 1.0)
    )
    assert tame[:, ceiling].min() > 0.7
    assert (tame[:, ceiling].amin(-1) > tame[:, floor].amax(-1)).all()
    assert (tame[:, ceiling, 0] > tame[:, wall, 0]).float().mean() > 0.8
    assert 0.3 < (wild[:, ceiling, 0] > wild[:, floor, 0]).float().mean() < 0.7
    # Solids look like anything in both.
    assert torch.equal(tame[:, 6:], wild[:, 6:])


def test_the_share_of_wild_rooms():
    colors = {
        wild: pick_textures(Dice(range(400), torch.device("cpu"), torch.float64), RoomStyle(wild=wild)).colors[:, :6]
        for wild in (0.0, 0.3, 1.0)
    }
    is_wild = (colors[0.3] == colors[1.0]).flatten(1).all(1)
    is_tame = (colors[0.3] == colors[0.0]).flatten(1).all(1)
    assert (is_wild ^ is_tame).all()
    assert is_wild.float().mean() == pytest.approx(0.3, abs=0.07)


def placed(**style: object) -> tuple[Solids, Cameras]:
    dice = Dice(range(100), torch.device("cpu"), torch.float64)
    solids = place_solids(dice, RoomStyle(**style))
    return solids, place_cameras(dice, solids, RoomStyle(**style), 4, (20, 30))


def test_cameras_are_as_high_as_the_style_says():
    solids, cameras = placed(level=(0.5, 0.6))
    eyes = invert_rigid(cameras.cam_from_world)[..., 3]
    share = eyes[..., 1] / solids.room_low[:, None, 1]  # y is down, the ceiling at -height
    assert share.min() >= 0.5 - 1e-9
    assert share.max() <= 0.6 + 1e-9
    assert share.max() - share.min() > 0.08


def test_cameras_aim_at_one_point_and_stand_upright_unless_told_otherwise():
    """Of rays through one point, differences of the eyes are coplanar with any two of the directions."""

    def miss(cameras: Cameras) -> torch.Tensor:
        eyes, forward = invert_rigid(cameras.cam_from_world)[..., 3], cameras.cam_from_world[..., 2, :3]
        normal = torch.nn.functional.normalize(torch.linalg.cross(forward[:, :1], forward[:, 1:]), dim=-1)
        return ((eyes[:, 1:] - eyes[:, :1]) * normal).sum(-1).abs()

    exact, loose = placed(aim=0.0, roll=0.0)[1], placed(aim=0.2, roll=6.0)[1]
    assert miss(exact).max() < 1e-6
    assert miss(loose).median() > 0.01
    # The camera's x axis is level.
    assert exact.cam_from_world[..., 0, 1].abs().max() < 1e-9
    assert 0.05 < loose.cam_from_world[..., 0, 1].abs().max() <= math.sin(math.radians(6)) + 1e-9


def test_training_and_held_out_seeds_have_none_in_common():
    trained = [training_seed(stream, step, index) for stream in range(3) for step in range(200) for index in range(10)]
    held_out = [held_out_seed(index) for index in range(1000)] + [held_out_seed(FIRST_HELD_OUT_SEED - 1)]
    assert not any(map(is_held_out, trained))
    assert all(map(is_held_out, held_out))
    assert len(set(trained)) == len(trained)


def test_neither_have_the_random_numbers_they_give():
    """torch reads the lower 32 bits of a seed: held-out seeds have to differ from the others in these."""
    assert FIRST_HELD_OUT_SEED < 2**32
    for index in (0, 1, 12345, FIRST_HELD_OUT_SEED - 1):
        seeds = (index, held_out_seed(index))
        numbers = [torch.rand(4, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        assert not torch.equal(*numbers)


def test_seeds_are_the_same_on_every_machine():
    assert [training_seed(0, 0, 0), training_seed(0, 0, 1), training_seed(42, 7, 3)] == [
        361313741,
        21354507,
        324902644,
    ]
    assert held_out_seed(5) == 2**31 + 5


@pytest.mark.parametrize("index", [-1, FIRST_HELD_OUT_SEED])
def test_an_index_out_of_range(index: int):
    with pytest.raises(ValueError, match=rf"^index must be in 0 … {2**31 - 1}, got {index}$"):
        held_out_seed(index)


def test_no_two_uses_share_a_held_out_scene():
    for one, other in itertools.combinations(HELD_OUT_SCENES.values(), 2):
        assert one
        assert one.stop <= other.start or other.stop <= one.start
    assert len(HELD_OUT_SCENES["demo"]) == demo._NUM_SCENES


def test_who_draws_held_out_scenes_takes_them_from_the_table():
    for path in (*BENCHMARKS.glob("*.py"), Path(demo.__file__)):
        code = path.read_text(encoding="utf-8")
        if "held_out_seed(" in code:
            assert "HELD_OUT_SCENES[" in code, path
        assert "_000_000" not in code.replace("_NUM_SCENES = 1_000_000", ""), path
