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
from geomtx.data.scene_check import check_values
from geomtx.data.seeds import held_out_seed, training_seed
from geomtx.geometry.normalization import known_pixels
from geomtx.training.data_config import DataSection, ValidationSection
from geomtx.training.sources import DrawScenes, FileScenes
from geomtx.types import SceneBatch

__all__ = ["SceneStream", "describe_problem", "load_batches", "move_batch", "split_batch", "validation_batches"]


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

    Attributes:
        num_left_out: Scenes of files that could not be used, and others were drawn for, in the batches so far; those
            that workers prepare count when `load_batches` hands them over.
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
        self.num_left_out = 0

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
        before = self._num_skipped()
        batch = self.draw(self.seeds(step), self.num_views(step), self.image_hw(step), device=self.device)
        self.num_left_out += self._num_skipped() - before
        return batch

    def _num_skipped(self) -> int:
        """Since the start of this process."""
        return self.draw.mixture.num_skipped if isinstance(self.draw, FileScenes) else 0


def load_batches(stream: SceneStream, steps: range, *, workers: int = 0) -> Iterator[SceneBatch]:
    """The batches of `steps`, in order; prepared ahead of time if there are workers."""
    if workers == 0:
        return (stream[step] for step in steps)
    loader = DataLoader(
        _WorkerStream(stream),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_signals,
        # Of its own: a loader draws from its generator, and one more of them would change what training draws.
        generator=torch.Generator(),
    )
    return (_receive(stream, *item) for item in iter(loader))


class _WorkerStream(Dataset[Any]):
    """(batch, scenes left out for it). Expected errors come back as they are, not as the text of a traceback."""

    def __init__(self, stream: SceneStream) -> None:
        self.stream = stream

    def __getitem__(self, step: int) -> tuple[SceneBatch | Exception, int]:
        before = self.stream.num_left_out
        try:
            return self.stream[step], self.stream.num_left_out - before
        except (ValueError, OSError, ImportError) as error:
            return error, 0


def _receive(stream: SceneStream, batch: SceneBatch | Exception, num_left_out: int) -> SceneBatch:
    if isinstance(batch, Exception):
        raise batch
    stream.num_left_out += num_left_out
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


def describe_problem(batch: SceneBatch) -> str | None:
    """What `check_values` has against a batch; None = nothing. A scene may be without a known pixel."""
    try:
        check_values(batch._replace(depth=None, points=None, mask=None))
        known = known_pixels(batch).flatten(1).any(-1)
        check_values(_map(batch, lambda tensor: tensor[known]))
    except ValueError as error:
        return str(error)
    return None


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
