"""Heads that a user adds to a model: what may be one, and how it is run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from geomtx.encoder.alternating import AlternatingEncoder
from geomtx.heads.run import run_head
from geomtx.heads.track import TrackHead
from geomtx.models.vggt.config import HEAD_MODULES, HEADS
from geomtx.types import SceneBatch, Tokens

if TYPE_CHECKING:
    from geomtx.losses.terms import Term

__all__ = [
    "HeadLoss",
    "as_term",
    "check_fits",
    "check_new_head",
    "head_modules",
]

# A `Term`, or a function to a scalar or None.
HeadLoss = Callable[[Any, SceneBatch], Any]

# Names of tasks that `MultitaskLoss` has, beside those of heads.
_TAKEN = (*HEADS, "consistency")


def head_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Name → head of all heads of a model, its own first; those of the attributes that `HEAD_MODULES` names."""
    own = {head: getattr(model, attribute, None) for head, attribute in HEAD_MODULES.items()}
    extra = getattr(model, "extra_heads", nn.ModuleDict())
    return {name: head for name, head in own.items() if head is not None} | dict(extra.items())


def as_term(name: str, loss: HeadLoss, weight: float) -> Term:
    """The term of a loss: a function gets the weight, a term has one of its own.

    Raises:
        ValueError: For something else, and for a term with another weight than its own.
    """
    from geomtx.losses.terms import (
        HeadTerm,  # losses are imported where there are any
        Term,
    )

    if isinstance(loss, Term):
        if weight not in (1.0, loss.weight):
            raise ValueError(f"weight must be left out for a Term, which has {loss.weight:g} of its own, got {weight}")
        return loss
    if not callable(loss):
        raise ValueError(f"loss must be a Term or a function of prediction and batch, got {type(loss).__name__}")
    return HeadTerm(name, loss, weight)


def check_new_head(name: str, head: nn.Module, model: nn.Module) -> None:
    """Require a name that is free and a module that is no part of the model yet.

    Raises:
        ValueError: Otherwise.
    """
    if not isinstance(name, str) or not name.isidentifier() or hasattr(nn.ModuleDict, name):
        raise ValueError(f"name must be an identifier that torch.nn.ModuleDict doesn't use itself, got {name!r}")
    taken = dict.fromkeys((*_TAKEN, *head_modules(model)))
    if name in taken:
        raise ValueError(f"name must not be one of {', '.join(map(repr, taken))}, got {name!r}")
    if not isinstance(head, nn.Module):
        raise ValueError(f"head must be a torch.nn.Module, got {type(head).__name__}")
    if any(part is head for part in model.modules()):
        raise ValueError(f"head must be no part of the model yet, got one that is, {type(head).__name__}")


class _Trial(nn.Module):
    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, tokens: Tokens, query_points: Tensor) -> Any:
        return run_head(self.head, tokens, query_points)


@contextmanager
def _silent(logger: str) -> Iterator[None]:
    """Without what torch logs of a failure before it raises it."""
    log = logging.getLogger(logger)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def check_fits(name: str, head: nn.Module, encoder: AlternatingEncoder, image_size: int) -> None:
    """Require a head that takes the encoder's tokens; tried on tensors without values, so nothing is computed.

    What depends on values can't be tried; then the first forward pass will tell.

    Args:
        name: Of the head, for the error.
        head: On any device, in any precision.
        encoder: Says layers and widths.
        image_size: Pixels of a side that the model is made for.

    Raises:
        ValueError: If the head fails, with the reason.
    """
    from torch._subclasses import fake_tensor

    unknowable = (
        fake_tensor.DataDependentOutputException,
        fake_tensor.DynamicOutputShapeException,
        fake_tensor.UnsupportedOperatorException,
        fake_tensor.UnsupportedFakeTensorException,
    )
    widths = {tap: len(encoder.order[tap]) * encoder.backbone.dim for tap in encoder.taps}
    least = head.tracker.min_image_side if isinstance(head, TrackHead) else 1
    patch = encoder.backbone.patch_size
    rows = -(-max(image_size, least) // patch)
    like = next((p for p in head.parameters() if p.is_floating_point()), next(encoder.parameters()))
    shape = (1, 2, encoder.special.num_tokens + rows * rows)
    with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), _silent(fake_tensor.__name__):
        layers = {tap: like.new_zeros(*shape, width) for tap, width in widths.items()}
        tokens = Tokens(layers, encoder.special.num_tokens, (rows * patch, rows * patch), (rows, rows))
        try:
            trial = _Trial(head)
            # Buffers, too: norms count their calls.
            values = {n: torch.empty_like(t) for n, t in (*trial.named_parameters(), *trial.named_buffers())}
            torch.func.functional_call(trial, values, (tokens, like.new_zeros(1, 1, 2)))
        except unknowable:
            return
        except Exception as error:  # heads of others fail in any way
            width = " or ".join(map(str, sorted(set(widths.values()))))
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(
                f"head {name!r} must take the encoder's tokens, {width} wide, of the layers {encoder.taps}, "
                f"got {type(head).__name__} that fails with: {reason}"
            ) from error
