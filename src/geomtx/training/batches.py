"""Batches of a run, each a function of seed, step and rank: a run goes on where it stopped by asking for the next."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from geomtx.checks import check_divisible
from geomtx.data.seeds import held_out_seed, training_seed
from geomtx.training.data_config import DataSection, ValidationSection
from geomtx.training.sources import DrawScenes
from geomtx.types import SceneBatch

__all__ = ["SceneStream", "load_batches", "move_batch", "split_batch", "validation_batches"]


class SceneStream(Dataset[SceneBatch]):
    """The batches of one process, by step.

    Every process draws the number of views and the shape of the images by itself. Its scenes are those of the step
    whose index leaves `rank` over `num_processes`: no two processes share one, and together they have those that one
    process with all the budget has.

    Args:
        section: Budget, weights of the numbers of views, sizes.
        draw: Makes scenes of seeds.
        patch_size: Of the model: the images' sides are multiples of it.
        seed: Of the run.
        rank: Of the process.
        num_processes: In all.
        device: Where scenes are made; None = the CPU.
    """

    def __init__(
        self,
        section: DataSection,
        draw: DrawScenes,
        *,
        patch_size: int,
        seed: int,
        rank: int = 0,
        num_processes: int = 1,
        device: torch.device | None = None,
    ) -> None:
        for side in section.image_hw:
            check_divisible("data.image_hw", side, patch_size)
        self.section = section
        self.draw = draw
        self.patch_size = patch_size
        self.seed = seed
        self.rank = rank
        self.num_processes = num_processes
        self.device = device

    def num_views(self, step: int) -> int:
        """Views of the scenes of a step."""
        counts = sorted(self.section.views)
        weights = [self.section.views[count] for count in counts]
        return random.Random(f"views {self.seed} {step} {self.rank}").choices(counts, weights)[0]

    def image_hw(self, step: int) -> tuple[int, int]:
        """Height and width of the images of a step."""
        height, width = self.section.image_hw
        if self.section.aspect is None:
            return height, width
        aspect = round(random.Random(f"aspect {self.seed} {step} {self.rank}").uniform(*self.section.aspect), 2)
        return max(1, int(width * aspect / self.patch_size + 1e-6)) * self.patch_size, width

    def seeds(self, step: int) -> list[int]:
        """Seeds of the scenes of a step."""
        num_scenes = max(1, self.section.images // self.num_views(step))
        return [training_seed(self.seed, step, self.rank + self.num_processes * i) for i in range(num_scenes)]

    def __getitem__(self, step: int) -> SceneBatch:
        """The batch of a step."""
        return self.draw(self.seeds(step), self.num_views(step), self.image_hw(step), device=self.device)


def load_batches(stream: Dataset[SceneBatch], steps: range, *, workers: int = 0) -> Iterator[SceneBatch]:
    """The batches of `steps`, in order; prepared ahead of time if there are workers."""
    if workers == 0:
        return (stream[step] for step in steps)
    loader = DataLoader(
        _ErrorsAsValues(stream),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_signals,
    )
    return map(_raise_errors, iter(loader))


class _ErrorsAsValues(Dataset[Any]):
    """Expected errors of workers come back as they are, not as the text of a worker's traceback."""

    def __init__(self, stream: Dataset[SceneBatch]) -> None:
        self.stream = stream

    def __getitem__(self, step: int) -> SceneBatch | Exception:
        try:
            return self.stream[step]
        except (ValueError, OSError, ImportError) as error:
            return error


def _raise_errors(batch: SceneBatch | Exception) -> SceneBatch:
    if isinstance(batch, Exception):
        raise batch
    return batch


def _leave_signals(worker: int) -> None:
    """Ctrl-C, which reaches every process of a terminal, is for the training to act on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _as_it_is(batch: Any) -> Any:
    return batch


def validation_batches(
    section: ValidationSection, data: DataSection, draw: DrawScenes, device: torch.device
) -> Iterator[tuple[int, SceneBatch]]:
    """(number of views, held-out scenes), in batches of about the budget of training."""
    for num_views in section.views:
        size = max(1, data.images // num_views)
        seeds = [held_out_seed(index) for index in range(section.scenes)]
        for start in range(0, len(seeds), size):
            yield num_views, draw(seeds[start : start + size], num_views, data.image_hw, device=device)


def move_batch(batch: SceneBatch, device: torch.device) -> SceneBatch:
    """All tensors on `device`."""
    return _map(batch, lambda tensor: tensor.to(device, non_blocking=True))


def split_batch(batch: SceneBatch, num_chunks: int) -> list[SceneBatch]:
    """At most `num_chunks` batches of nearly equally many scenes, none of them empty."""
    num_chunks = min(num_chunks, batch.images.shape[0])
    return [_map(batch, lambda tensor, i=i: tensor.tensor_split(num_chunks)[i]) for i in range(num_chunks)]


def _map(value: Any, function: Any) -> Any:
    """Apply to the tensors of nested named tuples."""
    if isinstance(value, Tensor):
        return function(value)
    return value if value is None else type(value)(*(_map(item, function) for item in value))
