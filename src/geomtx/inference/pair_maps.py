"""Point maps of pairs of images: what a model that sees a scene as pairs predicts, and what alignment starts from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from geomtx.types import DenseMap, Int, Tokens, show_shapes

__all__ = ["PairMaps", "PairModel", "PairPrediction", "PairedView"]


@show_shapes
class PairedView(NamedTuple):
    """What a model that sees a scene as pairs predicts for one of the two images of N pairs.

    Attributes:
        points: `value` (N, H, W, 3), points in the camera of the pair's first image, OpenCV axes, and `confidence`
            (N, H, W), above 1.
        descriptors: `value` (N, H, W, D) of unit length, by which pixels of the two images are matched, and
            `confidence` (N, H, W), above 0; None for a model without.
    """

    points: DenseMap
    descriptors: DenseMap | None = None


@show_shapes
class PairPrediction(NamedTuple):
    """What a model that sees a scene as pairs predicts for N pairs of images, whose sizes may differ.

    Attributes:
        first: Prediction for the first image of each pair.
        second: Prediction for the second image of each pair; its points are in the first one's camera too.
    """

    first: PairedView
    second: PairedView


class PairModel(nn.Module):
    """Base of models that see a scene as pairs of images, which `run_pairs` and `geomtx.reconstruct` run.

    A subclass has `config` with `patch_size`, and says by two attributes what it predicts.
    """

    config: Any
    metric: bool = False
    """Whether points are in metres."""
    has_descriptors: bool = False
    """Whether predictions have descriptors, by which pixels of the two images are matched."""

    def encode(self, images: Tensor) -> Tokens:
        """Return the tokens of images in [0, 1], (N, 3, H, W), each encoded by itself: N scenes of one view."""
        raise NotImplementedError

    def decode(self, first: Tokens, second: Tokens) -> PairPrediction:
        """Return predictions for N pairs of encoded images, whose sizes may differ."""
        raise NotImplementedError


@show_shapes
class PairMaps(NamedTuple):
    """Point maps of E pairs of images, both in the camera of the pair's first image.

    Images may differ in size, and an image has the same size in all of its pairs. Tensors may have half precision, lie
    on any device, or be mapped from a file: alignment reads one pair after the other.

    Attributes:
        pairs: Indices (i, j) of the first and the second image of each pair, (E, 2) int64, from 0 to S - 1. A pair and
            its reverse are two pairs.
        points1: Points of the first image of each pair, E tensors (H_i, W_i, 3), OpenCV axes.
        points2: Points of the second image, E tensors (H_j, W_j, 3), in the camera of the first image too.
        confidence1: Confidence of the first image's points, E tensors (H_i, W_i), above 1 for most models.
        confidence2: Confidence of the second image's points, E tensors (H_j, W_j).
    """

    pairs: Int[Tensor, "e 2"]
    points1: tuple[Tensor, ...]
    points2: tuple[Tensor, ...]
    confidence1: tuple[Tensor, ...]
    confidence2: tuple[Tensor, ...]

    def side(self, index: int, side: int) -> tuple[Tensor, Tensor]:
        """Return points and confidence of the first (0) or the second (1) image of a pair."""
        if side == 0:
            return self.points1[index], self.confidence1[index]
        return self.points2[index], self.confidence2[index]

    def take(self, indices: Sequence[int]) -> PairMaps:
        """Return some of the pairs, in the order of the indices."""
        chosen = list(indices)
        maps = (tuple(each[index] for index in chosen) for each in self[1:])
        return PairMaps(self.pairs[chosen], *maps)
