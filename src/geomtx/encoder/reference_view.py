"""Choosing the reference view of a scene from its class tokens (Depth Anything 3, Lin et al. 2025)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from geomtx.checks import check_option
from geomtx.layers.precision import float32_island
from geomtx.types import Bool, Float, Int

__all__ = ["REFERENCE_RULES", "ReferenceRule", "choose_reference"]

ReferenceRule = Literal["saddle_balanced", "saddle_sim_range", "first", "middle"]
"""How the reference view is chosen, see `choose_reference`."""
REFERENCE_RULES: tuple[ReferenceRule, ...] = ("saddle_balanced", "saddle_sim_range", "first", "middle")

_FEWEST_VIEWS = 3  # of fewer views the first is the reference


@float32_island
def choose_reference(
    class_tokens: Float[Tensor, "b s c"],
    rule: ReferenceRule = "saddle_balanced",
    *,
    valid: Bool[Tensor, "b s"] | None = None,
) -> Int[Tensor, " b"]:
    """Return the index of each scene's reference view, (B,).

    Args:
        class_tokens: Class token of every view, (B, S, C).
        rule: "saddle_balanced" takes the view whose mean similarity to the others, length of the class token, and
            variance of its direction are together nearest to the middle of the scene's ranges; "saddle_sim_range" that
            whose similarities to the others have the widest range; "first" the first; "middle" that with index S // 2,
            for videos. Of equal views the first. Of one or two views it is always the first.
        valid: Mask of the views that may be chosen, (B, S) bool; defaults to all.

    Raises:
        ValueError: If the rule is unknown.
    """
    check_option("rule", rule, REFERENCE_RULES)
    num_scenes, num_views = class_tokens.shape[:2]
    # As tensors, so that one exported program serves all numbers of views.
    enough = (torch.arange(num_views, device=class_tokens.device) >= _FEWEST_VIEWS - 1).any()
    if rule in ("first", "middle"):
        index = num_views // 2 if rule == "middle" else 0
        return enough * torch.full((num_scenes,), index, dtype=torch.long, device=class_tokens.device)
    directions = F.normalize(class_tokens, dim=-1)
    similarity = directions @ directions.transpose(-1, -2)
    similarity = similarity - torch.eye(num_views, dtype=similarity.dtype, device=similarity.device)
    if rule == "saddle_sim_range":
        badness = similarity.amin(dim=-1) - similarity.amax(dim=-1)
    else:
        mean = similarity.sum(dim=-1) / (num_views - 1)
        lengths = torch.linalg.vector_norm(class_tokens, dim=-1)
        features = torch.stack([mean, lengths, directions.var(dim=-1)])
        badness = (_to_unit_range(features) - 0.5).abs().sum(dim=0)
    if valid is not None:
        badness = badness.masked_fill(~valid, torch.inf)
    return enough * badness.argmin(dim=-1)


def _to_unit_range(x: Tensor) -> Tensor:
    """Scale the values of each scene's views, (..., S), to 0 … 1."""
    low, high = x.amin(dim=-1, keepdim=True), x.amax(dim=-1, keepdim=True)
    return (x - low) / (high - low + 1e-8)
