"""How a task runs a model in training: what is the same in every kind of model.

Nothing here changes a model. Heads in float32, probes and recomputation are other ways of calling its parts.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from geomtx.checks import check_option
from geomtx.encoder.alternating import AlternatingEncoder
from geomtx.encoder.scopes import AttentionTable
from geomtx.inference.engine import RecomputedBlock, recompute_blocks
from geomtx.models.scene_model import SceneModel
from geomtx.types import Predictions, Tokens

__all__ = ["PLAIN", "RunOptions", "TrainedModel", "check_options", "encode", "head_precision", "run_vggt"]


class RunOptions(NamedTuple):
    """How the parts of a model are called in training.

    Attributes:
        detach: Names of heads whose gradients stop at the tokens (probes): the encoder learns nothing from them.
        heads_in_float32: Whether heads are taken out of an autocast around the model.
        recompute: Whether activations within blocks are computed again in the backward pass instead of being kept
            (gradient checkpointing, Chen et al. 2016).
    """

    detach: tuple[str, ...] = ()
    heads_in_float32: bool = False
    recompute: bool = False

    def recomputes(self, model: nn.Module) -> bool:
        """Return whether blocks are recomputed in this pass: only in training, where gradients are recorded."""
        return self.recompute and model.training and torch.is_grad_enabled()


PLAIN = RunOptions()
"""Models are called as they are."""


class TrainedModel(nn.Module):
    """A model as its task runs it: the one module that is called in a step, and that DDP or FSDP wraps.

    All that a task does with its model is within one call of this module, since gradients are exchanged, and sharded
    parameters whole, within one call only.

    Args:
        model: The model.
        task: The task, see `geomtx.training.tasks.task.Task`.
        options: Keyword arguments that the parts of the model are called with.
        frozen: Names of modules that stay in evaluation mode.
    """

    def __init__(self, model: nn.Module, task: Any, options: RunOptions = PLAIN, frozen: Iterable[str] = ()) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.options = options
        self.frozen = tuple(frozen)
        self.train()

    def forward(self, batch: Any) -> Any:
        """Return what the task predicts for a batch that it prepared."""
        if self.options == PLAIN or not takes_options(self.task):
            return self.task.predict(self.model, batch)
        return self.task.predict(self.model, batch, self.options)

    def train(self, mode: bool = True) -> TrainedModel:
        """Set training or evaluation mode, but for the frozen modules."""
        super().train(mode)
        for name in self.frozen:
            self.model.get_submodule(name).eval()
        return self


def takes_options(task: Any) -> bool:
    """Return whether a task's `predict` has the argument `options`; a user's own need not."""
    return "options" in inspect.signature(task.predict).parameters


def check_options(options: RunOptions, model: nn.Module, task: Any) -> None:
    """Require a model, and a task, that can be run with these options.

    Raises:
        ValueError: Naming the key of the configuration.
    """
    inner = next((module for module in model.modules() if isinstance(module, SceneModel)), None)
    for head in options.detach:
        check_option("detach", head, () if inner is None else inner.heads)
    has_encoder = any(isinstance(module, AlternatingEncoder) for module in model.modules())
    if options.recompute and not has_encoder:
        got = type(model).__name__
        raise ValueError(f"gradient_checkpointing must be off for a model without an AlternatingEncoder, got {got}")
    for name, is_on in (("detach", options.detach), ("gradient_checkpointing", options.recompute)):
        if is_on and not takes_options(task):
            raise ValueError(
                f"{name} must be off for a task whose predict(model, batch) takes no options, got {type(task).__name__}"
            )


def run_vggt(
    model: SceneModel, images: Tensor, query_points: Tensor | None, options: RunOptions = PLAIN
) -> Predictions:
    """Return what `model(images, query_points)` gives, run with options."""
    if options == PLAIN:
        return model(images, query_points)
    images, query_points, _, heads, *_ = model.check_inputs(images, query_points, None, None)
    tokens = encode(model.encoder, images, model.taps_of(heads), recompute=options.recomputes(model))

    def read(head: str) -> Tokens:
        return _detach(tokens) if head in options.detach else tokens

    with head_precision(images.device, options):
        return model.run_heads(read, heads, query_points)


def encode(encoder: AlternatingEncoder, images: Tensor, taps: tuple[int, ...], *, recompute: bool) -> Tokens:
    """Return what `encoder(images, taps=taps)` gives, with or without recomputation of the blocks' activations."""
    if not recompute:
        return encoder(images, taps=taps)
    views = encoder.embed(images, each_view=recomputed_backbone(encoder))
    return encoder.collect(views, recomputed(encoder.attention(views)), taps)


def recomputed(attend: AttentionTable) -> AttentionTable:
    """Return a table that runs blocks with recomputation."""
    return recompute_blocks(attend)


def recomputed_backbone(encoder: AlternatingEncoder) -> Callable[..., Tensor] | None:
    """Return how the embedding of views is called so that the backbone's blocks are recomputed; None without blocks."""
    return _call_with_recomputation if hasattr(encoder.backbone, "blocks") else None


def _call_with_recomputation(function: Callable[..., Tensor], *args: Any) -> Tensor:
    return partial(function, run_block=RecomputedBlock)(*args)


def head_precision(device: torch.device, options: RunOptions) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which heads are run: without autocast if they are in float32."""
    return torch.autocast(device.type, enabled=False) if options.heads_in_float32 else contextlib.nullcontext()


def _detach(tokens: Tokens) -> Tokens:
    return tokens._replace(layers={index: layer.detach() for index, layer in tokens.layers.items()})
