"""Gradient checkpointing (Chen et al. 2016): activations within a block are computed twice, and not kept."""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from geomtx.encoder.alternating import AlternatingEncoder

__all__ = ["recompute_blocks"]

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
