"""VGGT's forward pass where memory is short: nothing is kept that a head has not asked for, in the form it reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from geomtx.encoder.chunks import EncoderChunks
from geomtx.encoder.keys import GlobalApproximation
from geomtx.heads.camera import CameraHead
from geomtx.heads.dense import DenseHead
from geomtx.heads.dpt import DPTDecoder
from geomtx.heads.rgb import RGBHead
from geomtx.heads.track import TrackHead
from geomtx.layers.placement import empty_on, wait_for_copies
from geomtx.models.extra_heads import head_dtype, head_modules
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
        decoders: dict[str, DPTDecoder],
        cameras: dict[str, int],
        whole: tuple[int, ...],
        views: tuple[int, int],
        plan: MemoryPlan,
    ) -> None:
        self.tokens = tokens
        self.decoders = decoders
        self.cameras = cameras
        self.whole = whole
        self.views = views
        self.plan = plan
        self.device: torch.device | None = None  # that of the model, once a layer was reached
        self.camera_tokens: dict[int, Tensor] = {}
        self.layers: dict[int, Tensor] = {}
        self.maps: dict[str, dict[int, Tensor]] = {head: {} for head in decoders}

    def take(self, item: tuple[int, tuple[Tensor, ...]]) -> None:
        """Read a layer: its index and its parts (B, S, P, C)."""
        index, parts = item
        # What is cut out of pinned memory is read by the host at once.
        wait_for_copies(parts[:-1], parts[-1].device)
        self.device = parts[-1].device
        if index in self.cameras.values():
            here = [part[:, :, :1].to(parts[-1].device) for part in parts]
            self.camera_tokens[index] = torch.cat(here, dim=-1)
        if index in self.whole:
            layer = torch.cat([part.to(parts[-1].device) for part in parts], dim=-1)
            self.layers[index] = layer.to(_device(self.plan.tap_device))
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
                decoder = self.decoders[head]
                projected = decoder.project_tap(
                    level,
                    patches.to(head_dtype(decoder) or patches.dtype),
                    self.tokens.grid_hw,
                    self.tokens.image_hw,
                    None if mask is None else mask[chunk],
                )
                maps = self.maps[head]
                if level not in maps:
                    maps[level] = empty_on(_device(self.plan.tap_device), projected, num_views, *projected.shape[1:])
                maps[level][chunk].copy_(projected, non_blocking=True)

    def read(self, head: str) -> Tokens | ProjectedTokens:
        """What a head reads; projections are let go here, so they can be read once."""
        tokens = self.tokens
        if head in self.cameras:
            index = self.cameras[head]
            mask = None if tokens.mask is None else tokens.mask[:, :, :1]
            return Tokens({index: self.camera_tokens[index]}, 1, tokens.image_hw, tokens.grid_hw, mask)
        if head not in self.maps:
            layers = {index: layer.to(self.device) for index, layer in self.layers.items()}
            return tokens._replace(layers=layers)
        maps = self.maps.pop(head)
        mask = None if tokens.mask is None else tokens.mask[:, :, 0]
        return ProjectedTokens(tuple(maps[level] for level in sorted(maps)), self.views, tokens.image_hw, mask)


def read_in_chunks(
    model: VGGT,
    images: Tensor,
    patch_mask: Tensor | None,
    heads: tuple[str, ...],
    plan: MemoryPlan,
    approximation: GlobalApproximation | None = None,
) -> Callable[[str], Tokens | ProjectedTokens]:
    """Run the encoder as the plan says, without gradients.

    Of a head that is neither `CameraHead` nor one with a decoder of geomtx's, all tokens of all taps are kept.

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
    modules = {name: head for name, head in head_modules(model).items() if name in heads}
    decoders = {
        name: head.decoder for name, head in modules.items() if isinstance(head, DenseHead | RGBHead | TrackHead)
    }
    last = max(model.config.taps)
    cameras = {
        name: last if head.layer is None else head.layer
        for name, head in modules.items()
        if isinstance(head, CameraHead)
    }
    whole = model.config.taps if modules.keys() - decoders.keys() - cameras.keys() else ()
    taps = {tap for decoder in decoders.values() for tap in decoder.taps} | {*cameras.values(), *whole}
    tokens, layers = model.encoder.stream(
        images,
        patch_mask=patch_mask,
        taps=tuple(sorted(taps)),
        approximation=approximation,
        chunks=EncoderChunks(plan.view_chunk, plan.token_chunk, _device(plan.part_device)),
    )
    reader = _LayerReader(tokens, decoders, cameras, whole, (images.shape[0], images.shape[1]), plan)
    # A layer is let go before the next one is asked for, which a loop's variable would not do.
    for _ in map(reader.take, layers):
        pass
    return reader.read


def _device(name: str | None) -> torch.device | None:
    return None if name is None else torch.device(name)
