"""How many views the scenes of a batch have, and which shape (VGGT, released data pipeline)."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np
from torch.utils.data import Sampler

from geomtx.checks import check_option, check_positive

__all__ = ["SceneRequest", "ViewCountSampler", "rare_view_counts"]

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
