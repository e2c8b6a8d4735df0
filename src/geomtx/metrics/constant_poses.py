"""The relative pose that agrees with most of many."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from geomtx.geometry.camera import compose_rigid, invert_rigid
from geomtx.metrics.pose import pose_auc, pose_recall
from geomtx.types import SceneBatch

__all__ = ["best_direction", "known_cameras", "relative_poses"]

_NUM_DIRECTIONS = 1000  # tried, over half a sphere: 3 degrees apart


def relative_poses(batch: SceneBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Of all pairs of known cameras: angle of the rotation, degrees, translation (P, 3), is it one with view 0?"""
    assert batch.cameras is not None
    cameras, mask = batch.cameras.cam_from_world.double().cpu(), known_cameras(batch).cpu()
    i, j = torch.triu_indices(cameras.shape[1], cameras.shape[1], offset=1)
    relative = compose_rigid(cameras[:, i], invert_rigid(cameras[:, j]))
    cosine = (relative[..., :3].diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    both = mask[:, i] & mask[:, j] & (relative[..., 3].norm(dim=-1) > 0)
    angle = torch.acos(cosine.clamp(-1, 1)).rad2deg()
    return angle[both], relative[..., 3][both], (i == 0).expand_as(both)[both]


def best_direction(rotations_deg: Tensor, translations: Tensor, aim: str) -> Tensor:
    """The direction (3,) that is best for pairs whose rotation is guessed with these errors.

    Args:
        rotations_deg: (P,).
        translations: (P, 3).
        aim: "auc", the AUC@30 of the larger error, or "rta", the share of directions within 30 degrees.
    """
    directions = _half_sphere(_NUM_DIRECTIONS)
    cosine = directions @ torch.nn.functional.normalize(translations, dim=-1).mT
    errors = torch.acos(cosine.abs().clamp(max=1)).rad2deg()
    recall = pose_recall(errors, (30,))[:, 0]
    # Where no guess is near enough for an AUC, the directions alone decide.
    score = recall if aim == "rta" else pose_auc(torch.maximum(errors, rotations_deg), (30,))[:, 0] + 1e-6 * recall
    return directions[score.nan_to_num().argmax()]


def known_cameras(batch: SceneBatch) -> Tensor:
    """(B, S) bool."""
    if batch.camera_mask is not None:
        return batch.camera_mask
    return torch.ones(batch.images.shape[:2], dtype=torch.bool, device=batch.images.device)


def _half_sphere(count: int) -> Tensor:
    """(count, 3) directions, evenly spread (a Fibonacci lattice); x comes first, as most cameras move sideways."""
    index = torch.arange(count, dtype=torch.float64)
    x = 1 - index / count
    radius, angle = (1 - x.square()).sqrt(), index * math.pi * (3 - math.sqrt(5))
    return torch.stack([x, radius * angle.cos(), radius * angle.sin()], dim=-1)
