"""What a run trains: all of `Trainer` that depends on the kind of model."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor, nn

from geomtx.checks import check_option
from geomtx.losses.multitask import LossReport
from geomtx.training.parsing import parse_fields
from geomtx.types import SceneBatch

if TYPE_CHECKING:
    from geomtx.training.config import LossSection, ModelSection

__all__ = ["Task", "build_task", "start_model"]

# `model.kind` → module and class, which is imported only if it is asked for.
_HOMES = {
    "vggt": ("geomtx.training.tasks.vggt", "VggtTask"),
    "nvs": ("geomtx.training.tasks.nvs", "NvsTask"),
    "video_tracker": ("geomtx.training.tasks.video_tracker", "VideoTask"),
}


@runtime_checkable
class Task(Protocol):
    """A kind of model in training; a frozen dataclass whose fields, all with defaults, are the section `task`.

    Its models have `config`, with `patch_size` and `to_dict()` of plain values, `save_pretrained(folder)` and
    `from_pretrained(source, dtype=…)`. Where something is drawn, it is drawn from torch's global generators: a
    checkpoint keeps them.
    """

    def build_model(self, section: ModelSection) -> nn.Module:
        """In float32, with random weights, or with `section.weights`: of this kind, or of a VGGT to start from.

        Raises:
            ValueError: For weights of another kind, or numbers that make no model.
        """
        ...

    def rebuild_model(self, numbers: dict[str, Any]) -> nn.Module:
        """The model of a checkpoint's `model.config.to_dict()`, with random weights."""
        ...

    def build_loss(self, section: LossSection) -> Callable[[Any, Any], LossReport]:
        """(outputs of `predict`, batch of `prepare`) → report."""
        ...

    def prepare(self, batch: SceneBatch, *, training: bool = True) -> SceneBatch:
        """What `predict` and the loss get, of as many scenes: normalised, with what is drawn for a step.

        Without `training`, it is for validation.
        """
        ...

    def predict(self, model: nn.Module, batch: SceneBatch) -> Any:
        """Run a model, which may be wrapped for several processes, on what `prepare` made.

        Returns:
            Nested named tuples, dictionaries and tensors. In training, the same parts of the model have to run in
            every process whatever its batch has: DDP waits for all trained parameters. All of it is one call of the
            model: sharded parameters are whole only within it.
        """
        ...

    def score(self, outputs: Any, batch: SceneBatch) -> dict[str, Tensor]:
        """Name → (B,), a scene each, NaN where it has no such score; `outputs` are without a graph."""
        ...


def build_task(kind: str, options: dict[str, Any]) -> Task:
    """The task of a configuration.

    Args:
        kind: "vggt", "nvs" or "video_tracker".
        options: Plain values by field of the task.

    Raises:
        ValueError: For a kind or an option that there isn't, or a value that the task doesn't take.
    """
    check_option("model.kind", kind, tuple(_HOMES))
    module, name = _HOMES[kind]
    task: Any = getattr(importlib.import_module(module), name)
    if options and not task.__dataclass_fields__:
        raise ValueError(f"task must be empty where model.kind is '{kind}', got {', '.join(map(str, options))}")
    fields = parse_fields(task, options, "task")
    try:
        return task(**fields)
    except ValueError as error:
        raise ValueError(f"task.{error}") from error


def start_model(task: Task, section: ModelSection) -> nn.Module:
    """What `task.build_model` gives.

    Raises:
        ValueError: As there; for weights that it can't start from, saying that it is those.
    """
    try:
        return task.build_model(section)
    except ValueError as error:
        if section.weights is None or str(error).startswith(("model.", "task.")):
            raise
        raise ValueError(f"model.weights must be what '{section.kind}' can start from, but {error}") from error
