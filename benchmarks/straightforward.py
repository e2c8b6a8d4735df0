"""VGGT's forward pass as one would first write it, with the published structure: what geomtx is compared with.

The weights are in float32 and products in half precision by autocast, so the residual stream is in float32; every block
looks for its largest position, which waits for the device, builds its rotary table and turns queries and keys one after
the other; all layers are concatenated and kept, whatever the heads read. The modules and weights are geomtx's own, so
that both give the same up to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import geomtx
from geomtx.encoder.patches import grid_of, normalize_images
from geomtx.inference.chunks import map_chunks
from geomtx.layers.rope import grid_positions
from geomtx.types import Tokens

__all__ = ["Straightforward"]


class Straightforward(nn.Module):
    """`model(images)` → `Predictions`, with cameras, depth and points as far as the model has them."""

    def __init__(self, model: geomtx.VGGT, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model.float()
        self.dtype = dtype

    def forward(self, images: Tensor, *, view_chunk: int | None = None) -> geomtx.Predictions:
        model = self.model
        autocast = torch.autocast(images.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)
        with autocast:
            tokens = self._encode(images[None])
        cameras = None if model.camera_head is None else model.camera_head(tokens)
        dense = {}
        for name, head in (("depth", model.depth_head), ("points", model.point_head)):
            dense[name] = None if head is None else decode(head, tokens, view_chunk)
        return geomtx.Predictions(
            None if cameras is None else cameras.cameras, None if cameras is None else cameras.pose_encodings, **dense
        )

    def _encode(self, images: Tensor) -> Tokens:
        encoder = self.model.encoder
        image_hw = (images.shape[-2], images.shape[-1])
        grid_hw = grid_of(image_hw, encoder.backbone.patch_size)
        patches = encoder.backbone(normalize_images(images.flatten(0, 1)))
        x = encoder.special(patches.float().unflatten(0, images.shape[:2]))
        positions = grid_positions(grid_hw, encoder.special.num_tokens, x.device)
        num_scenes, num_views = x.shape[:2]
        layers = {}
        for index, (frame, of_all) in enumerate(zip(encoder.frame_blocks, encoder.global_blocks, strict=True)):
            x = run_block(frame, x.flatten(0, 1), positions, encoder.rope_base)
            first = x.unflatten(0, (num_scenes, num_views))
            x = run_block(of_all, first.flatten(1, 2), positions.repeat(num_views, 1), encoder.rope_base)
            x = x.unflatten(1, (num_views, -1))
            layers[index] = torch.cat([first, x], dim=-1)
        return Tokens(layers, encoder.special.num_tokens, image_hw, grid_hw, None)


def decode(head: nn.Module, tokens: Tokens, view_chunk: int | None) -> geomtx.DenseMap:
    """Some views at a time."""
    return map_chunks(lambda part: head(tokens.take_views(part)), tokens.views[1], view_chunk, dim=1)


def run_block(block: nn.Module, x: Tensor, positions: Tensor, base: float) -> Tensor:
    x = x + block.attention_scale.gamma * attend(block.attention, block.attention_norm(x), positions, base)
    return x + block.mlp_scale.gamma * block.mlp(block.mlp_norm(x))


def attend(attention: nn.Module, x: Tensor, positions: Tensor, base: float) -> Tensor:
    qkv = attention.qkv(x).unflatten(-1, (3, attention.num_heads, attention.head_dim))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    q, k = attention.q_norm(q), attention.k_norm(k)
    q, k = rotate(q, positions, base), rotate(k, positions, base)
    out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
    return attention.out(out.transpose(1, 2).flatten(2))


def rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """Half of the channels by the row, half by the column."""
    count = int(positions.max()) + 1  # waits
    angles = torch.arange(count, device=x.device)[:, None] * frequencies(x.shape[-1] // 2, base, x.device)
    cos, sin = (table.repeat(1, 2).to(x.dtype) for table in (angles.cos(), angles.sin()))
    halves = []
    for half, along in zip(x.chunk(2, dim=-1), positions.unbind(-1), strict=True):
        first, second = half.chunk(2, dim=-1)
        halves.append(half * cos[along] + torch.cat([-second, first], dim=-1) * sin[along])
    return torch.cat(halves, dim=-1)


def frequencies(dim: int, base: float, device: torch.device) -> Tensor:
    return base ** (-torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)
