"""Pixels of two photos that show the same, from what a model predicts of them as a pair."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_at_least
from geomtx.inference.pair_maps import PairModel, PairPrediction
from geomtx.inference.pairs import PairOptions, predict_pairs
from geomtx.scene.pairs.unpadded import unpad_images
from geomtx.tracking.matching import DescriptorMaps, Matches, find_reciprocal, join_passes, match_pass, pixel_grid
from geomtx.types import Float, show_shapes
from geomtx.views.for_model import load_for_model
from geomtx.views.loading import preferred_mode
from geomtx.views.views import Views

__all__ = ["PhotoMatches", "match_descriptors_of", "match_photos", "match_points_of"]

_GRID = 8  # distance of the pixels that the search starts from
_BORDER = 3  # pixels at the border of an image, where descriptors are poor
_LEAST_CONFIDENCE = 3.0  # of points, as published


@show_shapes
class PhotoMatches(NamedTuple):
    """Matches of two photos.

    Attributes:
        coords1_px: Pixels (x, y) of the first photo, (M, 2) float64, in original pixels, pixel centres at integers.
        coords2_px: Pixels of the second photo, (M, 2) float64.
        confidence: Confidence of each match, (M,), which ranks them.
    """

    coords1_px: Float[Tensor, "m 2"]
    coords2_px: Float[Tensor, "m 2"]
    confidence: Float[Tensor, " m"]


def match_photos(
    model: PairModel,
    views: Views | Tensor | Iterable[str | os.PathLike[str]],
    *,
    min_confidence: float | None = None,
    options: PairOptions | None = None,
) -> PhotoMatches:
    """Return pixels of two photos that show the same, by both of their pairs.

    By descriptors where the model has them (MASt3R): mutual nearest neighbours that the search from a grid of pixels
    comes to, without those within 3 pixels of an image's border. Else by points (DUSt3R): mutual nearest neighbours in
    space, among pixels that both photos are sure of.

    Args:
        model: Model that sees pairs, in evaluation mode.
        views: Two photos, in any form that `geomtx.reconstruct` takes. Masked pixels match nothing.
        min_confidence: Confidence that both pixels must be above; defaults to 0 for descriptors and 3, the published
            value, for points.
        options: Options of the run.

    Raises:
        ValueError: For a model that sees all views at once, other than two views, and a `min_confidence` below 0.
    """
    if not isinstance(model, PairModel):
        raise ValueError(f"model must be one that sees pairs, such as a MASt3R, got a {type(model).__name__}")
    config = model.config
    views = load_for_model(views, config.patch_size, getattr(config, "image_size", None), preferred_mode(config))
    if len(views) != 2:
        raise ValueError(f"views must be two photos to be matched, got {len(views)}")
    least = min_confidence if min_confidence is not None else 0.0 if model.has_descriptors else _LEAST_CONFIDENCE
    check_at_least("min_confidence", least, 0)
    images, boxes = unpad_images(views, config.patch_size)
    find = match_descriptors_of if model.has_descriptors else match_points_of
    passes: dict[int, Matches] = {}
    for batch in predict_pairs(model, images, [(0, 1), (1, 0)], options=options):
        for row, index in enumerate(batch.indices):
            passes[index] = find(batch.prediction, row, least)
    back = passes[1]
    found = join_passes([passes[0], Matches(back.coords2_px, back.coords1_px, back.confidence)])
    kept = torch.ones(len(found.confidence), dtype=torch.bool)
    border = _BORDER if model.has_descriptors else 0
    original = []
    for index, (top, bottom, left, right) in enumerate(boxes):
        coords = found[index]
        size = coords.new_tensor([right - left, bottom - top])
        kept &= ((coords >= border) & (coords < size - border)).all(1)
        coords = coords + coords.new_tensor([left, top])
        kept &= views.masks[index].cpu()[coords[:, 1], coords[:, 0]]
        original.append(views.transforms[index].to_original(coords.double()))
    return PhotoMatches(original[0][kept], original[1][kept], found.confidence[kept])


def match_descriptors_of(prediction: PairPrediction, row: int, min_confidence: float = 0.0) -> Matches:
    """Return the matches of a pair by its descriptors, on the CPU; the confidence is the geometric mean of both pixels.

    Args:
        prediction: Prediction of pairs, with descriptors.
        row: Index of the pair in it.
        min_confidence: Confidence that both pixels must be above; defaults to all.
    """
    first, second = (view.descriptors for view in prediction)
    assert first is not None
    assert second is not None
    found = match_pass(
        DescriptorMaps(first.value[row], second.value[row], first.confidence[row], second.confidence[row]),
        subsample=_GRID,
    )
    if min_confidence > 0:
        (x1, y1), (x2, y2) = found.coords1_px.unbind(1), found.coords2_px.unbind(1)
        sure = (first.confidence[row][y1, x1] > min_confidence) & (second.confidence[row][y2, x2] > min_confidence)
        found = Matches(*(each[sure] for each in found))
    return Matches(*(each.cpu() for each in found))


def match_points_of(prediction: PairPrediction, row: int, min_confidence: float) -> Matches:
    """Return the matches of a pair by its points, on the CPU: mutual nearest neighbours in space.

    They are those that a search from a grid of pixels comes to, in float64. The confidence is the geometric mean of
    both pixels.

    Args:
        prediction: Prediction of pairs.
        row: Index of the pair in it.
        min_confidence: Confidence that both pixels must be above.
    """
    flat, pixels, starts = [], [], []
    for view in prediction:
        points = view.points.value[row].detach().cpu().double()
        confidence = view.points.confidence[row].detach().cpu().float()
        sure = (confidence > min_confidence) & points.isfinite().all(-1)
        place = sure.flatten().cumsum(0) - 1
        grid = pixel_grid(points, _GRID)
        starts.append(place[grid[sure.flatten()[grid]]])
        y, x = sure.nonzero().unbind(1)
        pixels.append(torch.stack([x, y], dim=-1))
        flat.append((points[sure], confidence[sure]))
    (points1, sure1), (points2, sure2) = flat
    if not len(points1) or not len(points2):
        none = torch.zeros(0, 2, dtype=torch.long)
        return Matches(none, none, torch.zeros(0))
    forth = find_reciprocal(points1, points2, starts[0], by_distance=True)
    back = find_reciprocal(points2, points1, starts[1], by_distance=True)
    first, second = torch.cat([forth[0], back[1]]), torch.cat([forth[1], back[0]])
    return join_passes([Matches(pixels[0][first], pixels[1][second], (sure1[first] * sure2[second]).sqrt())])
