import pytest
import torch

import geomtx
from geomtx.geometry import project
from geomtx.scene import ExportOptions
from geomtx.scene.pairs import PairMatches, observe_matches
from geomtx.tracking import Matches
from scene.exact_scenes import exact_scene


def true_matches(scene: geomtx.Scene, first: int, second: int) -> Matches:
    """Pixels of the model's images that see the same, to half a pixel."""
    predictions = scene.predictions
    height, width = scene.images.shape[-2:]
    points = scene.point_map().value[first].double().reshape(-1, 3)
    coords, depth = project(
        points, predictions.cameras.intrinsics[second].double(), predictions.cameras.cam_from_world[second].double()
    )
    coords = coords.round().long()
    inside = (depth > 0) & (coords >= 0).all(1) & (coords < torch.tensor([width, height])).all(1)
    index = inside.nonzero()[::29, 0]
    own = torch.stack([index % width, index // width], dim=1)
    return Matches(own, coords[index], torch.linspace(1, 2, len(index)))


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    scene = exact_scene(tmp_path_factory.mktemp("matched"), "mixed").scene
    pairs = [(0, 1), (1, 2), (0, 2), (2, 3)]
    return scene, PairMatches(torch.tensor(pairs), tuple(true_matches(scene, *pair) for pair in pairs))


def test_matches_become_points_that_project_to_their_observations(exact):
    scene, matches = exact
    observed = observe_matches(scene, matches)
    assert len(observed.xyz) > 30
    assert torch.bincount(observed.point).min() >= 1
    cameras = scene.cameras
    for view in range(4):
        own = observed.view == view
        points = observed.xyz[observed.point[own]]
        coords, _ = project(points, cameras.intrinsics[view].double(), cameras.cam_from_world[view].double())
        assert (coords - observed.coords_px[own]).norm(dim=1).median() < 2


def test_fewer_matches_count_above_a_confidence(exact):
    scene, matches = exact
    assert len(observe_matches(scene, matches, min_confidence=1.5).xyz) < len(observe_matches(scene, matches).xyz)
    with pytest.raises(ValueError, match="no match is confident enough"):
        observe_matches(scene, matches, min_confidence=3)
    with pytest.raises(ValueError, match="pairs must be of the 4 images of the scene, got 4"):
        observe_matches(scene, matches._replace(pairs=matches.pairs + 1))


def test_they_are_written_and_refined(exact, tmp_path):
    scene, matches = exact
    observed = observe_matches(scene, matches)
    scene.save(tmp_path, formats=("colmap-text",), report=False, export=ExportOptions(observations=observed))
    lines = next(tmp_path.rglob("points3D.txt")).read_text().splitlines()
    shared = int((torch.bincount(observed.point) > 1).sum())
    assert len([line for line in lines if not line.startswith("#")]) in (len(observed.xyz), shared)
    assert geomtx.refine(scene, observed, focal="known").refined
