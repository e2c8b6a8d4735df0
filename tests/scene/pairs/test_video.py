import pytest
import torch

from geomtx.data import MotionStyle, RoomStyle, VideoStyle, render_videos
from geomtx.data.synthetic.flow import trace_flow
from geomtx.geometry import quat_to_matrix, transform_points
from geomtx.inference import PairMaps, choose_pairs
from geomtx.metrics.pose import pairwise_pose_errors
from geomtx.scene.pairs import AlignmentOptions, MotionTerms, align_video, find_moving
from geomtx.scene.pairs.global_alignment import KnownOfImages

FRAMES, STEP, HW = 5, 4, (24, 32)
PAIRS = choose_pairs(FRAMES, "swinstride-2-noncyclic")
# Solids as large as they may be, all of which move: nearly every video has some that one sees.
STYLE = VideoStyle(RoomStyle(solid_radius=(0.5, 0.7)), MotionStyle(moving=0.7, sway=(0.5, 0.8)))
PLAIN = AlignmentOptions(shared_focal=True)


class Video:
    """A rendered video with its truth, and point maps as a network might predict them."""

    def __init__(self, seed, noise=0.01, turn=0.03):
        every = slice(None, None, STEP)
        video = render_videos([seed], FRAMES * STEP, HW, style=STYLE)
        truth = trace_flow(seed, FRAMES * STEP, HW, STEP * PAIRS, style=STYLE)
        self.poses, points = video.cameras.cam_from_world[0, every], video.points[0, every]
        self.moving = truth.moving[every]
        self.flow = torch.where(truth.visible[:, None], truth.flow, torch.nan)
        maps = ([], [], [], [])
        for i, j in PAIRS.tolist():
            scale = 0.5 + torch.rand(())
            for side, image in enumerate((i, j)):
                own = transform_points(self.poses[i], points[image].flatten(0, 1)).unflatten(0, HW)
                own = own * (1 + noise * torch.randn(*HW, 1))
                if side:
                    rotation = quat_to_matrix(torch.cat([turn / 2 * torch.randn(3), torch.ones(1)]))
                    own = (own - own.mean((0, 1))) @ rotation + own.mean((0, 1))
                maps[side].append(scale * own)
                maps[2 + side].append(3 + torch.rand(HW))
        self.maps = PairMaps(PAIRS, *(tuple(each) for each in maps))

    def rotation_error(self, found):
        return pairwise_pose_errors(found.alignment.cameras.cam_from_world, self.poses).rotation_deg.mean()


@pytest.fixture
def video():
    while True:
        found = Video(int(torch.randint(2**31, ())))
        if 0.05 < found.moving.double().mean() < 0.3:
            return found


def overlap(found, wanted):
    return ((found & wanted).sum() / (found | wanted).sum()).item()


def test_moving_things_are_found_and_cameras_are_better(video):
    terms = MotionTerms(video.flow, smoothness_weight=0, flow_weight=0.1)
    found = align_video(video.maps, terms, PLAIN._replace(steps=100))
    plain = align_video(video.maps, MotionTerms(smoothness_weight=0), PLAIN._replace(steps=0))
    assert plain.moving is None
    assert overlap(found.moving, video.moving) > 0.5
    assert video.rotation_error(found) < 0.8 * video.rotation_error(plain)


def test_masks_that_are_given_stay(video):
    terms = MotionTerms(video.flow, video.moving)
    found = align_video(video.maps, terms, PLAIN._replace(steps=1))
    assert torch.equal(found.moving, video.moving)


def test_nothing_moves_in_pixels_that_take_no_part(video):
    masks = torch.rand(FRAMES, *HW) < 0.7
    known = KnownOfImages(masks=list(masks))
    found = align_video(video.maps, MotionTerms(video.flow), PLAIN._replace(steps=1), known=known)
    assert not (found.moving & ~masks).any()
    reverse = [PAIRS.tolist().index(pair[::-1]) for pair in PAIRS.tolist()]
    both = MotionTerms((video.flow, video.flow[reverse]))
    again = align_video(video.maps, both, PLAIN._replace(steps=1), known=known)
    assert torch.equal(again.moving, found.moving)


def test_pairs_without_their_reverse_are_named(video):
    maps = video.maps.take(range(len(PAIRS) - 1))
    with pytest.raises(ValueError, match=r"^pairs must come in both directions, got \(\d, \d\) without"):
        find_moving(maps, video.flow[:-1])
    with pytest.raises(ValueError, match=r"^flow must have shape"):
        align_video(video.maps, MotionTerms(video.flow[1:]))
