"""The equations of a step of bundle adjustment: residuals, their derivatives, and the Schur complement over points.

All functions work on the rows of observations of `geomtx.geometry.bundle_layout`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.geometry.bundle_layout import ROW, Layout
from geomtx.geometry.robust import RobustLoss, robust_loss
from geomtx.geometry.rotation import quat_to_matrix
from geomtx.types import show_shapes

__all__ = [
    "BundleState",
    "Equations",
    "Residuals",
    "Step",
    "add_center_priors",
    "center_residuals",
    "linearize",
    "residuals",
    "solve",
]


@show_shapes
class BundleState(NamedTuple):
    """What a step of bundle adjustment changes, for V = B·S views and B·N points of all scenes.

    Attributes:
        rotation: Rotations R of x_cam = R x + t, (V, 3, 3).
        translation: Translations t, (V, 3).
        focal: Focal lengths (x, y) of each group of views in pixels, (G, 2).
        points: Points, (B·N, 3).
    """

    rotation: Tensor
    translation: Tensor
    focal: Tensor
    points: Tensor


@show_shapes
class Residuals(NamedTuple):
    """Projections of the points and their costs.

    Attributes:
        turned: Points turned into the camera's axes, R x, (T, 3, L).
        rays: x / z and y / z, (T, 2, L).
        inverse_depth: 1 / z, (T, L).
        residual: Projection less observation in pixels, (T, 2, L).
        weight: Weights of the squared residuals in the equations, (T, L): those given times ρ'.
        cost: Half the weighted sum of ρ of each scene, (B,); infinite where a point went behind a camera that sees it.
    """

    turned: Tensor
    rays: Tensor
    inverse_depth: Tensor
    residual: Tensor
    weight: Tensor
    cost: Tensor


@show_shapes
class Equations(NamedTuple):
    """Blocks of the normal equations (JᵀWJ) δ = -JᵀWr, for steps δ of the cameras' parameters and of the points.

    Attributes:
        cameras: Derivatives of the residuals by the A parameters of a view, (T, A, 2, L).
        points: Weighted derivatives by the point, (T, 3, 2, L).
        camera_block: JᵀWJ of the cameras, (B, P, P).
        camera_side: -JᵀWr of the cameras, (B, P).
        point_block: JᵀWJ of each point, the entries 00, 01, 11, 02, 12, 22, (6, B·N).
        point_side: -JᵀWr of each point, (3, B·N).
    """

    cameras: Tensor
    points: Tensor
    camera_block: Tensor
    camera_side: Tensor
    point_block: Tensor
    point_side: Tensor


@show_shapes
class Step(NamedTuple):
    """A step and what it promises.

    Attributes:
        state: State after the step.
        decrease: Decrease of the cost that the linear model predicts, (B,).
    """

    state: BundleState
    decrease: Tensor


def residuals(layout: Layout, state: BundleState, loss: tuple[RobustLoss, float]) -> Residuals:
    """Project the points, and compare them with the observations.

    Args:
        layout: Layout of the problem.
        state: Cameras and points.
        loss: Name and scale of the robust loss.
    """
    points = state.points.index_select(0, layout.point).unflatten(0, (-1, ROW))
    turned = state.rotation[layout.view] @ points.mT
    in_camera = turned + state.translation[layout.view][..., None]
    depth, counts = in_camera[:, 2], layout.weight > 0
    behind = (depth <= 0) & counts
    inverse_depth = 1 / torch.where(depth > 0, depth, 1.0)
    rays = in_camera[:, :2] * inverse_depth[:, None]
    focal = state.focal[layout.group[layout.view]]
    residual = rays * focal[..., None] - layout.coords_px
    rho, slope = robust_loss(residual.square().sum(1), *loss)
    cost = 0.5 * _sum_scenes(layout, (layout.weight * rho).sum(1))
    lost = _sum_scenes(layout, behind.sum(1).to(cost.dtype))
    return Residuals(
        turned, rays, inverse_depth, residual, layout.weight * slope, torch.where(lost > 0, torch.inf, cost)
    )


def _sum_scenes(layout: Layout, rows: Tensor) -> Tensor:
    return rows.new_zeros(layout.sizes[0]).index_add(0, layout.scene, rows)


def linearize(layout: Layout, state: BundleState, at: Residuals) -> Equations:
    """Return the blocks of the normal equations.

    A rotation changes to exp(ω) R, its translation to t + τ.

    Args:
        layout: Layout of the problem.
        state: Cameras and points.
        at: Their residuals.
    """
    cameras = _differentiate(layout, state, at)
    points = state.rotation[layout.view].mT @ cameras[:, 3:6].flatten(2)
    points = points.unflatten(2, (2, ROW))
    weight, weighted = at.weight[:, None, None], at.residual * at.weight[:, None]
    weighted_points = points * weight
    rows, side = cameras.flatten(2), weighted.flatten(1)[..., None]
    blocks = (cameras * weight).flatten(2) @ rows.mT
    num_points = len(state.points)

    def sum_points(values: Tensor) -> Tensor:
        return values.new_zeros(num_points).index_add(0, layout.point, values.sum(1).flatten())

    pairs = ((0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 2))
    num_scenes, _, _, num_parameters = layout.sizes
    # Each view's block goes to the places of its parameters.
    scene_row = layout.block[..., :, None] * num_parameters
    column = (layout.block % num_parameters)[..., None, :]
    by_view = _sum_views(layout, blocks)
    block = by_view.new_zeros(num_scenes * num_parameters**2)
    block = block.index_add(0, (scene_row + column).flatten(), by_view.flatten())
    camera_side = _sum_views(layout, -(rows @ side).squeeze(-1))
    return Equations(
        cameras,
        weighted_points,
        block.unflatten(0, (num_scenes, num_parameters, num_parameters)),
        _to_parameters(layout, camera_side),
        torch.stack([sum_points(weighted_points[:, i] * points[:, j]) for i, j in pairs]),
        -torch.stack([sum_points(weighted_points[:, i] * at.residual) for i in range(3)]),
    )


def _differentiate(layout: Layout, state: BundleState, at: Residuals) -> Tensor:
    """Return the derivatives of the residuals by rotation, translation and, where they change, focal lengths."""
    focal = state.focal[layout.group[layout.view]]
    slope = focal[..., None] * at.inverse_depth[:, None]
    across, down = slope.unbind(1)
    along, below = (-slope * at.rays).unbind(1)  # of x and of y by z
    x, y, z = at.turned.unbind(1)
    none = torch.zeros_like(across)
    rows = [
        *(along * y, down.neg() * z + below * y),
        *(across * z - along * x, below.neg() * x),
        *(across.neg() * y, down * x),
        *(across, none, none, down, along, below),
    ]
    if layout.block.shape[1] == 8:
        rows += [at.rays[:, 0], none, none, at.rays[:, 1]]
    return torch.stack(rows, dim=1).unflatten(1, (-1, 2))


def _sum_views(layout: Layout, rows: Tensor) -> Tensor:
    return rows.new_zeros(len(layout.group), *rows.shape[1:]).index_add(0, layout.view, rows)


def _to_parameters(layout: Layout, values: Tensor) -> Tensor:
    """Add up numbers (V, A) of the parameters of views to those of the scenes' cameras, (B, P)."""
    num_scenes, _, _, num_parameters = layout.sizes
    total = values.new_zeros(num_scenes * num_parameters)
    return total.index_add(0, layout.block.flatten(), values.flatten()).unflatten(0, (num_scenes, -1))


def center_residuals(
    state: BundleState, priors: tuple[Tensor, Tensor], num_scenes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Compare the centres of cameras with known ones.

    Args:
        state: Cameras and points.
        priors: Known centres (V, 3) and the inverses of their variances (V,), 0 for unknown ones.
        num_scenes: Number of scenes.

    Returns:
        Differences (V, 3), their derivatives by rotation and translation (V, 3, 6), and the cost of each scene (B,).
    """
    known, precision = priors
    inverse = state.rotation.mT
    center = -(inverse @ state.translation[..., None]).squeeze(-1)
    difference = torch.where(precision[:, None] > 0, center - known, 0.0)
    x, y, z = state.translation.unbind(-1)
    none = torch.zeros_like(x)
    # C = -Rᵀ exp(-ω) t = C + Rᵀ (ω x t) to first order, and ω x t = -[t]ₓ ω.
    cross = torch.stack([none, -z, y, z, none, -x, -y, x, none], dim=-1).unflatten(-1, (3, 3))
    derivative = torch.cat([-inverse @ cross, -inverse], dim=-1)
    cost = 0.5 * (precision[:, None] * difference.square()).sum(-1).unflatten(0, (num_scenes, -1)).sum(-1)
    return difference, derivative, cost


def add_center_priors(
    layout: Layout, equations: Equations, precision: Tensor, priors: tuple[Tensor, Tensor, Tensor]
) -> Equations:
    """Add the equations of known centres.

    Args:
        layout: Layout of the problem.
        equations: Equations of the observations.
        precision: Inverses of the variances of the centres, (V,).
        priors: Result of `center_residuals`.
    """
    difference, derivative, _ = priors
    num_scenes, num_views, _, num_parameters = layout.sizes
    weighted = derivative * precision[:, None, None]
    blocks = (weighted.mT @ derivative).unflatten(0, (num_scenes, num_views))
    side = -(weighted.mT @ difference[..., None]).squeeze(-1)
    # Poses are the first parameters, view by view.
    poses = torch.eye(num_views, dtype=blocks.dtype, device=blocks.device)[:, None, :, None] * blocks[:, :, :, None, :]
    rest = num_parameters - 6 * num_views
    square = torch.nn.functional.pad(poses.reshape(num_scenes, 6 * num_views, 6 * num_views), (0, rest, 0, rest))
    padded = torch.nn.functional.pad(side.reshape(num_scenes, -1), (0, rest))
    return equations._replace(camera_block=equations.camera_block + square, camera_side=equations.camera_side + padded)


def solve(layout: Layout, state: BundleState, equations: Equations, damping: Tensor) -> Step:
    """Solve the damped normal equations, with the points eliminated first, and make the step.

    Args:
        layout: Layout of the problem.
        state: State that the equations are those of.
        equations: Blocks of the normal equations.
        damping: Factor λ of the diagonal that is added to them, of each scene, (B,).
    """
    num_scenes, _, num_points, _ = layout.sizes
    factor = _invert_factor(equations.point_block, damping.repeat_interleave(num_points))
    side = equations.point_side
    whitened = torch.stack([_lower(factor, side, row) for row in range(3)])
    # Derivatives by the points in coordinates in which each point's block is the identity.
    local = factor.index_select(1, layout.point).unflatten(1, (-1, 1, ROW))
    points = torch.stack([_lower(local, equations.points.unbind(1), row) for row in range(3)], dim=1)
    system, right = _eliminate(layout, equations, points, whitened)
    diagonal = equations.camera_block.diagonal(dim1=1, dim2=2)
    added = damping[:, None] * torch.where(diagonal > 0, diagonal, 1.0)
    free = layout.free * (diagonal > 0)
    system = (system + torch.diag_embed(added)) * free[:, :, None] * free[:, None, :] + torch.diag_embed(1 - free)
    factored, _ = torch.linalg.cholesky_ex(system)
    cameras = torch.cholesky_solve((right * free)[..., None], factored).squeeze(-1)
    by_view = cameras.flatten()[layout.block]
    moved = (by_view[layout.view][:, None] @ equations.cameras.flatten(2)).unflatten(2, (2, ROW))
    products = (points * moved).sum(2)
    rows = [side.new_zeros(side.shape[1]).index_add(0, layout.point, products[:, i].flatten()) for i in range(3)]
    step = _upper(factor, whitened - torch.stack(rows))
    linear = (equations.camera_side * cameras).sum(1) + _sum_points(side * step, num_scenes)
    point_diagonal = equations.point_block[[0, 2, 5]]
    damped = (added * cameras.square()).sum(1)
    damped = damped + damping * _sum_points(point_diagonal * step.square(), num_scenes)
    return Step(_move(layout, state, by_view, step), 0.5 * (linear + damped))


def _sum_points(values: Tensor, num_scenes: int) -> Tensor:
    return values.sum(0).unflatten(0, (num_scenes, -1)).sum(1)


def _eliminate(layout: Layout, equations: Equations, points: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Schur complement and its right side: a product of one large matrix, or of a few, with itself."""
    num_scenes, _, _, num_parameters = layout.sizes
    system, right = equations.camera_block, equations.camera_side
    side = side.unflatten(1, (num_scenes, -1)).movedim(1, 0)
    for (first, last, start, count), place in zip(layout.chunks, layout.scatter, strict=True):
        across, down = equations.cameras[first:last, :, None].unbind(3)
        products = torch.addcmul(across * points[first:last, None, :, 0], down, points[first:last, None, :, 1])
        matrix = products.new_zeros(num_scenes * num_parameters * 3 * count)
        matrix = matrix.index_add_(0, place.flatten(), products.flatten()).view(num_scenes, num_parameters, -1)
        system = system - matrix @ matrix.mT
        right = right - (matrix @ side[:, :, start : start + count].flatten(1)[..., None]).squeeze(-1)
    return system, right


def _invert_factor(block: Tensor, damping: Tensor) -> Tensor:
    """Return the inverse of the Cholesky factor of damped 3x3 blocks, the entries 00, 10, 11, 20, 21, 22, (6, N)."""
    diagonal = block[[0, 2, 5]]
    # A point without observations has a block of zeros, and does not move.
    diagonal = torch.where(diagonal > 0, diagonal * (1 + damping), 1.0)
    a, b, c = diagonal.unbind()
    _, ab, _, ac, bc, _ = block.unbind()
    tiny = torch.finfo(block.dtype).eps
    first = a.rsqrt()
    low, lowest = ab * first, ac * first
    second = torch.maximum(b - low * low, tiny * b).rsqrt()
    middle = (bc - low * lowest) * second
    third = torch.maximum(c - lowest * lowest - middle * middle, tiny * c).rsqrt()
    below = -second * low * first
    corner = -third * (lowest * first + middle * below)
    return torch.stack([first, below, second, corner, -third * middle * second, third])


def _lower(factor: Tensor, values: tuple[Tensor, ...] | Tensor, row: int) -> Tensor:
    """Return one row of the product of lower triangular matrices and vectors."""
    start = row * (row + 1) // 2
    result = factor[start] * values[0]
    for column in range(1, row + 1):
        result = torch.addcmul(result, factor[start + column], values[column])
    return result


def _upper(factor: Tensor, values: Tensor) -> Tensor:
    """Return the products of the transposed matrices and vectors (3, N)."""
    first, below, second, corner, beside, third = factor
    x, y, z = values
    return torch.stack([first * x + below * y + corner * z, second * y + beside * z, third * z])


def _move(layout: Layout, state: BundleState, cameras: Tensor, points: Tensor) -> BundleState:
    """Make a step of the cameras' parameters (V, A) and of the points (3, B·N)."""
    turn, shift = cameras[:, :3], cameras[:, 3:6]
    # The rotation of the quaternion (ω / 2, 1) is exp(ω) to second order, and has a derivative everywhere.
    rotation = quat_to_matrix(torch.cat([turn / 2, torch.ones_like(turn[:, :1])], dim=1)) @ state.rotation
    focal = state.focal
    if cameras.shape[1] == 8:
        # All views of a group have the same step.
        first = torch.zeros(len(focal), dtype=torch.long, device=focal.device)
        first = first.scatter_(0, layout.group, torch.arange(len(layout.group), device=focal.device))
        focal = focal + cameras[first, 6:]
    return BundleState(rotation, state.translation + shift, focal, state.points + points.mT)
