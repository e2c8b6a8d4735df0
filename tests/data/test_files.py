"""Pictures, masks and text of datasets, through the datasets that read them."""

from __future__ import annotations

import codecs
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.colmap_files import room_model, save_images, write_binary, write_text
from data.layouts import OPTIONS, Open, open_co3d, open_unified, open_virtual_kitti
from data.plane_scenes import write_unified, write_virtual_kitti
from geomtx import load_views
from geomtx.data import ColmapDataset, SceneDataset, SceneError, UnifiedDataset, VirtualKittiDataset
from geomtx.data.files import find_missing, read_image, read_mask, read_text


def open_colmap(root: Path) -> SceneDataset:
    batch, model, _ = room_model(num_views=3, per_view=10)
    save_images(root, batch)
    write_text(root / "sparse/0", model)
    return ColmapDataset(root, options=OPTIONS)


LAYOUTS = pytest.mark.parametrize("layout", [open_unified, open_co3d, open_virtual_kitti, open_colmap])


def pictures_of(dataset: SceneDataset) -> list[Path]:
    """The files of the dataset's first scene."""
    record = dataset.records[0]
    below = {"ColmapDataset": f"{record.name}/images", "UnifiedDataset": f"{record.name}/images"}
    return [dataset.root / below.get(type(dataset).__name__, "") / name for name in record.images]


@pytest.mark.parametrize("mode", ["I;16", "F", "RGBA", "LA", "P", "CMYK", "1"])
@LAYOUTS
def test_datasets_see_what_load_views_sees(layout: Open, mode: str, tmp_path: Path) -> None:
    dataset = layout(tmp_path)
    height, width = dataset.read_frame(dataset.records[0], 0).image_hw
    ramp = np.linspace(0, 1, height * width).reshape(height, width).astype(np.float32)
    gray = Image.fromarray((ramp * 255).astype(np.uint8))
    if mode == "I;16":
        picture = Image.fromarray((ramp * 65535).astype(np.uint16))
    elif mode == "F":
        picture = Image.fromarray(ramp)
    elif mode == "P":
        picture = gray.convert("P")
        picture.info["transparency"] = 3
    else:
        picture = gray.convert(mode)
        if mode in ("RGBA", "LA"):
            picture.putalpha(gray)
    for path in pictures_of(dataset):
        # By content, not by the ending: the layouts ask for .jpg, which has few modes.
        picture.save(path, format="TIFF" if mode in ("F", "CMYK") else "PNG")
    frame = dataset.read_frame(dataset.records[0], 0)
    seen = read_image(pictures_of(dataset)[0])
    assert np.array_equal(frame.image, seen)
    view = load_views(pictures_of(dataset)[0], size=56).images[0]
    # The ramp is as bright in both; another mode of reading clips it, or shows what is transparent.
    assert frame.image.mean() / 255 == pytest.approx(view.mean().item(), abs=0.01)
    assert 0.35 < view.mean() < 0.95


@LAYOUTS
def test_pixels_of_datasets_are_those_that_are_stored(layout: Open, tmp_path: Path) -> None:
    """Cameras refer to them: COLMAP doesn't know EXIF orientation."""
    dataset = layout(tmp_path)
    before = dataset.read_frame(dataset.records[0], 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = pictures_of(dataset)[0]
    Image.fromarray(before.image).save(path, format="PNG", exif=exif)
    after = dataset.read_frame(dataset.records[0], 0)
    assert np.array_equal(before.image, after.image)
    assert load_views(path, size=56).transforms[0].original_hw == before.image_hw[::-1]


@pytest.mark.parametrize("kind", ["0 and 1", "16-bit", "alpha"])
@pytest.mark.parametrize("layout", [open_unified, open_co3d])
def test_masks_of_datasets(layout: Open, kind: str, tmp_path: Path) -> None:
    dataset = layout(tmp_path)
    record = dataset.records[0]
    half = np.zeros(dataset.read_frame(record, 0).image_hw, np.uint8)
    half[:, : half.shape[1] // 2] = 1
    masks = {
        "0 and 1": Image.fromarray(half),
        "16-bit": Image.fromarray(half.astype(np.uint16) * 65535),
        "alpha": Image.merge("LA", [Image.fromarray(half * 0), Image.fromarray(half * 255)]),
    }
    for path in pictures_of(dataset):
        name = path.as_posix().replace("/images/", "/masks/" if layout is open_unified else "/depth_masks/")
        Path(name).parent.mkdir(exist_ok=True)
        masks[kind].save(Path(name).with_suffix(".png"))
    scene = dataset[(0, 2, 0.75)]
    assert 0.4 < scene.mask.float().mean() < 0.6
    assert scene.mask[..., :10].float().mean() > 0.9


def test_a_mask_of_other_numbers_is_named(tmp_path: Path) -> None:
    dataset = open_unified(tmp_path)
    (tmp_path / "room" / "masks").mkdir()
    for path in pictures_of(dataset):
        Image.fromarray(np.full((48, 60), 7, np.uint8)).save(tmp_path / "room" / "masks" / path.name)
    with pytest.raises(SceneError, match=r"^scene 'room': mask '.*\.png' must hold 0 and 1, or .*, got 7 to 7$"):
        dataset[(0, 2, 0.75)]
    with pytest.raises(SceneError, match=r"^mask '.*no.png' must be an existing file, got none$"):
        read_mask(tmp_path / "no.png")


# Text that editors on Windows saved


def with_mark(path: Path, encoding: str) -> None:
    text = path.read_text(encoding="utf-8")
    path.write_bytes(
        codecs.BOM_UTF16_BE + text.encode("utf-16-be") if encoding == "utf-16-be" else text.encode(encoding)
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize(
    ("layout", "pattern"),
    [(open_colmap, "sparse/0/*.txt"), (open_unified, "room/image_names.json"), (open_virtual_kitti, "**/*trinsic.txt")],
)
def test_text_with_a_byte_order_mark(layout: Open, pattern: str, encoding: str, tmp_path: Path) -> None:
    before = layout(tmp_path)
    paths = list(tmp_path.glob(pattern))
    assert paths
    for path in paths:
        with_mark(path, encoding)
    after = type(before)(tmp_path, options=OPTIONS, min_frames=2)
    assert len(after) == len(before)
    for one, other in zip(before.records, after.records, strict=True):
        assert one.images == other.images
        assert np.array_equal(one.cam_from_world, other.cam_from_world)
    assert torch.equal(after[(0, 2, 0.75)].images, before[(0, 2, 0.75)].images)


def test_annotations_with_a_byte_order_mark(tmp_path: Path) -> None:
    before = open_co3d(tmp_path)
    path = tmp_path / "apple_train.jgz"
    text = gzip.decompress(path.read_bytes()).decode()
    path.write_bytes(gzip.compress(text.encode("utf-8-sig")))
    after = type(before)(tmp_path, tmp_path, categories=("apple",), min_frames=2, options=OPTIONS)
    assert after.records[0].images == before.records[0].images


def test_only_the_mark_at_the_start_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeffa \ufeff b\n", encoding="utf-8")
    assert read_text(tmp_path / "a.txt") == "a \ufeff b\n"
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UnicodeDecodeError):
        read_text(tmp_path / "a.txt")
    assert read_text(tmp_path / "a.txt", errors="surrogateescape") == "caf\udce9"


# Pictures that are missing


def test_missing_files(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").touch()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "images" / "b.png").symlink_to(tmp_path / "real" / "a.png")
    (tmp_path / "images" / "nowhere.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "images" / "itself.png").symlink_to(tmp_path / "images" / "itself.png")
    (tmp_path / "images" / "folder.png").mkdir()
    there = ["linked/a.png", "b.png"]
    missing = ["linked/b.png", "nowhere.png", "itself.png", "folder.png", "no/a.png", "a.png"]
    assert find_missing(tmp_path / "images", there + missing) == missing
    assert find_missing(tmp_path / "none", there) == there


@pytest.mark.parametrize("layout", [open_unified, open_virtual_kitti, open_colmap])
def test_a_broken_link_is_a_missing_picture(layout: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = layout(tmp_path)
    path = pictures_of(dataset)[1]
    path.unlink()
    path.symlink_to(tmp_path / "not" / "fetched.jpg")
    with pytest.raises(SceneError, match=r"^pictures of '.*' must exist, got none for 1, the first '.*'$"):
        type(dataset)(tmp_path, min_frames=2)


def test_colmap_names_that_are_no_unicode(tmp_path: Path) -> None:
    """On Linux a name is bytes: of a camera's card, or an old archive."""
    batch, model, _ = room_model(num_views=3, per_view=10)
    save_images(tmp_path, batch)
    name = "caf\udce9.png"
    try:
        (tmp_path / "images" / "1.png").rename(tmp_path / "images" / name)
    except (OSError, UnicodeError):
        pytest.skip("file names are Unicode here")
    write_text(tmp_path / "text", model)
    write_binary(tmp_path / "binary", model)
    cases = (("text", "txt", b" 1.png", b" caf\xe9.png"), ("binary", "bin", b"1.png\0", b"caf\xe9.png\0"))
    for kind, suffix, plain, other in cases:
        path = tmp_path / kind / f"images.{suffix}"
        path.write_bytes(path.read_bytes().replace(plain, other))
        (tmp_path / kind).rename(tmp_path / "sparse")
        dataset = ColmapDataset(tmp_path, options=OPTIONS)
        assert name in dataset.records[0].images
        assert dataset[(0, 3, 0.75)].images.shape[1] == 3
        (tmp_path / "sparse").rename(tmp_path / kind)


def test_names_of_a_list_that_is_no_list_of_names(tmp_path: Path) -> None:
    folder = write_unified(tmp_path, "room")
    (folder / "image_names.json").write_bytes(codecs.BOM_UTF8 + json.dumps({"a": 1}).encode())
    with pytest.raises(SceneError, match=r"image_names.json' must be a list of names, got other JSON$"):
        UnifiedDataset(tmp_path)


def test_tables_that_are_no_text(tmp_path: Path) -> None:
    path = write_virtual_kitti(tmp_path) / "extrinsic.txt"
    path.write_bytes(b"title\n\xff\n")
    with pytest.raises(SceneError, match=r"extrinsic.txt' must be text, got bytes that are none in line 2$"):
        VirtualKittiDataset(tmp_path, min_frames=2)
