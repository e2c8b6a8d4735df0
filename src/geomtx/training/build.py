"""What a configuration stands for: model and loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from geomtx.checks import check_at_least, check_option
from geomtx.losses.consistency_term import ConsistencyTerm
from geomtx.losses.multitask import CAMERA, DEPTH, POINTS, TRACKS, MultitaskLoss
from geomtx.models.config import HEADS
from geomtx.models.vggt import VGGT
from geomtx.training.config import LossSection, ModelSection, TrainingConfig
from geomtx.training.freezing import freeze
from geomtx.training.heads import detach_heads, run_heads_in_float32
from geomtx.training.plain_values import parse_fields
from geomtx.training.recomputation import recompute_blocks

__all__ = ["build_loss", "build_model", "check_track_labels", "prepare_model"]

_TERMS = {"camera": CAMERA, "depth": DEPTH, "points": POINTS, "tracks": TRACKS, "consistency": ConsistencyTerm()}


def build_model(section: ModelSection) -> VGGT:
    """With random weights, drawn from torch's global generator, or with those of a checkpoint, in float32."""
    if section.weights is None:
        return VGGT(section.model_config())
    for head in section.heads or ():
        check_option("model.heads", head, HEADS)
    return VGGT.from_pretrained(section.weights, heads=section.heads, dtype=torch.float32)  # type: ignore[arg-type]


def check_track_labels(model: VGGT, num_tracks: int) -> None:
    """Refuse to train a head of tracks on scenes without any: it would stay random, and other processes would wait.

    Raises:
        ValueError: If that is so.
    """
    if model.track_head is None or num_tracks > 0:
        return
    if any(parameter.requires_grad for parameter in model.track_head.parameters()):
        raise ValueError(
            f"data.num_tracks must be positive where the head of tracks is trained, got {num_tracks}; "
            "else leave 'tracks' out of the model's heads, or freeze track_head"
        )


def prepare_model(model: VGGT, config: TrainingConfig) -> None:
    """Training mode, frozen parts, probes, precision, recomputation: in place."""
    model.train()
    freeze(model, config.freeze)
    detach_heads(model, config.detach)
    if config.precision != "float32":
        run_heads_in_float32(model)
    if config.gradient_checkpointing:
        recompute_blocks(model.encoder)
    if config.compile:
        model.compile()


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
