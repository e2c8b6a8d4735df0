from __future__ import annotations

import copy
import logging
import math
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from safetensors.torch import load_file

import geomtx
from geomtx import VGGTConfig, VGGTOmegaConfig
from geomtx.views import PhotoError, Views, load_views, loading
from geomtx.views.layout import fit_area
from geomtx.views.loading import default_size, prepare_again
from geomtx.views.views import Preparation

GOLDENS = Path(__file__).parents[1] / "goldens"
PHOTOS = GOLDENS / "images"
GOLDEN = load_file(GOLDENS / "preprocessing.safetensors") if GOLDENS.exists() else {}


def _every_seventh(views: Views) -> torch.Tensor:
    return (views.images * 255).round().to(torch.uint8)[..., ::7, ::7]


@pytest.mark.parametrize("name", ["a", "b", "c"])
@pytest.mark.parametrize("mode", ["crop", "pad"])
def test_one_photo_equals_the_golden(name: str, mode: str) -> None:
    views = load_views(PHOTOS / f"{name}.png", mode=mode)
    assert torch.equal(_every_seventh(views)[0], GOLDEN[f"{name}.{mode}"])
    assert views.image_hw == tuple(GOLDEN[f"{name}.{mode}.size"].tolist())


def test_several_photos_equal_the_golden() -> None:
    views = load_views(PHOTOS, mode="crop")
    assert views.names == ("a.png", "b.png", "c.png")
    assert torch.equal(_every_seventh(views), GOLDEN["all.crop"])
    assert views.image_hw == tuple(GOLDEN["all.crop.size"].tolist())


def test_squares_and_their_corners_equal_the_golden() -> None:
    views = load_views(PHOTOS, mode="square", size=224)
    assert torch.equal(_every_seventh(views), GOLDEN["all.square224"])
    corners = [[*t.content_box, t.original_hw[1], t.original_hw[0]] for t in views.transforms]
    assert torch.equal(torch.tensor(corners), GOLDEN["all.square224.coords"])


def test_images_are_float32_from_0_to_1() -> None:
    views = load_views(PHOTOS)
    assert views.images.dtype == torch.float32
    assert 0 <= views.images.min() < views.images.max() <= 1


def test_all_photos_get_the_shape_of_the_first(save_photo) -> None:
    paths = [save_photo("1.png", 400, 300), save_photo("2.png", 300, 400)]
    views = load_views(paths, mode="area", size=20_000, patch_size=14)
    height, width = views.image_hw
    assert height % 14 == width % 14 == 0
    assert 0.85 * 20_000 < height * width <= 20_000
    assert abs(width / height - 400 / 300) < 0.2
    assert views.masks.all()
    assert views.transforms[1].scale == (width / 300, height / 400)
    again = prepare_again(views, 16, 518)
    assert again.preparation == views.preparation
    assert again.image_hw[0] % 16 == 0
    model = SimpleNamespace(patch_size=14, num_pixels=5_000)
    assert math.prod(load_views(paths, mode="area", model=model).image_hw) <= 5_000
    with pytest.raises(ValueError, match=r"^size must be at least 196, got 100$"):
        load_views(paths, mode="area", size=100, patch_size=14)


@pytest.mark.parametrize("photo_wh", [(4000, 3000), (1, 1), (5000, 40), (40, 5000), (333, 777)])
@pytest.mark.parametrize("num_pixels", [196, 1000, 255_000])
def test_an_area_is_whole_patches_and_never_larger(photo_wh: tuple[int, int], num_pixels: int) -> None:
    width, height = fit_area(photo_wh, num_pixels, 14)
    assert width % 14 == height % 14 == 0
    assert 0 < width * height <= num_pixels


@pytest.mark.parametrize(
    ("photo_wh", "image_hw", "offset"),
    [
        ((400, 300), (64, 96), (0, -4)),
        ((300, 400), (96, 64), (-4, 0)),
        ((300, 300), (64, 96), (0, -16)),
        ((80, 61), (64, 96), (0, -4)),
        ((900, 100), (16, 96), (0, 2)),  # thinner than a patch: padded
    ],
)
def test_photos_are_cut_about_their_centre(save_photo, photo_wh, image_hw, offset) -> None:
    views = load_views(save_photo("1.png", *photo_wh), mode="center", size=96, patch_size=16)
    transform = views.transforms[0]
    assert views.image_hw == image_hw
    assert transform.offset == offset
    centre = torch.tensor([(side - 1) / 2 for side in photo_wh], dtype=torch.float64)
    seen = transform.from_original(centre) - torch.tensor([(side - 1) / 2 for side in image_hw[::-1]])
    assert seen.abs().max() <= 0.5
    corner = torch.tensor([0.0, 0.0])
    torch.testing.assert_close(transform.from_original(transform.to_original(corner)), corner, atol=1e-4, rtol=0)


def test_the_central_square_of_a_photo(save_photo) -> None:
    views = load_views(
        [save_photo("1.png", 400, 300), save_photo("2.png", 200, 333)], mode="center_square", size=64, patch_size=16
    )
    assert views.image_hw == (64, 64)
    assert views.masks.all()
    assert [t.offset for t in views.transforms] == [(-10, 0), (0, -21)]
    again = prepare_again(views, 14, 518)
    assert again.image_hw == (70, 70)


def test_cut_photos_keep_the_colours_of_transparent_pixels(tmp_path) -> None:
    pixels = np.full((32, 32, 4), 100, dtype=np.uint8)
    pixels[..., 3] = 0
    Image.fromarray(pixels).save(tmp_path / "1.png")
    assert (load_views(tmp_path, mode="center", size=32, patch_size=16).images * 255).round().unique().tolist() == [100]
    assert load_views(tmp_path, mode="fit", size=32, patch_size=16).images.unique().tolist() == [1]


@pytest.mark.parametrize("patch_size", [14, 16])
@pytest.mark.parametrize("mode", ["fit", "crop", "pad", "square", "center"])
def test_sides_are_whole_patches(mode: str, patch_size: int) -> None:
    views = load_views(PHOTOS, mode=mode, size=patch_size * 10, patch_size=patch_size)
    assert all(side % patch_size == 0 for side in views.image_hw)
    assert max(views.image_hw) == patch_size * 10


def test_fit_keeps_the_whole_photo(save_photo) -> None:
    views = load_views(save_photo("tall.png", 300, 800), size=140)
    assert views.image_hw == (140, 56)
    assert views.transforms[0].content_box == pytest.approx((0, 0, 56, 140))
    assert views.transforms[0].scale == pytest.approx((56 / 300, 140 / 800))
    assert views.masks.all()


def test_a_folder_is_read_in_natural_order(save_photo, tmp_path: Path) -> None:
    for name in ["img10.png", "img2.PNG", "IMG1.png", "img2b.jpg", "9.png", "x.png"]:
        save_photo(name, 20, 20)
    save_photo(".hidden.png", 20, 20)
    save_photo("deeper/img0.png", 20, 20)
    (tmp_path / "notes.txt").write_text("no photo")
    (tmp_path / "folder.png").mkdir()
    names = load_views(tmp_path, size=28).names
    assert names == ("9.png", "IMG1.png", "img2.PNG", "img2b.jpg", "img10.png", "x.png")


def test_a_list_keeps_its_order(save_photo) -> None:
    paths = [save_photo(f"{name}.png", 20, 20) for name in "cab"]
    views = load_views([str(path) for path in paths], size=28)
    assert views.names == ("c.png", "a.png", "b.png")
    assert views.paths == tuple(paths)


def test_one_file_is_one_view(save_photo) -> None:
    assert len(load_views(str(save_photo("a.png", 20, 20)), size=28)) == 1


def test_names_are_unique(save_photo) -> None:
    one, two = save_photo("one/left/a.png", 20, 20), save_photo("two/left/a.png", 20, 20)
    other = save_photo("b.png", 20, 20)
    names = load_views([one, two, other, one, other, other], size=28).names
    assert names == ("one/left/a.png", "two/left/a.png", "b.png", "one/left/a_2.png", "b_2.png", "b_3.png")


def test_a_file_that_may_not_be_read_is_named(save_photo, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(stream: object) -> Image.Image:
        raise PermissionError

    path = save_photo("a.png", 20, 20)
    monkeypatch.setattr(Image, "open", deny)
    with pytest.raises(PhotoError, match=r"photo '.*a.png' must be readable, got no permission"):
        load_views(path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "webp"])
def test_exif_orientation_is_applied(save_photo, orientation: int, extension: str) -> None:
    upright = np.zeros((24, 36, 3), dtype=np.uint8)
    upright[:12, :18], upright[:12, 18:], upright[12:, :18] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    # How a camera held so stores the upright picture, from the EXIF specification: (row 0, column 0) is the visual …
    stored = {
        1: upright,  # top, left
        2: upright[:, ::-1],  # top, right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: upright.transpose(1, 0, 2),  # left, top
        6: upright[:, ::-1].transpose(1, 0, 2),  # right, top
        7: upright[::-1, ::-1].transpose(1, 0, 2),  # right, bottom
        8: upright[::-1].transpose(1, 0, 2),  # left, bottom
    }[orientation]
    path = save_photo(f"photo.{extension}", 8, 8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, quality=95)
    views = load_views(path, size=84)
    transform = views.transforms[0]
    assert transform.original_hw == (24, 36)
    assert transform.exif_orientation == orientation
    corners = views.images[0][:, [10, 10, 45], [10, 70, 10]].T
    torch.testing.assert_close(corners, torch.eye(3), atol=0.06, rtol=0)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_unknown_orientation_is_upright(save_photo, orientation: int) -> None:
    transform = load_views(save_photo("a.jpg", 30, 20, orientation), size=28).transforms[0]
    assert (transform.original_hw, transform.exif_orientation) == ((20, 30), 1)


def test_damaged_exif_is_upright(save_photo, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Image.Image) -> Image.Exif:
        raise SyntaxError("not a TIFF file")

    path = save_photo("a.jpg", 30, 20)
    monkeypatch.setattr(Image.Image, "getexif", fail)
    with caplog.at_level(logging.WARNING):
        assert load_views(path, size=28).transforms[0].exif_orientation == 1
    assert "damaged EXIF" in caplog.text


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 20), color) for color in ((255, 0, 0), (0, 0, 255))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    image = load_views(tmp_path, size=28).images[0]
    torch.testing.assert_close(image.mean(dim=(1, 2)), torch.tensor([1.0, 0, 0]))


def test_views_of_different_sizes_are_centered_in_white(save_photo) -> None:
    views = load_views([save_photo("wide.png", 100, 50), save_photo("tall.png", 50, 100)], size=70)
    assert views.image_hw == (70, 70)
    rows = views.masks[0].any(dim=1).nonzero()[:, 0]
    assert (rows[0], rows[-1]) == (21, 48)  # 50 of 100 rows are 2.5 patches of 14, rounded to even: 28 rows
    assert (views.images[0][:, ~views.masks[0]] == 1).all()
    assert (views.images[1][:, ~views.masks[1]] == 1).all()


def test_the_smaller_half_of_the_padding_comes_first(save_photo) -> None:
    views = load_views([save_photo("a.png", 51, 51), save_photo("b.png", 51, 17)], size=63, patch_size=21)
    assert views.transforms[1].offset == (0, 21)
    views = load_views([save_photo("a.png", 51, 51), save_photo("b.png", 51, 34)], size=63, patch_size=21)
    assert views.transforms[1].offset == (0, 10)


ERRORS = {
    "missing": "source must be an existing folder or image, got '.*missing'",
    "missing.png": "source must be an existing folder or image, got '.*missing.png'",
    "empty": r"folder '.*empty' must hold images \(\.jpg, \.png, …\), got none$",
    "text.png": "photo '.*text.png' must be an image that Pillow can read",
    "notes.txt": "photo '.*notes.txt' must be an image that Pillow can read",
    "phone.heic": "photo '.*phone.heic' must be an image that Pillow can read",
    "shot.nef": "photo '.*shot.nef' must be a developed photo, got a camera's raw file: convert it",
    "nothing.jpg": "photo '.*nothing.jpg' must be an image that Pillow can read",
    "half.jpg": "photo '.*half.jpg' must be a whole image, got a damaged one: .*truncated",
    "half.png": "photo '.*half.png' must be a whole image, got a damaged one: .*truncated",
    "line.png": "photo '.*line.png' must be at least 2 pixels wide and high .*, got 1x500",
    "thin.png": "photo '.*thin.png' must be at least 2 pixels .* at most 74 times longer than short, got 4x500",
}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("lenient", [False, True])
def test_bad_files_are_named(
    save_photo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, lenient: bool
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    (tmp_path / "empty").mkdir()
    for text in ("text.png", "notes.txt", "phone.heic", "shot.nef"):
        (tmp_path / text).write_text("no photo")
    (tmp_path / "nothing.jpg").touch()
    for half in ("half.jpg", "half.png"):
        path = save_photo(half, 200, 200)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    save_photo("line.png", 1, 500)
    save_photo("thin.png", 4, 500)
    with pytest.raises(PhotoError, match=ERRORS[name]) as error:
        load_views(tmp_path / name)
    assert "\n" not in str(error.value)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient


def test_a_bad_file_in_a_folder_is_never_left_out(save_photo, tmp_path: Path) -> None:
    save_photo("good.png", 20, 20)
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    with pytest.raises(PhotoError, match="bad"):
        load_views(tmp_path)


@pytest.mark.parametrize("target", ["nowhere.jpg", "2.png"])
def test_a_broken_link_in_a_folder_is_never_left_out(save_photo, tmp_path: Path, target: str) -> None:
    """A pointer of git-annex or DVC before its file is fetched, a drive that isn't mounted, a link to itself."""
    save_photo("1.png", 20, 20)
    (tmp_path / "2.png").symlink_to(tmp_path / target)
    with pytest.raises(PhotoError, match=r"photo '.*2.png' must be an existing file, got a link to nothing$"):
        load_views(tmp_path, size=28)


def test_links_to_photos_are_photos_and_links_to_folders_are_not(save_photo, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").symlink_to(save_photo("elsewhere/x.png", 20, 20))
    (tmp_path / "photos" / "b.png").symlink_to(tmp_path / "elsewhere")
    assert load_views(tmp_path / "photos", size=28).names == ("a.png",)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(PhotoError, match=r"photo '.*pipe.png' must be an existing file, got none"):
        load_views(tmp_path)


def test_a_missing_or_odd_entry_of_a_list_is_named(save_photo, tmp_path: Path) -> None:
    good = save_photo("good.png", 20, 20)
    with pytest.raises(PhotoError, match=r"photo '.*gone.png' must be an existing file, got none"):
        load_views([good, tmp_path / "gone.png"])
    with pytest.raises(PhotoError, match=r"photo '.*' must be an existing file, got a folder"):
        load_views([good, tmp_path])
    with pytest.raises(PhotoError, match="source must hold paths, got Image; for images see"):
        load_views(iter([good, Image.new("RGB", (20, 20))]))  # the type checker would stop a list
    with pytest.raises(PhotoError, match="source must hold at least one photo, got an empty list"):
        load_views([])


def test_a_picture_over_the_limit_is_named(save_photo, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_photo("large.png", 100, 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(PhotoError, match=r"large.png' must have at most 1000 pixels \(PIL[^\n]*\), got more: .*10000"):
        load_views(path)


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match=r"mode must be one of 'fit', .*, 'max_size', got 'stretch'"):
        load_views(PHOTOS, mode="stretch")
    with pytest.raises(ValueError, match="size must be a multiple of 14, got 500"):
        load_views(PHOTOS, size=500)
    with pytest.raises(ValueError, match="size must be positive, got 0"):
        load_views(PHOTOS, size=0)
    with pytest.raises(ValueError, match="patch_size must be positive, got -14"):
        load_views(PHOTOS, patch_size=-14)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shutil.copy(PHOTOS / "a.png", tmp_path / "a.png")
    load_views(tmp_path, size=28)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("patch_size", "size"), [(14, 518), (16, 512), (8, 520), (600, 600), (2000, 2000)])
def test_the_default_size_is_the_multiple_of_the_patch_nearest_to_518(patch_size, size, save_photo):
    assert default_size(patch_size) == size
    assert default_size(patch_size, 72) == max(round(72 / patch_size), 1) * patch_size
    if patch_size <= 16:
        path = save_photo("photo.png", 60, 30)
        views = load_views(path, patch_size=patch_size)
        assert views.image_hw[1] == size
        assert views.patch_size == patch_size


def test_missing_photos_are_found_before_any_is_decoded(tmp_path):
    (tmp_path / "broken.png").write_text("no picture")
    with pytest.raises(PhotoError, match=r"photo '.*gone\.png' must be an existing file, got none"):
        load_views([tmp_path / "broken.png", tmp_path / "gone.png"])


# For a model, and again for another


@pytest.fixture
def two_photos(tmp_path: Path) -> Path:
    """Photos of 80x60 and 60x80 pixels."""
    for name, size in (("a.png", (80, 60)), ("b.png", (60, 80))):
        pixels = np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    return tmp_path


def test_photos_are_sized_for_a_model(two_photos: Path) -> None:
    config = geomtx.VGGTConfig.nano()
    for model in (config, SimpleNamespace(config=config), SimpleNamespace(config=SimpleNamespace(vggt=config))):
        views = load_views(two_photos, model=model)
        assert (views.image_hw, views.patch_size) == ((64, 64), 8)
    assert load_views(two_photos, model=config, size=32).image_hw == (32, 32)
    with pytest.raises(ValueError, match=r"^size must be a multiple of 8, got 30$"):
        load_views(two_photos, model=config, size=30)
    with pytest.raises(ValueError, match=r"^patch_size must be the model's 8, got 14$"):
        load_views(two_photos, model=config, patch_size=14)
    with pytest.raises(ValueError, match=r"^model must be a model or its configuration, with a patch_size, got str$"):
        load_views(two_photos, model="nano")


def test_views_know_how_to_be_prepared_again(two_photos: Path) -> None:
    views = load_views(two_photos, size=56)
    assert views.preparation == Preparation("fit", 56, asked=True)
    for same in (pickle.loads(pickle.dumps(views)), views[[1, 0]], views.with_masks(_no_masks(views))):
        assert same.preparation == views.preparation
    assert replace(views, images=views.images / 2).preparation is None, "its images are no longer the photos"
    changed = copy.deepcopy(views)
    assert changed.preparation == views.preparation
    changed.images[0] = 0
    for same in (changed, changed[0], copy.copy(changed), pickle.loads(pickle.dumps(changed))):
        assert same.preparation is None, "changed in place"
    with torch.inference_mode():
        assert load_views(two_photos, size=56).preparation == views.preparation
    again = prepare_again(views[1], 8, 64)
    assert again.names == views.names[1:]
    assert torch.equal(again.images, load_views(two_photos / "b.png", size=56, patch_size=8).images)
    default = load_views(two_photos, mode="square", patch_size=100)
    assert prepare_again(default, 8, 64).image_hw == (64, 64)


def test_what_is_masked_stays_masked_in_views_that_are_prepared_again(two_photos: Path) -> None:
    masks = _no_masks(views := load_views(two_photos, size=80, patch_size=20))
    masks[0][:30] = False
    masks[1][:, 45:] = False
    again = prepare_again(views.with_masks(masks), 10, None)
    fresh = load_views(two_photos, size=80, patch_size=10)
    assert torch.equal(again.masks, fresh.with_masks(masks).masks)
    assert torch.equal(again.images, fresh.images)
    Image.new("RGB", (50, 40)).save(two_photos / "b.png")
    with pytest.raises(PhotoError, match=r"b.png' must have the \d+x\d+ pixels of its mask, got 50x40"):
        prepare_again(views.with_masks(masks), 10, None)


def _no_masks(views: Views) -> list[torch.Tensor]:
    return [torch.ones(transform.original_hw, dtype=torch.bool) for transform in views.transforms]


@pytest.mark.parametrize("mode", ["fit", "crop", "pad", "square"])
def test_images_that_do_not_fit_into_memory_are_refused(
    two_photos: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "place_photo", lambda *_, **__: pytest.fail("images were made"))
    message = r"^size must be small enough for memory, got 1400000: 2 images need .* GiB, and .* GiB are free$"
    with pytest.raises(ValueError, match=message):
        load_views(two_photos, mode=mode, size=1_400_000)


# Photos of at most two to one


@pytest.mark.parametrize(
    ("photo_wh", "sizes"),
    [
        ((1920, 1080), ((688, 384), (512, 288), (560, 320), (336, 192))),
        ((640, 480), ((592, 448), (512, 384), (480, 368), (288, 224))),
        ((1500, 1000), ((624, 416), (512, 336), (512, 336), (320, 208))),
        ((1000, 1000), ((512, 512), (512, 512), (416, 416), (256, 256))),
        ((4000, 1000), ((720, 368), (512, 256), (592, 288), (368, 176))),
    ],
)
def test_sizes_of_limited_modes_are_the_published_ones(photo_wh, sizes, tmp_path: Path) -> None:
    """Width and height, in the modes balanced and max_size of 512, and balanced of 416 and 256 pixels."""
    for turned in (False, True):
        wh = photo_wh[::-1] if turned else photo_wh
        Image.new("RGB", wh).save(tmp_path / "a.png")
        for (mode, size), expected in zip(
            (("balanced", 512), ("max_size", 512), ("balanced", 416), ("balanced", 256)), sizes, strict=True
        ):
            views = load_views(tmp_path / "a.png", mode=mode, size=size, patch_size=16)
            assert views.image_hw == (expected if turned else expected[::-1])
            assert views.masks.all()


def test_what_exceeds_two_to_one_is_cut_about_the_centre(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (100, 317, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    views = load_views(tmp_path / "a.png", mode="balanced", size=64, patch_size=16)
    cut = Image.fromarray(pixels[:, 58:258]).resize((96, 48), Image.Resampling.BICUBIC)
    assert torch.equal(views.images[0], torch.from_numpy(np.array(cut)).permute(2, 0, 1) / 255)
    transform = views.transforms[0]
    corners = transform.to_original(torch.tensor([[-0.5, -0.5], [95.5, 47.5]]))
    torch.testing.assert_close(corners, torch.tensor([[57.5, -0.5], [257.5, 99.5]]))
    depth = transform.depth_to_original(torch.ones(48, 96), fill=7.0)
    assert depth.shape == (100, 317)
    assert depth[0, 57] == 7
    assert depth[99, 58] == 1


def test_a_model_may_prefer_a_mode(tmp_path: Path) -> None:
    Image.new("RGB", (80, 60)).save(tmp_path / "a.png")
    config = VGGTOmegaConfig.tiny()
    assert load_views(tmp_path / "a.png", model=config).image_hw == (48, 80)
    assert load_views(tmp_path / "a.png", model=config, mode="fit").image_hw == (48, 64)
    assert load_views(tmp_path / "a.png", model=VGGTConfig.tiny(), size=56).preparation.mode == "fit"
