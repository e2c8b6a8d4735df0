"""Matches of pairs → points with observations, for bundle adjustment and sparse models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from geomtx.checks import check_at_least
from geomtx.scene.content import MatchedPixels, SceneContent
from geomtx.scene.observations import ObservedPoints, join_matches, merge_observations
from geomtx.scene.pairs.matches.alignment import PairMatches
from geomtx.scene.points import NoPointsError
from geomtx.scene.surfaces import find_surfaces
from geomtx.views import ViewTransform

__all__ = ["join_pairs", "observe_matches"]


def observe_matches(scene: SceneContent, matches: PairMatches, *, min_confidence: float = 0.0) -> ObservedPoints:
    """Join the matches of all pairs to points with observations, such as for `geomtx.refine` and models of COLMAP.

    Matches that have a pixel in common see one point, and points that two pixels of one photo belong to are left out.
    Points lie at the mean of what the views' own surfaces are at their observations.

    Args:
        scene: Scene of the images, with cameras, and with depth or points.
        matches: Matches of pairs of its images, in pixels of the images that the model saw.
        min_confidence: Least confidence of a match that counts; defaults to all.

    Raises:
        ValueError: If the scene lacks cameras, or depth and points, a pair names an image that it doesn't have, or no
            match is left.
    """
    joined = join_pairs(matches, scene.transforms, min_confidence=min_confidence)
    if not len(joined.view):
        raise NoPointsError("no points: no match is confident enough")
    return merge_observations(scene, find_surfaces(scene), joined)


def join_pairs(
    matches: PairMatches, transforms: Sequence[ViewTransform], *, min_confidence: float = 0.0
) -> MatchedPixels:
    """Join the matches of all pairs to points, of which two photos see each at least.

    Args:
        matches: Matches of pairs of the views, in pixels of the images that the model saw.
        transforms: Transforms of the views.
        min_confidence: Least confidence of a match that counts; defaults to all.

    Raises:
        ValueError: If a pair names a view that there isn't.
    """
    check_at_least("min_confidence", min_confidence, 0)
    pairs = matches.pairs.tolist()
    if pairs and not 0 <= int(matches.pairs.min()) <= int(matches.pairs.max()) < len(transforms):
        raise ValueError(f"pairs must be of the {len(transforms)} images of the scene, got {int(matches.pairs.max())}")
    rows = []
    for (i, j), each in zip(pairs, matches.matches, strict=True):
        sure = (each.confidence >= min_confidence).cpu()
        for view, coords in ((i, each.coords1_px), (j, each.coords2_px)):
            own = coords.cpu()[sure]
            rows.append(torch.cat([torch.full_like(own[:, :1], view), own], dim=1).numpy())
    if not sum(map(len, rows)):
        none = torch.zeros(0, dtype=torch.long)
        return MatchedPixels(none, none, torch.zeros(0, 2, dtype=torch.float64))
    # A feature is a pixel of a view; each match is two of them.
    features, index = np.unique(np.concatenate(rows), axis=0, return_inverse=True)
    parts = np.split(index.ravel(), np.cumsum([len(each) for each in rows])[:-1])
    joined = np.stack([np.concatenate(parts[::2]), np.concatenate(parts[1::2])], axis=1)
    feature, point = join_matches(joined, features[:, 0])
    view, coords = torch.from_numpy(features[feature, 0]), torch.from_numpy(features[feature, 1:]).double()
    original = torch.empty_like(coords)
    for image, transform in enumerate(transforms):
        own = view == image
        original[own] = transform.to_original(coords[own])
    return MatchedPixels(view, torch.from_numpy(point), original)
