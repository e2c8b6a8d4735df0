"""Brings a model into the state in which it is trained, and builds its loss and its monitor from a configuration."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch import nn

from geomtx.checks import check_at_least, check_option, match_names
from geomtx.encoder.alternating import AlternatingEncoder
from geomtx.layers.lora import add_lora
from geomtx.losses.multitask import CAMERA, DEPTH, POINTS, TRACKS, MultitaskLoss
from geomtx.losses.terms import ConsistencyTerm, HeadLoss, Term
from geomtx.models.vggt.model import VGGT
from geomtx.parsing import replace_fields
from geomtx.training.config import LoraSection, LossSection, ModelSection, MonitorSection, TrainingConfig
from geomtx.training.monitor import GradientMonitor, shared_parameters
from geomtx.training.optim import freeze
from geomtx.training.tasks.task import starting_from

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = [
    "build_loss",
    "build_monitor",
    "check_rehearsal",
    "check_track_labels",
    "check_view_counts",
    "leave_out_tracks",
    "prepare_model",
]

logger = logging.getLogger("geomtx")

_TERMS = {"camera": CAMERA, "depth": DEPTH, "points": POINTS, "tracks": TRACKS, "consistency": ConsistencyTerm()}


def prepare_model(model: nn.Module, config: TrainingConfig) -> list[str]:
    """Freeze parts of a model and add its adapters, in place.

    Args:
        model: The model.
        config: Configuration of the run.

    Returns:
        Names of the frozen modules, which stay in evaluation mode.

    Raises:
        ValueError: For a pattern that matches nothing, and a layer that can't be adapted.
    """
    model.train()
    frozen = freeze(model, config.freeze)
    if config.lora is not None:
        # After freezing: adapters are what a frozen layer trains.
        _add_adapters(model, config.lora)
    return frozen


def _add_adapters(model: nn.Module, section: LoraSection) -> None:
    match_names(section.patterns, (name for name, _ in model.named_modules() if name), what="lora.patterns")
    try:
        add_lora(model, section.patterns, rank=section.rank, alpha=section.alpha)
    except ValueError as error:
        raise ValueError(f"lora: {error}") from error


def leave_out_tracks(config: TrainingConfig, stored: Mapping[str, Any] | None = None) -> TrainingConfig:
    """Leave the head of tracks out of the model where its scenes have no tracks, with a warning.

    It is left out only where the configuration says nothing of it: neither names the heads nor freezes that of tracks.

    Args:
        config: Configuration of the run.
        stored: Configuration of the checkpoint's model, to resume; defaults to a new run.
    """
    section = config.model
    is_named = section.heads is not None or "heads" in section.numbers
    is_frozen = any(fnmatchcase("track_head", pattern) for pattern in config.freeze)
    if section.kind != "vggt" or config.data.num_tracks > 0 or is_named or is_frozen:
        return config
    if stored is not None:
        heads = tuple(stored.get("heads", ()))
        if not heads or "tracks" in heads:
            return config
    else:
        heads = section.model_config().heads if section.weights is None else _stored_heads(section)
        if "tracks" not in heads:
            return config
        logger.warning(
            "The head of tracks is left out of the model, as its scenes have no tracks: data.num_tracks is 0. "
            "freeze: [track_head] keeps it as it is."
        )
    rest = tuple(head for head in heads if head != "tracks")
    if section.weights is None:
        section = dataclasses.replace(section, numbers={**section.numbers, "heads": list(rest)})
    else:
        section = dataclasses.replace(section, heads=rest)
    return dataclasses.replace(config, model=section)


def _stored_heads(section: ModelSection) -> tuple[str, ...]:
    assert section.weights is not None
    with starting_from(section):
        return VGGT.read_config(section.weights).heads


def check_track_labels(model: nn.Module, num_tracks: int) -> None:
    """Require tracks where the head of tracks is trained: without, it would stay random, and processes would wait.

    Raises:
        ValueError: If there are none.
    """
    head = getattr(model, "track_head", None)
    if head is None or num_tracks > 0:
        return
    if any(parameter.requires_grad for parameter in head.parameters()):
        raise ValueError(
            f"data.num_tracks must be positive where the head of tracks is trained, got {num_tracks}; "
            "else leave 'tracks' out of the model's heads, or freeze track_head"
        )


def check_view_counts(task: Any, config: TrainingConfig) -> None:
    """Require scenes of as many views as a task has, if it says so, for training and validation.

    Args:
        task: The task; one without an attribute `num_views` takes any number.
        config: Configuration of the run.

    Raises:
        ValueError: Naming the key.
    """
    wanted = getattr(task, "num_views", None)
    validated = config.validation.views if config.validation.every else ()
    drawn = [views for views, weight in config.data.views.items() if weight]
    for key, counts in (("data.views", drawn), ("validation.views", validated)):
        for views in counts:
            if wanted is not None and views != wanted:
                raise ValueError(f"{key} must be {wanted} where model.kind is '{config.model.kind}', got {views}")


def check_rehearsal(model: nn.Module, task: Any, num_processes: int) -> None:
    """Require that heads of a VGGT inside a model run if they are trained: several processes wait for their gradients.

    Args:
        model: Model with its frozen parts.
        task: Its task; one without an attribute `rehearsal` is taken to run them.
        num_processes: Number of processes of the run.

    Raises:
        ValueError: Naming the heads.
    """
    if num_processes == 1 or getattr(task, "rehearsal", True):
        return
    insides = {name: module for name, module in model.named_modules() if name and isinstance(module, VGGT)}
    heads = [
        f"{name}.{part}"
        for name, vggt in insides.items()
        for part, module in vggt.named_children()
        if module is not vggt.encoder and any(parameter.requires_grad for parameter in module.parameters())
    ]
    if heads:
        raise ValueError(
            "task.rehearsal must be on where several processes train heads of the VGGT inside, got none for "
            f"{', '.join(heads)}; else freeze these"
        )


def build_monitor(model: nn.Module, section: MonitorSection, accelerator: Accelerator) -> GradientMonitor | None:
    """Return the monitor of a run's gradients, or None if the configuration has none.

    Raises:
        ValueError: For a model without an `AlternatingEncoder`, and parameters that are not trained.
    """
    if not section.every:
        return None
    encoder = next((module for module in model.modules() if isinstance(module, AlternatingEncoder)), None)
    if encoder is None:
        raise ValueError(f"monitor must be off for a model without an AlternatingEncoder, got {type(model).__name__}")
    return GradientMonitor(
        shared_parameters(model, encoder, section.parameters),
        every=section.every,
        reduce=functools.partial(accelerator.reduce, reduction="mean") if accelerator.num_processes > 1 else None,
    )


def build_loss(section: LossSection, others: Mapping[str, Term | HeadLoss] | None = None) -> MultitaskLoss:
    """Return the loss of a configuration.

    Args:
        section: Preset, and what differs from it.
        others: Further losses by name, see `MultitaskLoss`, for instance those of added heads.

    Raises:
        ValueError: For an unknown term or field, a number out of its range, or if nothing is left to minimise.
    """
    presets: dict[str, Callable[..., MultitaskLoss]] = {
        "default": MultitaskLoss,
        "paper": MultitaskLoss.paper,
        "released": MultitaskLoss.released,
    }
    tasks = presets[section.preset]().tasks
    terms: dict[str, Any] = {}
    for task, changes in section.terms.items():
        check_option("loss.terms", task, tuple(_TERMS))
        terms[task] = None
        if changes is not None:
            path = f"loss.terms.{task}"
            terms[task] = replace_fields(tasks.get(task, _TERMS[task]), changes, path)
            check_at_least(f"{path}.weight", terms[task].weight, 0)
    loss = presets[section.preset](**terms, others=others)
    if not any(term.weight for term in loss.tasks.values()):
        got = ", ".join(f"{task} with weight 0" for task in loss.tasks) or "none"
        raise ValueError(f"loss.terms must leave a task with a weight above 0, got {got}")
    return loss
