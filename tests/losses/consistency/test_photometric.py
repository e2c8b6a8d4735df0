import math

import pytest
import torch
from torch import Tensor

from geomtx import Cameras
from geomtx.losses import PhotometricSettings, ViewPairs, photometric_loss, smoothness_loss, structural_similarity
from losses.consistency.plane_scene import HEIGHT, WIDTH, shifted_views, turned_views

UNMASKED = PhotometricSettings(auto_mask=False)
PAIRS = ViewPairs(torch.tensor([[1, 2], [0, 2], [0, 1]]))


def test_similarity_by_loops():
    a, b = torch.rand(2, 5, 6, dtype=torch.float64)
    expected = torch.zeros(5, 6, dtype=torch.float64)
    for y in range(5):
        for x in range(6):
            window = (slice(max(y - 1, 0), y + 2), slice(max(x - 1, 0), x + 2))
            p, q = a[window].flatten(), b[window].flatten()
            covariance = ((p - p.mean()) * (q - q.mean())).mean()
            structure = (2 * covariance + 9e-4) / (p.var(correction=0) + q.var(correction=0) + 9e-4)
            expected[y, x] = structure * (2 * p.mean() * q.mean() + 1e-4) / (p.mean() ** 2 + q.mean() ** 2 + 1e-4)
    torch.testing.assert_close(structural_similarity(a, b), expected)


def test_similarity_of_equal_and_of_opposite_pictures():
    a = torch.rand(2, 3, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(structural_similarity(a, a), torch.ones_like(a))
    assert (structural_similarity(a, 1 - a) < 0.5).all()
    b = torch.rand_like(a)
    torch.testing.assert_close(structural_similarity(a, b), structural_similarity(b, a))


def test_difference_of_pictures_by_hand():
    """View 1 is brighter by 0.1: where view 0 is seen in it, the error is known."""
    images, depth, cameras = shifted_views()
    images[0, 1] += 0.1
    pairs = ViewPairs(torch.tensor([[1], [2], [1]]))
    for weight in (0.0, 0.85, 1.0):
        settings = PhotometricSettings(weight, auto_mask=False)
        each = photometric_loss(images, depth, cameras, pairs, settings=settings, reduction="none")
        a, b = images[0, 0, :, :, 7:-5], images[0, 0, :, :, 7:-5] + 0.1
        expected = weight * (1 - structural_similarity(a, b)) / 2 + (1 - weight) * 0.1
        # A pixel (x, y) is at (x - 5, y) in view 1; its neighbours must be one pixel inside, too.
        torch.testing.assert_close(each[0, 0, 2:-2, 8:-6], expected.mean(0)[2:-2, 1:-1])
        assert not each[0, 0, :, :7].any()
        assert not each[0, 0, [0, 1, -1, -2]].any()


def test_of_several_views_the_one_that_fits_best_counts():
    images, depth, cameras = turned_views()
    images[0, 2] = torch.rand_like(images[0, 2])
    each, first, second = (
        photometric_loss(images, depth, cameras, ViewPairs(torch.tensor(s)), settings=UNMASKED, reduction="none")[0, 0]
        for s in ([[1, 2], [0, 2], [0, 1]], [[1], [0], [0]], [[2], [0], [0]])
    )
    seen_in_both = (first > 0) & (second > 0)
    assert seen_in_both.sum() > 100
    torch.testing.assert_close(each[seen_in_both], torch.minimum(first, second)[seen_in_both])
    torch.testing.assert_close(each[~seen_in_both], (first + second)[~seen_in_both])


def test_auto_mask_leaves_out_what_fits_better_without_warping():
    """A camera that doesn't move, although the geometry says so."""
    images, depth, cameras = turned_views()
    images = images[:, :1].expand(-1, 3, -1, -1, -1).contiguous()
    assert photometric_loss(images, depth, cameras, PAIRS) == 0
    assert photometric_loss(images, depth, cameras, PAIRS, settings=UNMASKED) > 1e-3
    truth = turned_views()
    each = photometric_loss(truth.images, depth, cameras, PAIRS, reduction="none")
    free = photometric_loss(truth.images, depth, cameras, PAIRS, settings=UNMASKED, reduction="none")
    kept = each > 0
    assert kept.sum() > 0.8 * (free > 0).sum()
    assert torch.equal(each[kept], free[kept])


def test_auto_mask_by_hand():
    """With noise, so that neither way fits much better, and a black spot where the other view is masked."""
    images, depth, cameras = shifted_views()
    images = images + 0.3 * torch.rand_like(images)
    mask = torch.ones_like(depth, dtype=torch.bool)
    mask[0, 1, 10:13, 15:18] = False
    images[0, 0, :, 10:13, 15:18] = 0.0
    pairs = ViewPairs(torch.tensor([[1], [0], [0]]))
    each, free = (
        photometric_loss(
            images, depth, cameras, pairs, mask=mask, settings=PhotometricSettings(auto_mask=auto), reduction="none"
        )[0, 0]
        for auto in (True, False)
    )
    a, b = images[0, 0], images[0, 1]
    unwarped = (0.85 * (1 - structural_similarity(a, b)) / 2 + 0.15 * (a - b).abs()).mean(0)
    around_hole = torch.zeros_like(mask[0, 0])
    around_hole[9:14, 14:19] = True
    left_out = (unwarped < free) & ~around_hole
    assert free[around_hole].all()
    assert 20 < (left_out & (free > 0)).sum() < 0.8 * (free > 0).sum()
    torch.testing.assert_close(each, torch.where(left_out, 0.0, free))


def test_pairs_with_few_pixels_are_left_out():
    images, depth, cameras = turned_views()
    images = images + 0.05 * torch.rand_like(images)
    mask = torch.zeros_like(depth, dtype=torch.bool)
    mask[0, :2, 5:-5, 5:-5] = True
    count = int(
        (photometric_loss(images, depth, cameras, PAIRS, mask=mask, settings=UNMASKED, reduction="none") > 0)[
            0, 0
        ].sum()
    )
    assert count > 20
    for min_pixels, kept in ((count, True), (count + 1, False)):
        settings = PhotometricSettings(auto_mask=False, min_pixels=min_pixels)
        each = photometric_loss(images, depth, cameras, PAIRS, mask=mask, settings=settings, reduction="none")
        assert each[0, 0].any() == kept


def test_mean_is_over_views_of_means_over_pixels():
    images, depth, cameras = turned_views()
    images = images + 0.05 * torch.rand_like(images)
    each = photometric_loss(images, depth, cameras, PAIRS, settings=UNMASKED, reduction="none")[0]
    expected = torch.stack([view[view > 0].mean() for view in each]).mean()
    torch.testing.assert_close(photometric_loss(images, depth, cameras, PAIRS, settings=UNMASKED), expected)


def test_smoothness_by_loops():
    depth, images = torch.rand(6, 7, dtype=torch.float64) + 0.5, torch.rand(3, 6, 7, dtype=torch.float64)
    mask = torch.rand(6, 7) > 0.2
    inverse = 1 / depth
    inverse = inverse / inverse[mask].mean()
    expected = 0.0
    for dy, dx in ((1, 0), (0, 1)):
        terms = []
        for y in range(6 - dy):
            for x in range(7 - dx):
                if mask[y, x] and mask[y + dy, x + dx]:
                    step = (images[:, y, x] - images[:, y + dy, x + dx]).abs().mean().item()
                    terms.append(abs(inverse[y, x] - inverse[y + dy, x + dx]).item() * math.exp(-step))
        expected += sum(terms) / len(terms)
    assert smoothness_loss(depth, images, mask).item() == pytest.approx(expected)


def test_smoothness_has_no_unit_and_no_loss_on_a_wall():
    images, depth, _ = turned_views()
    torch.testing.assert_close(smoothness_loss(7 * depth, images), smoothness_loss(depth, images))
    assert smoothness_loss(torch.full_like(depth, 3.0), images) == 0
    assert smoothness_loss(depth, torch.ones_like(images)) > smoothness_loss(depth, images) > 0


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 0.0, -1.0])
def test_smoothness_does_not_see_what_is_masked(garbage):
    depth, images = torch.rand(2, 8, 9, dtype=torch.float64) + 0.5, torch.rand(2, 3, 8, 9, dtype=torch.float64)
    mask = torch.rand(2, 8, 9) > 0.3
    clean = smoothness_loss(depth, images, mask)
    depth[~mask] = garbage
    images.movedim(1, -1)[~mask] = garbage
    depth.requires_grad_()
    loss = smoothness_loss(depth, images, mask)
    loss.backward()
    assert torch.equal(loss, clean)
    assert depth.grad.isfinite().all()
    assert not depth.grad[~mask].any()
    assert depth.grad[mask].any()
    nothing = smoothness_loss(depth, images, torch.zeros_like(mask))
    assert nothing == 0
    assert nothing.requires_grad


def test_gradcheck_of_smoothness_and_similarity():
    depth = (torch.rand(2, 4, 5, dtype=torch.float64) + 0.5).requires_grad_()
    images = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    torch.autograd.gradcheck(lambda d: smoothness_loss(d, images), depth)
    a, b = (torch.rand(2, 4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    torch.autograd.gradcheck(structural_similarity, (a, b))


def test_smoothness_of_half_precision_is_computed_in_float32():
    images, depth, _ = turned_views()
    half = smoothness_loss(depth.bfloat16(), images.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, smoothness_loss(depth.bfloat16().float(), images.bfloat16().float()))


def refuse(message: str, images: Tensor | None = None, depth: Tensor | None = None, **options) -> None:
    scene = shifted_views()
    images, depth = (scene.images if images is None else images), (scene.depth if depth is None else depth)
    with pytest.raises(ValueError, match=message):
        photometric_loss(images, depth, Cameras(*scene.cameras), PAIRS, **options)


@pytest.mark.usefixtures("unchecked")
def test_wrong_arguments():
    refuse(r"^depth must have shape \(B, S, H, W\), got \(3, 4\)$", depth=torch.ones(3, 4))
    refuse(
        rf"^images must have shape \(1, 3, 3, {HEIGHT}, {WIDTH}\), got \(1, 3, 1, 8, 8\)$", torch.ones(1, 3, 1, 8, 8)
    )
    refuse(r"^images must be floating point, got torch.uint8$", torch.ones(1, 3, 3, HEIGHT, WIDTH, dtype=torch.uint8))
    refuse(r"^reduction must be one of 'mean', 'none', got 'sum'$", reduction="sum")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_depth_error": 0.0}, r"^max_depth_error must be positive, got 0.0$"),
        ({"min_pixels": 0}, r"^min_pixels must be positive, got 0$"),
        ({"similarity_weight": 1.1}, r"^similarity_weight must be in \[0, 1\], got 1.1$"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(ValueError, match=message):
        PhotometricSettings(**options)


@pytest.mark.usefixtures("unchecked")
def test_wrong_shapes_for_smoothness():
    depth, images = torch.ones(4, 5), torch.ones(3, 4, 5)
    with pytest.raises(ValueError, match=r"^depth must have shape \(\.\.\., H, W\), got \(4,\)$"):
        smoothness_loss(depth[:, 0], images)
    with pytest.raises(ValueError, match=r"^images must have shape \(3, 4, 5\), got \(1, 4, 5\)$"):
        smoothness_loss(depth, images[:1])
    with pytest.raises(ValueError, match=r"^mask must have shape \(4, 5\), got \(4,\)$"):
        smoothness_loss(depth, images, depth[:, 0] > 0)
    with pytest.raises(ValueError, match=r"^mask must be bool, got torch.float32$"):
        smoothness_loss(depth, images, depth)
    with pytest.raises(ValueError, match=r"^images must be floating point, got torch.uint8$"):
        smoothness_loss(depth, images.to(torch.uint8))


def test_pictures_of_another_precision_than_depth():
    scene = shifted_views()
    depth = 1.1 * scene.depth
    mixed = photometric_loss(scene.images.float(), depth, scene.cameras, PAIRS, settings=UNMASKED)
    same = photometric_loss(scene.images, depth, scene.cameras, PAIRS, settings=UNMASKED)
    assert mixed.dtype == torch.float64
    assert same > 1e-3
    torch.testing.assert_close(mixed, same, rtol=1e-3, atol=0)


def test_similarity_of_half_precision_is_computed_in_float32():
    a, b = torch.rand(3, 8, 9).bfloat16(), torch.rand(3, 8, 9).bfloat16()
    similarity = structural_similarity(a, b)
    assert similarity.dtype == torch.float32
    torch.testing.assert_close(similarity, structural_similarity(a.float(), b.float()))


@pytest.mark.usefixtures("unchecked")
def test_wrong_pictures_for_similarity():
    image = torch.rand(3, 8, 9)
    with pytest.raises(ValueError, match=r"^a must have shape \(\.\.\., H, W\), got \(9,\)$"):
        structural_similarity(image[0, 0], image[0, 0])
    with pytest.raises(ValueError, match=r"^b must have shape \(3, 8, 9\), got \(3, 8, 8\)$"):
        structural_similarity(image, image[..., 1:])
    with pytest.raises(ValueError, match=r"^b must be floating point, got torch.uint8$"):
        structural_similarity(image, image.to(torch.uint8))
