"""Several datasets as one, in a chosen ratio, with what is broken in them left out and counted."""

from __future__ import annotations

import bisect
import itertools
import logging
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from torch.utils.data import Dataset

from geomtx.checks import check_positive
from geomtx.data.error import SceneError
from geomtx.data.sampler import SceneRequest
from geomtx.types import SceneBatch

__all__ = ["SceneMixture", "SceneSource"]

logger = logging.getLogger(__name__)


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
