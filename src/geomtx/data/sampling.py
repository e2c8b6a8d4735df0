"""Sampling of training scenes: number of views and aspect, frames of a sequence, and mixtures of datasets."""

from __future__ import annotations

import bisect
import itertools
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from geomtx.checks import check_option, check_positive
from geomtx.data.scene_check import SceneError
from geomtx.types import SceneBatch

__all__ = [
    "FrameChoice",
    "SceneMixture",
    "SceneRequest",
    "SceneSource",
    "ViewCountSampler",
    "rank_by_pose",
    "rare_view_counts",
]

logger = logging.getLogger(__name__)

_USUAL_VIEWS = range(2, 25)
_SINGLE_VIEW_WEIGHT = 0.1


def rare_view_counts(views: Mapping[int, float]) -> list[int]:
    """Return the numbers of views from 2 to 24 that occur in less than 1 % of the batches.

    Models fail on numbers of views that they never see in training.

    Args:
        views: Mapping from a number of views to its sampling weight.
    """
    total = sum(views.values())
    return [count for count in _USUAL_VIEWS if views.get(count, 0.0) < 0.01 * total]


class SceneRequest(NamedTuple):
    """Request of a sampler to a dataset.

    Attributes:
        scene: Index of the scene in the dataset.
        num_views: Number of views S.
        aspect: Height over width of the images; defaults to 1.
        seed: Seed of all random numbers for this scene; equal requests give equal scenes in any process. Defaults to 0.
    """

    scene: int
    num_views: int
    aspect: float = 1.0
    seed: int = 0


class ViewCountSampler(Sampler[list[SceneRequest]]):
    """Batch sampler that draws for every batch a number of views, an aspect and as many scenes as the budget allows.

    With uniform weights each number of views is equally likely for a batch, so that most scenes have few views. The
    numbers drawn are logged at the end of an epoch. A warning is logged if numbers from 2 to 24 occur in less than 1 %
    of the batches, because models fail on numbers of views that they never see in training.

    Args:
        num_scenes: Number of scenes of the dataset.
        num_batches: Number of batches per epoch.
        num_views: Smallest and largest number of views; defaults to 2 and 24.
        weights: "uniform" (1 view a tenth as often as the others), "per_sequence_uniform" (each number equally often
            among scenes instead of batches), or a mapping from numbers of views to weights. Defaults to "uniform".
        budget: Number of images per batch, which has max(1, budget // views) scenes; defaults to 48.
        aspect: Height over width, fixed or a range to draw from, rounded to 2 decimals; defaults to 0.33 to 1.
        seed: Seed of all random numbers; defaults to 42.
        rank: Index of the process; each process draws its own batches. Defaults to 0.

    Raises:
        ValueError: If a number or an option is out of range.

    Example:
        `DataLoader(dataset, batch_sampler=ViewCountSampler(len(dataset), num_batches=800), collate_fn=collate_scenes)`
    """

    def __init__(
        self,
        num_scenes: int,
        *,
        num_batches: int,
        num_views: tuple[int, int] = (2, 24),
        weights: Literal["uniform", "per_sequence_uniform"] | Mapping[int, float] = "uniform",
        budget: int = 48,
        aspect: float | tuple[float, float] = (0.33, 1.0),
        seed: int = 42,
        rank: int = 0,
    ) -> None:
        for name, value in (("num_scenes", num_scenes), ("num_batches", num_batches), ("budget", budget)):
            check_positive(name, value)
        least, most = num_views
        if not 1 <= least <= most:
            raise ValueError(f"num_views must be (least, most), both positive, got {num_views}")
        low, high = aspect if isinstance(aspect, tuple) else (aspect, aspect)
        if not 0 < low <= high:
            raise ValueError(f"aspect must be a positive number or range, got {aspect}")
        self.num_scenes, self.num_batches, self.budget = num_scenes, num_batches, budget
        self.aspect = (low, high)
        self.seed, self.rank, self.epoch = seed, rank, 0
        self.views = np.arange(least, most + 1)
        self.probabilities = self._weigh(weights)
        self.histogram: Counter[int] = Counter()
        self._warn_of_gaps()

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch whose batches are drawn."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[SceneRequest]]:
        # The seed is a sequence, so that no two of (seed, epoch, rank) share a stream, as their sums would.
        rng = np.random.default_rng([self.seed, self.epoch, self.rank])
        self.histogram = Counter()
        for _ in range(self.num_batches):
            num_views = int(rng.choice(self.views, p=self.probabilities))
            aspect = round(float(rng.uniform(*self.aspect)), 2)
            size = self.scenes_per_batch(num_views)
            indices, seeds = rng.integers(self.num_scenes, size=size), rng.integers(2**62, size=size)
            self.histogram[num_views] += 1
            yield [SceneRequest(int(i), num_views, aspect, int(s)) for i, s in zip(indices, seeds, strict=True)]
        logger.info("%s", self.describe())

    def scenes_per_batch(self, num_views: int) -> int:
        """Return the number of scenes in a batch with `num_views` views."""
        return max(1, self.budget // num_views)

    def describe(self) -> str:
        """Describe in one line how often each number of views was drawn in this epoch, by batches and by scenes."""
        if not self.histogram:
            return "no batches yet"
        batches = sum(self.histogram.values())
        scenes = sum(count * self.scenes_per_batch(views) for views, count in self.histogram.items())
        shares = (
            f"{views}: {count / batches:.1%} / {count * self.scenes_per_batch(views) / scenes:.1%}"
            for views, count in sorted(self.histogram.items())
        )
        return f"{batches} batches, {scenes} scenes; views: share of batches / of scenes: {', '.join(shares)}"

    def _weigh(self, weights: str | Mapping[int, float]) -> np.ndarray:
        if isinstance(weights, Mapping):
            wrong = [
                views for views, weight in weights.items() if views not in self.views or not 0 <= weight < math.inf
            ]
            if wrong or sum(weights.values()) <= 0:
                span = f"{self.views[0]} … {self.views[-1]}"
                raise ValueError(f"weights must be ≥ 0, of {span} views, and not all 0, got {dict(weights)}")
            values = np.array([weights.get(int(views), 0.0) for views in self.views], dtype=float)
        else:
            check_option("weights", weights, ("uniform", "per_sequence_uniform"))
            if weights == "uniform":
                values = np.where(self.views == 1, _SINGLE_VIEW_WEIGHT, 1.0)
            else:
                values = np.array([1 / self.scenes_per_batch(int(views)) for views in self.views])
        return values / values.sum()

    def _warn_of_gaps(self) -> None:
        rare = rare_view_counts(dict(zip(self.views.tolist(), self.probabilities, strict=True)))
        if rare:
            logger.warning(
                "numbers of views below 1 %% of the batches: %s; a model that doesn't see them in training fails there",
                ", ".join(map(str, rare)),
            )


@dataclass(frozen=True)
class FrameChoice:
    """Random choice of frames: an anchor, drawn uniformly, and other frames near it.

    The other frames are drawn from the nearest ones by pose if the scene has a ranking, else from a window of frame
    numbers around the anchor if a radius is given, else from the whole sequence.

    Args:
        expand_ratio: Radius of the window as a multiple of the number of views; VGGT uses 2, and 8 for Virtual KITTI.
            Defaults to no window.
        expand_range: Radius of the window in frames, instead of a ratio; defaults to no window.
        num_nearest: Number of nearest frames of a ranking to draw from; VGGT's author names 256, the default, and 512.
        allow_duplicates: Whether to draw with replacement, which sequences shorter than the number of views need.
            Defaults to True.

    Raises:
        ValueError: If both radii are given, or a number is not positive.
    """

    expand_ratio: float | None = None
    expand_range: int | None = None
    num_nearest: int = 256
    allow_duplicates: bool = True

    def __post_init__(self) -> None:
        if self.expand_ratio is not None and self.expand_range is not None:
            raise ValueError(f"expand_range must be None beside expand_ratio, got {self.expand_range}")
        for name in ("expand_ratio", "expand_range", "num_nearest"):
            value = getattr(self, name)
            if value is not None:
                check_positive(name, value)

    def __call__(
        self, num_frames: int, num_views: int, rng: np.random.Generator, *, ranking: NDArray[np.integer] | None = None
    ) -> NDArray[np.int64]:
        """Choose the frames of a scene.

        Args:
            num_frames: Number of frames in the sequence.
            num_views: Number of frames to choose.
            rng: Source of random numbers.
            ranking: Neighbours of each frame as by `rank_by_pose`, (num_frames, K); defaults to none.

        Returns:
            Frame numbers (num_views,), the anchor first, the others in random order.

        Raises:
            SceneError: If duplicates are not allowed and there are too few frames to choose from.
            ValueError: If a number is not positive.
        """
        check_positive("num_frames", num_frames)
        check_positive("num_views", num_views)
        anchor = int(rng.integers(num_frames))
        near = self._near(anchor, num_frames, num_views, ranking)
        if not self.allow_duplicates:
            near = near[near != anchor]
            if len(near) < num_views - 1:
                raise SceneError(f"num_views must be at most {len(near) + 1} without duplicates, got {num_views}")
        others = rng.choice(near, num_views - 1, replace=self.allow_duplicates)
        return np.concatenate([[anchor], others]).astype(np.int64)

    def _near(
        self, anchor: int, num_frames: int, num_views: int, ranking: NDArray[np.integer] | None
    ) -> NDArray[np.int64]:
        if ranking is not None:
            return ranking[anchor, : self.num_nearest].astype(np.int64)
        radius = num_frames
        if self.expand_ratio is not None:
            radius = max(int(num_views * self.expand_ratio), 1)
        if self.expand_range is not None:
            radius = self.expand_range
        return np.arange(max(0, anchor - radius), min(num_frames, anchor + radius))


def rank_by_pose(
    cam_from_world: NDArray[np.floating], *, translation_weight: float = 1.0, num_nearest: int | None = None
) -> NDArray[np.int64]:
    """Rank all frames by the distance of their camera poses, for sequences whose frame numbers don't follow the path.

    The distance is angle / 180° + weight · (distance of the centres / median distance of all pairs of centres). VGGT's
    author describes this form; the division by the median, which makes the weight independent of the unit, is added.

    Args:
        cam_from_world: Camera poses (N, 3, 4).
        translation_weight: Weight of the distance of the camera centres; defaults to 1.
        num_nearest: Number of columns to keep, the frame itself included; defaults to all.

    Returns:
        Frame numbers (N, num_nearest): row i is i, then its neighbours, nearest first.

    Raises:
        ValueError: For another shape, or values that are not finite.
    """
    if cam_from_world.ndim != 3 or cam_from_world.shape[1:] != (3, 4) or len(cam_from_world) == 0:
        raise ValueError(f"cam_from_world must have shape (N, 3, 4), got {cam_from_world.shape}")
    if not np.isfinite(cam_from_world).all():
        raise ValueError("cam_from_world must be finite, got NaN or infinity")
    rotations = cam_from_world[:, :, :3].astype(np.float64)
    centers = -np.einsum("nij,ni->nj", rotations, cam_from_world[:, :, 3])
    apart = np.stack([np.linalg.norm(centers - center, axis=-1) for center in centers])
    pairs = apart[np.triu_indices(len(apart), 1)]
    median = float(np.median(pairs)) if len(pairs) else 0.0
    rows = []
    for index, rotation in enumerate(rotations):
        # The chord, unlike the trace, is also exact for small angles.
        chord = np.linalg.norm(rotations - rotation, axis=(1, 2))
        distance = 2 * np.arcsin(np.minimum(chord / np.sqrt(8), 1.0)) / np.pi
        if median > 0:
            distance += translation_weight * apart[index] / median
        distance[index] = -1.0  # the frame itself comes before others at the same place
        rows.append(np.argsort(distance, kind="stable")[:num_nearest])
    return np.stack(rows)


@runtime_checkable
class SceneSource(Protocol):
    """Dataset of scenes that is indexed by requests; it raises SceneError for a scene that cannot be used."""

    def __len__(self) -> int:
        """Return the number of scenes."""

    def __getitem__(self, request: SceneRequest) -> SceneBatch:
        """Load the requested scene, B = 1."""


class SceneMixture(Dataset[SceneBatch]):
    """Mixture of datasets that are drawn from in proportion to their lengths (VGGT, released data pipeline).

    The requested index selects a dataset, and the request's seed a scene of it, uniformly; equal requests give equal
    scenes. If a scene cannot be used, a warning is logged, `num_skipped` is increased and another scene of the same
    dataset is drawn. (Each worker of a loader has its own count; training logs their sum as `scenes_left_out`.)

    Args:
        datasets: Datasets with at least one scene each.
        lengths: Virtual length of each dataset; defaults to its number of scenes.
        max_skips: Number of scenes that may be left out for one request before it is an error; defaults to 10.

    Raises:
        ValueError: If there is no dataset, one is empty, or lengths are not positive or not one per dataset.
    """

    def __init__(
        self, datasets: Sequence[SceneSource], lengths: Sequence[int] | None = None, *, max_skips: int = 10
    ) -> None:
        if not datasets:
            raise ValueError("datasets must hold at least one, got none")
        for index, dataset in enumerate(datasets):
            check_positive(f"length of dataset {index}", len(dataset))
        lengths = [len(dataset) for dataset in datasets] if lengths is None else lengths
        if len(lengths) != len(datasets):
            raise ValueError(f"lengths must be one per dataset, {len(datasets)}, got {len(lengths)}")
        for length in lengths:
            check_positive("lengths", length)
        check_positive("max_skips", max_skips)
        self.datasets = tuple(datasets)
        self.max_skips = max_skips
        self.num_skipped = 0
        self._ends = list(itertools.accumulate(lengths))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, request: SceneRequest | tuple[int, int, float]) -> SceneBatch:
        request = SceneRequest(*request)
        if not 0 <= request.scene < len(self):
            raise IndexError(f"scene must be in 0 … {len(self) - 1}, got {request.scene}")
        number = bisect.bisect_right(self._ends, request.scene)
        dataset = self.datasets[number]
        rng = np.random.default_rng([request.seed, request.scene])
        for _ in range(self.max_skips + 1):
            drawn = request._replace(scene=int(rng.integers(len(dataset))), seed=int(rng.integers(2**62)))
            try:
                return dataset[drawn]
            except SceneError as error:
                self.num_skipped += 1
                logger.warning("left out a scene, the %d. so far: %s", self.num_skipped, error)
                last = error
        raise SceneError(f"dataset {number} must have scenes that can be read, got {self.max_skips + 1} broken: {last}")
