"""Geometry in half precision and under autocast: computed, and given back, in float32 or better."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

import geomtx.geometry
from geometry.random_cameras import random_intrinsics, random_rigid, random_rotations
from geomtx.geometry import (
    BundleOptions,
    BundleProblem,
    activate_pose,
    adjust_bundle,
    apply_similarity,
    cameras_from_rays,
    compose_rigid,
    decode_pose,
    depth_edges,
    encode_pose,
    fit_camera_similarity,
    fit_focal,
    fit_intrinsics,
    fit_pose,
    fit_similarity,
    fov_to_intrinsics,
    from_colmap,
    from_kornia,
    from_nerfstudio,
    from_opengl,
    fundamental_matrix,
    intrinsics_to_fov,
    invert_rigid,
    matrix_to_quat,
    nearest_rotation,
    normalize_scene,
    plucker_rays,
    project,
    quat_to_matrix,
    relate_cameras,
    robust_loss,
    rotation_angle,
    sampson_distance,
    shift_pixel_center,
    to_colmap,
    to_kornia,
    to_nerfstudio,
    to_opengl,
    transform_points,
    unproject,
)
from geomtx.layers.position import fourier_features, sample_grid_signal, sincos
from geomtx.losses import ViewPairs
from geomtx.losses.consistency.warp import sample_maps, warp_pixels
from geomtx.metrics import point_map_normals, scale_to_raster
from geomtx.tracking import local_queries, sample_map, sample_views, support_queries
from geomtx.types import Cameras, SceneBatch

HALF = (torch.float16, torch.bfloat16)
B, N, HW = 3, 40, (36, 518)  # wide enough that bfloat16 can't count its columns


def rand(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64)


def ahead(*shape: int) -> Tensor:
    """Points in front of a camera at the origin."""
    return torch.cat([rand(*shape, 2) - 0.5, 2 + rand(*shape, 1)], dim=-1)


def near_rigid(*shape: int) -> Tensor:
    """Cameras that look the same way from places a little apart."""
    pose = torch.eye(3, 4, dtype=torch.float64).repeat(*shape, 1, 1)
    pose[..., 3] = (rand(*shape, 3) - 0.5) / 4
    return pose


def cameras(*shape: int) -> Cameras:
    return Cameras(near_rigid(*shape), random_intrinsics(*shape))


def rays(*shape: int) -> Tensor:
    """Rays of cameras with different places and fields of view, (*shape, 12, 18, 6)."""
    origins, directions = 4 * rand(*shape, 1, 1, 3).expand(*shape, 12, 18, 3), torch.ones(*shape, 12, 18, 3)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 12), torch.linspace(-1, 1, 18), indexing="ij")
    directions[..., :2] = torch.stack([x, y], dim=-1) * (0.3 + rand(*shape, 1, 1, 2))
    return torch.cat([directions.double(), origins], dim=-1)


def pixels(*shape: int) -> Tensor:
    return rand(*shape, 2) * torch.tensor([HW[1] - 1, HW[0] - 1])


def queries() -> Tensor:
    return torch.cat([torch.ones(B, N, 1, dtype=torch.float64), pixels(B, N)], dim=-1)


def scene() -> SceneBatch:
    return SceneBatch(rand(B, 2, 3, 4, 6), cameras(B, 2), depth=1 + rand(B, 2, 4, 6))


def bundle() -> tuple[BundleProblem, BundleOptions]:
    """Two views of all points, with strong damping, as two views determine little."""
    view, point = torch.meshgrid(torch.arange(2), torch.arange(N), indexing="ij")
    points, views = ahead(B, N), cameras(B, 2)
    coords, _ = project(points[:, None], views.intrinsics, views.cam_from_world)
    observed = coords.flatten(1, 2) + rand(B, 2 * N, 2)
    index = (each.flatten().repeat(B, 1) for each in (view, point))
    return BundleProblem(views, points, *index, observed, rand(B, 2 * N)), BundleOptions(damping=1.0, fixed_steps=1)


def sine_signal(positions: Tensor) -> Tensor:
    return sincos(positions, 8, base=100.0)


def sampled_signal(coords: Tensor) -> Tensor:
    return sample_grid_signal(coords, HW, 8, base=100.0)


PAIRS = ViewPairs(torch.tensor([[1], [0]]))


def fitted_points(num: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points before a camera at the origin, where it sees them, and its focal length among others."""
    points = rand(num, 3) + torch.tensor([-0.5, -0.5, 2.0]).double()
    return points, 60 * points[:, :2] / points[:, 2:], torch.tensor([30.0, 60.0, 90.0]).double()


# Each with arguments in float64; rounded to half precision, they are arguments of their own.
GEOMETRY: dict[Callable, Callable[[], tuple]] = {
    adjust_bundle: bundle,
    apply_similarity: lambda: (fit_similarity(rand(B, N, 3), rand(B, N, 3)), rand(B, N, 3)),
    from_colmap: lambda: (rand(B, 4) + 0.1, rand(B, 3), random_intrinsics(B)),
    from_kornia: lambda: to_kornia(random_rigid(B), random_intrinsics(B)),
    from_nerfstudio: lambda: (to_nerfstudio(random_rigid(B)),),
    from_opengl: lambda: (to_opengl(random_rigid(B)),),
    shift_pixel_center: lambda: (random_intrinsics(B), 0.5),
    to_colmap: lambda: (random_rigid(B), random_intrinsics(B)),
    to_kornia: lambda: (random_rigid(B), random_intrinsics(B)),
    to_nerfstudio: lambda: (random_rigid(B),),
    to_opengl: lambda: (random_rigid(B),),
    cameras_from_rays: lambda: (rays(B, 2), 1 + rand(B, 2, 12, 18), HW),
    compose_rigid: lambda: (random_rigid(B), random_rigid(B)),
    depth_edges: lambda: (1 + rand(B, *HW), random_intrinsics(B)),
    decode_pose: lambda: (torch.cat([rand(B, 3), 300 * (rand(B, 4) - 0.5), 0.2 + rand(B, 2)], dim=-1), HW),
    encode_pose: lambda: (random_rigid(B), random_intrinsics(B), HW),
    fit_camera_similarity: lambda: (random_rigid(B, N), random_rigid(B, N)),
    fit_similarity: lambda: (rand(B, N, 3), rand(B, N, 3), rand(B, N)),
    fit_focal: lambda: (ahead(B, *HW),),
    fit_pose: lambda: fitted_points(24),
    fit_intrinsics: lambda: (rand(B, 36, 64, 2) - 0.5,),
    fov_to_intrinsics: lambda: (0.1 + rand(B, 2), HW),
    fundamental_matrix: lambda: (random_intrinsics(B), random_intrinsics(B), random_rigid(B)),
    intrinsics_to_fov: lambda: (random_intrinsics(B), HW),
    invert_rigid: lambda: (random_rigid(B),),
    matrix_to_quat: lambda: (random_rotations(B),),
    nearest_rotation: lambda: (random_rotations(B),),
    normalize_scene: lambda: (scene(),),
    plucker_rays: lambda: (random_rigid(B), random_intrinsics(B), HW),
    project: lambda: (ahead(B, N), random_intrinsics(B), near_rigid(B)),
    quat_to_matrix: lambda: (300 * (rand(B, 4) - 0.5),),
    relate_cameras: lambda: (cameras(B, 2), cameras(B, 1)),
    robust_loss: lambda: (9 * rand(N), "huber", 1.0),
    rotation_angle: lambda: (random_rotations(B), random_rotations(B)),
    sampson_distance: lambda: (pixels(B, N), pixels(B, N), rand(B, 3, 3) - 0.5),
    transform_points: lambda: (random_rigid(B), rand(B, N, 3)),
    unproject: lambda: (1 + rand(B, *HW), random_intrinsics(B), random_rigid(B)),
}
# What makes grids of pixels elsewhere, or measures in them.
ELSEWHERE: dict[Callable, Callable[[], tuple]] = {
    fourier_features: lambda: (pixels(N), 8),
    local_queries: lambda: (queries(), HW, 3),
    point_map_normals: lambda: (ahead(6, 7),),
    sampled_signal: lambda: (pixels(N),),
    sample_map: lambda: (rand(B, 2, *HW), pixels(B, 4, 5)),
    sample_maps: lambda: (rand(B, 2, *HW), pixels(B, 4, 5)),
    sample_views: lambda: (rand(B, 2, 4, *HW), torch.ones(B, N, dtype=torch.long), pixels(B, N)),
    scale_to_raster: lambda: (pixels(N), HW),
    sine_signal: lambda: (300 * rand(N),),
    support_queries: lambda: (queries(), HW, 5),
    warp_pixels: lambda: (4 + rand(B, 2, *HW) / 8, cameras(B, 2), PAIRS),
}
ALL = GEOMETRY | ELSEWHERE


def convert(arguments: object, dtype: torch.dtype) -> object:
    return tree_map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, arguments)


def values(result: object) -> list[Tensor]:
    if isinstance(result, tuple) and isinstance(result[0], SceneBatch):
        result = result[0]._replace(images=None), result[1]  # pictures stay as they are
    return [x for x in tree_flatten(result)[0] if isinstance(x, Tensor) and x.is_floating_point()]


def assert_equal_to_rounding(got: object, want: object) -> None:
    for ours, exact in zip(values(got), values(want), strict=True):
        assert ours.dtype == torch.float32
        # Of the largest, which is what rounding within a product or a sum is relative to.
        error = (ours.double() - exact).abs().amax() / exact.abs().amax().clamp(min=1e-3)
        assert error < 2e-5


def test_every_function_of_geometry_is_here():
    functions = {getattr(geomtx.geometry, name) for name in geomtx.geometry.__all__}
    functions = {function for function in functions if not isinstance(function, type) and callable(function)}
    assert {f for f in functions if hasattr(f, "__wrapped__") or f.__module__.startswith("geomtx")} - {
        activate_pose
    } == GEOMETRY.keys()


@pytest.mark.parametrize("function", ALL, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_computed_in_float32(function, dtype):
    arguments = convert(ALL[function](), dtype)
    assert_equal_to_rounding(function(*arguments), function(*convert(arguments, torch.float64)))


@pytest.mark.parametrize("function", ALL, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", HALF)
def test_autocast_changes_nothing(function, dtype):
    arguments = convert(ALL[function](), torch.float32)
    want = values(function(*arguments))
    with torch.autocast("cpu", dtype=dtype):
        got = values(function(*arguments))
    assert all(torch.equal(ours, plain) for ours, plain in zip(got, want, strict=True))


@pytest.mark.parametrize("function", [f for f in ALL if f is not normalize_scene], ids=lambda f: f.__name__)
def test_arguments_of_different_precisions_meet_in_the_widest(function):
    arguments = ALL[function]()
    first = next(i for i, x in enumerate(arguments) if values(x))
    mixed = (*arguments[:first], convert(arguments[first], torch.bfloat16), *arguments[first + 1 :])
    want = function(*convert(mixed, torch.float64))
    alone = not any(values(x) for x in arguments[first + 1 :])
    for ours, exact in zip(values(function(*mixed)), values(want), strict=True):
        assert ours.dtype == (torch.float32 if alone else torch.float64)
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5 if alone else 1e-12, atol=1e-5 if alone else 0)


@pytest.mark.parametrize("function", [unproject, decode_pose, transform_points], ids=lambda f: f.__name__)
def test_gradients_arrive_in_the_precision_of_the_argument(function):
    arguments = convert(GEOMETRY[function](), torch.bfloat16)
    leaf = arguments[0].requires_grad_()
    sum(value.sum() for value in values(function(leaf, *arguments[1:]))).backward()
    assert leaf.grad.dtype == torch.bfloat16
    assert leaf.grad.isfinite().all()
    assert leaf.grad.any()


@pytest.mark.parametrize("dtype", HALF)
def test_columns_of_a_wide_picture_stay_apart(dtype):
    """Every column of a map at depth 1 is at (column - c) / f."""
    intrinsics = torch.tensor([[512.0, 0, 256], [0, 512, 256], [0, 0, 1]])
    points = unproject(torch.ones(2, 2000, dtype=dtype), intrinsics.to(dtype))
    assert torch.equal(points[0, :, 0], (torch.arange(2000) - 256) / 512)


def test_activation_rounds_nothing():
    encoding = torch.randn(4, 9).half()
    activated = activate_pose(encoding)
    assert activated.dtype == torch.float16
    assert torch.equal(activated[:, :7], encoding[:, :7])
