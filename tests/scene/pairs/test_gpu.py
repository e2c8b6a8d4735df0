"""Pairs on a GPU: what the CPU computes, from the model to the scene."""

import pytest
import torch

import geomtx
from families import PAIRS, build, draw_images
from geomtx.inference import choose_pairs, run_pairs
from geomtx.metrics import pairwise_pose_errors
from geomtx.scene.pairs import AlignmentOptions, SparseOptions, align_matches, align_pairs, match_photos, track_flow
from geomtx.scene.pairs.matches.alignment import PairMatches
from geomtx.tracking import Matches, match_descriptors
from geomtx.tracking.matching import DescriptorMaps
from reference import relative_error
from scene.pairs.point_maps import both_ways, make_maps, make_surface_truth, make_truth, true_matches

pytestmark = pytest.mark.cuda

DEVICE = torch.device("cuda")


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_are_predicted_and_become_a_scene(name):
    images, graph = draw_images(name, 3).float(), choose_pairs(3, "complete")
    model = build(name)
    few = SparseOptions(coarse_steps=2, fine_steps=2) if name == "mast3r" else AlignmentOptions()
    expected = run_pairs(model, images, graph)
    scene = geomtx.reconstruct(model, images, alignment=few)
    found = run_pairs(model.to(DEVICE), images, graph)
    assert found.points1[0].device.type == "cpu"
    assert relative_error(torch.stack(found.points2), torch.stack(expected.points2)) < 5e-3  # kept in half precision
    other = geomtx.reconstruct(model, images, alignment=few)
    assert other.units == scene.units
    assert other.predictions.depth.value.device.type == "cpu"
    assert other.predictions.depth.value.isfinite().all()
    assert match_photos(model, images[:2]).coords1_px.device.type == "cpu"


@pytest.mark.parametrize("options", [AlignmentOptions(), AlignmentOptions("published", steps=50)])
def test_points_are_aligned_as_on_the_cpu(options):
    maps = make_maps(make_truth([(24, 32)] * 4), both_ways(4), noise=0.01)
    expected, found = (align_pairs(maps, options=options, device=device) for device in (torch.device("cpu"), DEVICE))
    assert found.depth[0].device.type == DEVICE.type
    poses = found.cameras.cam_from_world.cpu()
    assert pairwise_pose_errors(poses, expected.cameras.cam_from_world).larger_deg().max() < 0.1
    torch.testing.assert_close(found.losses.cpu(), expected.losses, rtol=1e-4, atol=0)


def test_matches_are_aligned_as_on_the_cpu():
    truth, pairs = make_surface_truth(3, (24, 32)), [(0, 1), (1, 2), (0, 2)]
    maps = make_maps(truth, both_ways(3), spread=0.02)
    each = tuple(Matches(*true_matches(truth, pair, 150), 6 + torch.rand(150).double()) for pair in pairs)
    matches, options = PairMatches(torch.tensor(pairs), each), SparseOptions(coarse_steps=50, fine_steps=20)
    expected, found = (align_matches(maps, matches, options, device=place) for place in (torch.device("cpu"), DEVICE))
    assert found.depth[0].device.type == DEVICE.type
    torch.testing.assert_close(found.losses.cpu(), expected.losses, rtol=1e-4, atol=0)
    assert relative_error(torch.stack(found.depth).cpu(), torch.stack(expected.depth)) < 1e-3


def test_descriptors_match_the_same_pixels():
    maps = DescriptorMaps(*(torch.nn.functional.normalize(torch.randn(24, 32, 16), dim=-1) for _ in range(2)),
                          *torch.rand(2, 24, 32))  # fmt: skip
    expected, found = match_descriptors(maps), match_descriptors(DescriptorMaps(*(each.to(DEVICE) for each in maps)))
    assert torch.equal(found.coords1_px.cpu(), expected.coords1_px)
    assert torch.equal(found.coords2_px.cpu(), expected.coords2_px)


def test_flow_is_that_of_the_cpu():
    tracker = geomtx.VideoTracker(geomtx.VideoTrackerConfig.tiny(features="images")).eval()
    video, pairs = torch.rand(3, 3, 32, 48), torch.tensor([[0, 1], [1, 0], [2, 0]])
    expected, found = track_flow(tracker, video, pairs), track_flow(tracker.to(DEVICE), video, pairs)
    assert found.device.type == "cpu"
    known = expected.isfinite()
    assert (found.isfinite() == known).double().mean() > 0.99
    both = known & found.isfinite()
    torch.testing.assert_close(found[both], expected[both], rtol=1e-2, atol=1e-2)
