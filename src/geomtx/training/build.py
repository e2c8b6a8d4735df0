"""What a configuration stands for: the parts of a model that train, and VGGT's loss."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from geomtx.checks import check_at_least, check_option
from geomtx.encoder.alternating import AlternatingEncoder
from geomtx.layers.lora import add_lora
from geomtx.losses.consistency_term import ConsistencyTerm
from geomtx.losses.multitask import CAMERA, DEPTH, POINTS, TRACKS, MultitaskLoss
from geomtx.models.vggt import VGGT
from geomtx.training.config import LoraSection, LossSection, MonitorSection, TrainingConfig
from geomtx.training.freezing import freeze
from geomtx.training.heads import detach_heads, run_heads_in_float32
from geomtx.training.monitor import GradientMonitor, shared_parameters
from geomtx.training.plain_values import parse_fields
from geomtx.training.recomputation import recompute_blocks

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = [
    "add_head_losses",
    "build_loss",
    "build_monitor",
    "check_rehearsal",
    "check_track_labels",
    "find_encoder",
    "prepare_model",
]

_TERMS = {"camera": CAMERA, "depth": DEPTH, "points": POINTS, "tracks": TRACKS, "consistency": ConsistencyTerm()}


def check_track_labels(model: nn.Module, num_tracks: int) -> None:
    """Refuse to train a head of tracks on scenes without any: it would stay random, and other processes would wait.

    Raises:
        ValueError: If that is so.
    """
    head = getattr(model, "track_head", None)
    if head is None or num_tracks > 0:
        return
    if any(parameter.requires_grad for parameter in head.parameters()):
        raise ValueError(
            f"data.num_tracks must be positive where the head of tracks is trained, got {num_tracks}; "
            "else leave 'tracks' out of the model's heads, or freeze track_head"
        )


def check_rehearsal(model: nn.Module, task: Any, num_processes: int) -> None:
    """Refuse to train heads of a VGGT inside that never run: several processes would wait for their gradients.

    Args:
        model: Prepared.
        task: Without rehearsal if it has an attribute `rehearsal` that is 0 or None; of another kind, it is let pass.
        num_processes: Of the run.

    Raises:
        ValueError: If that is so.
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


def find_encoder(model: nn.Module, what: str) -> AlternatingEncoder:
    """The encoder in a model.

    Args:
        model: Of any kind.
        what: Needs it, for the error.

    Raises:
        ValueError: If there is none.
    """
    encoder = next((module for module in model.modules() if isinstance(module, AlternatingEncoder)), None)
    if encoder is None:
        raise ValueError(f"{what} must be off for a model without an AlternatingEncoder, got {type(model).__name__}")
    return encoder


def prepare_model(model: nn.Module, config: TrainingConfig) -> None:
    """Training mode, frozen parts, adapters, probes, precision, recomputation: in place."""
    model.train()
    freeze(model, config.freeze)
    if config.lora is not None:
        # After freezing: adapters are what a frozen layer trains.
        _add_adapters(model, config.lora)
    detach_heads(model, config.detach)
    if config.precision != "float32":
        for part in model.modules():
            run_heads_in_float32(part)
    if config.gradient_checkpointing:
        recompute_blocks(find_encoder(model, "gradient_checkpointing"))
    if config.compile:
        model.compile()


def _add_adapters(model: nn.Module, section: LoraSection) -> None:
    try:
        add_lora(model, section.patterns, rank=section.rank, alpha=section.alpha)
    except ValueError as error:
        raise ValueError(f"lora.{error}" if str(error).startswith("patterns") else f"lora: {error}") from error


def build_monitor(model: nn.Module, section: MonitorSection, accelerator: Accelerator) -> GradientMonitor | None:
    """The monitor of a run's gradients; None = it has none."""
    if not section.every and not section.pcgrad:
        return None
    return GradientMonitor(
        shared_parameters(model, find_encoder(model, "monitor"), section.parameters),
        every=section.every,
        pcgrad=section.pcgrad,
        projection=section.projection,
        reduce=functools.partial(accelerator.reduce, reduction="mean") if accelerator.num_processes > 1 else None,
    )


def add_head_losses(loss: Any, model: nn.Module) -> Any:
    """A `MultitaskLoss` with the losses of the heads that were added to a model; another loss, or none, as it is."""
    others = getattr(model, "head_losses", {})
    if not others or not isinstance(loss, MultitaskLoss):
        return loss
    own: dict[str, Any] = {name: loss.tasks.get(name) for name in _TERMS}
    return MultitaskLoss(**own, others={name: term for name, term in loss.tasks.items() if name not in own} | others)


def build_loss(section: LossSection) -> MultitaskLoss:
    """The preset with other numbers.

    Raises:
        ValueError: For a task or a number that there isn't, one out of its range, or if nothing is left to minimise.
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
        if changes is None:
            terms[task] = None
            continue
        term: Any = tasks.get(task, _TERMS[task])
        numbers = parse_fields(type(term), changes, f"loss.terms.{task}")
        try:
            terms[task] = dataclasses.replace(term, **numbers)
        except ValueError as error:
            raise ValueError(f"loss.terms.{task}.{error}") from error
        check_at_least(f"loss.terms.{task}.weight", terms[task].weight, 0)
    loss = presets[section.preset](**terms)
    if not any(term.weight for term in loss.tasks.values()):
        got = ", ".join(f"{task} with weight 0" for task in loss.tasks) or "none"
        raise ValueError(f"loss.terms must leave a task with a weight above 0, got {got}")
    return loss
