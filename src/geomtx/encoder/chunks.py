"""An encoder's work in pieces, where memory is short; without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from geomtx.encoder.special import SpecialTokens
from geomtx.layers.block import TransformerBlock
from geomtx.layers.placement import empty_on
from geomtx.types import Bool, Float

__all__ = ["EncoderChunks", "check_blocks", "embed_in_chunks", "set_aside"]


class EncoderChunks(NamedTuple):
    """How much an encoder works on at a time.

    Attributes:
        views: In the backbone and in frame blocks.
        tokens: Of each scene, in global blocks; each still attends to all.
        device: Where the outputs of a tapped layer's earlier blocks wait for that of its last; None = the model's.
    """

    views: int
    tokens: int
    device: torch.device | None = None


def check_blocks(blocks: Iterable[nn.Module], reason: str = "chunks or fewer keys") -> None:
    """Require blocks whose parts can be called one by one, and that take keys of their own.

    Raises:
        ValueError: For another one.
    """
    for block in blocks:
        if not isinstance(block, TransformerBlock):
            raise ValueError(f"blocks must be TransformerBlock for {reason}, got {type(block).__name__}")


def embed_in_chunks(
    embed: Callable[[Tensor, Tensor | None], Tensor],
    special: SpecialTokens,
    images: Float[Tensor, "b s 3 h w"],
    patch_mask: Bool[Tensor, "b s p"] | None,
    num_views: int,
) -> Float[Tensor, "b s p2 c"]:
    """Special and patch tokens, (B, S, P, C), some views at a time.

    Args:
        embed: Images (N, 3, H, W) and their mask (N, patches) to patch tokens.
        special: Has the precision and the device that images are brought to.
        images: (B, S, 3, H, W), on any device.
        patch_mask: (B, S, patches), where the tokens will be.
        num_views: At a time.
    """
    parameter = special.camera
    x = None
    for start in range(0, images.shape[1], num_views):
        part = slice(start, start + num_views)
        # In this order: half as many bytes go over where the model is in half precision.
        here = images[:, part].to(parameter.dtype).to(parameter.device, non_blocking=True)
        keep = None if patch_mask is None else patch_mask[:, part].flatten(0, 1)
        patches = embed(here.flatten(0, 1), keep).unflatten(0, here.shape[:2])
        if x is None:
            x = patches.new_empty(*images.shape[:2], special.num_tokens + patches.shape[2], patches.shape[3])
        x[:, part, special.num_tokens :] = patches
    assert x is not None, "there is at least one view"
    x[:, :, : special.num_tokens] = special.tokens(images.shape[1]).to(x.dtype)
    return x


def set_aside(x: Tensor, device: torch.device | None) -> Tensor:
    """A copy, on `device` if there is one, of what is written over next."""
    return empty_on(device, x).copy_(x, non_blocking=True)
