import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.colmap_files import room_model, save_images, write_binary
from data.plane_scenes import write_co3d, write_virtual_kitti
from geomtx.data import FrameChoice, FrameTransform, SampleOptions
from geomtx.data.synthetic.motion import MotionStyle
from geomtx.data.synthetic.render import VideoStyle, held_out_seed, render_scenes, render_videos
from geomtx.data.synthetic.rooms import RoomStyle
from geomtx.training.config import DataSection
from geomtx.training.config_file import load_config, parse_config
from geomtx.training.data import build_source, check_datasets
from training.small_run import small_trainer


def section(**values: object) -> DataSection:
    return parse_config({"data": {"image_hw": [28, 42], **values}}).data


def save_unified(root: Path, num_scenes: int = 2) -> None:
    """Rendered rooms as folders of the unified layout."""
    for index in range(num_scenes):
        scene = render_scenes([index], 4, (40, 60))
        folder = root / f"scene_{index}"
        (folder / "images").mkdir(parents=True)
        (folder / "depths").mkdir()
        names = [f"{view}.png" for view in range(4)]
        for view, name in enumerate(names):
            pixels = (scene.images[0, view].movedim(0, -1) * 255).byte().numpy()
            Image.fromarray(pixels).save(folder / "images" / name)
            np.save(folder / "depths" / f"{view}.npy", scene.depth[0, view].numpy())
        (folder / "image_names.json").write_text(json.dumps(names))
        np.save(folder / "cam_from_worlds.npy", scene.cameras.cam_from_world[0].numpy())
        np.save(folder / "intrinsics.npy", scene.cameras.intrinsics[0].numpy())


def test_rooms_are_those_of_the_renderer():
    source = build_source(section(num_tracks=3, style={"num_solids": [1, 1]}), patch_size=14)
    got = source([5, 6], 2, (28, 42))
    assert got.images.shape == (2, 2, 3, 28, 42)
    assert got.tracks.coords_px.shape == (2, 2, 3, 2)
    plain = build_source(section(), patch_size=14)([5, 6], 2, (28, 42))
    assert torch.equal(plain.images, render_scenes([5, 6], 2, (28, 42)).images)
    assert not torch.equal(plain.depth, got.depth)


def test_colours_change_in_training_only_and_the_same_way_every_time():
    changing = section(augment=True, color={"jitter_prob": 1.0})
    plain = build_source(section(), patch_size=14)([5], 2, (28, 42))
    source = build_source(changing, patch_size=14)
    state = torch.get_rng_state()
    one, two = source([5], 2, (28, 42)), source([5], 2, (28, 42))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.images, two.images)
    assert not torch.equal(one.images, plain.images)
    assert torch.equal(one.depth, plain.depth)
    torch.testing.assert_close(source([7, 5], 2, (28, 42)).images[1:], one.images, atol=1e-3, rtol=0)
    held_out = build_source(changing, patch_size=14, held_out=True)
    assert torch.equal(held_out([5], 2, (28, 42)).images, plain.images)


def test_scenes_of_files_by_seed(tmp_path: Path):
    save_unified(tmp_path)
    dataset = {"kind": "unified", "root": str(tmp_path), "validation_root": str(tmp_path), "length": 10}
    data = section(kind="dataset", datasets={"rooms": dataset}, augment=True)
    source = build_source(data, patch_size=14)
    one, two = source([1, 2, 3], 3, (28, 42)), source([1, 2, 3], 3, (28, 42))
    assert one.images.shape == (3, 3, 3, 28, 42)
    assert torch.equal(one.images, two.images)
    assert torch.equal(one.images[1:2], source([2], 3, (28, 42)).images)
    assert one.mask.any()
    assert len({image.sum().item() for image in source(list(range(12)), 2, (28, 42)).images}) > 2
    held_out = build_source(data, patch_size=14, held_out=True)
    assert held_out([held_out_seed(0)], 2, (28, 42)).images.shape == (1, 2, 3, 28, 42)


def test_a_run_on_files_with_a_worker(tmp_path: Path):
    save_unified(tmp_path / "data")
    trainer = small_trainer(
        tmp_path / "run",
        data={
            "kind": "dataset", "image_hw": [28, 28], "images": 4, "views": {2: 1}, "workers": 1,
            "datasets": {"rooms": {"kind": "unified", "root": str(tmp_path / "data")}},
        },
        schedule={"steps": 2},
    )  # fmt: skip
    trainer.train()
    assert (trainer.step, trainer.num_skipped) == (2, 0)


def test_options_that_there_are_not():
    with pytest.raises(ValueError, match=r"^config key must be one of half_width, .*, got 'data\.style\.doors'$"):
        build_source(section(style={"doors": 2}), patch_size=14)
    with pytest.raises(ValueError, match=r"^data\.style\.num_solids must be a whole number, got 2\.5$"):
        build_source(section(style={"num_solids": [2.5, 3]}), patch_size=14)
    with pytest.raises(ValueError, match=r"got 'data\.color\.jitter'; did you mean 'jitter_prob'"):
        build_source(section(augment=True, color={"jitter": 1}), patch_size=14)
    dataset = {"kind": "co3d", "root": "nowhere", "options": {"min_frame": 3}}
    message = r"one of categories, min_frames, on_error, got 'data\.datasets\.a\.options\.min_f"
    with pytest.raises(ValueError, match=message):
        check_datasets(section(kind="dataset", datasets={"a": dataset}), validation=True)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("held_out", [False, True])
def test_no_option_says_which_split_is_trained_on(split: str, held_out: bool, tmp_path: Path):
    dataset = {"kind": "co3d", "root": str(tmp_path), "options": {"split": split}}
    data = section(kind="dataset", datasets={"a": dataset})
    message = r"^config key must be one of categories, .*, got 'data\.datasets\.a\.options\.split'$"
    with pytest.raises(ValueError, match=message):
        check_datasets(data, validation=False)
    with pytest.raises(ValueError, match=message):
        build_source(data, patch_size=14, held_out=held_out)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"min_frames": "x"}, r"min_frames must be a whole number, got 'x'"),
        ({"categories": 3}, r"categories must be a list, got 3"),
        ({"categories": "apple"}, r"categories must be a list, got 'apple'"),
        ({"categories": ["apple", 3]}, r"categories must be a string, got 3"),
        ({"on_error": "ignore"}, r"on_error must be one of 'raise', 'skip', got 'ignore'"),
    ],
)
def test_options_of_another_type(option: dict, message: str):
    data = section(kind="dataset", datasets={"a": {"kind": "co3d", "root": "nowhere", "options": option}})
    with pytest.raises(ValueError, match=rf"^data\.datasets\.a\.options\.{message}$"):
        check_datasets(data, validation=False)


def test_options_reach_the_dataset(tmp_path: Path):
    for name in ("apple", "cake"):
        write_co3d(tmp_path, name)
    options = {"categories": ["apple"], "min_frames": 2}
    data = section(kind="dataset", datasets={"a": {"kind": "co3d", "root": str(tmp_path), "options": options}})
    dataset = build_source(data, patch_size=14).mixture.datasets[0]
    assert {record.name.split("/")[0] for record in dataset.records} == {"apple"}


def test_numbers_of_transform_and_choice(tmp_path: Path):
    write_virtual_kitti(tmp_path / "kitti")
    save_unified(tmp_path / "rooms")
    kinds = {"kitti": "virtual_kitti", "rooms": "unified"}
    datasets = {name: {"kind": kind, "root": str(tmp_path / name)} for name, kind in kinds.items()}
    datasets["kitti"]["options"] = {"min_frames": 2}

    def options(*, held_out: bool = False, **values: object) -> list[SampleOptions]:
        data = section(kind="dataset", datasets=datasets, **values)
        return [dataset.options for dataset in build_source(data, patch_size=14, held_out=held_out).mixture.datasets]

    transform = {"turn_portrait": True, "scale_jitter": [0.5, 1.0]}
    assert options(transform=transform)[0].transform == FrameTransform(scale_jitter=(0.5, 1.0), turn_portrait=True)
    assert options(transform=transform, held_out=True)[0].transform == FrameTransform.plain()
    assert [part.choice for part in options()] == [FrameChoice(expand_ratio=8), FrameChoice()]
    near = {"num_nearest": 9}
    expected = [FrameChoice(expand_ratio=8, num_nearest=9), FrameChoice(num_nearest=9)]
    assert [part.choice for part in options(choice=near)] == expected
    assert [part.choice for part in options(choice=near, held_out=True)] == expected
    assert [part.choice for part in options(choice={"expand_range": 5})] == [FrameChoice(expand_range=5)] * 2
    assert [part.choice for part in options(choice={"expand_ratio": None})] == [FrameChoice()] * 2
    with pytest.raises(ValueError, match=r"got 'data\.transform\.turn_portraits'; did you mean 'turn_portrait'"):
        options(transform={"turn_portraits": True})
    with pytest.raises(ValueError, match=r"^data\.choice\.num_nearest must be a whole number, got 2\.5$"):
        options(choice={"num_nearest": 2.5})
    with pytest.raises(ValueError, match=r"^data.choice.expand_range must be None beside expand_ratio, got 5$"):
        options(choice={"expand_range": 5, "expand_ratio": 2})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"views": {2: 99, 32: 1}}, r"^data\.views must be up to 24 of rendered scenes, got 32$"),
        ({"views": {2: math.nan}}, r"^data\.views\.2 must be a finite number, got nan$"),
        (
            {"transform": {"zoom": 0.1}},
            r"^data\.transform must go with kind 'dataset', got \{'zoom': 0\.1\} for 'synth",
        ),
        ({"choice": {"num_nearest": 9}}, r"^data\.choice must go with kind 'dataset', got \{'num_nearest': 9\} for"),
        ({"views": {0: 1}}, r"^data\.views must give weights to numbers of views, got \{0: 1\.0\}$"),
        ({"num_tracks": 2000}, r"^data\.num_tracks must be up to 1024 of rendered scenes, got 2000$"),
    ],
)
def test_what_would_fail_in_some_step_fails_at_once(values: dict, message: str):
    with pytest.raises(ValueError, match=message):
        section(**values)


def test_an_override_of_one_number_of_views():
    assert load_config("nano", ["data.views.2=5", "data.views.6=1"]).data.views.items() >= {2: 5.0, 6: 1.0}.items()


def test_folders_that_are_not_named(tmp_path: Path):
    data = {"kind": "dataset", "image_hw": [28, 28], "datasets": {"mine": {"kind": "unified"}}}
    message = r"^data\.datasets\.mine\.root must name a folder, got none; --set data\.datasets\.mine\.root=FOLDER gives"
    with pytest.raises(ValueError, match=message):
        small_trainer(tmp_path, data=data)
    data["datasets"]["mine"]["root"] = str(tmp_path)
    with pytest.raises(ValueError, match=r"^data\.datasets\.mine\.validation_root must name a folder, got none"):
        small_trainer(tmp_path, data=data, validation={"every": 1})


def test_videos_are_those_of_the_renderer():
    data = section(kind="synthetic_video", num_tracks=3, motion={"moving": 1.0}, style={"num_solids": [1, 1]})
    got = build_source(data, patch_size=14)([5, 6], 4, (28, 42))
    style, motion = RoomStyle(num_solids=(1, 1)), MotionStyle(moving=1.0)
    wanted = render_videos([5, 6], 4, (28, 42), num_tracks=3, style=VideoStyle(style, motion))
    assert torch.equal(got.images, wanted.images)
    assert torch.equal(got.tracks.coords_px, wanted.tracks.coords_px)


def test_numbers_of_videos():
    assert section(kind="synthetic_video", views={64: 1}).views == {64: 1}
    with pytest.raises(ValueError, match=r"^data\.views must be up to 64 of rendered scenes, got 65$"):
        section(kind="synthetic_video", views={65: 1})
    with pytest.raises(ValueError, match=r"^data\.motion must go with kind 'synthetic_video', got .* for 'synthetic'$"):
        section(motion={"moving": 1.0})
    with pytest.raises(ValueError, match=r"^data\.choice must go with kind 'dataset', got .* for 'synthetic_video'$"):
        section(kind="synthetic_video", choice={"expand_range": 3})
    with pytest.raises(ValueError, match=r"got 'data\.motion\.speed'"):
        build_source(section(kind="synthetic_video", motion={"speed": 1}), patch_size=14)
    with pytest.raises(ValueError, match=r"^data.motion.moving must be in 0 … 1, got 2\.0$"):
        build_source(section(kind="synthetic_video", motion={"moving": 2}), patch_size=14)
    with pytest.raises(ValueError, match=r"^validation\.views must be up to 64 of rendered scenes, got 65$"):
        parse_config({"data": {"kind": "synthetic_video"}, "validation": {"views": [65]}})


def test_videos_change_in_training_only_and_the_same_way_every_time():
    data = section(kind="synthetic_video", num_tracks=20, augment=True, video={"flip_y_prob": 0.0})
    source, plain = build_source(data, patch_size=14), build_source(data, patch_size=14, held_out=True)
    one, two = source([5], 3, (28, 42)), source([7, 5], 3, (28, 42))
    assert torch.equal(source([5], 3, (28, 42)).images, one.images)
    torch.testing.assert_close(two.images[1:], one.images, atol=1e-3, rtol=0)
    assert one.cameras is one.depth is None
    held_out = plain([5], 3, (28, 42))
    assert held_out.cameras is not None
    assert not torch.equal(one.tracks.coords_px, held_out.tracks.coords_px)
    with pytest.raises(ValueError, match=r"^data\.video must go with kind 'synthetic_video', got .* for 'synthetic'$"):
        section(video={"flip_x_prob": 0.0})


def test_a_run_on_a_colmap_folder(tmp_path: Path):
    batch, model, _ = room_model(4, (28, 28), per_view=80)
    save_images(tmp_path / "room", batch)
    write_binary(tmp_path / "room" / "sparse" / "0", model)
    dataset = {"kind": "colmap", "root": str(tmp_path / "room"), "options": {"max_error_px": 3.0}}
    data = {"kind": "dataset", "image_hw": [28, 28], "images": 4, "views": {2: 1}, "datasets": {"mine": dataset}}
    trainer = small_trainer(tmp_path / "run", data=data, schedule={"steps": 2})
    trainer.train()
    assert (trainer.step, trainer.num_skipped) == (2, 0)
    with pytest.raises(ValueError, match=r"^num_tracks must be 0 for sparse depth of COLMAP, got 5$"):
        build_source(section(kind="dataset", datasets={"mine": dataset}, num_tracks=5), patch_size=14)
