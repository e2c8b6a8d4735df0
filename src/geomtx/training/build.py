"""What a configuration stands for: model, loss, data."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch

from geomtx.checks import check_divisible, check_option
from geomtx.data.synthetic import RoomStyle, render_scenes
from geomtx.losses.multitask import CAMERA, DEPTH, POINTS, TRACKS, MultitaskLoss
from geomtx.models.vggt import VGGT
from geomtx.training.batches import RenderScenes
from geomtx.training.config import DataSection, LossSection, ModelSection, TrainingConfig
from geomtx.training.freezing import freeze
from geomtx.training.heads import detach_heads, run_heads_in_float32
from geomtx.training.recomputation import recompute_blocks

__all__ = ["build_loss", "build_model", "build_renderer", "prepare_model"]

_TERMS = {"camera": CAMERA, "depth": DEPTH, "points": POINTS, "tracks": TRACKS}


def build_model(section: ModelSection) -> VGGT:
    """With random weights, drawn from torch's global generator, or with those of a checkpoint, in float32."""
    if section.weights is None:
        return VGGT(section.model_config())
    for head in section.heads or ():
        check_option("model.heads", head, tuple(_TERMS))
    return VGGT.from_pretrained(section.weights, heads=section.heads, dtype=torch.float32)  # type: ignore[arg-type]


def prepare_model(model: VGGT, config: TrainingConfig) -> None:
    """Training mode, frozen parts, probes, precision, recomputation: in place."""
    for side in config.data.image_hw:
        check_divisible("data.image_hw", side, model.config.patch_size)
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
        ValueError: For a task or a number that there isn't.
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
        for name in changes:
            known = [field.name for field in dataclasses.fields(term)]
            check_option(f"loss.terms.{task}", name, known)
        plain = {name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()}
        terms[task] = dataclasses.replace(term, **plain)
    return presets[section.preset](**terms)


def build_renderer(section: DataSection) -> RenderScenes:
    """`render_scenes` with the options of the configuration: `supersample`, and numbers of `style`.

    Raises:
        ValueError: For an option that there isn't.
    """
    options = dict(section.options)
    for name in options:
        check_option("data.options", name, ("style", "supersample"))
    style = options.pop("style", {})
    for name in style:
        check_option("data.options.style", name, [field.name for field in dataclasses.fields(RoomStyle)])
    return functools.partial(render_scenes, style=RoomStyle(**style), **options)
