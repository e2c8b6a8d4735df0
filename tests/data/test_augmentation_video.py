from __future__ import annotations

import math

import pytest
import torch

from geomtx.data import ColorAugmentation, VideoAugmentation, render_videos
from geomtx.types import SceneBatch, TrackLabels

HW = (24, 32)
PLAIN = {"resize_prob": 0.0, "flip_x_prob": 0.0, "flip_y_prob": 0.0, "erase_prob": 0.0}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ramp_videos(num_videos: int = 4, num_frames: int = 10, num_tracks: int = 40) -> SceneBatch:
    """Frames whose colour says where a pixel was, (x / W, y / H, 1), and tracks that wander over them."""
    height, width = HW
    y, x = torch.meshgrid(torch.arange(height).double() / height, torch.arange(width).double() / width, indexing="ij")
    images = torch.stack([x, y, torch.ones_like(x)]).expand(num_videos, num_frames, -1, -1, -1)
    coords = torch.rand(num_videos, num_frames, num_tracks, 2, dtype=torch.float64)
    coords = coords * torch.tensor([width - 1, height - 1])
    visible = torch.rand(num_videos, num_frames, num_tracks) < 0.8
    visible[:, 0, 0] = True
    return SceneBatch(images, tracks=TrackLabels(coords, visible, visible.any(1)))


def look_up(images: torch.Tensor, coords: torch.Tensor) -> torch.Tensor:
    """Colours (B, S, N, 3) at fractional pixels, by hand; NaN where there are no four pixels around."""
    height, width = images.shape[-2:]
    low = coords.floor()
    total = torch.zeros(*coords.shape[:-1], 3, dtype=images.dtype)
    inside = ((low >= 0) & (low < torch.tensor([width - 1, height - 1]))).all(-1)
    low = torch.where(inside[..., None], low, 0).long()
    for dx in (0, 1):
        for dy in (0, 1):
            corner = low + torch.tensor([dx, dy])
            weight = (1 - (coords - corner).abs()).prod(-1, keepdim=True)
            flat = (corner[..., 1] * width + corner[..., 0])[:, :, None].expand(-1, -1, 3, -1)
            total = total + weight * images.flatten(-2).gather(-1, flat).transpose(-1, -2)
    return torch.where(inside[..., None], total, torch.nan)


@pytest.mark.parametrize("seed", range(4))
def test_a_pixel_stays_under_its_track(seed: int):
    videos = ramp_videos()
    changed = VideoAugmentation(erase_prob=0.0)(videos, generator=seeded(seed))
    assert changed.images.shape == videos.images.shape
    there = look_up(changed.images, changed.tracks.coords_px)
    size = torch.tensor([HW[1], HW[0]])
    # Within the picture, not mixed with the black around it.
    whole = (there[..., 2] > 1 - 1e-9) & changed.tracks.visible
    assert whole.double().mean() > 0.3
    torch.testing.assert_close(there[whole][:, :2] * size, videos.tracks.coords_px[whole], rtol=0, atol=1e-8)


def test_points_that_leave_the_frame_are_not_seen_and_others_stay_as_they_were():
    videos = ramp_videos()
    changed = VideoAugmentation(resize=(1.2, 1.6), erase_prob=0.0)(videos, generator=seeded()).tracks
    coords = changed.coords_px
    inside = ((coords >= -0.5) & (coords < torch.tensor([HW[1] - 0.5, HW[0] - 0.5]))).all(-1)
    assert torch.equal(changed.visible, videos.tracks.visible & inside)
    assert 0.1 < (~inside).double().mean() < 0.9
    assert torch.equal(changed.valid, changed.visible.any(1))


def test_an_invalid_track_stays_invalid():
    videos = ramp_videos()
    nothing = videos.tracks._replace(visible=torch.zeros_like(videos.tracks.visible), valid=videos.tracks.valid & False)
    changed = VideoAugmentation()(videos._replace(tracks=nothing), generator=seeded())
    assert not changed.tracks.valid.any()
    assert not changed.tracks.visible.any()


def test_a_point_is_hidden_exactly_where_its_pixel_is_covered():
    videos = ramp_videos(num_tracks=200)
    erase = VideoAugmentation(**{**PLAIN, "erase_prob": 0.7})
    changed = erase(videos, generator=seeded(3))
    differs = (changed.images != videos.images).any(2)
    pixel = (videos.tracks.coords_px + 0.5).floor().long()
    covered = differs.flatten(2).gather(-1, pixel[..., 1] * HW[1] + pixel[..., 0])
    assert torch.equal(changed.tracks.visible, videos.tracks.visible & ~covered)
    assert torch.equal(changed.tracks.coords_px, videos.tracks.coords_px)
    frames = differs.flatten(2).any(-1)
    assert 0.4 < frames.double().mean() < 0.95
    assert 0.01 < differs.double().mean() < 0.5


def test_numbers_and_sizes_of_boxes():
    videos = SceneBatch(torch.zeros(8, 8, 3, 64, 64))
    one = VideoAugmentation(**{**PLAIN, "erase_prob": 1.0}, erase_count=(1, 1), erase_size=(0.125, 0.125))
    areas = (one(videos, generator=seeded()).images > 0).any(2).sum((-1, -2))
    assert areas.max() == 64
    assert areas.double().mean() > 40  # some are cut off by the frame
    many = VideoAugmentation(**{**PLAIN, "erase_prob": 1.0}, erase_count=(3, 3), erase_size=(0.125, 0.125))
    assert (many(videos, generator=seeded()).images > 0).any(2).sum((-1, -2)).max() > 128


def test_mirrors():
    videos = ramp_videos()
    both = VideoAugmentation(**{**PLAIN, "flip_x_prob": 1.0, "flip_y_prob": 1.0})(videos, generator=seeded())
    torch.testing.assert_close(both.images, videos.images.flip(-1, -2), rtol=0, atol=1e-12)
    wanted = torch.tensor([HW[1] - 1, HW[0] - 1]) - videos.tracks.coords_px
    torch.testing.assert_close(both.tracks.coords_px, wanted)
    half = VideoAugmentation(**{**PLAIN, "flip_x_prob": 0.5})(ramp_videos(64, 2), generator=seeded())
    mirrored = half.images[:, 0, 0, 0, 0] > 0.5
    assert 0.3 < mirrored.double().mean() < 0.7


def test_the_drift_is_smooth_and_the_resize_within_its_range():
    videos = ramp_videos(16, 24, 2)
    augmentation = VideoAugmentation(resize=(0.8, 1.25), flip_x_prob=0.0, flip_y_prob=0.0, erase_prob=0.0)
    tracks = augmentation(videos, generator=seeded()).tracks
    # Two points tell the scale, x' = a x + b.
    old, new = videos.tracks.coords_px, tracks.coords_px
    scale = (new[:, :, 1] - new[:, :, 0]) / (old[:, :, 1] - old[:, :, 0])
    offset = new[:, :, 0] - scale * old[:, :, 0]
    torch.testing.assert_close(scale[..., 0], scale[..., 1])
    assert 0.8 * 0.9 - 1e-6 < scale.min() < 0.85
    assert 1.1 < scale.max() < 1.25 * 1.1 + 1e-6
    assert (scale.diff(dim=1).abs().amax((0, 1)) < 0.06).all()
    assert offset.diff(dim=1).abs().max() < 2.0
    assert (scale.std(1) > 1e-3).all()


def test_truth_is_dropped_where_pixels_move_and_masked_where_they_are_covered():
    videos = render_videos([1, 2], 4, HW, num_tracks=10)
    moved = VideoAugmentation()(videos, generator=seeded())
    assert moved.cameras is moved.depth is moved.points is moved.mask is None
    covered = VideoAugmentation(**{**PLAIN, "erase_prob": 1.0})(videos, generator=seeded())
    assert torch.equal(covered.depth, videos.depth)
    assert torch.equal(covered.mask, ~(covered.images != videos.images).any(2))
    without_mask = VideoAugmentation(**{**PLAIN, "erase_prob": 1.0})(videos._replace(mask=None), generator=seeded())
    assert torch.equal(without_mask.mask, covered.mask)
    same = VideoAugmentation(**PLAIN)(videos, generator=seeded())
    assert torch.equal(same.images, videos.images)
    assert torch.equal(same.tracks.visible, videos.tracks.visible)
    assert VideoAugmentation()(SceneBatch(videos.images), generator=seeded()).tracks is None


def test_equal_generators_give_equal_videos_and_the_argument_is_left_alone():
    videos = ramp_videos()
    before = videos.images.clone()
    one, two = (VideoAugmentation()(videos, generator=seeded(7)) for _ in range(2))
    assert torch.equal(one.images, two.images)
    assert torch.equal(one.tracks.visible, two.tracks.visible)
    assert torch.equal(videos.images, before)
    single = SceneBatch(videos.images.float(), tracks=TrackLabels(videos.tracks.coords_px.float(), *videos.tracks[1:]))
    narrow = VideoAugmentation()(single, generator=seeded(7))
    torch.testing.assert_close(narrow.tracks.coords_px.double(), one.tracks.coords_px, rtol=0, atol=1e-3)


def test_colours_for_tracking_change_frames_alike_more_often_than_not():
    color = ColorAugmentation.video()
    assert (color.jitter_prob, color.blur_prob, color.gray_prob) == (0.25, 0.25, 0.0)
    assert 0.5 < color.shared_prob < 1


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"resize": (1.5, 1.0)}, r"^resize must be \(least, most\), both positive, got \(1\.5, 1\.0\)$"),
        ({"erase_count": (0, 3)}, r"^erase_count must be \(least, most\), both positive, got \(0, 3\)$"),
        ({"erase_size": (0.1, math.inf)}, r"^erase_size must be \(least, most\), both positive"),
        ({"flip_x_prob": 1.5}, r"^flip_x_prob must be in 0 … 1, got 1\.5$"),
        ({"shift_drift": math.nan}, r"^shift_drift must be in 0 … 1, got nan$"),
        ({"resize_drift": 1.0}, r"^resize_drift must be below 1, got 1\.0$"),
    ],
)
def test_bad_numbers(numbers: dict, message: str):
    with pytest.raises(ValueError, match=message):
        VideoAugmentation(**numbers)


@pytest.mark.usefixtures("unchecked")
def test_bad_videos():
    with pytest.raises(ValueError, match=r"^images must have shape \(B, S, 3, H, W\), got \(2, 3, 8, 8\)$"):
        VideoAugmentation()(SceneBatch(torch.rand(2, 3, 8, 8)))
    with pytest.raises(ValueError, match=r"^images must be floating point, got torch.uint8$"):
        VideoAugmentation()(SceneBatch(torch.zeros(1, 2, 3, 8, 8, dtype=torch.uint8)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_frames_are_moved_to_the_pixel(dtype: torch.dtype):
    """Columns beyond 256 too, which half precision can't count: as the same frames in float64."""
    images = torch.rand(1, 3, 3, 4, 600).to(dtype)
    change = VideoAugmentation(erase_prob=1.0)
    half, exact = (change(SceneBatch(x), generator=seeded(3)).images for x in (images, images.double()))
    assert half.dtype == dtype
    torch.testing.assert_close(half.double(), exact, rtol=0, atol=4e-3 if dtype == torch.bfloat16 else 1e-3)
