"""Pairs of views for cross-view losses, and means over the pairs."""

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
        sources: Indices of views, (S, K): row i holds the views that view i is compared with.
        frozen: Whether the second depth map of a pair gets no gradient, (S, K) bool. Depth maps that only have to agree
            with each other tend towards a plane; a constant one is an anchor. Defaults to none.
    """

    sources: Int[Tensor, "s k"]
    frozen: Bool[Tensor, "s k"] | None = None


def draw_pairs(
    num_views: int, num_sources: int = 2, *, freeze: float = 0.5, generator: torch.Generator | None = None
) -> ViewPairs:
    """Draw a few other views at random for every view.

    Args:
        num_views: Number S of views, positive.
        num_sources: Number K of distinct other views for each view, positive; with fewer other views, all of them.
            Defaults to 2.
        freeze: Probability that a pair is `frozen`, in [0, 1]. Defaults to 0.5.
        generator: Random generator, whose device the pairs are on. Defaults to torch's global one, on the CPU.

    Returns:
        `ViewPairs` of (S, K) sources, which are the same in all scenes of a batch.

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
    """Choose between predicted and true cameras for a cross-view loss on predicted depth.

    Args:
        predicted: Predicted cameras.
        true: True cameras in the same world frame and unit.
        geometry: "pred" for predicted cameras, so that gradients flow to depth, poses and intrinsics; "mixed" for
            predicted poses and true intrinsics; "gt" for true cameras, so that gradients flow to depth only. Defaults
            to "pred".

    Returns:
        The chosen cameras.

    Raises:
        ValueError: For another `geometry`.
    """
    check_option("geometry", geometry, ("pred", "mixed", "gt"))
    if geometry == "mixed":
        return Cameras(predicted.cam_from_world, true.intrinsics)
    return predicted if geometry == "pred" else true


def check_cameras(cameras: Cameras, camera_mask: Tensor | None, views: tuple[int, int]) -> None:
    """Check that cameras and mask have the shape of (B, S) views."""
    check_shape("cameras.cam_from_world", cameras.cam_from_world, (*views, 3, 4))
    check_shape("cameras.intrinsics", cameras.intrinsics, (*views, 3, 3))
    if camera_mask is not None:
        check_mask("camera_mask", camera_mask, views)


def check_pairs(pairs: ViewPairs, num_views: int) -> None:
    """Check that the pairs are those of S views."""
    check_shape("pairs.sources", pairs.sources, (num_views, "K"))
    if pairs.frozen is not None:
        check_mask("pairs.frozen", pairs.frozen, tuple(pairs.sources.shape))


def mean_over_pairs(errors: Tensor, valid: Tensor, min_count: int) -> Tensor:
    """Return the mean over pairs of the mean over their valid errors.

    Args:
        errors: M errors of every pair, (…, M).
        valid: Whether an error counts, (…, M) bool.
        min_count: Number of valid errors, at least 1, below which a pair is left out.

    Returns:
        A scalar; a zero with a graph if no pair counts.
    """
    count = valid.sum(-1)
    means = select(errors, valid).sum(-1) / count.clamp(min=1)
    return masked_mean(means, count >= min_count)
