from __future__ import annotations

import numpy as np
import pytest
import torch

from data.plane_scenes import PLANE_Z, plane_frame
from geomtx.data import (
    Frame,
    FrameTransform,
    SceneError,
    crop_exactly,
    crop_to_principal_point,
    resize_frame,
    rotate_frame,
)
from geomtx.geometry import project, unproject


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def world_points(frame: Frame) -> np.ndarray:
    depth, intrinsics, pose = (
        torch.from_numpy(np.asarray(part, dtype=np.float64))
        for part in (frame.depth, frame.intrinsics, frame.cam_from_world)
    )
    return unproject(depth, intrinsics, pose).numpy()


def track_points(frame: Frame) -> np.ndarray:
    """World points of tracks that lie on pixels."""
    x, y = frame.tracks_px.astype(int).T
    return world_points(frame)[y, x]


def project_into(frame: Frame, points: np.ndarray) -> np.ndarray:
    coords_px, depth = project(*(torch.from_numpy(part) for part in (points, frame.intrinsics, frame.cam_from_world)))
    assert (depth > 0).all()
    return coords_px.numpy()


def off_plane(frame: Frame) -> np.ndarray:
    """Distance from the plane of what the known depth unprojects to."""
    return np.abs(world_points(frame)[frame.depth > 0][:, 2] - PLANE_Z)


STEPS = {
    "crop": lambda frame: crop_to_principal_point(frame, (40, 50)),
    "exact": lambda frame: crop_exactly(frame, (42, 56)),
    "padded": lambda frame: crop_exactly(frame, (70, 90)),
    "smaller": lambda frame: resize_frame(frame, 0.61),
    "larger": lambda frame: resize_frame(frame, 1.37),
    "clockwise": lambda frame: rotate_frame(frame, clockwise=True),
    "counter-clockwise": lambda frame: rotate_frame(frame, clockwise=False),
}


@pytest.mark.parametrize("step", STEPS)
def test_tracks_are_where_their_points_project(step: str, rng: np.random.Generator) -> None:
    frame = plane_frame(rng)
    points = track_points(frame)
    np.testing.assert_allclose(project_into(frame, points), frame.tracks_px, atol=1e-4)
    after = STEPS[step](frame)
    np.testing.assert_allclose(project_into(after, points), after.tracks_px, atol=1e-4)


@pytest.mark.parametrize("step", ["crop", "exact", "padded", "clockwise", "counter-clockwise"])
def test_depth_still_lies_on_the_plane(step: str, rng: np.random.Generator) -> None:
    after = STEPS[step](plane_frame(rng))
    assert off_plane(after).max() < 1e-5
    assert after.depth.shape == after.mask.shape == after.image.shape[:2]


@pytest.mark.parametrize("factor", [0.61, 1.37, 2.0, 0.45])
def test_resized_depth_lies_on_the_plane_within_half_a_pixel(factor: float, rng: np.random.Generator) -> None:
    """The nearest pixel's depth is off by the slope over half a pixel of the coarser grid; a wrong shift by more."""
    frame = plane_frame(rng)
    slope = max(np.abs(np.diff(frame.depth, axis=axis)).max() for axis in (0, 1))
    errors = off_plane(resize_frame(frame, factor))
    assert errors.max() < 2 * slope
    signed = world_points(resize_frame(frame, factor))[..., 2] - PLANE_Z
    assert abs(signed.mean()) < 0.1 * slope  # no bias, which a missing half pixel would be


def test_half_pixel_rule() -> None:
    """Twice as large: the centre of the first pixel, 0, comes to 0.5 between the first two."""
    intrinsics = np.array([[10.0, 0, 0], [0, 12.0, 3.5], [0, 0, 1]])
    frame = Frame(np.zeros((8, 6, 3), np.uint8), np.eye(3, 4), intrinsics, tracks_px=np.array([[0.0, 3.5]]))
    large = resize_frame(frame, 2.0)
    assert large.image_hw == (16, 12)
    np.testing.assert_allclose(large.intrinsics, [[20, 0, 0.5], [0, 24, 7.5], [0, 0, 1]])
    np.testing.assert_allclose(large.tracks_px, [[0.5, 7.5]])


def test_resize_uses_the_factor_that_was_achieved() -> None:
    frame = Frame(np.zeros((10, 7, 3), np.uint8), np.eye(3, 4), np.diag([10.0, 10.0, 1.0]))
    small = resize_frame(frame, 0.55)
    assert small.image_hw == (5, 3)
    np.testing.assert_allclose(small.intrinsics.diagonal(), [10 * 3 / 7, 5, 1])


def test_resize_takes_the_nearest_depth_and_content() -> None:
    depth = np.arange(1, 5, dtype=np.float32).reshape(2, 2)
    image = np.repeat(depth[..., None].astype(np.uint8) * 50, 3, axis=-1)
    frame = Frame(image, np.eye(3, 4), np.eye(3), depth, depth > 1)
    large = resize_frame(frame, 2)
    np.testing.assert_array_equal(large.depth, np.kron(depth, np.ones((2, 2))))
    np.testing.assert_array_equal(large.mask, large.depth > 1)
    assert large.image[0, 0, 0] < large.image[-1, -1, 0]


def test_crop_brings_the_principal_point_to_the_centre(rng: np.random.Generator) -> None:
    for _ in range(20):
        frame = plane_frame(rng)
        after = crop_to_principal_point(frame, (rng.uniform(20, 80), rng.uniform(20, 80)))
        height, width = after.image_hw
        assert 0 <= after.intrinsics[0, 2] - width / 2 < 1
        assert 0 <= after.intrinsics[1, 2] - height / 2 < 1
        assert height % 2 == width % 2 == 0


def test_crop_content() -> None:
    image = np.arange(8 * 10 * 3, dtype=np.uint8).reshape(8, 10, 3)
    intrinsics = np.array([[10.0, 0, 6.25], [0, 10, 3.0], [0, 0, 1]])
    after = crop_to_principal_point(Frame(image, np.eye(3, 4), intrinsics), (4, 20))
    np.testing.assert_array_equal(after.image, image[1:5, 3:9])  # the right border is 3.75 away
    np.testing.assert_allclose(after.intrinsics[:2, 2], [3.25, 2.0])


def test_missing_content_is_black_at_the_right_and_bottom_and_unknown(rng: np.random.Generator) -> None:
    frame = plane_frame(rng, (20, 30))
    after = crop_exactly(frame, (28, 42))
    assert after.image_hw == (28, 42)
    np.testing.assert_array_equal(after.image[:20, :30], frame.image)
    assert not after.image[20:].any()
    assert not after.image[:, 30:].any()
    assert not after.depth[20:].any()
    assert not after.mask[:, 30:].any()
    np.testing.assert_array_equal(after.intrinsics, frame.intrinsics)


@pytest.mark.parametrize("center", [(-3.0, 20.0), (0.5, 20.0), (30.0, 60.2)])
def test_principal_point_outside(center: tuple[float, float], rng: np.random.Generator) -> None:
    frame = plane_frame(rng, center=center)
    with pytest.raises(SceneError, match=r"^intrinsics must have the principal point inside the picture, got "):
        crop_to_principal_point(frame, (40, 40))


def test_turning_moves_the_content() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    image[1, 2] = 255
    frame = Frame(image, np.eye(3, 4), np.diag([5.0, 7.0, 1.0]), tracks_px=np.array([[2.0, 1.0]]))
    for clockwise, (x, y) in ((True, (2, 2)), (False, (1, 3))):
        turned = rotate_frame(frame, clockwise=clockwise)
        assert turned.image_hw == (6, 4)
        np.testing.assert_array_equal(turned.tracks_px, [[x, y]])
        assert turned.image[y, x].tolist() == [255, 255, 255]
        np.testing.assert_array_equal(turned.intrinsics.diagonal(), [7, 5, 1])


def test_turning_there_and_back(rng: np.random.Generator) -> None:
    frame = plane_frame(rng)
    back = rotate_frame(rotate_frame(frame, clockwise=True), clockwise=False)
    for before, after in zip(frame, back, strict=True):
        np.testing.assert_allclose(after, before, atol=1e-12)


@pytest.mark.parametrize("image_hw", [(60, 80), (90, 50)])
@pytest.mark.parametrize("target_hw", [(28, 56), (42, 42), (56, 70)])
def test_transform(image_hw: tuple[int, int], target_hw: tuple[int, int], rng: np.random.Generator) -> None:
    transform = FrameTransform(turn_portrait=True)
    for _ in range(8):
        frame = plane_frame(rng, image_hw)
        points = track_points(frame)
        after = transform(frame, target_hw, rng)
        assert after.image_hw == after.depth.shape == after.mask.shape == target_hw
        np.testing.assert_allclose(project_into(after, points), after.tracks_px, atol=1e-3)
        assert np.median(off_plane(after)) < 0.05
        offset = np.abs(after.intrinsics[[1, 0], 2] - np.array(target_hw) / 2)
        assert offset.max() < 4


def test_plain_transform_draws_nothing(rng: np.random.Generator) -> None:
    frame = plane_frame(rng, (90, 50))
    first, second = (FrameTransform.plain()(frame, (28, 28), np.random.default_rng(seed)) for seed in (1, 2))
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.intrinsics, second.intrinsics)


def test_jitter_changes_the_field_of_view(rng: np.random.Generator) -> None:
    frame = plane_frame(rng)
    focal = [FrameTransform()(frame, (28, 42), rng).intrinsics[0, 0] for _ in range(40)]
    plain = FrameTransform.plain()(frame, (28, 42), rng).intrinsics[0, 0]
    assert min(focal) >= plain - 1.5
    assert max(focal) > 1.1 * plain


def test_portraits_are_turned_half_of_the_time(rng: np.random.Generator) -> None:
    frame = plane_frame(rng, (90, 50))
    transform = FrameTransform(turn_portrait=True)

    def angle(target_hw: tuple[int, int], source: Frame) -> float:
        relative = transform(source, target_hw, rng).cam_from_world[:, :3] @ source.cam_from_world[:, :3].T
        return float(np.round(np.degrees(np.arctan2(relative[1, 0], relative[0, 0]))))

    angles = [angle((28, 56), frame) for _ in range(60)]
    assert set(angles) == {0.0, 90.0, -90.0}
    assert 15 < angles.count(0.0) < 45
    assert {angle((42, 42), frame) for _ in range(10)} == {0.0}
    assert {angle((28, 56), plane_frame(rng)) for _ in range(10)} == {0.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale_jitter": (0.0, 1.0)}, r"^scale_jitter must be a positive range, got \(0.0, 1.0\)$"),
        ({"scale_jitter": (1.2, 0.8)}, r"^scale_jitter must be a positive range, got \(1.2, 0.8\)$"),
        ({"zoom": -0.1}, r"^zoom must be at least 0, got -0.1$"),
        ({"margin": -1}, r"^margin must be at least 0, got -1$"),
    ],
)
def test_refused_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FrameTransform(**options)
