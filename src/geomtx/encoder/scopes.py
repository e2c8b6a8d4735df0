"""Scopes of attention, that is which tokens attend to which, and functions that run a block within a scope."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from geomtx.checks import check_option
from geomtx.layers.attention import key_mask
from geomtx.layers.block import Attend
from geomtx.layers.rope import RotaryTable

__all__ = [
    "BLOCKS_OF",
    "AcrossViews",
    "AmongSpecial",
    "AttentionTable",
    "Scope",
    "WithinViews",
    "ask_head_dim",
    "check_order",
    "mask_own_view",
    "number_blocks",
]

Scope = Literal["frame", "global", "cross", "register", "pose"]

BLOCKS_OF: dict[Scope, str] = {
    "frame": "frame",
    "global": "global",
    "cross": "global",
    "register": "global",
    "pose": "pose",
}
"""Scope → list of blocks that the scope takes its next one from."""

AttentionTable = Mapping[Scope, Attend]
"""Function that runs a block on the tokens of scenes, (B, S, P, C), for each scope."""


@dataclass(eq=False)
class WithinViews:
    """Run a block on every view by itself, as in the scope "frame".

    Attributes:
        rope: Rotary table of the P tokens of a view; None for none.
        mask: Attention mask with views as the batch, (B·S, 1, 1, P); None for none.
    """

    rope: RotaryTable | None
    mask: Tensor | None

    def __call__(self, number: int, block: Callable[..., Tensor], x: Tensor) -> Tensor:
        """Return the tokens (B, S, P, C) after the block."""
        num_views = x.shape[1]
        x = block(x.flatten(0, 1), rope=self.rope, mask=self.mask)  # (B·S, P, C)
        return x.unflatten(0, (-1, num_views))


@dataclass(eq=False)
class AcrossViews:
    """Run a block on all tokens of a scene as one sequence: "global", and with a mask "cross" and "pose".

    Attributes:
        rope: Rotary table of the S·P tokens of a scene, or what else tells the blocks their places; None for none.
        mask: Attention mask, broadcastable to (B, 1, S·P, S·P); None for none.
    """

    rope: Any
    mask: Tensor | None

    def __call__(self, number: int, block: Callable[..., Tensor], x: Tensor) -> Tensor:
        """Return the tokens (B, S, P, C) after the block."""
        num_views = x.shape[1]
        x = block(x.flatten(1, 2), rope=self.rope, mask=self.mask)  # (B, S·P, C)
        return x.unflatten(1, (num_views, -1))


@dataclass(eq=False)
class AmongSpecial:
    """Run a block on the special tokens of all views of a scene, as in the scope "register"; patches stay as they are.

    Attributes:
        num_special: Number of special tokens of a view.
        across: Way of running the block on these tokens, for instance `AcrossViews`.
        in_place: Whether the output is written over the input.
    """

    num_special: int
    across: Attend
    in_place: bool = False

    def __call__(self, number: int, block: Callable[..., Tensor], x: Tensor) -> Tensor:
        """Return the tokens (B, S, P, C) after the block."""
        special = self.across(number, block, x[:, :, : self.num_special].contiguous())
        if self.in_place:
            x[:, :, : self.num_special] = special
            return x
        return torch.cat([special, x[:, :, self.num_special :]], dim=2)


def mask_own_view(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return the attention mask of the scope "cross", broadcastable to (B, 1, S·P, S·P).

    A token attends to the valid tokens of all other views; where there are none, to all valid tokens.

    Args:
        x: Tokens, (B, S, P, C).
        mask: Mask of the valid tokens, (B, S, P) bool; None for all.
    """
    view = torch.arange(x.shape[1], device=x.device).repeat_interleave(x.shape[2])
    others = (view[:, None] != view)[None, None]
    valid = None if mask is None else key_mask(mask.flatten(1, 2))
    allowed = others if valid is None else others & valid
    fallback = torch.ones_like(others) if valid is None else valid
    return torch.where(allowed.any(dim=-1, keepdim=True), allowed, fallback)


def check_order(order: tuple[tuple[Scope, ...], ...], num_frame: int, num_global: int, num_pose: int = 0) -> None:
    """Require an order of scopes that uses every block once.

    Args:
        order: Layers of scopes.
        num_frame: Number of frame blocks.
        num_global: Number of global blocks.
        num_pose: Number of blocks that inject poses.

    Raises:
        ValueError: If a block is used more or less than once, or a scope is unknown.
    """
    there = {"frame": num_frame, "global": num_global, "pose": num_pose}
    used = dict.fromkeys(there, 0)
    for scope in (scope for layer in order for scope in layer):
        check_option("scope", scope, get_args(Scope))
        used[BLOCKS_OF[scope]] += 1
    if used != there:
        shown = {name: (number, used[name]) for name, number in there.items() if name != "pose" or number or used[name]}
        raise ValueError(
            f"order must use each block once, {' and '.join(f'{n} {name}' for name, (n, _) in shown.items())} ones, "
            f"got {' and '.join(str(number) for _, number in shown.values())}; without an order they are taken in pairs"
        )


def number_blocks(order: tuple[tuple[Scope, ...], ...]) -> tuple[tuple[tuple[Scope, int], ...], ...]:
    """Return `order` with the index of each scope's block in the list that it is taken from, see `BLOCKS_OF`.

    Args:
        order: Layers of scopes.
    """
    used = dict.fromkeys(BLOCKS_OF.values(), 0)
    numbered = []
    for layer in order:
        blocks = []
        for scope in layer:
            blocks.append((scope, used[BLOCKS_OF[scope]]))
            used[BLOCKS_OF[scope]] += 1
        numbered.append(tuple(blocks))
    return tuple(numbered)


def ask_head_dim(blocks: Iterable[nn.Module]) -> int:
    """Return the head dimension of the first block that has an `attention.head_dim`.

    Args:
        blocks: Blocks of an encoder.

    Raises:
        ValueError: If none has.
    """
    for block in blocks:
        head_dim = getattr(getattr(block, "attention", None), "head_dim", None)
        if isinstance(head_dim, int):
            return head_dim
    raise ValueError("head_dim must be given for blocks without an `attention.head_dim`, got None")
