"""VGGT's forward pass where memory is short: nothing is kept that a head has not asked for, in the form it reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from geomtx.encoder.chunks import EncoderChunks
from geomtx.encoder.keys import GlobalApproximation
from geomtx.heads.dpt import DPTDecoder
from geomtx.layers.placement import empty_on, wait_for_copies
from geomtx.models.config import HEAD_MODULES, HeadName
from geomtx.models.memory import MemoryPlan, check_plan
from geomtx.types import ProjectedTokens, Tokens

if TYPE_CHECKING:
    from geomtx.models.vggt import VGGT

__all__ = ["read_in_chunks"]


class _LayerReader:
    """Keeps of every layer, when it is reached, what the heads will read: camera tokens and projected patches."""

    def __init__(
        self,
        tokens: Tokens,
        decoders: dict[HeadName, DPTDecoder],
        camera_layer: int | None,
        views: tuple[int, int],
        plan: MemoryPlan,
    ) -> None:
        self.tokens = tokens
        self.decoders = decoders
        self.camera_layer = camera_layer
        self.views = views
        self.plan = plan
        self.camera_tokens: Tensor | None = None
        self.maps: dict[HeadName, dict[int, Tensor]] = {head: {} for head in decoders}

    def take(self, item: tuple[int, tuple[Tensor, ...]]) -> None:
        """Read a layer: its index and its parts (B, S, P, C)."""
        index, parts = item
        # What is cut out of pinned memory is read by the host at once.
        wait_for_copies(parts[:-1], parts[-1].device)
        if index == self.camera_layer:
            here = [part[:, :, :1].to(parts[-1].device) for part in parts]
            self.camera_tokens = torch.cat(here, dim=-1)
        # A decoder may read a layer more than once.
        levels = [(h, i) for h, decoder in self.decoders.items() for i, tap in enumerate(decoder.taps) if tap == index]
        if not levels:
            return
        mask = self.tokens.patch_mask()
        parts = tuple(part[:, :, self.tokens.num_special :].flatten(0, 1) for part in parts)
        num_views = parts[0].shape[0]
        for start in range(0, num_views, self.plan.view_chunk):
            chunk = slice(start, start + self.plan.view_chunk)
            # The last part is where the model is.
            here = [part[chunk].to(parts[-1].device, non_blocking=True) for part in parts]
            patches = torch.cat(here, dim=-1)
            for head, level in levels:
                projected = self.decoders[head].project_tap(
                    level, patches, self.tokens.grid_hw, self.tokens.image_hw, None if mask is None else mask[chunk]
                )
                maps = self.maps[head]
                if level not in maps:
                    maps[level] = empty_on(_device(self.plan.tap_device), projected, num_views, *projected.shape[1:])
                maps[level][chunk].copy_(projected, non_blocking=True)

    def read(self, head: HeadName) -> Tokens | ProjectedTokens:
        """What a head reads; let go here, so it can be read once."""
        tokens = self.tokens
        if head == "camera":
            assert self.camera_layer is not None
            assert self.camera_tokens is not None, "every tap was reached"
            mask = None if tokens.mask is None else tokens.mask[:, :, :1]
            return Tokens({self.camera_layer: self.camera_tokens}, 1, tokens.image_hw, tokens.grid_hw, mask)
        maps = self.maps.pop(head)
        mask = None if tokens.mask is None else tokens.mask[:, :, 0]
        return ProjectedTokens(tuple(maps[level] for level in sorted(maps)), self.views, tokens.image_hw, mask)


def read_in_chunks(
    model: VGGT,
    images: Tensor,
    patch_mask: Tensor | None,
    heads: tuple[HeadName, ...],
    plan: MemoryPlan,
    approximation: GlobalApproximation | None = None,
) -> Callable[[HeadName], Tokens | ProjectedTokens]:
    """Run the encoder as the plan says, without gradients.

    Args:
        model: The model.
        images: (B, S, 3, H, W), on any device.
        patch_mask: (B, S, rows, columns), on the model's device.
        heads: That will read.
        plan: The pieces.
        approximation: What global attention may leave out.

    Returns:
        Head → what it reads, once.
    """
    check_plan(plan)
    decoders: dict[HeadName, DPTDecoder] = {
        head: getattr(model, HEAD_MODULES[head]).decoder for head in heads if head != "camera"
    }
    taps = {tap for decoder in decoders.values() for tap in decoder.taps}
    camera_layer = model.config.taps[-1] if "camera" in heads else None
    if camera_layer is not None:
        taps.add(camera_layer)
    tokens, layers = model.encoder.stream(
        images,
        patch_mask=patch_mask,
        taps=tuple(sorted(taps)),
        approximation=approximation,
        chunks=EncoderChunks(plan.view_chunk, plan.token_chunk, _device(plan.part_device)),
    )
    reader = _LayerReader(tokens, decoders, camera_layer, (images.shape[0], images.shape[1]), plan)
    # A layer is let go before the next one is asked for, which a loop's variable would not do.
    for _ in map(reader.take, layers):
        pass
    return reader.read


def _device(name: str | None) -> torch.device | None:
    return None if name is None else torch.device(name)
