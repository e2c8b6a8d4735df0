"""What all datasets of files share, on the three layouts."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.layouts import OPTIONS, Open, open_co3d, open_unified, open_virtual_kitti, tensors
from data.plane_scenes import (
    PLANE_Z,
    save_image,
    save_png16,
    write_annotations,
    write_co3d,
    write_unified,
    write_virtual_kitti,
)
from geomtx.data import (
    Co3dDataset,
    ColorAugmentation,
    FrameChoice,
    FrameTransform,
    SampleOptions,
    SceneDataset,
    SceneError,
    SceneRequest,
    UnifiedDataset,
    VirtualKittiDataset,
    check_batch,
    check_values,
)
from geomtx.geometry import invert_rigid

LAYOUTS = [open_unified, open_co3d, open_virtual_kitti]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_scene_is_rigid_and_in_its_first_camera(layout: Open, tmp_path: Path) -> None:
    dataset = layout(tmp_path)
    scene = dataset[SceneRequest(0, 4, 0.75, seed=3)]
    assert scene.images.shape == (1, 4, 3, 42, 56)
    assert [leaf.dtype for leaf in tensors(scene)] == [torch.float32] * 5 + [torch.bool]
    check_values(scene)
    assert check_batch(scene).agreement.item() > 0.99
    assert torch.equal(scene.cameras.cam_from_world[0, 0], torch.eye(3, 4))
    # The plane z = 4, in any of the cameras, for all of them look along z.
    assert scene.points[scene.mask][:, 2].sub(PLANE_Z).abs().max() < 0.02
    torch.testing.assert_close(scene.mask, scene.depth > 0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equal_requests_give_equal_scenes(layout: Open, tmp_path: Path) -> None:
    options = SampleOptions(size=56, color=ColorAugmentation(), num_tracks=9)
    dataset = layout(tmp_path, options)

    def leaves(seed: int) -> list[torch.Tensor]:
        return tensors(dataset[SceneRequest(0, 3, 1.0, seed)])

    for one, other in zip(leaves(5), leaves(5), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(leaves(5)[0], leaves(6)[0])
    assert dataset[(0, 3, 1.0)].tracks.coords_px.shape == (1, 3, 9, 2)


def test_nothing_but_depth_within_the_picture_is_known(tmp_path: Path) -> None:
    """A picture that fills the target is known all over."""
    scene = open_unified(tmp_path)[(0, 2, 0.75)]
    assert scene.mask.float().mean() > 0.9


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_such_scene(layout: Open, tmp_path: Path) -> None:
    dataset = layout(tmp_path)
    with pytest.raises(IndexError, match=rf"^scene must be in 0 … {len(dataset) - 1}, got {len(dataset)}$"):
        dataset[(len(dataset), 2, 1.0)]


def test_colours_change_and_nothing_else(tmp_path: Path) -> None:
    plain = open_unified(tmp_path)[(0, 3, 1.0)]
    options = SampleOptions(size=56, transform=FrameTransform.plain(), color=ColorAugmentation(jitter_prob=1.0))
    colored = UnifiedDataset(tmp_path, options=options)[(0, 3, 1.0)]
    assert not torch.equal(plain.images, colored.images)
    for one, other in zip(tensors(plain)[1:], tensors(colored)[1:], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("aspect", "height"), [(1.0, 518), (0.33, 168), (0.5, 252), (0.75, 378)])
def test_heights_are_whole_patches(aspect: float, height: int) -> None:
    assert SampleOptions().image_hw(aspect) == (height, 518)


def test_refused_options() -> None:
    with pytest.raises(ValueError, match=r"^size must be a multiple of patch_size = 14, got 500$"):
        SampleOptions(size=500)
    with pytest.raises(ValueError, match=r"^patch_size must be positive, got 0$"):
        SampleOptions(patch_size=0)
    with pytest.raises(ValueError, match=r"^num_tracks must be at least 0, got -1$"):
        SampleOptions(num_tracks=-1)
    with pytest.raises(ValueError, match=r"^aspect must be at least a patch, 0.027, got 0.01$"):
        SampleOptions().image_hw(0.01)


# What cannot be used


@pytest.mark.parametrize("layout", LAYOUTS)
def test_short_sequences_are_left_out(layout: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match=r"^root must hold sequences that can be used, got none in '.*'$"):
        layout(tmp_path, min_frames=5)
    assert "sequences under 5 frames and 0 broken ones" in caplog.messages[-1]


def test_a_scene_with_one_view(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_unified(tmp_path, "single", num_views=1)
    with pytest.raises(ValueError, match=r"^root must hold sequences that can be used"):
        UnifiedDataset(tmp_path)
    write_unified(tmp_path, "room")
    assert [record.name for record in UnifiedDataset(tmp_path).records] == ["room"]
    assert caplog.messages[-1] == "left out 1 sequences under 2 frames and 0 broken ones"
    alone = UnifiedDataset(tmp_path, min_frames=1, options=OPTIONS)
    assert len(alone) == 2
    assert alone[(1, 3, 1.0)].images.shape[1] == 3
    no_duplicates = SampleOptions(size=56, choice=FrameChoice(allow_duplicates=False))
    with pytest.raises(SceneError, match=r"^scene 'single': num_views must be at most 1 without duplicates, got 2$"):
        UnifiedDataset(tmp_path, min_frames=1, options=no_duplicates)[(1, 2, 1.0)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["image", "depth"])
@pytest.mark.parametrize("damage", ["missing", "cut", "other size"])
def test_files_that_break_later(layout: Open, kind: str, damage: str, tmp_path: Path) -> None:
    dataset = layout(tmp_path)
    patterns = {"image": ("images/*", "rgb/*/*"), "depth": ("depths/*", "depth/*/*")}[kind]
    for path in [path for pattern in patterns for path in tmp_path.rglob(pattern)]:
        if damage == "missing":
            path.unlink()
        elif damage == "cut":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif kind == "image":
            save_image(path, (10, 10))
        elif path.suffix == ".npy":
            np.save(path, np.ones((10, 10), np.float32))
        else:
            save_png16(path, np.ones((10, 10)))
    with pytest.raises(SceneError, match=r"^scene '[^']+': (picture|depth|mask) .*'.*' must [^\n]+, got [^\n]+$"):
        dataset[(0, 2, 1.0)]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_depth_that_is_not_finite(value: float, tmp_path: Path) -> None:
    dataset = open_unified(tmp_path)
    for path in (tmp_path / "room" / "depths").iterdir():
        depth = np.load(path)
        depth[3, 4] = value
        np.save(path, depth)
    with pytest.raises(SceneError, match=r"^scene 'room': depth '.*npy' must be finite, got 1 values that are not$"):
        dataset[(0, 2, 1.0)]


def test_a_scene_without_a_known_pixel(tmp_path: Path) -> None:
    dataset = open_unified(tmp_path)
    for view in range(4):
        path = tmp_path / "room" / "masks" / f"{view:03d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (60, 48), 0).save(path)
    with pytest.raises(SceneError, match=r"^scene 'room': depth must be known somewhere, got not a pixel$"):
        dataset[(0, 2, 1.0)]


CAMERA_DAMAGE = {
    "nan": (np.nan, "cam_from_world must be finite"),
    "inf": (np.inf, "cam_from_world must be finite"),
    "no rotation": (3.0, "cam_from_world must have rotations"),
}


@pytest.mark.parametrize("damage", CAMERA_DAMAGE)
@pytest.mark.parametrize("layout", ["unified", "co3d", "virtual kitti"])
def test_broken_cameras(layout: str, damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    value, message = CAMERA_DAMAGE[damage]
    if layout == "unified":
        write_unified(tmp_path, "good")
        poses = np.load(write_unified(tmp_path, "bad") / "cam_from_worlds.npy")
        poses[1, 0, 0] = value
        np.save(tmp_path / "bad" / "cam_from_worlds.npy", poses)
        number = 1

        def load(**options: object) -> SceneDataset:
            return UnifiedDataset(tmp_path, **options)
    elif layout == "co3d":
        write_co3d(tmp_path, "apple")
        frame = {"filepath": "x.jpg", "extri": np.eye(3, 4).tolist(), "intri": np.eye(3).tolist()}
        bad = {**frame, "extri": [[value, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]}
        write_annotations(tmp_path / "cup_train.jgz", {"bad": [frame, bad]})
        number = 1

        def load(**options: object) -> SceneDataset:
            return Co3dDataset(tmp_path, tmp_path, categories=("apple", "cup"), min_frames=2, **options)
    else:
        path = write_virtual_kitti(tmp_path) / "extrinsic.txt"
        lines = path.read_text().splitlines()
        lines[2] = f"0 1 {value} " + lines[2].split(" ", 3)[3]
        path.write_text("\n".join(lines))
        number = 0

        def load(**options: object) -> SceneDataset:
            return VirtualKittiDataset(tmp_path, min_frames=2, **options)

    suffix = rf".* for camera {number}$" if damage == "no rotation" else ""
    with pytest.raises(SceneError, match=rf"^cameras of '[^']*(bad|Camera_1)': {message}{suffix}"):
        load()
    assert len(load(on_error="skip")) == 1
    assert "left out a sequence: cameras of '" in caplog.text
    assert caplog.messages[-1].endswith("and 1 broken ones")


def test_worlds_far_from_their_origin_lose_no_digits(tmp_path: Path) -> None:
    """Coordinates of a map, 5000 km from its origin: in float32 they would be off by half a unit."""
    folder = write_unified(tmp_path, "room")
    poses = torch.from_numpy(np.load(folder / "cam_from_worlds.npy"))
    world_from_cam = invert_rigid(poses)
    world_from_cam[..., 3] += 5e6
    near = UnifiedDataset(tmp_path, options=OPTIONS)[(0, 4, 1.0)]
    np.save(folder / "cam_from_worlds.npy", invert_rigid(world_from_cam).numpy())
    far = UnifiedDataset(tmp_path, options=OPTIONS)[(0, 4, 1.0)]
    torch.testing.assert_close(far.cameras.cam_from_world, near.cameras.cam_from_world, atol=1e-6, rtol=0)
    torch.testing.assert_close(far.points, near.points, atol=1e-5, rtol=0)


def test_nothing_is_logged_of_whole_trees(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        open_unified(tmp_path)
    assert caplog.messages == []


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_to_do_with_broken_sequences(layout: Open, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^on_error must be one of 'raise', 'skip', got 'ignore'$"):
        layout(tmp_path, on_error="ignore")
