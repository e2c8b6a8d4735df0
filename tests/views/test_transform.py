from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from geomtx.views import ViewTransform, load_views
from geomtx.views.transform import lies_inside

# width, height, EXIF orientation: even, odd, 4:1, portrait, tiny, rotated, mirrored.
SIZES = [
    (640, 480, None),
    (517, 333, None),
    (1201, 301, None),
    (301, 1203, None),
    (480, 640, None),
    (31, 17, None),
    (518, 518, None),
    (519, 517, None),
    (640, 426, 6),
    (427, 641, 8),
    (333, 517, 5),
    (200, 150, 2),
]
MODES = ["fit", "crop", "pad", "square", "balanced", "max_size"]


def _random_transform(rng: np.random.Generator) -> ViewTransform:
    hw = rng.integers(20, 90, 2)
    resized = rng.integers(20, 90, 2)
    shift = rng.integers(-8, 8, 2)
    image_hw = (int(resized[0] + shift[1] + rng.integers(-3, 8)), int(resized[1] + shift[0] + rng.integers(-3, 8)))
    scale = (float(resized[1] / hw[1]), float(resized[0] / hw[0]))
    return ViewTransform((int(hw[0]), int(hw[1])), image_hw, scale, (float(shift[0]), float(shift[1])))


def _ramp(hw: tuple[int, int]) -> Tensor:
    rows, columns = torch.arange(hw[0], dtype=torch.float64), torch.arange(hw[1], dtype=torch.float64)
    return 2 + 0.03 * rows[:, None] + 0.05 * columns


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("together", [False, True])
def test_pixel_round_trip(save_photo, mode: str, together: bool) -> None:
    paths = [save_photo(f"{index}.jpg", *size) for index, size in enumerate(SIZES)]
    if together:
        views = load_views(paths, mode=mode, size=70)
        transforms = views.transforms
    else:
        transforms = tuple(load_views(path, mode=mode).transforms[0] for path in paths)
    for transform, (width, height, orientation) in zip(transforms, SIZES, strict=True):
        turned = orientation in (5, 6, 7, 8)
        assert transform.original_hw == ((width, height) if turned else (height, width))
        h, w = transform.original_hw
        coords = torch.rand(50, 2) * torch.tensor([w, h])
        there = transform.from_original(coords)
        assert (transform.to_original(there) - coords).abs().max() < 1e-3
        assert (transform.from_original(transform.to_original(there)) - there).abs().max() < 1e-3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("index", range(len(SIZES)))
def test_pixels_land_on_their_color(save_photo, mode: str, index: int) -> None:
    """The photos' red and green are ramps over x and y as stored: the picture itself tells where a pixel came from."""
    width, height, orientation = SIZES[index]
    views = load_views([save_photo("a.png", width, height, orientation), save_photo("b.png", 90, 100)], mode=mode)
    transform = views.transforms[0]
    h, w = transform.original_hw
    coords = torch.tensor([[0.3, 0.4], [0.5, 0.5], [0.6, 0.45]]) * torch.tensor([w, h])
    x, y = transform.from_original(coords).round().long().T
    colors = views.images[0, :, y, x]
    u, v = (coords / (torch.tensor([w, h]) - 1)).T
    red, green = {None: (u, v), 2: (1 - u, v), 5: (v, u), 6: (v, 1 - u), 8: (1 - v, u)}[orientation]
    torch.testing.assert_close(colors[:2], torch.stack([red, green]), atol=0.035 if min(h, w) < 100 else 0.008, rtol=0)


def test_pixel_centers_are_at_integers() -> None:
    transform = ViewTransform((10, 20), (20, 40), (2.0, 2.0))
    corners = torch.tensor([[-0.5, -0.5], [0.0, 0.0], [19.5, 9.5]])
    expected = torch.tensor([[-0.5, -0.5], [0.5, 0.5], [39.5, 19.5]])
    torch.testing.assert_close(transform.from_original(corners), expected)


def test_matrix_is_the_map_of_points() -> None:
    transform = _random_transform(np.random.default_rng())
    coords = torch.randn(7, 2, dtype=torch.float64) * 30
    homogeneous = torch.cat([coords, torch.ones(7, 1, dtype=torch.float64)], dim=1)
    torch.testing.assert_close((homogeneous @ transform.matrix.T)[:, :2], transform.from_original(coords))
    inverse = torch.linalg.inv(transform.matrix)
    torch.testing.assert_close((homogeneous @ inverse.T)[:, :2], transform.to_original(coords))


def test_intrinsics_agree_with_projection() -> None:
    for seed in range(5):
        transform = _random_transform(np.random.default_rng(seed))
        k_model = torch.tensor([[60.0, 0.3, 31.0], [0, 55.0, 27.0], [0, 0, 1]], dtype=torch.float64).expand(2, 3, 3, 3)
        points = torch.rand(2, 3, 9, 3, dtype=torch.float64) + torch.tensor([0, 0, 1.0])

        def project(k: Tensor, points: Tensor = points) -> Tensor:
            uvw = torch.einsum("bsij,bsnj->bsni", k, points)
            return uvw[..., :2] / uvw[..., 2:]

        k_original = transform.intrinsics_to_original(k_model)
        torch.testing.assert_close(project(k_original), transform.to_original(project(k_model)), atol=1e-10, rtol=1e-12)
        back = transform.intrinsics_from_original(k_original)
        torch.testing.assert_close(back, k_model, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    transform = ViewTransform((720, 4000), (126, 518), (518 / 4000, 126 / 720), (0.3, -0.7))
    coords = (torch.rand(200, 2) * 518).to(dtype)
    intrinsics = (torch.rand(50, 3, 3) * 300).to(dtype)
    for function, x in (
        (transform.to_original, coords),
        (transform.from_original, coords),
        (transform.intrinsics_to_original, intrinsics),
        (transform.intrinsics_from_original, intrinsics),
    ):
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(function(x).double(), function(x.double()), rtol=0.51 * eps, atol=eps / 64)


def test_dtype_leading_axes_and_gradients() -> None:
    transform = ViewTransform((12, 20), (14, 28), (1.4, 1.1), (0.0, 0.5))
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert transform.to_original(torch.zeros(3, 2, 5, 2, dtype=dtype)).dtype == dtype
        assert transform.intrinsics_to_original(torch.eye(3, dtype=dtype)).dtype == dtype
        depth = transform.depth_to_original(torch.ones(2, 3, 14, 28, dtype=dtype))
        assert (depth.dtype, depth.shape) == (dtype, (2, 3, 12, 20))
    coords = torch.rand(4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(transform.to_original, coords)
    depth = torch.rand(14, 28, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(transform.depth_to_original, depth)
    integers = torch.tensor([[3, 4]])
    torch.testing.assert_close(transform.to_original(integers), transform.to_original(integers.float()))


def test_intrinsics_ignore_autocast() -> None:
    transform = ViewTransform((480, 640), (392, 518), (518 / 640, 392 / 480))
    k = torch.tensor([[511.3, 0, 259.7], [0, 512.9, 196.1], [0, 0, 1]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = transform.intrinsics_to_original(k)
    assert torch.equal(inside, transform.intrinsics_to_original(k))


def test_a_plane_comes_back_exact() -> None:
    """Where the content has neighbours on both sides, a linear ramp is what bilinear resampling reproduces."""
    for seed in range(8):
        transform = _random_transform(np.random.default_rng(seed))
        depth = transform.depth_to_original(_model_ramp(transform), fill=-1.0)
        expected = _ramp(transform.original_hw)
        inner = transform.from_original(_grid(transform.original_hw))
        (top, bottom), (left, right) = transform._content_rows, transform._content_columns
        x, y = inner.unbind(-1)
        covered = (x >= left) & (x <= right) & (y >= top) & (y <= bottom)
        assert covered.sum() > 50
        torch.testing.assert_close(depth[covered], expected[covered], atol=1e-9, rtol=0)


def _model_ramp(transform: ViewTransform) -> Tensor:
    """The plane of `_ramp` as the model would see it, with NaN in the padding."""
    x, y = transform.to_original(_grid(transform.image_hw)).unbind(-1)
    return torch.where(transform.mask, 2 + 0.03 * y + 0.05 * x, torch.nan)


def _grid(hw: tuple[int, int]) -> Tensor:
    rows, columns = torch.arange(hw[0], dtype=torch.float64), torch.arange(hw[1], dtype=torch.float64)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], dim=-1)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_padding_never_bleeds_and_cropped_pixels_are_filled(mode: str) -> None:
    for seed in range(20):
        transform = _random_transform(np.random.default_rng(seed))
        depth = torch.where(transform.mask, 3.0, torch.nan)
        back = transform.depth_to_original(depth, mode=mode, fill=-1.0)
        x, y = (transform.from_original(_grid(transform.original_hw)) + 0.5).unbind(-1)
        seen = (x >= 0) & (x <= transform.image_hw[1]) & (y >= 0) & (y <= transform.image_hw[0])
        assert torch.equal(back, torch.where(seen, 3.0, -1.0))
        again = transform.depth_from_original(torch.full(transform.original_hw, 3.0), mode=mode, fill=-1.0)
        assert torch.equal(again, torch.where(transform.mask, 3.0, -1.0))


@pytest.mark.parametrize("mode", MODES)
def test_depth_round_trip_over_photos(save_photo, mode: str) -> None:
    sizes = [(90, 61, None), (50, 131, None), (70, 40, 6)]
    paths = [save_photo(f"{index}.jpg", *size) for index, size in enumerate(sizes)]
    views = load_views(paths, mode=mode, size=140)
    for transform in views.transforms:
        original = _ramp(transform.original_hw)
        back = transform.depth_to_original(transform.depth_from_original(original), fill=torch.nan)
        seen = ~back.isnan()
        cutting = mode in ("crop", "balanced", "max_size")
        assert seen.all() or cutting
        inner = seen.clone()
        inner[[0, 1, -2, -1]] = inner[:, [0, 1, -2, -1]] = False
        error = (back - original).abs()
        assert error[inner].max() < (0.06 if cutting else 1e-9)  # half a pixel at the cut
        assert error[seen].max() < 0.1


def test_nearest_keeps_values_and_any_dtype() -> None:
    transform = ViewTransform((31, 47), (28, 42), (42 / 47, 28 / 31))
    labels = torch.randint(0, 5, (2, 28, 42))
    back = transform.depth_to_original(labels, mode="nearest")
    assert (back.shape, back.dtype) == ((2, 31, 47), labels.dtype)
    mask = torch.rand(31, 47) > 0.5
    assert transform.depth_from_original(mask, mode="nearest").dtype == torch.bool
    double = ViewTransform((5, 6), (10, 12), (2.0, 2.0))
    values = torch.rand(5, 6)
    assert torch.equal(
        double.depth_to_original(double.depth_from_original(values, mode="nearest"), mode="nearest"), values
    )


def test_identity_changes_nothing() -> None:
    transform = ViewTransform.identity((28, 42))
    depth, coords = torch.rand(28, 42), torch.rand(5, 2)
    assert torch.equal(transform.depth_to_original(depth), depth)
    assert torch.equal(transform.to_original(coords), coords)
    assert transform.mask.all()


def test_dict_round_trip() -> None:
    transform = _random_transform(np.random.default_rng())
    assert ViewTransform.from_dict(json.loads(json.dumps(transform.to_dict()))) == transform


def test_errors() -> None:
    transform = ViewTransform((20, 30), (28, 42), (1.4, 1.4))
    with pytest.raises(ValueError, match=r"coords_px must have shape \(..., 2\), got \(4, 3\)"):
        transform.to_original(torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"intrinsics must have shape \(..., 3, 3\), got \(3, 4\)"):
        transform.intrinsics_to_original(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"depth must have shape \(..., 28, 42\), got \(20, 30\)"):
        transform.depth_to_original(torch.zeros(20, 30))
    with pytest.raises(ValueError, match=r"depth must have shape \(..., 20, 30\), got \(28, 42\)"):
        transform.depth_from_original(torch.zeros(28, 42))
    with pytest.raises(ValueError, match="mode must be one of 'bilinear', 'nearest', got 'cubic'"):
        transform.depth_to_original(torch.zeros(28, 42), mode="cubic")
    with pytest.raises(ValueError, match=r"depth must be floating point for mode 'bilinear', got torch.bool"):
        transform.depth_to_original(torch.zeros(28, 42, dtype=torch.bool))
    with pytest.raises(ValueError, match="scale must be positive, got 0"):
        ViewTransform((20, 30), (28, 42), (0.0, 1.0))


def test_points_lie_inside_up_to_half_a_pixel_beyond_centres() -> None:
    coords = torch.tensor([[-0.5, -0.5], [9.5, 4.5], [9.6, 0], [0, 4.6], [-0.6, 0], [torch.nan, 0], [0, torch.nan]])
    assert lies_inside(coords, (5, 10)).tolist() == [True, True, False, False, False, False, False]
