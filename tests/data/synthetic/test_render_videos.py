import pytest
import torch

from geomtx.data.synthetic.lighting import rays_through
from geomtx.data.synthetic.motion import (
    MOST_FRAMES,
    MotionStyle,
    carry_solids,
    carry_textures,
    move_camera,
    move_solids,
)
from geomtx.data.synthetic.render import MOST_TRACKS, VideoStyle, render_scenes, render_videos
from geomtx.data.synthetic.rooms import Dice, RoomStyle, pick_textures, place_cameras, place_lights, place_solids
from geomtx.data.synthetic.solids import cast_rays, clearance, paint
from geomtx.geometry.camera import invert_rigid, transform_points

SEEDS = [int(seed) for seed in torch.randint(2**40, (6,), generator=torch.Generator().manual_seed(5))]
LIVELY = MotionStyle(moving=1.0, travel=(0.5, 1.5))


def stage(seeds=SEEDS, motion=LIVELY, style=None):
    """What `render_videos` draws from the seeds, up to the motions: (solids at rest, textures, moves, poses)."""
    style = style or RoomStyle()
    dice = Dice(seeds, torch.device("cpu"), torch.float64, amount=8192)
    solids = place_solids(dice, style)
    textures = pick_textures(dice, style)
    place_lights(dice, solids)
    dice.roll(MOST_TRACKS, 2)
    camera = place_cameras(dice, solids, style, 1, (30, 40))
    poses = move_camera(dice, solids, camera.cam_from_world[:, 0], motion)
    rest, moves = move_solids(dice, solids, invert_rigid(poses)[..., 3], motion)
    return rest, textures, moves, poses


def test_a_track_stays_on_one_point_of_its_surface_and_is_hidden_by_what_is_before_it():
    """Rays through a track's pixels end, where it is visible, on the same point of the same surface, carried back."""
    num_frames, image_hw = 12, (30, 40)
    video = render_videos(
        SEEDS, num_frames, image_hw, num_tracks=150, style=VideoStyle(motion=LIVELY), dtype=torch.float64
    )
    rest, _, moves, poses = stage()
    moves = moves[:, :num_frames]
    torch.testing.assert_close(video.cameras.cam_from_world, poses[:, :num_frames], rtol=0, atol=0)
    directions = rays_through(video.cameras, video.tracks.coords_px)
    eyes = invert_rigid(video.cameras.cam_from_world)[..., 3]
    hits = cast_rays(carry_solids(rest, moves), eyes.flatten(0, 1)[:, None], directions.flatten(0, 1)[:, None])
    surface = hits.surface.view(directions.shape[:3])
    points = eyes[:, :, None] + hits.distance.view(surface.shape)[..., None] * directions
    sides = torch.eye(3, 4, dtype=torch.float64).expand(len(SEEDS), num_frames, 6, 3, 4)
    batch, frame = torch.arange(len(SEEDS))[:, None, None], torch.arange(num_frames)[None, :, None]
    back = invert_rigid(torch.cat([sides, moves], dim=2)[batch, frame, surface])
    at_rest = transform_points(back, points[..., None, :])[..., 0, :]

    visible = video.tracks.visible
    assert video.tracks.valid.all()
    assert visible.any(1).all()
    assert not visible[:, 0].all()  # of some, view 0 is no query
    first = visible.int().argmax(1)
    origin = at_rest.gather(1, first[:, None, :, None].expand(-1, 1, -1, 3))
    apart = (at_rest - origin).norm(dim=-1)
    same = surface == surface.gather(1, first[:, None])
    assert same[visible].all()
    assert apart[visible].max() < 1e-6
    width, height = image_hw[1], image_hw[0]
    x, y = video.tracks.coords_px.unbind(-1)
    inside = (x > 0) & (x < width - 1) & (y > 0) & (y < height - 1)
    hidden = inside & ~visible
    assert hidden.sum() > 100
    assert (apart[hidden] > 1e-3).double().mean() > 0.99  # behind the camera, pixels say nothing
    assert (surface >= 6)[visible].double().mean() > 0.05


def test_a_point_that_is_seen_keeps_its_colour():
    video = render_videos(SEEDS, 8, (60, 80), num_tracks=300, style=VideoStyle(RoomStyle(shadows=False), LIVELY))
    index = video.tracks.coords_px.round().long()
    flat = (index[..., 1].clamp(0, 59) * 80 + index[..., 0].clamp(0, 79))[:, :, None].expand(-1, -1, 3, -1)
    color = video.images.flatten(-2).gather(-1, flat)
    visible = video.tracks.visible
    first = visible.int().argmax(1)[:, None, None].expand(-1, 1, 3, -1)
    change = (color - color.gather(1, first)).abs().amax(2)
    assert change[visible].median() < 0.06


def test_solids_and_textures_are_carried_rigidly():
    rest, textures, moves, _ = stage()
    moves = moves[:, ::9]
    num_frames = moves.shape[1]
    moved = carry_solids(rest, moves)
    for index in range(rest.exists.shape[1]):
        alone = torch.zeros_like(rest.exists)
        alone[:, index] = True
        points = rest.centers[:, index, None] + torch.randn(len(SEEDS), 50, 3, dtype=torch.float64)
        there = transform_points(moves[:, :, index], points[:, None]).flatten(0, 1)
        here = clearance(rest._replace(exists=alone), points).repeat_interleave(num_frames, dim=0)
        exists = alone.repeat_interleave(num_frames, dim=0)
        torch.testing.assert_close(clearance(moved._replace(exists=exists), there), here, rtol=1e-8, atol=1e-8)
        surface = torch.full((len(SEEDS), 1, 50), index)
        sides = torch.eye(3, 4, dtype=torch.float64).expand(len(SEEDS), num_frames, 6, 3, 4)
        carried = carry_textures(textures, torch.cat([sides, moves], dim=2))
        footprint = torch.full((len(SEEDS), 1, 50), 1e-3, dtype=torch.float64)
        color = paint(textures, surface + 6, points[:, None], footprint)
        several = (t.repeat_interleave(num_frames, dim=0) for t in (surface + 6, footprint))
        again = paint(carried, next(several), there[:, None], next(several))
        torch.testing.assert_close(again, color.repeat_interleave(num_frames, dim=0), rtol=0, atol=1e-8)


def test_motions_are_smooth_rigid_and_stay_in_the_room():
    rest, _, moves, poses = stage()
    rotation = moves[..., :3]
    identity = torch.eye(3, dtype=torch.float64).expand_as(rotation)
    torch.testing.assert_close(rotation @ rotation.mT, identity)
    moving = (moves != torch.eye(3, 4)).flatten(3).any(-1).any(1)
    assert 0.5 < moving.double().mean() <= 1  # the camera is in the way of the others
    centers = transform_points(moves, rest.centers[:, None, :, None])[..., 0, :]
    margin = torch.minimum(centers - rest.room_low[:, None, None], rest.room_high[:, None, None] - centers)
    margin = (margin - rest.reach[:, None, :, None]).amin(1)
    assert margin[..., [0, 2]][moving].min() > -1e-9
    flying = moving & (centers[..., 1].std(1) > 1e-6)
    assert flying.any()
    assert margin[..., 1][flying].min() > -1e-9
    assert (rotation[..., 1, 1] == 1)[(moving & ~flying)[:, None].expand(rotation.shape[:3])].all()
    step = centers.diff(dim=1).norm(dim=-1)
    assert 0.02 < step[:, :, :][moving[:, None].expand_as(step)].mean() < 0.2
    eyes = invert_rigid(poses)[..., 3]
    assert ((centers - eyes[:, :, None]).norm(dim=-1) - rest.reach[:, None]).amin(1)[moving].min() > 0.25
    assert clearance(rest, eyes).min() > 0
    path = eyes.diff(dim=1).norm(dim=-1)
    assert path.mean() > 0.005
    assert path.max() < 0.25
    assert path.diff(dim=1).abs().max() < 0.05
    overlap = (poses[:, 1:, 2, :3] * poses[:, :-1, 2, :3]).sum(-1)
    assert overlap.min() > 0.97  # under 14 degrees a frame


def test_without_motion_frames_are_view_0_of_the_scene():
    video = render_videos(
        SEEDS, 3, (24, 32), num_tracks=40, style=VideoStyle(motion=MotionStyle.still()), dtype=torch.float64
    )
    scene = render_scenes(SEEDS, 1, (24, 32), num_tracks=40, dtype=torch.float64)
    for index in range(3):
        torch.testing.assert_close(video.depth[:, index], scene.depth[:, 0])
        torch.testing.assert_close(video.images[:, index], scene.images[:, 0])
        torch.testing.assert_close(video.cameras.cam_from_world[:, index], scene.cameras.cam_from_world[:, 0])
    torch.testing.assert_close(video.tracks.coords_px[:, 0], scene.tracks.coords_px[:, 0])
    assert video.tracks.visible.all()


def test_a_camera_may_move_alone_and_solids_may():
    only_camera = render_videos(
        SEEDS, 5, (20, 26), num_tracks=30, style=VideoStyle(motion=MotionStyle(moving=0.0)), dtype=torch.float64
    )
    frames = only_camera.tracks
    seen = frames.visible.all(1)
    assert (frames.coords_px.diff(dim=1).norm(dim=-1).amax(1) > 0.01)[seen].all()
    still_camera = MotionStyle(moving=1.0, sway=(0.0, 0.0), aim=0.0, roll=0.0)
    only_solids = render_videos(
        SEEDS, 5, (20, 26), num_tracks=60, style=VideoStyle(motion=still_camera), dtype=torch.float64
    )
    torch.testing.assert_close(only_solids.cameras.cam_from_world[:, 1:], only_solids.cameras.cam_from_world[:, :-1])
    moved = only_solids.tracks.coords_px.diff(dim=1).norm(dim=-1).amax(1)
    assert 0.02 < (moved > 0.01).double().mean() < 0.8


def test_a_seed_is_a_video_whatever_it_is_rendered_with():
    alone = render_videos(SEEDS[2:3], 6, (12, 18), num_tracks=5)
    among = render_videos(SEEDS, 6, (12, 18), num_tracks=9)
    torch.testing.assert_close(alone.images, among.images[2:3], atol=1e-4, rtol=0)
    torch.testing.assert_close(alone.depth, among.depth[2:3], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(alone.tracks.coords_px, among.tracks.coords_px[2:3, :, :5], atol=1e-3, rtol=1e-4)
    assert torch.equal(alone.tracks.visible, among.tracks.visible[2:3, :, :5])
    short = render_videos(SEEDS[2:3], 4, (12, 18))
    torch.testing.assert_close(short.images, alone.images[:, :4], atol=1e-5, rtol=0)
    assert torch.equal(render_videos(SEEDS[2:3], 6, (12, 18)).images, alone.images)
    assert not torch.equal(render_videos([SEEDS[2] + 1], 6, (12, 18)).images, alone.images)


def test_pieces_of_a_video_are_the_video(monkeypatch: pytest.MonkeyPatch):
    whole = render_videos(SEEDS[:2], 5, (12, 18), supersample=2)
    monkeypatch.setattr("geomtx.data.synthetic.render._CHUNK_RAYS", 3 * 12 * 18)
    pieces = render_videos(SEEDS[:2], 5, (12, 18), supersample=2)
    torch.testing.assert_close(pieces.images, whole.images, atol=1e-5, rtol=0)
    torch.testing.assert_close(pieces.depth, whole.depth, atol=1e-5, rtol=1e-5)


def test_tracks_come_from_all_frames_alike():
    video = render_videos(
        SEEDS, 7, (12, 18), num_tracks=21, style=VideoStyle(motion=MotionStyle(sway=(0.0, 0.0), moving=0.0, aim=1.0))
    )
    far = render_videos(SEEDS[:3], MOST_FRAMES, (4, 6), num_tracks=MOST_TRACKS)
    assert video.tracks.visible.any(1).all()
    assert far.tracks.visible.any(1).all()
    assert (far.tracks.visible.sum(1) < MOST_FRAMES).any()
    counts = far.tracks.visible.sum((0, 2)).double()
    assert counts.min() > 0.7 * counts.max()


@pytest.mark.cuda
def test_videos_are_the_same_on_a_gpu():
    there, here = (
        render_videos(SEEDS, 4, (30, 40), num_tracks=50, device=device, dtype=torch.float64)
        for device in ("cuda", "cpu")
    )
    assert there.images.is_cuda
    for name in ("images", "depth"):
        same = torch.isclose(getattr(there, name).cpu(), getattr(here, name), rtol=1e-6, atol=1e-6)
        assert same.double().mean() > 0.999, name
    same = torch.isclose(there.tracks.coords_px.cpu(), here.tracks.coords_px, rtol=1e-6, atol=1e-4).all(-1)
    assert same.double().mean() > 0.99


def test_bad_arguments():
    with pytest.raises(ValueError, match="seeds must hold at least one seed"):
        render_videos([], 2, (8, 8))
    with pytest.raises(ValueError, match="num_frames must be in 1 … 64, got 65"):
        render_videos([1], 65, (8, 8))
    with pytest.raises(ValueError, match="num_frames must be in 1 … 64, got 0"):
        render_videos([1], 0, (8, 8))
    with pytest.raises(ValueError, match="image_hw must be positive"):
        render_videos([1], 2, (0, 8))
    with pytest.raises(ValueError, match="num_tracks must be in 0 … 1024, got 2000"):
        render_videos([1], 2, (8, 8), num_tracks=2000)


@pytest.mark.parametrize(
    ("motion", "message"),
    [
        ({"moving": 1.5}, r"^moving must be in 0 … 1, got 1\.5$"),
        ({"flying": -0.5}, r"^flying must be in 0 … 1, got -0\.5$"),
        ({"travel": (1.0, 0.5)}, r"^travel must be \(least, most\), neither negative, got \(1\.0, 0\.5\)$"),
        ({"sway": (-1.0, 0.5)}, r"^sway must be \(least, most\), neither negative"),
        ({"period": (1.0, 5.0)}, r"^period must be at least 4 frames, for neighbours to be near, got \(1\.0, 5\.0\)$"),
        ({"aim": float("nan")}, r"^aim must be at least 0, got nan$"),
        ({"roll": -1.0}, r"^roll must be at least 0, got -1\.0$"),
    ],
)
def test_bad_motions(motion: dict, message: str):
    with pytest.raises(ValueError, match=message):
        MotionStyle(**motion)
