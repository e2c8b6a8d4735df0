"""What a batch is drawn from: how many views a scene has and in which shape, which frames of a sequence, and a
mixture of datasets.
"""

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
    """Numbers of views from 2 to 24 that less than 1 % of the batches have: models fail on what they never see.

    Args:
        views: Number of views → weight with which a batch has it.
    """
    total = sum(views.values())
    return [count for count in _USUAL_VIEWS if views.get(count, 0.0) < 0.01 * total]


class SceneRequest(NamedTuple):
    """What a sampler asks a dataset for.

    Attributes:
        scene: Its index in the dataset.
        num_views: S.
        aspect: Height over width.
        seed: Of everything that is drawn for this scene; equal requests give equal scenes, in any process.
    """

    scene: int
    num_views: int
    aspect: float = 1.0
    seed: int = 0


class ViewCountSampler(Sampler[list[SceneRequest]]):
    """A batch sampler: every batch has its number of views, its aspect, and as many scenes as the budget has room for.

    With uniform weights each number of views is equally likely for a batch; of all scenes, those with few views are
    then the most. At the end of an epoch the numbers that were drawn are logged. Models that never see few views
    fail on them, so a warning is logged if numbers from 2 to 24 are missing or below 1 % of the batches.

    Args:
        num_scenes: Length of the dataset that the requests are for.
        num_batches: Batches of an epoch.
        min_views: Smallest number of views.
        max_views: Largest.
        weights: "uniform" (of 1 view only a tenth as often), "per_sequence_uniform" (each number equally often among
            all scenes, not batches), or number of views → weight.
        budget: Images of a batch; it has max(1, budget // views) scenes.
        aspect: Height over width, fixed or a range to draw from, rounded to 2 decimals.
        seed: Of all draws.
        rank: Number of the process; each draws its own batches.

    Raises:
        ValueError: For a number or an option out of range.

    Example:
        `DataLoader(dataset, batch_sampler=ViewCountSampler(len(dataset), num_batches=800), collate_fn=collate_scenes)`
    """

    def __init__(
        self,
        num_scenes: int,
        *,
        num_batches: int,
        min_views: int = 2,
        max_views: int = 24,
        weights: Literal["uniform", "per_sequence_uniform"] | Mapping[int, float] = "uniform",
        budget: int = 48,
        aspect: float | tuple[float, float] = (0.33, 1.0),
        seed: int = 42,
        rank: int = 0,
    ) -> None:
        for name, value in (("num_scenes", num_scenes), ("num_batches", num_batches), ("min_views", min_views)):
            check_positive(name, value)
        check_positive("budget", budget)
        if max_views < min_views:
            raise ValueError(f"max_views must be at least min_views = {min_views}, got {max_views}")
        low, high = aspect if isinstance(aspect, tuple) else (aspect, aspect)
        if not 0 < low <= high:
            raise ValueError(f"aspect must be a positive number or range, got {aspect}")
        self.num_scenes, self.num_batches, self.budget = num_scenes, num_batches, budget
        self.aspect = (low, high)
        self.seed, self.rank, self.epoch = seed, rank, 0
        self.views = np.arange(min_views, max_views + 1)
        self.probabilities = self._weigh(weights)
        self.histogram: Counter[int] = Counter()
        self._warn_of_gaps()

    def set_epoch(self, epoch: int) -> None:
        """Draw the batches of another epoch from now on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[SceneRequest]]:
        # A sequence of numbers as the seed: no two (seed, epoch, rank) share a stream, as sums of them would.
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
        """Scenes of a batch with so many views."""
        return max(1, self.budget // num_views)

    def describe(self) -> str:
        """The numbers of views since the epoch began, as shares of batches and of scenes, in one line."""
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
    """Draw an anchor uniformly, then the other frames: from everywhere, or from near the anchor.

    Near is what a ranking by pose says, if the scene has one, else a window of frame numbers, else everything.

    Args:
        expand_ratio: Radius of the window, in numbers of views; VGGT has 2, for Virtual KITTI 8.
        expand_range: Radius of the window in frames, instead of a ratio.
        num_nearest: How many of a ranking's frames are near; VGGT's author names 256 and 512.
        allow_duplicates: Draw with replacement, which sequences shorter than the number of views need.

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
        """Choose.

        Args:
            num_frames: Frames of the sequence.
            num_views: How many to choose.
            rng: Source of the draws.
            ranking: (num_frames, K), of `rank_by_pose`.

        Returns:
            (num_views,) frame numbers, the anchor first, the others in no order.

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
    """All frames by their distance from each, for sequences whose numbers say nothing about what is near.

    The distance is angle / 180° + weight · (distance of the centres / median distance of all pairs of centres). The
    form is what VGGT's author describes; dividing by the median, which makes the weight independent of units, is ours.

    Args:
        cam_from_world: (N, 3, 4).
        translation_weight: Of the centres.
        num_nearest: Columns to keep, the frame itself included; None = all.

    Returns:
        (N, num_nearest): row i is i, then its neighbours, nearest first.

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
        # From the chord, not the trace: exact for small angles too.
        chord = np.linalg.norm(rotations - rotation, axis=(1, 2))
        distance = 2 * np.arcsin(np.minimum(chord / np.sqrt(8), 1.0)) / np.pi
        if median > 0:
            distance += translation_weight * apart[index] / median
        distance[index] = -1.0  # also before frames at the same place
        rows.append(np.argsort(distance, kind="stable")[:num_nearest])
    return np.stack(rows)


@runtime_checkable
class SceneSource(Protocol):
    """What a mixture draws from: scenes by request; a scene that cannot be used raises SceneError."""

    def __len__(self) -> int:
        """How many scenes."""

    def __getitem__(self, request: SceneRequest) -> SceneBatch:
        """One scene, B = 1."""


class SceneMixture(Dataset[SceneBatch]):
    """Draw scenes from datasets; the lengths say how often each is drawn from (VGGT, released data pipeline).

    An index stands for a dataset, the scene is drawn uniformly from it by the request's seed, and equal requests give
    equal scenes. If the scene cannot be used, that is logged and counted in `num_skipped` (of this process: a loader's
    workers count apart; training adds them up as `scenes_left_out`), and another scene of the same dataset is drawn.

    Args:
        datasets: With at least one scene each.
        lengths: Virtual length of each; None = its number of scenes.
        max_skips: How many scenes may be left out for one request before it is an error.

    Raises:
        ValueError: If there is no dataset, one is empty, or lengths are not positive or not one a dataset.
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
            raise ValueError(f"lengths must be one a dataset, {len(datasets)}, got {len(lengths)}")
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
