from __future__ import annotations

import dataclasses
import itertools
import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geomtx
from geometry.random_cameras import random_rotations
from geomtx.data.synthetic.render import render_scenes
from geomtx.geometry import compose_rigid, invert_rigid, normalize_scene, unproject
from geomtx.geometry.similarity import apply_similarity, fit_similarity
from geomtx.inference import GlobalApproximation, RunOptions, predict
from geomtx.scene import WindowPlan, reconstruction
from geomtx.scene.windows import fit_points, place_windows
from geomtx.types import Cameras, DenseMap, Predictions, SceneBatch

IMAGE_HW = (28, 42)
NUM_VIEWS = 9


@pytest.fixture(scope="module")
def room() -> SceneBatch:
    """In the first camera's frame."""
    rendered = render_scenes([3], NUM_VIEWS, IMAGE_HW, dtype=torch.float64)
    return normalize_scene(rendered, by_points=False)[0]


class KnownWindows(nn.Module):
    """Answers every call with the truth for the views that it is shown, in that call's own world and unit.

    The first call's is the world and the unit of the room.
    """

    def __init__(self, room: SceneBatch, heads: tuple[str, ...] = ("camera", "depth", "points"), noise: float = 0.0):
        super().__init__()
        self.config = SimpleNamespace(patch_size=14)
        self.heads = heads
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.room = room
        self.noise = noise
        self.calls: list[list[int]] = []

    def forward(self, images: Tensor, query_points: None, patch_mask: None, *, heads: tuple[str, ...]):
        shown = [(self.room.images[0] - image).abs().flatten(1).amax(1).argmin().item() for image in images[0]]
        self.calls.append(shown)
        pose, intrinsics = self.room.cameras.cam_from_world[0, shown], self.room.cameras.intrinsics[0, shown]
        depth = self.room.depth[0, shown]
        if len(self.calls) > 1:
            pose, depth = move(pose, depth)
        points = unproject(depth, intrinsics, pose)
        confidence = 1 + torch.rand_like(depth)
        bad = torch.rand_like(depth) < self.noise
        confidence = torch.where(bad, confidence * 1e-2, confidence)
        depth = torch.where(bad, depth * (1 + 3 * torch.rand_like(depth)), depth)
        points = torch.where(bad[..., None], points + torch.randn_like(points), points)
        return Predictions(
            cameras=Cameras(pose[None], intrinsics[None]) if "camera" in heads else None,
            pose_encodings=torch.randn(2, 1, len(shown), 9) if "camera" in heads else None,
            depth=DenseMap(depth[None], confidence[None]) if "depth" in heads else None,
            points=DenseMap(points[None], confidence[None]) if "points" in heads else None,
        )


def move(pose: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
    """Another world and another unit."""
    factor = 0.3 + 3 * torch.rand((), dtype=torch.float64)
    new_from_old = torch.cat([random_rotations(), torch.randn(3, 1, dtype=torch.float64)], dim=-1)
    pose = compose_rigid(pose, invert_rigid(new_from_old))
    return torch.cat([pose[..., :3], factor * pose[..., 3:]], dim=-1), factor * depth


def assert_true(scene: geomtx.Scene, room: SceneBatch, atol: float) -> None:
    options = {"rtol": 0, "atol": atol}
    cameras, _, depth, points, *_ = scene.predictions
    if cameras is not None:
        torch.testing.assert_close(cameras.cam_from_world, room.cameras.cam_from_world[0], **options)
        torch.testing.assert_close(cameras.intrinsics, room.cameras.intrinsics[0])
    if depth is not None:
        torch.testing.assert_close(depth.value, room.depth[0], **options)
    if points is not None:
        torch.testing.assert_close(points.value, room.points[0], **options)


def test_errors_fall_with_the_confidence_and_weights_with_their_square():
    """The similarity is that of weights 1 / (1/c₁² + 1/c₂²) at its start, before what doesn't fit loses its say."""
    torch.manual_seed(1)
    moving, noise = torch.randn(400, 3).double(), 0.3 * torch.randn(400, 3).double()
    first, second = 1 + 9 * torch.rand(400).double() ** 3, 1 + 9 * torch.rand(400).double() ** 3
    fixed = moving + noise / first[:, None]
    everything = torch.ones(400, dtype=torch.bool)
    found = fit_points(DenseMap(moving, first), DenseMap(fixed, second), everything)

    def refit(power: int) -> Tensor:
        weights = start = 1 / (first**power + second**power)
        for _ in range(11):
            similarity = fit_similarity(moving, fixed, weights)
            residuals = (apply_similarity(similarity, moving) - fixed).norm(dim=-1)
            order = residuals.argsort()
            median = residuals[order][(start[order].cumsum(0) >= start.sum() / 2).int().argmax()]
            weights = start / (1 + (residuals / median).square())
        return similarity.translation

    torch.testing.assert_close(found.translation, refit(-2), rtol=0, atol=1e-9)
    assert (found.translation - refit(-1)).abs().max() > 1e-5


# Windows


@pytest.mark.parametrize(
    ("num_views", "plan", "expected"),
    [
        (10, (4, 1), [(0, 4), (3, 7), (6, 10)]),
        (11, (4, 1), [(0, 4), (3, 7), (6, 10), (7, 11)]),
        (8, (6, 4), [(0, 6), (2, 8)]),
        (5, (4, 2), [(0, 4), (1, 5)]),
        (4, (4, 2), [(0, 4)]),
        (1, (4, 2), [(0, 1)]),
    ],
)
def test_places(num_views, plan, expected):
    assert [(window.start, window.stop) for window in place_windows(num_views, WindowPlan(*plan))] == expected


@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_windows_cover_all_views_and_overlap_enough(size):
    for num_views in range(size + 1, 30):
        for overlap in range(1, size):
            windows = place_windows(num_views, WindowPlan(size, overlap))
            assert {view for window in windows for view in window} == set(range(num_views))
            assert all(len(window) == size for window in windows)
            assert all(a.start < b.start <= a.stop - overlap for a, b in itertools.pairwise(windows))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ((1, 1), r"^window size must be a whole number, at least 2, got 1$"),
        ((4, 0), r"^window overlap must be a whole number, at least 1, got 0$"),
        ((4, 4), r"^window overlap must be in 1 … 3, got 4$"),
    ],
)
def test_plans_that_make_no_windows(room, plan, message):
    with pytest.raises(ValueError, match=message):
        geomtx.reconstruct(KnownWindows(room), room.images[0], window=WindowPlan(*plan))


# Scenes


@pytest.mark.parametrize(
    ("heads", "plan"),
    [
        (("camera", "depth", "points"), (4, 1)),
        (("camera", "depth", "points"), (5, 4)),
        (("camera", "depth"), (4, 1)),
        (("camera", "depth"), (8, 3)),
        (("points",), (4, 2)),
        (("points",), (8, 3)),
        (("camera", "points"), (4, 2)),
    ],
)
def test_windows_come_back_to_the_first_ones_world(room, plan, heads):
    model = KnownWindows(room, heads)
    scene = geomtx.reconstruct(model, room.images[0], window=WindowPlan(*plan))
    assert model.calls == [list(window) for window in place_windows(NUM_VIEWS, WindowPlan(*plan))]
    assert len(model.calls) > 1
    assert scene.names == tuple(f"view_{index:03}.png" for index in range(NUM_VIEWS))
    assert len(scene.transforms) == len(scene.masks) == len(scene.images) == NUM_VIEWS
    assert torch.equal(scene.images, (room.images[0] * 255).round().byte())
    assert scene.predictions.pose_encodings is None
    assert ("camera" in heads, "depth" in heads, "points" in heads) == tuple(
        getattr(scene.predictions, name) is not None for name in ("cameras", "depth", "points")
    )
    assert_true(scene, room, 1e-6)


def test_unsure_points_do_no_harm(room):
    model = KnownWindows(room, ("camera", "depth"), noise=0.3)
    scene = geomtx.reconstruct(model, room.images[0], window=WindowPlan(4, 2))
    assert scene.provenance["window"] == "4 views, 2 shared"
    cameras = Predictions(cameras=scene.predictions.cameras)
    assert_true(dataclasses.replace(scene, predictions=cameras), room, 1e-6)


def test_each_view_is_of_the_window_in_whose_middle_it_is(room):
    """Each call says which one it is by its confidence."""
    model = KnownWindows(room, ("camera", "depth"))
    forward = model.forward

    def mark(*args: Any, **options: Any) -> Predictions:
        predictions = forward(*args, **options)
        sure = torch.full_like(predictions.depth.confidence, float(len(model.calls)))
        return predictions._replace(depth=predictions.depth._replace(confidence=sure))

    model.forward = mark
    scene = geomtx.reconstruct(model, room.images[0], window=WindowPlan(5, 3))
    # Views 0 … 4, 2 … 6, 4 … 8; of three shared ones, the first is the earlier window's.
    assert scene.predictions.depth.confidence[:, 0, 0].tolist() == [1, 1, 1, 2, 2, 3, 3, 3, 3]


def test_one_window_is_no_windows(tiny_model):
    views = torch.rand(3, 3, 28, 42)
    whole = geomtx.reconstruct(tiny_model, views)
    scene = geomtx.reconstruct(tiny_model, views, window=WindowPlan(3, 1))
    assert torch.equal(scene.predictions.pose_encodings, whole.predictions.pose_encodings)
    assert torch.equal(scene.predictions.depth.value, whole.predictions.depth.value)


def test_options_reach_every_window(tiny_model, monkeypatch):
    seen, run_views = [], reconstruction.run_views

    def note(model, inputs, heads, options):
        seen.append(options._replace(progress=None))
        return run_views(model, inputs, heads, options)

    monkeypatch.setattr(reconstruction, "run_views", note)
    options = {"view_chunk": 2, "memory": "low", "approximation": GlobalApproximation(2, 2, 1)}
    geomtx.reconstruct(
        tiny_model, torch.rand(5, 3, 28, 42), heads=("camera", "depth"), window=WindowPlan(3, 1), **options
    )
    assert seen == [RunOptions(**options)] * 2


def test_an_approximation_without_windows(tiny_model):
    views, options = torch.rand(4, 3, 28, 42), {"heads": ("camera", "depth"), "memory": "auto"}
    exact = geomtx.reconstruct(tiny_model, views, **options).predictions.depth.value
    approximate = geomtx.reconstruct(tiny_model, views, approximation=GlobalApproximation(2), **options)
    with torch.no_grad():
        expected = predict(tiny_model, views, heads=("depth",), approximation=GlobalApproximation(2)).depth.value[0]
    torch.testing.assert_close(approximate.predictions.depth.value, expected)
    assert not torch.equal(expected, exact)


# What is refused


def test_tracks_are_of_one_pass(tiny_model):
    with pytest.raises(ValueError, match=r"^window must be None for tracks, which are followed in one pass"):
        geomtx.reconstruct(tiny_model, torch.rand(3, 3, 56, 56), query_points=[(0, 3, 3)], window=WindowPlan(2, 1))


@pytest.mark.parametrize("heads", [("camera",), ("depth",)])
def test_heads_without_points(room, heads):
    with pytest.raises(ValueError, match=rf"^heads must hold camera and depth, or points, .* got {heads[0]}$"):
        geomtx.reconstruct(KnownWindows(room), room.images[0], heads=heads, window=WindowPlan(4, 2))


def test_windows_without_valid_points(room):
    depth = room.depth.clone()
    depth[:, 2:4] = torch.nan
    model = KnownWindows(room._replace(depth=depth), ("camera", "depth"))
    wanted = (
        r"^windows can't be stitched at view_002.png … view_003.png: shared points must be at least 100 valid ones, "
        r"got 0; a larger overlap may help$"
    )
    with pytest.raises(ValueError, match=wanted):
        geomtx.reconstruct(model, room.images[0], window=WindowPlan(4, 2))


# Fits


def clouds(count: int = 400) -> tuple[DenseMap, DenseMap, Tensor]:
    source = torch.randn(count, 3, dtype=torch.float64)
    target = 2.5 * source @ random_rotations().mT + torch.randn(3, dtype=torch.float64)
    confidence = 1 + torch.rand(2, count, dtype=torch.float64)
    return DenseMap(source, confidence[0]), DenseMap(target, confidence[1]), torch.ones(count, dtype=torch.bool)


@pytest.mark.parametrize("share", [0.1, 0.4])
@pytest.mark.parametrize("sure", [True, False])
def test_outliers_lose_their_say(share, sure):
    source, target, mask = clouds()
    wrong = torch.rand(400) < share
    value = torch.where(wrong[:, None], target.value + 3 + torch.randn(400, 3).double(), target.value)
    confidence = target.confidence if sure else torch.where(wrong, 0.01, target.confidence)
    similarity = fit_points(source, DenseMap(value, confidence), mask)
    moved = apply_similarity(similarity, source.value)
    torch.testing.assert_close(moved, target.value, rtol=0, atol=1e-6)


def test_surer_points_count_for_more():
    """With two kinds of noise, weights by confidence come closer than weights that know nothing."""
    errors = []
    for seed in range(8):
        torch.manual_seed(seed)
        source, target, mask = clouds(4000)
        sigma = torch.where(torch.rand(4000) < 0.5, 0.002, 0.2).double()
        noisy = target.value + sigma[:, None] * torch.randn(4000, 3).double()
        found = [
            fit_points(DenseMap(source.value, c), DenseMap(noisy, c), mask) for c in (1 / sigma, torch.ones_like(sigma))
        ]
        errors.append([(apply_similarity(each, source.value) - target.value).norm(dim=-1).mean() for each in found])
    ours, plain = torch.tensor(errors).mean(0)
    assert ours < 0.5 * plain
    assert ours < 1e-3


def test_masked_points_and_those_that_are_not_finite_count_for_nothing():
    source, target, mask = clouds()
    target.value[:50] = torch.nan
    source.value[50:100, 1] = torch.inf
    target.confidence[100:150] = torch.nan
    target.value[150:200] += 5
    mask[150:200] = False
    similarity = fit_points(source, target, mask)
    torch.testing.assert_close(apply_similarity(similarity, source.value[200:]), target.value[200:])


@pytest.mark.parametrize("kind", ["line", "place", "line in the target"])
def test_points_that_determine_nothing(kind):
    source, target, mask = clouds()
    line = torch.linspace(0, 1, 400).double()[:, None] * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    if kind == "line":
        source, target = source._replace(value=line), target._replace(value=2 * line)
    if kind == "line in the target":
        target = target._replace(value=line)
    if kind == "place":
        source = source._replace(value=torch.ones_like(source.value))
    with pytest.raises(ValueError, match=r"^shared points must not lie on a line or in one place"):
        fit_points(source, target, mask)


def test_windows_that_show_different_things_are_a_warning(caplog):
    source, target, mask = clouds()
    with caplog.at_level(logging.WARNING):
        fit_points(source, target, mask)
        assert not caplog.records
        fit_points(source, target._replace(value=torch.randn(400, 3).double()), mask)
    assert "windows don't fit well" in caplog.text


def test_a_plane_is_enough():
    source, target, mask = clouds()
    flat = source.value * torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    wanted = 0.7 * flat @ random_rotations().mT + 1
    similarity = fit_points(source._replace(value=flat), target._replace(value=wanted), mask)
    torch.testing.assert_close(apply_similarity(similarity, flat), wanted)
