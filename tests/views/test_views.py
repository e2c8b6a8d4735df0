from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from geomtx.views import Views, ViewTransform, load_views


@pytest.fixture
def mixed(save_photo) -> Views:
    sizes = {"wide.png": (140, 70), "tall.png": (70, 140), "square.png": (90, 90)}
    return load_views([save_photo(name, *size) for name, size in sizes.items()], size=70)


def test_masks_of_mixed_sizes(mixed: Views) -> None:
    assert mixed.images.shape == (3, 3, 70, 70)
    assert mixed.masks.shape == (3, 70, 70)
    assert mixed.masks.dtype == torch.bool
    for mask, transform in zip(mixed.masks, mixed.transforms, strict=True):
        assert torch.equal(mask, transform.mask)
        assert transform.image_hw == (70, 70)
    assert mixed.masks.sum(dim=(1, 2)).tolist() == [28 * 70, 28 * 70, 70 * 70]


def test_patch_mask_of_mixed_sizes(mixed: Views) -> None:
    # 28 of 70 pixels, centred: 21 + 28 + 21, so half of patch 1, patch 2, half of patch 3.
    rows = torch.tensor([False, True, True, True, False])
    mask = mixed.patch_mask
    assert mask is not None
    assert torch.equal(mask[0], rows[:, None].expand(5, 5))
    assert torch.equal(mask[1], rows.expand(5, 5))
    assert mask[2].all()


def test_patch_mask_is_none_without_padding(mixed: Views) -> None:
    assert mixed[2].patch_mask is None


def test_a_patch_takes_part_from_half_of_its_pixels() -> None:
    views = Views.from_images(torch.rand(1, 3, 14, 28))
    for columns, expected in [(7, True), (8, False)]:
        masks = views.masks.clone()
        masks[..., :columns] = False
        mask = replace(views, masks=masks).patch_mask
        assert (mask is None) is expected


def test_subsets(mixed: Views) -> None:
    assert [len(mixed), len(mixed[1]), len(mixed[:2]), len(mixed[[2, 0]])] == [3, 1, 2, 2]
    picked = mixed[[2, 0]]
    assert picked.names == ("square.png", "wide.png")
    assert torch.equal(picked.images, mixed.images[[2, 0]])
    assert picked.transforms == (mixed.transforms[2], mixed.transforms[0])
    assert mixed[-1].names == ("square.png",)
    for index in (np.int64(-1), torch.tensor(-1), np.array([2]), torch.tensor([2]), [np.int32(2)]):
        assert mixed[index].names == ("square.png",)
    assert [view.names[0] for view in mixed] == list(mixed.names)
    with pytest.raises(IndexError):
        mixed[3]
    with pytest.raises(ValueError, match="index must pick at least one of 3 views"):
        mixed[3:]


def test_every_view_has_its_own_way_back(mixed: Views) -> None:
    tracks, k = torch.rand(2, 3, 7, 2) * 70, torch.eye(3).expand(2, 3, 3, 3) * 50
    depth = torch.rand(2, 3, 70, 70)
    tracks_back, k_back = mixed.tracks_to_original(tracks), mixed.intrinsics_to_original(k)
    depth_back = mixed.depth_to_original(depth)
    for index, transform in enumerate(mixed.transforms):
        assert torch.equal(tracks_back[:, index], transform.to_original(tracks[:, index]))
        assert torch.equal(k_back[:, index], transform.intrinsics_to_original(k[:, index]))
        assert torch.equal(depth_back[index], transform.depth_to_original(depth[:, index]))
        assert depth_back[index].shape == (2, *transform.original_hw)
    torch.testing.assert_close(mixed.tracks_from_original(tracks_back), tracks, atol=1e-4, rtol=0)
    torch.testing.assert_close(mixed.intrinsics_from_original(k_back), k, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match=r"depth must have 3 views on axis -3, got shape \(2, 70, 70\)"):
        mixed.depth_to_original(depth[0, :2])
    with pytest.raises(ValueError, match=r"coords_px must have 3 views on axis -3, got shape \(7, 2\)"):
        mixed.tracks_to_original(tracks[0, 0])


def test_from_a_tensor() -> None:
    images = torch.rand(2, 3, 28, 42, dtype=torch.float64, requires_grad=True)
    views = Views.from_images(images)
    assert torch.equal(views.images, images.float())
    assert views.transforms == (ViewTransform.identity((28, 42)),) * 2
    assert views.names == ("view_000.png", "view_001.png")
    assert views.paths == (None, None)
    assert views.masks.all()
    views.images.sum().backward()
    assert images.grad is not None


def test_from_pictures_arrays_and_tensors_of_different_sizes() -> None:
    pixels = np.random.default_rng().integers(0, 256, (28, 42, 3), dtype=np.uint8)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    sources = [Image.fromarray(pixels), pixels, (pixels / 255).astype(np.float32), tensor, torch.zeros(3, 42, 28)]
    views = Views.from_images(sources, names=["a", "b", "c", "d", "e"], patch_size=7)
    assert views.images.shape == (5, 3, 42, 42)
    for index in range(4):
        torch.testing.assert_close(views.images[index, :, 7:35], tensor)
        assert views.transforms[index] == ViewTransform((28, 42), (42, 42), (1.0, 1.0), (0.0, 7.0))
    assert (views.images[4, :, :, :7] == 1).all()
    assert views.names == ("a", "b", "c", "d", "e")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(2, 4, 28, 28), r"images must have shape \(S, 3, H, W\), got \(2, 4, 28, 28\)"),
        (torch.rand(3, 28, 28), r"images must have shape \(S, 3, H, W\), got \(3, 28, 28\)"),
        ([torch.rand(28, 28)], r"images\[0\] must have shape \(3, H, W\), got \(28, 28\)"),
        ([np.zeros((3, 28, 28), np.float32)], r"images\[0\] must have shape \(H, W, 3\), got \(3, 28, 28\)"),
        (
            torch.zeros(1, 3, 28, 28, dtype=torch.uint8),
            r"images\[0\] must be floating point in \[0, 1\], got torch.uint8",
        ),
        ([np.zeros((28, 28, 3), np.int32)], r"images\[0\] must be uint8, or floating point in \[0, 1\], got int32"),
        (["a.png"], r"images\[0\] must be a tensor, an array or a Pillow picture, got str"),
        (torch.rand(1, 3, 30, 28), r"height of images\[0\] must be a multiple of 14, got 30"),
        (torch.rand(1, 3, 28, 30), r"width of images\[0\] must be a multiple of 14, got 30"),
        (torch.rand(1, 3, 0, 28), r"images\[0\] must not be empty, got shape \(3, 0, 28\)"),
        (torch.full((1, 3, 28, 28), torch.nan), r"images\[0\] must be finite, got NaN or infinity"),
        ([torch.rand(3, 28, 28), torch.full((3, 28, 28), torch.inf)], r"images\[1\] must be finite"),
        ([], "images must hold at least one view, got none"),
    ],
)
def test_bad_images_are_named(images: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Views.from_images(images)


def test_names_must_fit() -> None:
    images = torch.rand(2, 3, 14, 14)
    with pytest.raises(ValueError, match=r"names must have one entry per view \(2\), got 1"):
        Views.from_images(images, names=["a"])
    with pytest.raises(ValueError, match=r"names must differ from one another, got \('a', 'a'\)"):
        Views.from_images(images, names=["a", "a"])


def test_images_of_0_to_255_give_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Views.from_images(torch.rand(3, 3, 14, 14) * 255)
    assert len(caplog.records) == 1
    assert "images should be in [0, 1], got" in caplog.text


def test_masks_of_the_photos_are_mapped_and_added(mixed: Views) -> None:
    masks = [torch.ones(transform.original_hw, dtype=torch.bool) for transform in mixed.transforms]
    masks[2][:, :45] = False
    masked = mixed.with_masks(masks)
    assert torch.equal(masked.masks[:2], mixed.masks[:2])
    assert not masked.masks[2, :, :35].any()
    assert masked.masks[2, :, 35:].all()
    assert torch.equal(mixed.masks[2], torch.ones(70, 70, dtype=torch.bool))  # the original is as it was


def test_masks_that_do_not_fit_are_named(mixed: Views, unchecked: None) -> None:
    masks = [torch.ones(transform.original_hw, dtype=torch.bool) for transform in mixed.transforms]
    with pytest.raises(ValueError, match=r"masks must have one entry per view \(3\), got 2"):
        mixed.with_masks(masks[:2])
    with pytest.raises(ValueError, match=r"masks\[1\] must have shape \(140, 70\), got \(70, 140\)"):
        mixed.with_masks([masks[0], masks[1].T, masks[2]])
    with pytest.raises(ValueError, match=r"masks\[0\] must be bool, got torch.float32"):
        mixed.with_masks([masks[0].float(), *masks[1:]])


def test_repr_is_one_short_line(mixed: Views) -> None:
    assert repr(mixed) == "Views(3 of 70x70: wide.png, tall.png, square.png)"


@pytest.mark.parametrize("index", [[True, False, True], True, [0, True]])
def test_booleans_are_no_indices(index: bool | list[bool]) -> None:
    views = Views.from_images(torch.rand(3, 3, 14, 14))
    with pytest.raises(ValueError, match="index must hold whole numbers, got booleans"):
        views[index]
