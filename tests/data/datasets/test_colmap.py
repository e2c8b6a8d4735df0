from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.colmap_files import Model, Picture, room_model, save_images, write_binary, write_text
from geomtx.data import ColmapDataset, FrameTransform, SampleOptions, SceneError
from geomtx.data.datasets.colmap_model import (
    ColmapCamera,
    camera_intrinsics,
    check_distortion,
    distort_points,
    read_colmap_model,
    undistort_image,
)
from geomtx.geometry import project

OPTIONS = SampleOptions(size=56, transform=FrameTransform.plain())


def random_model(num_pictures: int = 3) -> Model:
    rng = np.random.default_rng()
    cameras = {
        3: ("SIMPLE_PINHOLE", 64, 48, [50.0, 32.0, 24.0]),
        8: ("OPENCV", 64, 48, [50.0, 51.0, 32.5, 24.0, 0.1, -0.01, 1e-3, 2e-3]),
    }
    points = {int(i): rng.normal(size=3).tolist() for i in rng.choice(10**9, 12, replace=False)}
    numbers = [*points, -1, -1]
    pictures = [
        Picture(
            f"side {i}/photo {i}.jpg",
            [3, 8][i % 2],
            rng.normal(size=4).tolist(),
            rng.normal(size=3).tolist(),
            [(*rng.uniform(0, 48, 2).tolist(), int(rng.choice(numbers))) for _ in range(5 * i)],
        )
        for i in range(num_pictures)
    ]
    return Model(cameras, pictures, points)


def test_text_and_binary_agree(tmp_path: Path):
    model = random_model()
    write_text(tmp_path / "text", model)
    write_binary(tmp_path / "binary", model)
    text, binary = (read_colmap_model(tmp_path / name) for name in ("text", "binary"))
    assert text.cameras == binary.cameras
    assert binary.cameras[8] == ColmapCamera("OPENCV", (48, 64), tuple(model.cameras[8][3]))
    assert np.array_equal(text.points, binary.points)
    for one, two, wanted in zip(text.images, binary.images, model.pictures, strict=True):
        assert one.name == two.name == wanted.name
        assert one.camera == two.camera == wanted.camera
        for name in ("quat_xyzw", "translation", "keypoints_px", "points"):
            assert np.array_equal(getattr(one, name), getattr(two, name))
        seen = [(x, y, point) for x, y, point in wanted.keypoints if point >= 0]
        assert np.array_equal(one.keypoints_px.reshape(-1, 2), np.array([s[:2] for s in seen]).reshape(-1, 2))
        assert np.array_equal(one.points.shape, [len(seen)])
        for row, (_, _, point) in zip(one.points, seen, strict=True):
            assert np.array_equal(text.points[row], model.points[point])
        w, x, y, z = wanted.quat_wxyz
        assert np.array_equal(one.quat_xyzw, [x, y, z, w])


@pytest.mark.parametrize("place", ["sparse/0", "sparse", "."])
@pytest.mark.parametrize("write", [write_text, write_binary])
def test_depth_is_that_of_the_points_where_key_points_see_them(tmp_path: Path, place: str, write):
    batch, model, pixels = room_model()
    save_images(tmp_path, batch)
    write(tmp_path / place, model)
    dataset = ColmapDataset(tmp_path)
    record = dataset.records[0]
    np.testing.assert_allclose(record.cam_from_world, batch.cameras.cam_from_world[0], atol=1e-12)
    np.testing.assert_allclose(record.intrinsics, batch.cameras.intrinsics[0], atol=1e-12)
    for view in range(5):
        frame = dataset.read_frame(record, view)
        assert np.array_equal(frame.image, np.asarray(Image.open(tmp_path / "images" / f"{view}.png")))
        depth = dataset.finish_frame(record, view, frame).depth
        known = np.argwhere(depth > 0)
        truth = batch.depth[0, view].numpy()
        assert len(known) > 40
        x, y = pixels[view].T
        # Points of other views, at a fraction of a pixel, may be nearer at the same one.
        assert (depth[y, x] <= truth[y, x] * (1 + 1e-6)).all()
        assert np.mean(np.isclose(depth[y, x], truth[y, x], rtol=1e-6)) > 0.8
        assert np.mean(np.abs(depth[depth > 0] / truth[depth > 0] - 1) < 0.011) == 1


def test_scenes_have_the_points_at_their_pixels_whatever_size_they_get(tmp_path: Path):
    batch, model, _ = room_model()
    save_images(tmp_path, batch)
    write_binary(tmp_path / "sparse/0", model)
    for transform in (FrameTransform.plain(), FrameTransform()):
        scene = ColmapDataset(tmp_path, options=SampleOptions(size=28, transform=transform))[0, 4, 0.8]
        assert scene.images.shape == (1, 4, 3, 14, 28)
        assert torch.equal(scene.cameras.cam_from_world[0, 0], torch.eye(3, 4))
        for view in range(4):
            mask = scene.mask[0, view]
            assert 10 < mask.sum() < mask.numel()
            cameras = [part[0, view] for part in scene.cameras]
            coords, depth = project(scene.points[0, view][mask], cameras[1], cameras[0])
            wanted = mask.nonzero().flip(-1).float()
            torch.testing.assert_close(coords, wanted, atol=1e-3, rtol=0)
            torch.testing.assert_close(depth, scene.depth[0, view][mask], atol=1e-5, rtol=1e-5)
    first = ColmapDataset(tmp_path, options=OPTIONS)[0, 3, 0.75]
    assert torch.equal(ColmapDataset(tmp_path, options=OPTIONS)[0, 3, 0.75].images, first.images)


def test_depth_of_a_small_picture_is_not_lost(tmp_path: Path):
    """Every point inside becomes a pixel, where resizing a sparse map would drop most."""
    batch, model, _ = room_model(2, (240, 320), per_view=60)
    save_images(tmp_path, batch)
    write_binary(tmp_path, model)
    dataset = ColmapDataset(tmp_path, options=OPTIONS)
    scene = dataset[0, 2, 0.75]
    seen = len([k for k in model.pictures[0].keypoints if k[2] >= 0])
    assert scene.mask[0].sum((-1, -2)).min() > 0.75 * min(seen, 60)


def test_points_far_from_their_key_points_do_not_count(tmp_path: Path):
    batch, model, _ = room_model(2)
    save_images(tmp_path, batch)
    moved = [(x + (3.0 if i % 2 else 1.5), y, point) for i, (x, y, point) in enumerate(model.pictures[0].keypoints)]
    pictures = [model.pictures[0]._replace(keypoints=moved), model.pictures[1]]
    write_binary(tmp_path, model._replace(pictures=pictures))
    counts = []
    for limit in (1.0, 2.0, 4.0):
        dataset = ColmapDataset(tmp_path, max_error_px=limit)
        frame = dataset.read_frame(dataset.records[0], 0)
        counts.append(len(frame.tracks_px))
    num_seen = len(moved) - 1
    assert counts == [0, num_seen // 2, num_seen]


def test_points_behind_the_camera_do_not_count(tmp_path: Path):
    batch, model, _ = room_model(2)
    save_images(tmp_path, batch)
    turned = {number: (-np.array(place)).tolist() for number, place in model.points.items()}
    pose = [1.0, 0.0, 0.0, 0.0]
    pictures = [p._replace(quat_wxyz=pose, translation=[0.0, 0.0, 0.0]) for p in model.pictures]
    behind = {number: [0.0, 0.0, -2.0] for number in turned}
    ahead = [
        p._replace(keypoints=[(x, y, n) for (_, _, n) in p.keypoints for x, y in [(32.5, 24.5)]]) for p in pictures
    ]
    write_binary(tmp_path, model._replace(points=behind, pictures=ahead))
    dataset = ColmapDataset(tmp_path)
    assert len(dataset.read_frame(dataset.records[0], 0).tracks_px) == 0
    with pytest.raises(SceneError, match=r"^scene '\.': depth must be known somewhere, got not a pixel$"):
        dataset[0, 2, 1.0]


def test_frames_that_share_points_come_first(tmp_path: Path):
    batch, model, _ = room_model(4)
    save_images(tmp_path, batch)
    shared = {0: [0, 1, 2, 3, 4, 5], 1: [0, 1, 6, 7], 2: [2, 3, 4, 5], 3: [6, 8]}
    numbers = list(model.points)
    pictures = [
        picture._replace(keypoints=[(1.0, 1.0, numbers[k]) for k in shared[i]])
        for i, picture in enumerate(model.pictures)
    ]
    write_binary(tmp_path, model._replace(pictures=pictures))
    ranking = ColmapDataset(tmp_path).records[0].ranking
    assert ranking[0].tolist() == [0, 2, 1, 3]
    assert ranking[1].tolist() == [1, 0, 3, 2]
    assert ranking[2, :2].tolist() == [2, 0]
    assert ranking[3, :2].tolist() == [3, 1]


LENSES = [
    ColmapCamera("SIMPLE_RADIAL", (60, 80), (70.0, 40.0, 30.0, -0.15)),
    ColmapCamera("RADIAL", (60, 80), (70.0, 41.0, 29.0, -0.25, 0.06)),
    ColmapCamera("OPENCV", (60, 80), (70.0, 72.0, 39.0, 31.0, -0.2, 0.05, 4e-3, -3e-3)),
]


@pytest.mark.parametrize("camera", LENSES, ids=lambda camera: camera.model)
def test_undistorted_pictures_are_those_of_a_pinhole_camera(camera: ColmapCamera):
    """A scene whose colour is a smooth function of the direction, photographed through the lens and without it."""
    k = camera_intrinsics(camera)
    y, x = np.indices(camera.image_hw, dtype=np.float64)
    plain = np.stack([(x - k[0, 2]) / k[0, 0], (y - k[1, 2]) / k[1, 1]], axis=-1)
    rays = plain.copy()
    target = np.stack([x, y], axis=-1)
    for _ in range(200):
        rays -= (distort_points(camera, rays) - target) / [k[0, 0], k[1, 1]]
    assert np.abs(distort_points(camera, rays) - target).max() < 1e-9

    def colors(directions: np.ndarray) -> np.ndarray:
        a, b = directions[..., 0], directions[..., 1]
        return 128 + 100 * np.stack([np.sin(3 * a), np.sin(3 * b), np.sin(2 * a + 2 * b)], axis=-1)

    taken, wanted = (colors(directions).round().astype(np.uint8) for directions in (rays, plain))
    got = undistort_image(camera, taken)
    at = distort_points(camera, plain)
    inside = ((at > 0.5) & (at < np.array(camera.image_hw)[::-1] - 1.5)).all(-1)
    assert inside.mean() > 0.8
    assert np.abs(got[inside].astype(int) - wanted[inside]).max() <= 2
    assert np.abs(taken[inside].astype(int) - wanted[inside]).max() > 8  # which is not nothing


def test_key_points_of_a_lens_are_those_of_its_picture(tmp_path: Path):
    batch, model, _ = room_model(2)
    save_images(tmp_path, batch)
    _, width, height, params = model.cameras[4]
    camera = ColmapCamera("OPENCV", (height, width), (*params, -0.1, 0.02, 1e-3, 1e-3))
    k = camera_intrinsics(camera)

    def bend(x: float, y: float, point: int) -> tuple[float, float, int]:
        ray = np.array([(x - 0.5 - k[0, 2]) / k[0, 0], (y - 0.5 - k[1, 2]) / k[1, 1]])
        return (*(distort_points(camera, ray) + 0.5).tolist(), point)

    pictures = [p._replace(keypoints=[bend(*keypoint) for keypoint in p.keypoints]) for p in model.pictures]
    write_binary(
        tmp_path, model._replace(cameras={4: ("OPENCV", width, height, list(camera.params))}, pictures=pictures)
    )
    dataset = ColmapDataset(tmp_path, max_error_px=1e-6)
    frame = dataset.read_frame(dataset.records[0], 0)
    wanted = np.array([(x - 0.5, y - 0.5) for x, y, point in model.pictures[0].keypoints if point >= 0])
    np.testing.assert_allclose(frame.tracks_px, wanted, atol=1e-9)


def test_lenses_that_are_not_understood():
    for strong in (-0.6, -5.0):
        camera = ColmapCamera("SIMPLE_RADIAL", (60, 80), (40.0, 40.0, 30.0, strong))
        with pytest.raises(SceneError, match=r"^distortion must be invertible over the picture, got SIMPLE_RAD"):
            check_distortion(camera)
    for camera in LENSES:
        check_distortion(camera)
    with pytest.raises(SceneError, match=r"^camera model must be one of SIMPLE_PINHOLE, .*, got FOV; undistort with"):
        camera_intrinsics(ColmapCamera("FOV", (6, 8), (1.0, 1.0, 4.0, 3.0, 0.5)))


def test_a_folder_of_scenes(tmp_path: Path):
    batch, model, _ = room_model(3)
    for name in ("hall", "attic"):
        save_images(tmp_path / name, batch)
        write_text(tmp_path / name / "sparse", model)
    (tmp_path / "cellar" / "images").mkdir(parents=True)
    with pytest.raises(SceneError, match=r"^'.*cellar' must hold a COLMAP model in sparse/0, sparse or itself, got no"):
        ColmapDataset(tmp_path)
    dataset = ColmapDataset(tmp_path, on_error="skip", options=OPTIONS)
    assert [record.name for record in dataset.records] == ["attic", "hall"]
    assert dataset[1, 2, 0.5].images.shape == (1, 2, 3, 28, 56)


def test_bad_arguments(tmp_path: Path):
    batch, model, _ = room_model(2)
    save_images(tmp_path, batch)
    write_text(tmp_path, model)
    with pytest.raises(ValueError, match=r"^num_tracks must be 0 for sparse depth of COLMAP, got 5$"):
        ColmapDataset(tmp_path, options=SampleOptions(num_tracks=5))
    with pytest.raises(ValueError, match=r"^max_error_px must be positive, got 0$"):
        ColmapDataset(tmp_path, max_error_px=0)
    with pytest.raises(
        ValueError, match=r"^root must hold sequences that can be used, got none in '.*nowhere', which is no folder$"
    ):
        ColmapDataset(tmp_path / "nowhere")
    (tmp_path / "images" / "1.png").unlink()
    with pytest.raises(SceneError, match=r"^pictures of '\.' must exist, got none for 1, the first '1\.png'$"):
        ColmapDataset(tmp_path)
    Image.new("RGB", (30, 40)).save(tmp_path / "images" / "1.png")
    message = r"^scene '\.': picture '1\.png' must have its camera's size \(48, 64\), got \(40, 30\)$"
    with pytest.raises(SceneError, match=message):
        [ColmapDataset(tmp_path, options=OPTIONS)[0, 8, 1.0] for _ in range(2)]


def test_binary_files_cut_off_anywhere(tmp_path: Path):
    model = random_model()
    write_binary(tmp_path, model)
    for name in ("cameras", "images", "points3D"):
        path = tmp_path / f"{name}.bin"
        whole = path.read_bytes()
        for length in [*range(0, len(whole), 7), len(whole) - 1]:
            path.write_bytes(whole[:length])
            with pytest.raises(SceneError, match=rf"^'.*{name}\.bin' must be a whole file of COLMAP, got another: "):
                read_colmap_model(tmp_path)
        path.write_bytes(whole + b"1")
        with pytest.raises(SceneError, match=r"got another: 1 bytes after its end$"):
            read_colmap_model(tmp_path)
        path.write_bytes(b"\xff" * 8 + whole[8:])
        with pytest.raises(SceneError, match=r"got another: \d+ entries in \d+ bytes$"):
            read_colmap_model(tmp_path)
        path.write_bytes(whole)
    read_colmap_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (
            "cameras",
            "SIMPLE_PINHOLE",
            "PINHOLE",
            r"'.*cameras\.txt' must be a whole .*: camera model PINHOLE with 3",
        ),
        ("cameras", "OPENCV", "LENS", r"'.*cameras\.txt' must be a whole .*: camera model LENS with 8 numbers$"),
        ("cameras", "64 48", "64 0", r"size of camera 3 of '.*' must be positive, got \(0, 64\)$"),
        ("cameras", "50.0", "nan", r"numbers of the model '.*' must be finite, got others$"),
        ("cameras", "50.0", "wide", r"'.*cameras\.txt' must be a whole file .*could not convert string to float"),
        ("images", " 8 side", " 9 side", r"camera of 'side 1/photo 1\.jpg' must be one of the model's, got number 9$"),
        (
            "images",
            " 3 side 0/photo 0.jpg",
            "",
            r"'.*images\.txt' must be a whole file .*: 8 of 10 values in the",
        ),
        ("points3D", " 10 20 30 0.5", "", r"'.*points3D\.txt' must be a whole file .*: . of 8 values in the line '"),
    ],
)
def test_broken_text(tmp_path: Path, name: str, old: str, new: str, message: str):
    model = random_model()
    write_text(tmp_path, model)
    path = tmp_path / f"{name}.txt"
    text = path.read_text()
    assert old in text
    if name == "points3D":  # without tracks, too, that would fill the line
        text = "\n".join(" ".join(line.split()[:8]) if line[0] != "#" else line for line in text.splitlines())
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(SceneError, match=f"^{message}"):
        read_colmap_model(tmp_path)


def test_files_that_do_not_fit_together(tmp_path: Path):
    model = random_model()
    some = dict(list(model.points.items())[:1])
    seen = next(k[2] for picture in model.pictures for k in picture.keypoints if k[2] >= 0 and k[2] not in some)
    assert seen
    for points in (some, {}):
        write_binary(tmp_path, model._replace(points=points))
        with pytest.raises(SceneError, match=r"^points of 'side .*' must be among the model's, got others in '.*'$"):
            read_colmap_model(tmp_path)
    zero = [model.pictures[0]._replace(quat_wxyz=[0.0, 0.0, 0.0, 0.0])]
    write_binary(tmp_path, model._replace(pictures=zero))
    with pytest.raises(SceneError, match=r"^rotation of 'side 0/photo 0\.jpg' must be a quaternion other than 0, got"):
        read_colmap_model(tmp_path)
    (tmp_path / "points3D.bin").unlink()
    with pytest.raises(SceneError, match=r"^'.*' must hold points3D\.bin or points3D\.txt, got neither$"):
        read_colmap_model(tmp_path)
    (tmp_path / "points3D.txt").write_bytes(b"\xff\xff")
    with pytest.raises(SceneError, match=r"^'.*points3D\.txt' must be a whole file of COLMAP, got another: 1 of 8 "):
        read_colmap_model(tmp_path)
