"""Encoder with rotary positions in the blocks within a view alone (VGGT-Omega)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from geomtx.encoder.alternating import AlternatingEncoder
from geomtx.encoder.patches import Backbone
from geomtx.layers.rope import RotaryTable
from geomtx.types import EmbeddedViews

__all__ = ["FrameRotaryEncoder"]


class FrameRotaryEncoder(AlternatingEncoder):
    """An `AlternatingEncoder` whose frame blocks alone have rotary positions, which come from a module of its own.

    Blocks across views have none: a token knows its place from the frame blocks before. So the tokens of views of
    different shapes could meet, and attention among special tokens, the scope "register", is as any other.

    Args:
        backbone: Module that computes patch tokens of normalised images, see `Backbone`.
        frame_blocks: Blocks for the scope "frame", see `AlternatingEncoder`.
        global_blocks: Blocks for the scopes across views.
        rope: Module that returns the rotary table of a grid, for instance `GridRotary`.
        options: `order`, `taps`, `num_registers` and `special_std`, as for `AlternatingEncoder`.

    Raises:
        ValueError: As `AlternatingEncoder`.
    """

    def __init__(
        self,
        backbone: Backbone,
        frame_blocks: Iterable[nn.Module],
        global_blocks: Iterable[nn.Module],
        *,
        rope: nn.Module,
        **options: Any,
    ) -> None:
        super().__init__(backbone, frame_blocks, global_blocks, rope_base=None, **options)
        self.rope = rope

    @property
    def rotates(self) -> bool:
        """Whether blocks rotate queries and keys by position, as frame blocks do."""
        return True

    def rotary_table(self, views: EmbeddedViews) -> RotaryTable | None:
        """Return the rotary table of the tokens of a view, in float32 or better.

        Args:
            views: Tokens of the views before the first block, from `embed`.
        """
        return self.rope(views.grid_hw, views.num_special, torch.promote_types(views.x.dtype, torch.float32))

    def rotary_across(self, views: EmbeddedViews, within: RotaryTable | None) -> RotaryTable | None:
        """Return None: blocks across views have no positions.

        Args:
            views: Tokens of the views before the first block, from `embed`.
            within: Result of `rotary_table`.
        """
        return None
