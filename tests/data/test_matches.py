import pytest
import torch

from geomtx.data import PixelMatches, RoomStyle, match_pixels, render_scenes
from geomtx.data.synthetic.render import HELD_OUT_SCENES, held_out_seed
from geomtx.types import Cameras, SceneBatch


@pytest.fixture(scope="module")
def rooms() -> SceneBatch:
    first = HELD_OUT_SCENES["tests"][0] + int(torch.randint(1000, ()))
    style = RoomStyle(spread=(8.0, 15.0), num_solids=(3, 4), shadows=False)  # both views see much of the same
    return render_scenes([held_out_seed(first + i) for i in range(2)], 2, (24, 32), style=style)


def flat(coords: torch.Tensor) -> torch.Tensor:
    return coords[..., 1] * 32 + coords[..., 0]


def test_matching_pixels_show_the_same_point(rooms: SceneBatch):
    matches = match_pixels(rooms.points, rooms.cameras, torch.ones_like(rooms.depth, dtype=torch.bool))
    assert matches.first.shape == matches.second.shape == (2, 24 * 32, 2)
    for scene in range(2):
        valid = matches.valid[scene]
        assert 0 < valid.sum() <= 24 * 16
        a, b = (flat(coords[scene, valid]) for coords in matches[:2])
        assert len(a.unique()) == len(b.unique()) == len(a), "each pixel at most once"
        # By the formulas: the point of the first view's pixel, projected in float64, is half a pixel from the other's.
        points = rooms.points[scene].double().flatten(1, 2)
        rotation, translation = rooms.cameras.cam_from_world[scene, 1].double().split([3, 1], dim=-1)
        seen = points[0, a] @ rotation.mT + translation[:, 0]
        pixels = (seen / seen[:, 2:]) @ rooms.cameras.intrinsics[scene, 1].double().mT
        assert (pixels[:, :2] - matches.second[scene, valid]).abs().max() <= 0.5 + 1e-4
        there = (points[1, b] @ rotation.mT + translation[:, 0])[:, 2]
        assert ((seen[:, 2] - there).abs() < 0.05 * torch.minimum(seen[:, 2], there) + 1e-5).all()


def test_other_pixels_are_in_no_match(rooms: SceneBatch):
    mask = torch.ones_like(rooms.depth, dtype=torch.bool)
    matches = match_pixels(rooms.points, rooms.cameras, mask, num_matches=20)
    assert matches.valid.shape == (2, 40)
    counts = matches.valid.sum(1)
    assert ((counts > 0) & (counts <= 20)).all()
    assert torch.equal(matches.valid, torch.arange(40) < counts[:, None]), "matches come first"
    for coords in matches[:2]:
        for pixels in flat(coords):
            assert len(pixels.unique()) == 40
    again = match_pixels(rooms.points, rooms.cameras, mask, num_matches=20)
    assert not torch.equal(again.first, matches.first), "drawn anew"


def test_unknown_and_hidden_pixels_match_nothing(rooms: SceneBatch):
    """A wall that the second view sees in front of everything hides all of it; so does no depth at all."""
    mask = torch.ones_like(rooms.depth, dtype=torch.bool)
    mask[0, 1] = False
    points = torch.where(mask[..., None], rooms.points, torch.nan)
    center = -(rooms.cameras.cam_from_world[:, 1, :, :3].mT @ rooms.cameras.cam_from_world[:, 1, :, 3:])[:, None, :, 0]
    near = center[:, None] + 0.01 * (points[:, 1] - center[:, None])
    matches = match_pixels(torch.stack([points[:, 0], near], dim=1), rooms.cameras, mask)
    assert not matches.valid.any()
    assert ((matches.first >= 0) & (matches.first < torch.tensor([32, 24]))).all()
    assert ((matches.second >= 0) & (matches.second < torch.tensor([32, 24]))).all()


def test_a_view_and_itself():
    points = torch.rand(1, 1, 4, 6, 3).expand(-1, 2, -1, -1, -1).clone()
    points[..., 2] += 2
    intrinsics = torch.tensor([[5.0, 0, 2.5], [0, 5, 1.5], [0, 0, 1]]).expand(1, 2, 3, 3)
    y, x = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    points[..., 0] = (x - 2.5) / 5 * points[..., 2]
    points[..., 1] = (y - 1.5) / 5 * points[..., 2]
    cameras = Cameras(torch.eye(3, 4).expand(1, 2, 3, 4), intrinsics)
    matches = match_pixels(points, cameras, torch.ones(1, 2, 4, 6, dtype=torch.bool), num_matches=12)
    assert isinstance(matches, PixelMatches)
    assert matches.valid.sum() == 12
    assert torch.equal(matches.first[matches.valid], matches.second[matches.valid])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_matches": 0}, r"^num_matches must be a whole number, at least 1, got 0$"),
        ({"tolerance": 0.0}, r"^tolerance must be .*, got 0\.0$"),
    ],
)
def test_what_can_not_be_matched(rooms: SceneBatch, change: dict, message: str):
    mask = torch.ones_like(rooms.depth, dtype=torch.bool)
    with pytest.raises(ValueError, match=message):
        match_pixels(rooms.points, rooms.cameras, mask, **change)
    with pytest.raises(ValueError, match=r"^points must have shape \(B, 2, H, W, 3\)"):
        match_pixels(rooms.points[:, :1], rooms.cameras, mask[:, :1])
