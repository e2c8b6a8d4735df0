"""Best constant prediction, fitted to scenes without their images: a baseline for `evaluate_predictions`."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from geomtx.checks import check_option, check_shape
from geomtx.geometry.camera import compose_rigid, invert_rigid
from geomtx.geometry.scene_frame import known_pixels, normalize_scene
from geomtx.metrics.evaluate import evaluate_predictions, summarize
from geomtx.metrics.pose import pose_auc, pose_recall
from geomtx.types import Cameras, DenseMap, Predictions, SceneBatch, Tracks

__all__ = [
    "DEPTH_WAYS",
    "POINT_WAYS",
    "ConstantGuess",
    "best_direction",
    "fit_constant_guess",
    "known_cameras",
    "map_views",
    "relative_poses",
]

_NUM_DIRECTIONS = 1000  # candidate directions on a half sphere, about 3 degrees from each other


def relative_poses(batch: SceneBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Return the relative poses of all pairs of known cameras.

    Returns:
        Rotation angles (P,), degrees; translations (P, 3); whether a pair has view 0, (P,) bool.
    """
    assert batch.cameras is not None
    cameras, mask = batch.cameras.cam_from_world.double().cpu(), known_cameras(batch).cpu()
    i, j = torch.triu_indices(cameras.shape[1], cameras.shape[1], offset=1)
    relative = compose_rigid(cameras[:, i], invert_rigid(cameras[:, j]))
    cosine = (relative[..., :3].diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    both = mask[:, i] & mask[:, j] & (relative[..., 3].norm(dim=-1) > 0)
    angle = torch.acos(cosine.clamp(-1, 1)).rad2deg()
    return angle[both], relative[..., 3][both], (i == 0).expand_as(both)[both]


def best_direction(rotations_deg: Tensor, translations: Tensor, aim: str) -> Tensor:
    """Find the constant translation direction with the best score for given relative poses.

    Args:
        rotations_deg: Rotation errors of the pairs, (P,), degrees.
        translations: True relative translations, (P, 3).
        aim: Score to maximise: "auc", the AUC@30 of the larger error, or "rta", the share of directions within 30
            degrees.

    Returns:
        Unit direction, (3,).
    """
    directions = _half_sphere(_NUM_DIRECTIONS)
    cosine = directions @ torch.nn.functional.normalize(translations, dim=-1).mT
    errors = torch.acos(cosine.abs().clamp(max=1)).rad2deg()
    recall = pose_recall(errors, (30,))[:, 0]
    # If the AUC of all candidates is 0, the share of directions decides.
    score = recall if aim == "rta" else pose_auc(torch.maximum(errors, rotations_deg), (30,))[:, 0] + 1e-6 * recall
    return directions[score.nan_to_num().argmax()]


def known_cameras(batch: SceneBatch) -> Tensor:
    """Return which cameras are known, (B, S) bool."""
    if batch.camera_mask is not None:
        return batch.camera_mask
    return torch.ones(batch.images.shape[:2], dtype=torch.bool, device=batch.images.device)


def _half_sphere(count: int) -> Tensor:
    """Return directions of a Fibonacci lattice on a half sphere, (count, 3), starting at the x axis."""
    index = torch.arange(count, dtype=torch.float64)
    x = 1 - index / count
    radius, angle = (1 - x.square()).sqrt(), index * math.pi * (3 - math.sqrt(5))
    return torch.stack([x, radius * angle.cos(), radius * angle.sin()], dim=-1)


def map_views(way: Callable[[Tensor], Tensor], values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Apply a statistic to the maps of all first views and of all other views; undefined results become 1.

    Args:
        way: Statistic over the first axis that ignores NaN, (N, …) → (…).
        values: Maps of every batch, (B, S, …), with NaN for unknown values.
    """
    first = torch.cat([value[:, 0] for value in values])
    others = torch.cat([value[:, 1:].flatten(0, 1) for value in values])
    maps = [way(part).nan_to_num(1.0) for part in (first, others if len(others) else first)]
    return maps[0], maps[1]


def _mean(values: Tensor) -> Tensor:
    """Return the mean over the first axis, ignoring NaN."""
    return values.nanmean(0)


def _median(values: Tensor) -> Tensor:
    """Return the median over the first axis, ignoring NaN."""
    return values.nanmedian(0).values


def _geometric_mean(values: Tensor) -> Tensor:
    """Return the geometric mean over the first axis, ignoring NaN."""
    return values.log().nanmean(0).exp()


def _plane(values: Tensor) -> Tensor:
    """Return the median of all values at every pixel."""
    return torch.full_like(values[0], float(values.nanmedian()))


def _relative_median(values: Tensor) -> Tensor:
    """Return the c that minimises Σ |c - g| / g: the median of g with weights 1 / g."""
    ordered = values.sort(0).values  # NaN comes last
    weights = torch.where(ordered.isnan(), 0.0, 1 / ordered).cumsum(0)
    index = (weights >= weights[-1:] / 2).int().argmax(0, keepdim=True)
    return ordered.gather(0, index)[0]


DEPTH_WAYS = (_mean, _median, _geometric_mean, _relative_median, _plane)
POINT_WAYS = (_mean, _median)


_STEP = 1e-3  # distance between the other cameras, relative to their distance from the first; only directions matter
_QUERIES = 500  # query points of a cloud when candidates are compared
_PULLS = (1.0, 0.75, 0.5, 0.25, 0.0)
_SCENES = 16  # number of scenes when candidates are compared by their clouds
_DISTANCES = (0.01, 1.0)  # candidate distances of the cameras, relative to the median of the true ones


@dataclasses.dataclass(frozen=True)
class ConstantGuess:
    """Prediction that is the same for every scene, see `fit_constant_guess`. Parts without labels are None.

    Lengths are in units of the scene. There is one map for the first view and one for all other views, which may come
    in any order.

    Attributes:
        image_hw: Height and width of the images, pixels.
        translations: Directions of the relative translations between the first and another view, and between two other
            views, (2, 3). All rotations are the identity.
        distance: Distance of the other cameras from the first.
        intrinsics: Intrinsics, (3, 3), pixels.
        depth: Depth maps, (2, H, W).
        points: Point maps in the frame of the first camera, (2, H, W, 3).
        pull: Position of a track in other views, from 0 (centre of the image) to 1 (position in the first view).
        visible: Share of visible points in other views, in [0, 1].
    """

    image_hw: tuple[int, int]
    translations: Tensor | None = None
    distance: float = 1.0
    intrinsics: Tensor | None = None
    depth: Tensor | None = None
    points: Tensor | None = None
    pull: float = 1.0
    visible: float | None = None

    def predict(self, batch: SceneBatch) -> Predictions:
        """Return the prediction in the format of a model.

        Confidences are 1. The visibility of every track is the share of visible points.

        Args:
            batch: Scenes, of which only shapes and the queries of the tracks are used.

        Returns:
            Predictions for the batch.

        Raises:
            ValueError: For images of another size.
        """
        images = batch.images
        height, width = self.image_hw
        check_shape("batch.images", images, ("B", "S", 3, height, width))
        parts: dict[str, Any] = {}
        if self.translations is not None and self.intrinsics is not None:
            parts["cameras"] = self._cameras(images)
        for name, maps in (("depth", self.depth), ("points", self.points)):
            if maps is not None:
                value = _spread(maps, images)
                parts[name] = DenseMap(value, torch.ones_like(value if name == "depth" else value[..., 0]))
        if self.visible is not None and batch.tracks is not None:
            center = images.new_tensor([(width - 1) / 2, (height - 1) / 2])
            queries = batch.tracks.coords_px[:, :1].to(_dtype(images))
            moved = (center + self.pull * (queries - center)).expand(-1, images.shape[1] - 1, -1, -1)
            coords = torch.cat([queries, moved], dim=1)
            visibility = torch.full_like(coords[..., 0], self.visible)
            parts["tracks"] = Tracks(coords, visibility, torch.ones_like(visibility))
        return Predictions(**parts)

    def _cameras(self, images: Tensor) -> Cameras:
        """Return cameras that differ by small steps except the first, so that all pairs have one of two directions."""
        assert self.translations is not None
        assert self.intrinsics is not None
        b, s = images.shape[:2]
        from_first, between = self.translations.to(images.device, _dtype(images))
        cam_from_world = torch.eye(3, 4, device=images.device, dtype=_dtype(images)).repeat(s, 1, 1)
        steps = _STEP * torch.arange(s - 1, device=images.device, dtype=_dtype(images))
        cam_from_world[1:, :, 3] = self.distance * (from_first + steps[:, None] * between)
        intrinsics = self.intrinsics.to(images.device, _dtype(images))
        return Cameras(cam_from_world.expand(b, -1, -1, -1), intrinsics.expand(b, s, -1, -1))


@torch.no_grad()
def fit_constant_guess(batches: Iterable[SceneBatch], *, direction: Literal["auc", "rta"] = "auc") -> ConstantGuess:
    """Fit the best constant prediction to scenes, without their images.

    Several candidates for each part are fitted to half of the scenes; the candidate with the best score of
    `evaluate_predictions` on the other half is fitted to all scenes:

    - Rotations are the identity. The translation direction has the best AUC@30 (or RTA@30) among 1000 candidates, one
      for pairs with the first view and one for other pairs. Intrinsics are the median.
    - Depth of every pixel, of scenes scaled to the same median: mean, median, geometric mean, median for relative
      errors, or a constant; by AbsRel.
    - Points of every pixel: mean or median, for the first and the other views or the same for all; by the overall error
      of the clouds.
    - Distance of the cameras, by the overall error of the unprojected depth.
    - Tracks stay in place or are moved towards the centre, by δ_avg; they are visible if most true points are.

    Args:
        batches: Scenes with images of one size, in any world frame and unit, with any numbers of views: at least two
            scenes, better some dozens.
        direction: Score for which the direction of the translations is chosen, "auc" or "rta". Defaults to "auc".

    Returns:
        The prediction, on the CPU.

    Raises:
        ValueError: For fewer than 2 scenes, images of different sizes, or another `direction`.
    """
    scenes = [normalize_scene(batch)[0] for batch in batches]
    count = sum(len(batch.images) for batch in scenes)
    if count < 2:
        raise ValueError(f"batches must hold at least 2 scenes, got {count}")
    sizes = {tuple(batch.images.shape[-2:]) for batch in scenes}
    if len(sizes) > 1:
        raise ValueError(f"batches must hold images of one size, got {', '.join(map(str, sorted(sizes)))}")
    check_option("direction", direction, ("auc", "rta"))
    guess = ConstantGuess((scenes[0].images.shape[-2], scenes[0].images.shape[-1]))
    guess = _fit_cameras(guess, scenes, direction)
    guess = _fit_depth(guess, scenes)
    guess = _fit_points(guess, scenes)
    guess = _fit_distance(guess, scenes)
    return _fit_tracks(guess, scenes)


def _fit_cameras(guess: ConstantGuess, scenes: Sequence[SceneBatch], aim: str) -> ConstantGuess:
    """Fit translation directions, distance and intrinsics."""
    known = [batch for batch in scenes if batch.cameras is not None and batch.images.shape[1] > 1]
    if not known:
        return guess
    pairs = [relative_poses(batch) for batch in known]
    angles, translations, with_first = (torch.cat(column) for column in zip(*pairs, strict=True))
    chosen = [best_direction(angles[part], translations[part], aim) for part in (with_first, ~with_first)]
    intrinsics, centers = [], []
    for batch in known:
        assert batch.cameras is not None
        mask = known_cameras(batch)
        intrinsics.append(batch.cameras.intrinsics[mask].double().cpu())
        moved = mask.clone()
        moved[:, 0] = False
        centers.append(batch.cameras.cam_from_world[moved][:, :, 3].double().cpu())
    distance = float(torch.cat(centers).norm(dim=-1).median()) if sum(map(len, centers)) else 1.0
    return dataclasses.replace(
        guess,
        translations=torch.stack(chosen),
        distance=distance or 1.0,
        intrinsics=torch.cat(intrinsics).median(0).values,
    )


def _fit_depth(guess: ConstantGuess, scenes: Sequence[SceneBatch]) -> ConstantGuess:
    """Choose and fit the depth maps."""
    known = [batch for batch in scenes if batch.depth is not None]
    if not known:
        return guess

    def fit(way: Callable[[Tensor], Tensor], batches: Sequence[SceneBatch]) -> ConstantGuess:
        kept = [torch.where(mask & (d > 0), d, torch.nan) for d, mask in _masked(batches, "depth")]
        medians = [depth.flatten(1).nanmedian(1).values[:, None, None, None] for depth in kept]
        maps = map_views(way, [depth / median for depth, median in zip(kept, medians, strict=True)])
        unit = torch.cat([median.flatten() for median in medians]).nanmedian()
        return dataclasses.replace(guess, depth=unit * torch.stack(maps))

    return _choose([partial(fit, way) for way in DEPTH_WAYS], known, "depth_abs_rel", "depth")


def _fit_points(guess: ConstantGuess, scenes: Sequence[SceneBatch]) -> ConstantGuess:
    """Choose and fit the point maps."""
    known = [batch for batch in scenes if batch.points is not None]
    if not known:
        return guess

    def fit(way: Callable[[Tensor], Tensor], alike: bool, batches: Sequence[SceneBatch]) -> ConstantGuess:
        kept = [torch.where(mask[..., None], p, torch.nan) for p, mask in _masked(batches, "points")]
        first, others = map_views(way, kept)
        return dataclasses.replace(guess, points=torch.stack([first, first if alike else others]))

    fits = [partial(fit, way, alike) for way in POINT_WAYS for alike in (False, True)]
    return _choose(fits, known, "head_overall", "points")


def _fit_distance(guess: ConstantGuess, scenes: Sequence[SceneBatch]) -> ConstantGuess:
    """Choose the distance of the cameras."""
    if guess.translations is None or guess.depth is None:
        return guess
    ways = [dataclasses.replace(guess, points=None, distance=guess.distance * d) for d in _DISTANCES]
    return dataclasses.replace(guess, distance=_best(ways, _few(scenes), "unprojected_overall").distance)


def _fit_tracks(guess: ConstantGuess, scenes: Sequence[SceneBatch]) -> ConstantGuess:
    """Fit the visibility and choose the positions of tracks."""
    known = [batch for batch in scenes if batch.tracks is not None and batch.images.shape[1] > 1]
    seen = [
        batch.tracks.visible[:, 1:].transpose(1, 2)[batch.tracks.valid].flatten() for batch in known if batch.tracks
    ]
    share = float(torch.cat([part.cpu() for part in seen]).double().mean()) if seen else math.nan
    if math.isnan(share):
        return guess
    bare = ConstantGuess(guess.image_hw, visible=share)
    pull = _best([dataclasses.replace(bare, pull=pull) for pull in _PULLS], known, "track_delta").pull
    return dataclasses.replace(guess, visible=share, pull=pull)


def _choose(
    fits: Sequence[Callable[[Sequence[SceneBatch]], ConstantGuess]],
    scenes: Sequence[SceneBatch],
    measure: str,
    part: str,
) -> ConstantGuess:
    """Return the fit to all scenes of the candidate that, fitted to half of them, scores best on the other half."""
    halves = [[half for batch in scenes if len((half := _every_second(batch, start)).images)] for start in (0, 1)]
    if not all(halves):
        # Every batch has one scene.
        halves = [list(scenes[::2]), list(scenes[1::2])]
    judges = _few(halves[1]) if part == "points" else halves[1]
    scores = [
        _score(ConstantGuess(found.image_hw, **{part: getattr(found, part)}), judges, measure)
        for found in (fit(halves[0]) for fit in fits)
    ]
    return fits[_argmin(scores)](scenes)


def _few(scenes: Sequence[SceneBatch]) -> list[SceneBatch]:
    """Return the first batches with at least `_SCENES` scenes together, since comparing clouds is slow."""
    counts = itertools.accumulate(len(batch.images) for batch in scenes)
    return [batch for batch, count in zip(scenes, counts, strict=True) if count - len(batch.images) < _SCENES]


def _best(guesses: Sequence[ConstantGuess], scenes: Sequence[SceneBatch], measure: str) -> ConstantGuess:
    """Return the candidate with the best score."""
    scores = [_score(guess, scenes, measure) for guess in guesses]
    return guesses[_argmin(scores)]


def _score(guess: ConstantGuess, scenes: Sequence[SceneBatch], measure: str) -> float:
    """Return the score of a candidate, smaller is better."""
    found = summarize(evaluate_predictions(guess.predict(b), b, max_queries=_QUERIES) for b in scenes)[measure]
    return -found if measure == "track_delta" else found


def _argmin(scores: Sequence[float]) -> int:
    """Return the index of the smallest score; NaN counts as infinite."""
    return min(range(len(scores)), key=lambda i: math.inf if math.isnan(scores[i]) else scores[i])


def _masked(batches: Sequence[SceneBatch], part: str) -> list[tuple[Tensor, Tensor]]:
    """Return the values and the known pixels (B, S, H, W) of every batch."""
    return [(getattr(batch, part).double().cpu(), known_pixels(batch).cpu()) for batch in batches]


def _spread(maps: Tensor, images: Tensor) -> Tensor:
    """Expand maps of the first and the other views (2, …) to all views (B, S, …)."""
    views = [maps[:1], maps[1:].expand(images.shape[1] - 1, *maps.shape[1:])]
    return torch.cat(views).to(images.device, _dtype(images)).expand(len(images), images.shape[1], *maps.shape[1:])


def _every_second(value: Any, start: int) -> Any:
    """Return every second scene of nested named tuples."""
    if isinstance(value, Tensor):
        return value[start::2]
    return value if value is None else type(value)(*(_every_second(item, start) for item in value))


def _dtype(images: Tensor) -> torch.dtype:
    """Return the dtype of predictions, float32 or float64."""
    return torch.promote_types(images.dtype, torch.float32)
