"""VGGT (Wang et al., CVPR 2025): cameras, depth, points and tracks of a scene in one pass. Assembly only."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from geomtx.checkpoint import Checkpoint, load_model, open_checkpoint, save_model
from geomtx.checks import check_shape
from geomtx.encoder.keys import GlobalApproximation
from geomtx.heads.dense import DenseHead
from geomtx.models.config import HEAD_MODULES, HeadName, VGGTConfig, check_heads
from geomtx.models.memory import MemoryPlan
from geomtx.models.quantize import QuantizedType, is_quantized, quantize_model
from geomtx.models.registry import EMBEDDED, find_weights, state_licence
from geomtx.models.streaming import read_in_chunks
from geomtx.models.vggt_keys import VGGT_KEYS, is_published_config, parse_config, published_config
from geomtx.models.vggt_parts import build_camera_head, build_dense_head, build_encoder, build_track_head
from geomtx.types import Bool, Float, Predictions

__all__ = ["VGGT", "VGGTConfig"]


def check_queries(query_points: Tensor, images: Tensor) -> None:
    """Require query points (B, N, 2 or 3) to lie in the views of `images`; only where looking costs nothing."""
    if type(query_points) is not Tensor or not query_points.is_cpu or torch.compiler.is_compiling():
        return
    num_views, height, width = images.shape[1], images.shape[-2], images.shape[-1]
    view, x, y = torch.cat([torch.zeros_like(query_points[..., :1]), query_points], dim=-1)[..., -3:].unbind(-1)
    inside = (view >= 0) & (view < num_views) & (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
    if not inside.all():
        first = query_points[~inside][0].tolist()
        raise ValueError(f"query_points must lie in one of {num_views} views of {width}x{height} pixels, got {first}")


def config_of_checkpoint(checkpoint: Checkpoint) -> VGGTConfig:
    """The stored configuration; else VGGT-1B's, with the heads that the checkpoint has tensors of."""
    stored = checkpoint.config
    if stored is None or (is_published_config(stored) and checkpoint.embedded_config is not None):
        stored = checkpoint.embedded_config  # complete, where a published one has few numbers
    if stored is not None:
        try:
            return parse_config(stored)
        except ValueError as error:
            raise ValueError(f"{checkpoint.source} has a configuration that makes no model: {error}") from error
    parts = {name.partition(".")[0] for name in checkpoint.shapes}
    return VGGTConfig(heads=tuple(head for head, module in HEAD_MODULES.items() if module in parts))


class VGGT(nn.Module):
    """An encoder and up to four heads, each usable alone: `model.camera_head(model.encoder(images))`.

    Args:
        config: All numbers; `VGGTConfig()` is VGGT-1B, `VGGTConfig.tiny()` a model for tests.
    """

    def __init__(self, config: VGGTConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config)
        self.camera_head = build_camera_head(config) if "camera" in config.heads else None
        self.depth_head = build_dense_head(config, 1, "exp") if "depth" in config.heads else None
        self.point_head = build_dense_head(config, 3, "signed_expm1") if "points" in config.heads else None
        self.track_head = build_track_head(config) if "tracks" in config.heads else None

    @property
    def heads(self) -> tuple[HeadName, ...]:
        """Names of the heads that this model has."""
        return self.config.heads

    def forward(
        self,
        images: Float[Tensor, "*batch s 3 h w"],
        query_points: Tensor | None = None,
        patch_mask: Bool[Tensor, "*batch s rows columns"] | None = None,
        *,
        heads: tuple[HeadName, ...] | None = None,
        view_chunk: int | None = None,
        memory_plan: MemoryPlan | None = None,
        approximation: GlobalApproximation | None = None,
    ) -> Predictions:
        """Predict; differentiable.

        Args:
            images: (B, S, 3, H, W) in [0, 1], or (S, 3, H, W) for one scene; sides are multiples of the patch size.
                The first view is the reference: its camera is the world.
            query_points: (B, N, 2), (x, y) in pixels of view 0, or (B, N, 3) as (view, x, y); without the B axis for
                one scene. Without queries there are no tracks.
            patch_mask: (B, S, H/patch, W/patch) bool, True = takes part; without the B axis for one scene.
            heads: Run only these; None = all that the model has.
            view_chunk: Views that the dense heads decode at a time; None = all.
            memory_plan: Work in pieces, without gradients, see `MemoryPlan`; it says `view_chunk` too. Images may then
                be on another device.
            approximation: What global attention may leave out, for many views; None = nothing.

        Returns:
            `Predictions`, always with the B axis, in float32 or better; lengths are up to scale.

        Raises:
            ValueError: For wrong shapes, a head that the model doesn't have, images too small for tracks, and query
                points outside their view. Values on an accelerator are not looked at, which would make it wait;
                `geomtx.reconstruct` checks them, and the images' too.
        """
        images, query_points, patch_mask, heads = self._to_batch(images, query_points, patch_mask, heads)
        return self._predict(images, query_points, patch_mask, heads, view_chunk, memory_plan, approximation)

    def _to_batch(
        self,
        images: Tensor,
        query_points: Tensor | None,
        patch_mask: Tensor | None,
        heads: tuple[HeadName, ...] | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, tuple[HeadName, ...]]:
        """Arguments of `forward`, checked: with the B axis, and the heads that run."""
        if heads is not None:
            check_heads(heads, self.heads)
            if "tracks" in heads and query_points is None:
                raise ValueError("query_points must be given for the head 'tracks', got None")
        heads = tuple(
            head for head in (self.heads if heads is None else heads) if head != "tracks" or query_points is not None
        )
        images = images[None] if images.ndim == 4 else images
        check_shape("images", images, ("B", "S", 3, "H", "W"), ("S", 3, "H", "W"))
        if patch_mask is not None and patch_mask.ndim == 3:
            patch_mask = patch_mask[None]
        if query_points is not None:
            query_points = query_points[None] if query_points.ndim == 2 else query_points
            check_shape("query_points", query_points, (images.shape[0], "N", 2), (images.shape[0], "N", 3))
            check_queries(query_points, images)
            if "tracks" in heads:
                self._check_image_side(images)
        return images, query_points, patch_mask, heads

    def _check_image_side(self, images: Tensor) -> None:
        """Before the encoder's work is done in vain."""
        side = 0 if self.track_head is None else self.track_head.tracker.min_image_side
        if min(images.shape[-2:]) < side:
            raise ValueError(
                f"images must have at least {side} pixels a side for tracks, got {tuple(images.shape[-2:])}"
            )

    def _predict(
        self,
        images: Tensor,
        query_points: Tensor | None,
        patch_mask: Tensor | None,
        heads: tuple[HeadName, ...],
        view_chunk: int | None,
        memory_plan: MemoryPlan | None,
        approximation: GlobalApproximation | None = None,
    ) -> Predictions:
        if memory_plan is not None:
            read = read_in_chunks(self, images, patch_mask, heads, memory_plan, approximation)
            device = None if memory_plan.output_device is None else torch.device(memory_plan.output_device)
            return self._run_heads(read, query_points, heads, memory_plan.view_chunk, device)
        # The dense heads read all taps, the camera head the last.
        taps = self.config.taps[-1:] if heads == ("camera",) else self.config.taps
        tokens = self.encoder(images, patch_mask=patch_mask, taps=taps, approximation=approximation)
        return self._run_heads(lambda head: tokens, query_points, heads, view_chunk)

    def _run_heads(
        self,
        read: Callable[[HeadName], Any],
        query_points: Tensor | None,
        heads: tuple[HeadName, ...],
        view_chunk: int | None,
        output_device: torch.device | None = None,
    ) -> Predictions:
        predictions = Predictions()
        if self.camera_head is not None and "camera" in heads:
            predictions = predictions._replace(**self.camera_head(read("camera"))._asdict())
        dense: dict[str, DenseHead | None] = {"depth": self.depth_head, "points": self.point_head}
        for name, head in dense.items():
            if head is not None and name in heads:
                maps = head(read(name), view_chunk=view_chunk, output_device=output_device)
                predictions = predictions._replace(**{name: maps})
        if self.track_head is not None and "tracks" in heads:
            tracks, iterations = self.track_head(read("tracks"), query_points, view_chunk=view_chunk)
            predictions = predictions._replace(tracks=tracks, track_iterations=iterations)
        return predictions

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        heads: tuple[HeadName, ...] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        config: VGGTConfig | None = None,
        quantize: QuantizedType | None = None,
    ) -> VGGT:
        """Load weights, strictly; in evaluation mode.

        Args:
            source: "nano", the small model that comes with geomtx; a hub id ("facebook/VGGT-1B"); a folder
                (`model.safetensors`, sharded or not, with or without `config.json`); or a .safetensors, .pt, .pth,
                .bin or .ckpt file; with published or geomtx names.
            heads: Build and load only these; None = all that the checkpoint has.
            device: Where to; None = the CPU.
            dtype: Of all parameters; None = as stored, for "nano" float32.
            config: Overrides the configuration found beside or within the weights. Without either it is VGGT-1B's.
            quantize: Then store the blocks' weights in "int8" or "fp8", see `geomtx.quantize_model`.

        Raises:
            ValueError: For missing, unexpected or misshapen tensors (the first ten are listed), a broken file, a
                pickle with code in it; and as `geomtx.quantize_model`.
            ImportError: For quantised weights without torchao.
            FileNotFoundError: If the source is no file and not to be had from the hub.
        """
        checkpoint = open_checkpoint(find_weights(source))
        if source in EMBEDDED and dtype is None:
            dtype = torch.float32
        numbers = config_of_checkpoint(checkpoint) if config is None else config
        if heads is not None:
            check_heads(heads, numbers.heads)
            numbers = dataclasses.replace(numbers, heads=heads)
        model = load_model(checkpoint, lambda: cls(numbers), VGGT_KEYS, device=device, dtype=dtype)
        state_licence(checkpoint.source)
        return model if quantize is None else quantize_model(model, quantize)

    @staticmethod
    def read_config(source: str | os.PathLike[str]) -> VGGTConfig:
        """The configuration of weights, without loading them; arguments and errors as in `from_pretrained`."""
        return config_of_checkpoint(open_checkpoint(find_weights(source)))

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, names: Literal["geomtx", "published"] = "geomtx"
    ) -> Path:
        """Write `model.safetensors` and `config.json` into a folder.

        Args:
            folder: Is made if need be; nothing is left half-written.
            names: "published" files load in the published code.

        Returns:
            The folder.

        Raises:
            ValueError: For a quantised model, whose own numbers are lost.
        """
        if is_quantized(self):
            raise ValueError("model must not be quantised to be saved, got quantised weights; save it before")
        ours, published = self.config.to_dict(), published_config(self.config)
        return save_model(self, folder, VGGT_KEYS, config=ours, published_config=published, names=names)
