"""What a run trains: the part of `Trainer` that depends on the kind of model."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor, nn

from geomtx.checks import check_option
from geomtx.losses.multitask import LossReport
from geomtx.models.published import open_weights
from geomtx.models.saved_model import stored_kind
from geomtx.parsing import parse_dataclass
from geomtx.types import SceneBatch

if TYPE_CHECKING:
    from geomtx.training.config import LossSection, ModelSection

__all__ = ["Task", "build_task", "starting_from"]

# `model.kind` → module and class, which is imported only if it is asked for.
_HOMES = {
    "vggt": ("geomtx.training.tasks.vggt", "VggtTask"),
    "depth_anything": ("geomtx.training.tasks.depth_anything", "DepthAnythingTask"),
    "dust3r": ("geomtx.training.tasks.pairs", "DUSt3RTask"),
    "mast3r": ("geomtx.training.tasks.pairs", "MASt3RTask"),
    "croco": ("geomtx.training.tasks.croco", "CroCoTask"),
    "nvs": ("geomtx.training.tasks.nvs", "NvsTask"),
    "video_tracker": ("geomtx.training.tasks.video_tracker", "VideoTask"),
}

_KIND_OF_CLASS = {
    "VGGT": "vggt",
    "DepthAnything3": "depth_anything",
    "DUSt3R": "dust3r",
    "MASt3R": "mast3r",
    "CroCo": "croco",
    "VGGTForNVS": "nvs",
    "VideoTracker": "video_tracker",
}


@runtime_checkable
class Task(Protocol):
    """A kind of model in training: a frozen dataclass whose fields, all with defaults, are the section `task`.

    A class attribute `num_views` says that its scenes have that number of views; without one they may have any.

    Its models have `config`, with `patch_size` and `to_dict()` of plain values, `save_pretrained(folder)` and
    `from_pretrained(source, dtype=…)`. Random numbers are drawn from torch's global generators, whose states a
    checkpoint keeps.
    """

    def build_model(self, section: ModelSection) -> nn.Module:
        """Build the model in float32, with random weights or with those of `section.weights`.

        Raises:
            ValueError: For weights of another kind, or a configuration that makes no model.
        """
        ...

    def rebuild_model(self, numbers: dict[str, Any]) -> nn.Module:
        """Build the model of a checkpoint from `model.config.to_dict()`, with random weights."""
        ...

    def build_loss(self, section: LossSection) -> Callable[[Any, Any], LossReport]:
        """Return the loss, a function of what `predict` returns and of what `prepare` returns."""
        ...

    def prepare(self, batch: SceneBatch, *, training: bool = True) -> Any:
        """Return what `predict` and the loss are given: normalised scenes, and what is drawn at random for a step.

        Args:
            batch: Scenes in any unit.
            training: Whether the batch is trained on; otherwise it is one of validation.

        Returns:
            A named tuple with `images` (B, S, 3, H, W), of tensors whose first axis is B; or one with a method
            `split(num_chunks)` that returns its chunks.
        """
        ...

    def predict(self, model: nn.Module, batch: Any) -> Any:
        """Run the model on what `prepare` returned.

        A task may take a third argument, `options` (`geomtx.training.tasks.running.RunOptions`): heads in float32,
        probes and recomputation are then available for it.

        Returns:
            Nested named tuples, dictionaries and tensors. In training, the same parts of the model have to run in every
            process whatever its batch has, since the processes wait for the gradients of all trained parameters.
        """
        ...

    def score(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        """Return scores by name, (B,) each, NaN for a scene that has no such score; `outputs` have no graph."""
        ...


def build_task(kind: str, options: dict[str, Any]) -> Task:
    """Return the task of a configuration.

    Args:
        kind: "vggt", "depth_anything", "dust3r", "mast3r", "croco", "nvs" or "video_tracker".
        options: Fields of the task, plain values.

    Raises:
        ValueError: For an unknown kind or field, or a value that the task doesn't take.
    """
    check_option("model.kind", kind, tuple(_HOMES))
    module, name = _HOMES[kind]
    task: Any = getattr(importlib.import_module(module), name)
    if options and not task.__dataclass_fields__:
        raise ValueError(f"task must be empty where model.kind is '{kind}', got {', '.join(map(str, options))}")
    return parse_dataclass(task, options, "task")


@contextmanager
def starting_from(section: ModelSection) -> Iterator[None]:
    """Within the block, weights are opened and read; what is wrong with them is said of `model.weights`.

    Raises:
        ValueError: For weights that the kind of model can't start from.
    """
    try:
        yield
    except ValueError as error:
        other = f"; model.kind={kind} is for such models" if (kind := _kind_for(section)) != section.kind else ""
        raise ValueError(f"model.weights must be what '{section.kind}' can start from, but {error}{other}") from error


def _kind_for(section: ModelSection) -> str:
    """Return the kind of model that starts from the weights, as far as is known; else that of the section."""
    assert section.weights is not None, "what is started from"
    try:
        found = stored_kind(open_weights(section.weights))
    except ValueError:  # which has been said
        return section.kind
    return _KIND_OF_CLASS.get(found or "", section.kind)
