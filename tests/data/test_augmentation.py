from __future__ import annotations

import pytest
import torch
from torch import Tensor

from geomtx.data import ColorAugmentation

NOTHING = {"jitter_prob": 0.0, "gray_prob": 0.0, "blur_prob": 0.0}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same_views(num_scenes: int = 1, num_views: int = 6) -> Tensor:
    """All views of a scene are one picture, so that equal treatment gives equal results."""
    return torch.rand(num_scenes, 1, 3, 12, 14).repeat(1, num_views, 1, 1, 1)


def num_distinct(images: Tensor) -> int:
    return len(images.flatten(1).unique(dim=0))


@pytest.mark.parametrize("augmentation", [ColorAugmentation(), ColorAugmentation.paper()])
def test_images_stay_images(augmentation: ColorAugmentation) -> None:
    images = torch.rand(4, 3, 3, 12, 14)
    before = images.clone()
    changed = augmentation(images, generator=seeded())
    assert changed.shape == images.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert not torch.equal(changed, images)
    torch.testing.assert_close(images, before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    images = torch.rand(1, 2, 3, 12, 14).to(dtype)
    augmentation = ColorAugmentation(jitter_prob=1, blur_prob=1)
    changed = augmentation(images, generator=seeded())
    assert changed.dtype == dtype
    wide = augmentation(images.double(), generator=seeded())
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 1e-2}.get(dtype, 1e-5)
    torch.testing.assert_close(changed.double(), wide, rtol=0, atol=tolerance)


def test_all_or_none_of_a_scene_shares() -> None:
    images = same_views(40)
    everything = ColorAugmentation(jitter_prob=1.0, shared_prob=1.0)(images, generator=seeded())
    assert [num_distinct(scene) for scene in everything] == [1] * 40
    nothing = ColorAugmentation(jitter_prob=1.0, shared_prob=0.0)(images, generator=seeded())
    assert min(num_distinct(scene) for scene in nothing) == 6
    some = ColorAugmentation(jitter_prob=1.0)(images, generator=seeded())
    assert 18 <= [num_distinct(scene) for scene in some].count(1) <= 37  # 0.7 of 40
    assert num_distinct(everything[:, 0]) == 40, "scenes never share"


def test_presets() -> None:
    released, paper = ColorAugmentation(), ColorAugmentation.paper()
    assert (released.shared_prob, released.blur_prob) == (0.7, 0.0)
    assert (paper.shared_prob, paper.blur_prob) == (0.0, 0.05)
    assert (released.brightness, released.contrast, released.saturation, released.hue) == (0.5, 0.5, 0.5, 0.1)
    assert (released.jitter_prob, released.gray_prob) == (0.9, 0.05)


def test_seeds() -> None:
    images = torch.rand(2, 3, 3, 12, 14)
    augmentation = ColorAugmentation()
    first = augmentation(images, generator=seeded(1))
    torch.testing.assert_close(first, augmentation(images, generator=seeded(1)), rtol=0, atol=0)
    assert not torch.equal(first, augmentation(images, generator=seeded(2)))
    torch.manual_seed(3)
    state = torch.get_rng_state()
    augmentation(images, generator=seeded(1))
    assert torch.equal(state, torch.get_rng_state()), "a generator of its own leaves the global one alone"


def test_nothing_drawn_changes_nothing() -> None:
    images = torch.rand(2, 3, 3, 12, 14)
    torch.testing.assert_close(ColorAugmentation(**NOTHING)(images), images, rtol=0, atol=0)
    still = ColorAugmentation(brightness=0, contrast=0, saturation=0, hue=0, gray_prob=0, blur_prob=0)
    torch.testing.assert_close(still(images), images, rtol=0, atol=0)


def only(**strength: float) -> ColorAugmentation:
    zero = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    return ColorAugmentation(**{**zero, **strength}, jitter_prob=1, gray_prob=0, shared_prob=0)


def test_brightness_is_a_factor() -> None:
    images = torch.rand(1, 50, 3, 6, 6, dtype=torch.float64) * 0.6 + 0.05
    ratio = only(brightness=0.5)(images, generator=seeded()) / images
    factor = ratio.flatten(2).mean(-1)
    torch.testing.assert_close(ratio, factor[..., None, None, None].expand_as(ratio))
    assert 0.5 <= factor.min() < 0.6
    assert 1.4 < factor.max() <= 1.5


def test_contrast_keeps_the_mean_grey() -> None:
    images = torch.rand(1, 30, 3, 6, 6, dtype=torch.float64) * 0.4 + 0.3
    changed = only(contrast=0.5)(images, generator=seeded())
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    torch.testing.assert_close(
        *((weights[:, None, None] * pictures).sum(2).mean((-1, -2)) for pictures in (changed, images))
    )
    spread = changed.flatten(2).std(-1) / images.flatten(2).std(-1)
    assert 0.5 <= spread.min() < 0.7
    assert 1.3 < spread.max() <= 1.51


def test_saturation_and_hue_leave_grey_alone() -> None:
    gray = torch.rand(1, 10, 1, 6, 6, dtype=torch.float64).expand(-1, -1, 3, -1, -1)
    torch.testing.assert_close(only(saturation=0.5, hue=0.1)(gray, generator=seeded()), gray)
    color = torch.rand(1, 10, 3, 6, 6, dtype=torch.float64)
    for augmentation in (only(saturation=0.5), only(hue=0.1)):
        assert (augmentation(color, generator=seeded()) - color).abs().amax((2, 3, 4)).min() > 1e-3


def test_hue_turns_red_by_a_tenth_of_the_circle_at_most() -> None:
    """Value (the largest channel) and saturation stay; the other channel grows to 6 · 0.1 of it."""
    red = torch.zeros(1, 100, 3, 2, 2, dtype=torch.float64)
    red[:, :, 0] = 0.8
    changed = only(hue=0.1)(red, generator=seeded())
    torch.testing.assert_close(changed.amax(2), red.amax(2))
    other = changed[:, :, 1:].amax(2)
    assert other.max() <= 0.8 * 0.6 + 1e-6
    assert other.max() > 0.8 * 0.5
    assert {"green", "blue"} == {"green" if c[1, 0, 0] > c[2, 0, 0] else "blue" for c in changed[0]}


def test_gray() -> None:
    images = torch.rand(1, 200, 3, 4, 4)
    none = {**NOTHING, "shared_prob": 0.0}
    changed = ColorAugmentation(**{**none, "gray_prob": 0.25})(images, generator=seeded())
    gray = (changed == changed[:, :, :1]).flatten(2).all(-1)[0]
    assert 30 < gray.sum() < 70
    torch.testing.assert_close(changed[0, ~gray], images[0, ~gray], rtol=0, atol=0)


def test_blur() -> None:
    """It keeps what is flat, and less than half of the variance of noise is left at the largest sigma."""
    blur = ColorAugmentation(**{**NOTHING, "blur_prob": 1.0, "shared_prob": 0.0})
    flat = torch.full((1, 20, 3, 12, 12), 0.4)
    torch.testing.assert_close(blur(flat, generator=seeded()), flat)
    noise = torch.rand(1, 20, 3, 12, 12)
    left = blur(noise, generator=seeded()).flatten(2).var(-1) / noise.flatten(2).var(-1)
    assert left.max() > 0.9
    assert left.min() < 0.4


def test_the_order_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    from kornia import enhance

    calls = []
    brightness, contrast = enhance.adjust_brightness_accumulative, enhance.adjust_contrast_with_mean_subtraction
    monkeypatch.setattr(enhance, "adjust_brightness_accumulative", lambda x, f: calls.append("b") or brightness(x, f))
    monkeypatch.setattr(
        enhance, "adjust_contrast_with_mean_subtraction", lambda x, f: calls.append("c") or contrast(x, f)
    )
    orders = set()
    for seed in range(20):
        only(brightness=0.5, contrast=0.5)(torch.rand(1, 1, 3, 4, 4), generator=seeded(seed))
        orders.add("".join(calls))
        calls.clear()
    assert orders == {"bc", "cb"}


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -0.1, 1.1, 255.0])
def test_what_is_no_image_is_refused(value: float) -> None:
    images = torch.rand(1, 2, 3, 4, 4)
    images[0, 1, 2, 3, 3] = value
    with pytest.raises(ValueError, match=r"^images must be in \[0, 1\], got values outside or NaN$"):
        ColorAugmentation()(images)


@pytest.mark.usefixtures("unchecked")
def test_other_shapes_and_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^images must have shape \(B, S, 3, H, W\), got \(2, 3, 4, 4\)$"):
        ColorAugmentation()(torch.rand(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"^images must be floating point, got torch.uint8$"):
        ColorAugmentation()(torch.zeros(1, 2, 3, 4, 4, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("name", "value", "limit"),
    [("brightness", 1.1, "1"), ("hue", 0.6, "0.5"), ("shared_prob", -0.1, "1"), ("gray_prob", float("nan"), "1")],
)
def test_numbers_out_of_range(name: str, value: float, limit: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be in 0 … {limit}, got {value}$"):
        ColorAugmentation(**{name: value})
