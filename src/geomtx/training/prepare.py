"""Prepares a model for training as its configuration says: adapters, frozen parts, checkpointing of activations,
losses and monitor.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from geomtx.checks import check_at_least, check_option
from geomtx.encoder.alternating import AlternatingEncoder
from geomtx.heads.probe import make_probe
from geomtx.layers.lora import add_lora
from geomtx.losses.multitask import CAMERA, DEPTH, POINTS, TRACKS, MultitaskLoss
from geomtx.losses.terms import ConsistencyTerm, HeadLoss, Term
from geomtx.models.extra_heads import head_modules
from geomtx.models.vggt import VGGT
from geomtx.training.config import LoraSection, LossSection, MonitorSection, TrainingConfig
from geomtx.training.monitor import GradientMonitor, shared_parameters
from geomtx.training.optim import freeze
from geomtx.training.parsing import parse_fields
from geomtx.types import Tokens

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = [
    "build_loss",
    "build_monitor",
    "check_rehearsal",
    "check_track_labels",
    "detach_heads",
    "find_encoder",
    "prepare_model",
    "recompute_blocks",
    "run_heads_in_float32",
]

# How a block is run in training: on all its tokens, or with isolated views.
_WAYS = ("forward", "project_keys", "attend_to")


def recompute_blocks(encoder: AlternatingEncoder) -> int:
    """Checkpoint every block of the backbone, every frame and every global block, in training mode only.

    The blocks' classes know nothing of it: what a block's instance is called with goes through
    `torch.utils.checkpoint`.

    Args:
        encoder: Changed in place. Blocks of the backbone are those in its attribute `blocks`, if it has one.

    Returns:
        How many blocks that are.
    """
    blocks = [*getattr(encoder.backbone, "blocks", ()), *encoder.frame_blocks, *encoder.global_blocks]
    for block in blocks:
        for name in _WAYS:
            if hasattr(type(block), name):
                # A method of this module's function: a deep copy of the block has its own, and a second call changes
                # nothing.
                setattr(block, name, types.MethodType(functools.partial(_recompute, name), block))
    return len(blocks)


def _recompute(name: str, block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    run = getattr(type(block), name)
    if block.training and torch.is_grad_enabled():
        return checkpoint(run, block, *args, use_reentrant=False, **kwargs)
    return run(block, *args, **kwargs)


def detach_heads(model: nn.Module, heads: Iterable[str]) -> None:
    """Make probes of heads: they learn from the tokens, the encoder learns nothing from them.

    Args:
        model: With heads as `VGGT` has them, added ones too; changed in place.
        heads: Names.

    Raises:
        ValueError: For a head that the model doesn't have.
    """
    available = head_modules(model)
    for head in heads:
        check_option("detach", head, available)
        make_probe(available[head])


def run_heads_in_float32(model: nn.Module) -> None:
    """Take the heads, also those of a VGGT inside, out of an autocast around the model; changes `model` in place."""
    heads = {head for part in model.modules() for head in head_modules(part).values()}
    if isinstance(rgb_head := getattr(model, "rgb_head", None), nn.Module):
        heads.add(rgb_head)
    for head in heads:
        head.forward = _Float32Head(head.forward)


class _Float32Head:
    def __init__(self, forward: Any) -> None:
        self.forward = forward

    def __call__(self, tokens: Tokens, *args: Any, **kwargs: Any) -> Any:
        layers = {index: layer.float() for index, layer in tokens.layers.items()}
        device = next(iter(layers.values())).device.type
        with torch.autocast(device, enabled=False):
            return self.forward(tokens._replace(layers=layers), *args, **kwargs)


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


def build_loss(section: LossSection, others: Mapping[str, Term | HeadLoss] | None = None) -> MultitaskLoss:
    """The preset with other numbers.

    Args:
        section: The section `loss` of a configuration.
        others: Losses that no configuration can say, see `MultitaskLoss`, for instance those of added heads.

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
    loss = presets[section.preset](**terms, others=others)
    if not any(term.weight for term in loss.tasks.values()):
        got = ", ".join(f"{task} with weight 0" for task in loss.tasks) or "none"
        raise ValueError(f"loss.terms must leave a task with a weight above 0, got {got}")
    return loss
