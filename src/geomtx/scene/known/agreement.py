"""Similarities between two sets of cameras of the same photos, and scales between lengths, that outliers don't sway."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_shape
from geomtx.geometry.rotation import rotation_angle
from geomtx.geometry.similarity import Similarity, apply_similarity, fit_camera_similarity, fit_similarity
from geomtx.types import Bool, Float, show_shapes

__all__ = ["Agreement", "agree_on_cameras", "agree_on_positions", "agree_on_scale"]

_HYPOTHESES = 1000
_SHARE_OF_SPREAD = 0.05  # distance that counts as agreement, as a share of how far the cameras lie apart
_ANGLE = 0.2  # angle in radians that counts as agreement
_AGREEING = 3  # one in so many lengths must agree, or the width is doubled
_ROUNDS = 10
_WIDTHS = 4  # number of widths, each twice that before
_PARAMETERS = 7  # of a similarity
_REACH = 40.0  # widths in a scene: twice the distance of its cameras from their middle
_LINE = 0.01  # spread across a line over that along it
_LOG_SCALE = 0.05  # difference of the logarithms of two scales that counts as agreement
_SCALES = 200
_DEVIATIONS = 4.0  # of the median absolute deviation


@show_shapes
class Agreement(NamedTuple):
    """A similarity that most cameras agree on.

    Attributes:
        similarity: Similarity from the source's world to the target's.
        agrees: Cameras that the similarity was fitted to, (S,) bool.
        distance: Distance of each camera from its place after the similarity, (S,), in units of the target.
        angle: Angle between each camera and its target in radians, (S,); None where rotations were not given.
        threshold: Distance up to which a camera agrees.
    """

    similarity: Similarity
    agrees: Bool[Tensor, " s"]
    distance: Float[Tensor, " s"]
    angle: Tensor | None
    threshold: float


def agree_on_cameras(
    source: Float[Tensor, "s 3 4"], target: Float[Tensor, "s 3 4"], *, threshold: float | None = None
) -> Agreement:
    """Return the similarity that most of two or more cameras agree on, by random sample consensus.

    Every pair of cameras gives a similarity; of more than 1,000 pairs, 1,000 are drawn with a fixed seed. The one with
    the smallest sum of log(1 + e²) wins, where e² = (distance / threshold)² + (angle / 0.2 rad)² of a camera. It is
    fitted again to the cameras with e ≤ 1 until these stay the same. Without a threshold, this is done with both
    two, four and eight times as wide, too, and the width w is taken for which (6 n - 7) log(40 / w) is largest, of n
    cameras that agree: each gives six numbers, of which the similarity takes seven in all. Half of the cameras that
    agree well outweigh all that agree badly, but two, which nearly always agree, do not.

    Args:
        source: `world_from_cam` of S cameras, (S, 3, 4), finite.
        target: `world_from_cam` of the same cameras in another world, (S, 3, 4), finite.
        threshold: Distance in units of the target; defaults to a twentieth of the median distance of the target's
            cameras from their middle, or more, see above. Doubled where fewer than two cameras agree.

    Raises:
        ValueError: If there are fewer than two cameras, or those of one world are all in one place.

    Source: Fischler and Bolles 1981 (RANSAC).
    """
    check_shape("source", source, ("S", 3, 4))
    check_shape("target", target, tuple(source.shape))
    _check_places(source[..., 3], target[..., 3], 2)
    pairs = _subsets(len(source), 2)
    apart = [_are_apart(each[pairs][..., 3]) for each in (source, target)]

    def measure(similarity: Similarity) -> tuple[Tensor, Tensor]:
        turned = similarity.rotation[..., None, :, :] @ source[..., :3]
        return _distances(similarity, source[..., 3], target[..., 3]), rotation_angle(
            turned, target[..., :3].expand_as(turned)
        )

    def fit(chosen: Tensor) -> Similarity:
        return fit_camera_similarity(source[chosen], target[chosen])

    return _find_agreement(fit, measure, pairs[apart[0] & apart[1]], target[..., 3], threshold)


def agree_on_positions(
    source: Float[Tensor, "s 3"], target: Float[Tensor, "s 3"], *, threshold: float | None = None
) -> Agreement:
    """Return the similarity that most of three or more points agree on, see `agree_on_cameras`, from triples of points.

    Args:
        source: Points, (S, 3), finite.
        target: The same points in another world, (S, 3), finite.
        threshold: Largest error of a camera that agrees, see `agree_on_cameras`.

    Raises:
        ValueError: If there are fewer than three points, or they, or those that agree, lie in one place or on a line:
            within a hundredth of their extent along it.
    """
    check_shape("source", source, ("S", 3))
    check_shape("target", target, tuple(source.shape))
    _check_places(source, target, 3)
    _check_line(source, target)

    def measure(similarity: Similarity) -> tuple[Tensor, None]:
        return _distances(similarity, source, target), None

    def fit(chosen: Tensor) -> Similarity:
        return fit_similarity(source[chosen], target[chosen])

    found = _find_agreement(fit, measure, _subsets(len(source), 3), target, threshold)
    _check_line(source[found.agrees], target[found.agrees])
    return found


def agree_on_scale(source: Float[Tensor, " n"], target: Float[Tensor, " n"]) -> tuple[Tensor, Tensor]:
    """Return the scale that most of N pairs of lengths agree on, and which of them do.

    The scale is chosen among the ratios (200 of them, evenly by rank), by the sum of log(1 + e²), where e is the
    logarithm of a ratio over the scale, in units of 0.05. The logarithms within 0.05 of it agree; those within twice as
    much, and so on, where these are fewer than a third. The result is the geometric mean of the ratios that agree,
    without those farther from the median than four times as far as half of them.

    Args:
        source: Lengths, (N,), finite and positive.
        target: The same lengths in another unit, (N,), finite and positive.

    Returns:
        Scale () in units of the target for one of the source, and mask (N,) bool of the pairs that agree.
    """
    ratios = target.double().log() - source.double().log()
    ordered = ratios.sort().values
    candidates = ordered[torch.linspace(0, len(ordered) - 1, min(_SCALES, len(ordered))).round().long()]
    costs = torch.stack([((ratios - each) / _LOG_SCALE).square().log1p().sum() for each in candidates])
    best, width = candidates[costs.argmin()], _LOG_SCALE
    agrees = (ratios - best).abs() <= width
    while int(agrees.sum()) * _AGREEING < len(ratios):
        width *= 2
        agrees = (ratios - best).abs() <= width
    # Outliers can lie within this width by chance, where the others hardly differ.
    center = _median(ratios[agrees])
    deviation = (ratios - center).abs()
    agrees &= deviation <= _DEVIATIONS * _median(deviation[agrees]) + torch.finfo(torch.float32).eps
    return ratios[agrees].mean().exp(), agrees


def _median(values: Tensor) -> Tensor:
    """Return the median, that of an even number halfway between two values, as torch's is not."""
    ordered = values.sort().values
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _subsets(count: int, size: int) -> Tensor:
    """Return all subsets (K, size) of `count` numbers, or 1,000 of them."""
    total = count * (count - 1) // 2 if size == 2 else count * (count - 1) * (count - 2) // 6
    if total <= _HYPOTHESES:
        return torch.tensor(list(itertools.combinations(range(count), size)))
    generator = torch.Generator().manual_seed(0)
    return torch.rand(_HYPOTHESES, count, generator=generator).topk(size, dim=1).indices.sort(dim=1).values


def _distances(similarity: Similarity, source: Tensor, target: Tensor) -> Tensor:
    moved = apply_similarity(similarity, source.expand(*similarity.scale.shape, *source.shape))
    return torch.linalg.vector_norm(moved - target, dim=-1)


def _are_apart(centers: Tensor) -> Tensor:
    """Return whether centres (..., S, 3) lie apart by more than rounding errors, (...) bool."""
    extent = torch.linalg.vector_norm(centers - centers[..., :1, :], dim=-1).amax(-1)
    return extent > 8 * torch.finfo(centers.dtype).eps * torch.linalg.vector_norm(centers, dim=-1).amax(-1)


def _check_places(source: Tensor, target: Tensor, least: int) -> None:
    if len(source) < least:
        raise ValueError(f"cameras in both worlds must be at least {least}, got {len(source)}")
    for name, centers in (("scene", source), ("known", target)):
        if not _are_apart(centers):
            raise ValueError(f"{name} cameras must not all be in one place, which says nothing of the scale")


def _check_line(source: Tensor, target: Tensor) -> None:
    for name, centers in (("scene", source), ("known", target)):
        along, across, _ = torch.linalg.svdvals(centers - centers.mean(0)).tolist()
        if not across > _LINE * along:
            raise ValueError(
                f"{name} camera positions must not lie on a line, which leaves the turn about it open, got a spread "
                f"across it of {across / along:.2g} of that along it; give rotations too"
            )


def _find_agreement(
    fit: Callable[[Tensor], Similarity],
    measure: Callable[[Similarity], tuple[Tensor, Tensor | None]],
    subsets: Tensor,
    places: Tensor,
    threshold: float | None,
) -> Agreement:
    """Fit to subsets of the cameras, choose the best fit, and fit again to the cameras that agree with it.

    Args:
        fit: Function that fits a similarity to the cameras of an index or a mask.
        measure: Function that returns distances and angles of all cameras after a similarity.
        subsets: Indices (K, 2 or 3) of the cameras of each hypothesis.
        places: Centres of the target's cameras, (S, 3).
        threshold: Largest error of a camera that agrees, see `agree_on_cameras`.
    """
    distances = torch.linalg.vector_norm(places - places.median(0).values, dim=-1)
    limit = threshold or _SHARE_OF_SPREAD * float(distances.median() or distances.mean())

    def errors(similarity: Similarity, wide: float = 1.0) -> Tensor:
        distance, angle = measure(similarity)
        square = (distance / (wide * limit)).square()
        return square if angle is None else square + (angle / (wide * _ANGLE)).square()

    hypotheses = fit(subsets)
    winner = errors(hypotheses).log1p().sum(-1).argmin()
    start = Similarity(*(part[winner] for part in hypotheses))

    def settle(wide: float) -> tuple[Similarity, Tensor]:
        best, agrees = start, errors(start, wide) <= 1
        for _ in range(_ROUNDS):
            if int(agrees.sum()) < subsets.shape[1]:
                break
            best = fit(agrees)
            now = errors(best, wide) <= 1
            if torch.equal(now, agrees):
                break
            agrees = now
        return best, agrees

    widths = [1.0] if threshold else [2.0**power for power in range(_WIDTHS)]
    while int(settle(widths[-1])[1].sum()) < subsets.shape[1]:
        widths.append(2 * widths[-1])
    found = {wide: settle(wide) for wide in widths}
    found = {wide: each for wide, each in found.items() if int(each[1].sum()) >= subsets.shape[1]}
    numbers = 3 if measure(start)[1] is None else 6  # of a camera, which a width describes in fewer bits than the scene

    def gain(wide: float) -> float:
        return (numbers * int(found[wide][1].sum()) - _PARAMETERS) * math.log(max(_REACH / wide, 1.01))

    wide = max(found, key=gain)
    best, agrees = found[wide]
    distance, angle = measure(best)
    return Agreement(best, agrees, distance, angle, wide * limit)
