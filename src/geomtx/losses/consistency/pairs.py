"""Which views are compared with which, and means over such pairs."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_mask, check_option, check_positive, check_shape
from geomtx.losses.reduce import masked_mean, select
from geomtx.types import Bool, Cameras, Int, show_shapes

__all__ = ["ViewPairs", "check_cameras", "check_pairs", "choose_cameras", "draw_pairs", "mean_over_pairs"]


@show_shapes
class ViewPairs(NamedTuple):
    """K other views for each of S views, the same in all scenes of a batch.

    Attributes:
        sources: (S, K) integers: row i holds the views that view i is compared with.
        frozen: (S, K) bool, True = the pair's second depth map gets no gradient. Depth maps that only agree with each
            other would be pulled towards a plane; one that stands still is an anchor. None = none.
    """

    sources: Int[Tensor, "s k"]
    frozen: Bool[Tensor, "s k"] | None = None


def draw_pairs(
    num_views: int, num_sources: int = 2, *, freeze: float = 0.5, generator: torch.Generator | None = None
) -> ViewPairs:
    """Compare every view with a few others at random.

    Args:
        num_views: S.
        num_sources: K, distinct and never the view itself; with fewer other views, all of them.
        freeze: Probability of a pair to be `frozen`, in [0, 1].
        generator: Where the numbers come from, and the device that the pairs are on; None = torch's own, on the CPU.

    Raises:
        ValueError: If `num_views` or `num_sources` is not positive, or `freeze` no probability.
    """
    check_positive("num_views", num_views)
    check_positive("num_sources", num_sources)
    if not 0 <= freeze <= 1:
        raise ValueError(f"freeze must be a probability, got {freeze}")
    device = None if generator is None else generator.device
    order = torch.rand(num_views, num_views, generator=generator, device=device).fill_diagonal_(-1.0)
    sources = order.topk(min(num_sources, num_views - 1), dim=1).indices
    return ViewPairs(sources, torch.rand(sources.shape, generator=generator, device=device) < freeze)


def choose_cameras(predicted: Cameras, true: Cameras, *, geometry: Literal["pred", "mixed", "gt"] = "pred") -> Cameras:
    """Cameras for a cross-view loss on predicted depth.

    Args:
        predicted: Of a model.
        true: In the same world and unit.
        geometry: "pred": depth, poses and intrinsics are pulled together. "mixed": predicted poses, true intrinsics.
            "gt": the loss reaches depth alone.

    Raises:
        ValueError: For another `geometry`.
    """
    check_option("geometry", geometry, ("pred", "mixed", "gt"))
    if geometry == "mixed":
        return Cameras(predicted.cam_from_world, true.intrinsics)
    return predicted if geometry == "pred" else true


def check_cameras(cameras: Cameras, camera_mask: Tensor | None, views: tuple[int, int]) -> None:
    """Require the cameras of (B, S) views."""
    check_shape("cameras.cam_from_world", cameras.cam_from_world, (*views, 3, 4))
    check_shape("cameras.intrinsics", cameras.intrinsics, (*views, 3, 3))
    if camera_mask is not None:
        check_mask("camera_mask", camera_mask, views)


def check_pairs(pairs: ViewPairs, num_views: int) -> None:
    """Require pairs of S views."""
    check_shape("pairs.sources", pairs.sources, (num_views, "K"))
    if pairs.frozen is not None:
        check_mask("pairs.frozen", pairs.frozen, tuple(pairs.sources.shape))


def mean_over_pairs(errors: Tensor, valid: Tensor, min_count: int) -> Tensor:
    """Mean over the pairs that have at least `min_count` valid errors, of the mean over the valid errors of each.

    Args:
        errors: (…, M), M errors a pair.
        valid: (…, M) bool.
        min_count: At least 1.

    Returns:
        A scalar; without such a pair a zero that has a graph.
    """
    count = valid.sum(-1)
    means = select(errors, valid).sum(-1) / count.clamp(min=1)
    return masked_mean(means, count >= min_count)
