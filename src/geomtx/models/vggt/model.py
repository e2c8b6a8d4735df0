"""VGGT (Wang et al., CVPR 2025): cameras, depth, points and tracks of a scene in one pass."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from geomtx.checkpoint.files import load_weights
from geomtx.checks import check_images, check_option
from geomtx.heads.camera import CameraHead
from geomtx.heads.dpt import DPTDecoder
from geomtx.heads.run import EachView, Gather, run_head
from geomtx.heads.track import TrackHead, check_track_images
from geomtx.inference.quantize import QuantizedType, quantize_model
from geomtx.models.extra_heads import check_new_head, head_modules
from geomtx.models.published import EMBEDDED, state_licence
from geomtx.models.published_model import PublishedModel, StoredForm
from geomtx.models.saved_model import (
    HeadSource,
    added_heads,
    choose_heads,
    config_of_checkpoint,
    describe_model,
    open_vggt,
)
from geomtx.models.vggt.config import HEAD_MODULES, HEADS, VGGTConfig, check_heads
from geomtx.models.vggt.keys import VGGT_KEYS, published_config
from geomtx.models.vggt.parts import build_camera_head, build_dense_head, build_encoder, build_track_head
from geomtx.tracking.queries import batch_queries, check_queries
from geomtx.types import Bool, Float, Predictions, ProjectedTokens, Tokens

__all__ = ["VGGT", "VGGTConfig"]


class VGGT(PublishedModel):
    """An encoder and up to four heads, each usable alone, as in `model.camera_head(model.encoder(images))`.

    Args:
        config: Configuration of the model; `VGGTConfig()` is VGGT-1B, `VGGTConfig.tiny()` a model for tests.
    """

    extra_heads: nn.ModuleDict

    def __init__(self, config: VGGTConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config)
        self.camera_head = build_camera_head(config) if "camera" in config.heads else None
        self.depth_head = build_dense_head(config, 1, "exp") if "depth" in config.heads else None
        self.point_head = build_dense_head(config, 3, "signed_expm1") if "points" in config.heads else None
        self.track_head = build_track_head(config) if "tracks" in config.heads else None
        self.extra_heads = nn.ModuleDict()

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads of this model, its own first and then the added ones."""
        return (*self.config.heads, *self.extra_heads)

    def add_head(self, name: str, head: nn.Module) -> None:
        """Add a head of your own, which reads the tokens that all heads read and gives `Predictions.extra[name]`.

        `save_pretrained` writes its weights with the model's; for a head that is no `DenseHead` or `RGBHead`,
        `from_pretrained` takes `extra_heads={name: module}`.
        Its loss is given where the loss is built, `MultitaskLoss(others={name: …})`.

        Args:
            name: Name of the head, an identifier.
            head: Module called as `head(tokens)`, see `Tokens`, on the encoder's device. A `TrackHead` runs where there
                are query points, and gets them too; a `DenseHead` or `RGBHead` decodes some views at a time, and
                `geomtx.reconstruct` keeps what a `DenseHead` gives. Tokens come in the precision of the head's
                parameters, which may be float32 where the encoder is in bfloat16.

        Raises:
            ValueError: For a name that is taken or no identifier, and for what is no module or is part of the model.
        """
        check_new_head(name, head, self)
        self.extra_heads[name] = head

    def remove_head(self, name: str) -> nn.Module:
        """Take an added head off.

        Returns:
            The head.

        Raises:
            ValueError: If no head was added by this name.
        """
        check_option("name of an added head", name, tuple(self.extra_heads))
        return self.extra_heads.pop(name)

    def forward(
        self,
        images: Float[Tensor, "*batch s 3 h w"],
        query_points: Tensor | None = None,
        patch_mask: Bool[Tensor, "*batch s rows columns"] | None = None,
        *,
        heads: tuple[str, ...] | None = None,
    ) -> Predictions:
        """Predict; differentiable.

        `geomtx.inference.predict` gives the same result, up to rounding, with less memory, on several processes or
        compiled.

        Args:
            images: Images in [0, 1], (B, S, 3, H, W), or (S, 3, H, W) for one scene; sides are multiples of the patch
                size. The first view is the reference: its camera is the world.
            query_points: Points to track, (B, N, 2) as (x, y) in pixels of view 0, or (B, N, 3) as (view, x, y);
                without the B axis for one scene. Defaults to none; then there are no tracks.
            patch_mask: Mask of the valid patches, (B, S, H/patch, W/patch) bool; without the B axis for one scene.
                Defaults to all.
            heads: Names of the heads to run; defaults to all that the model has.

        Returns:
            `Predictions`, always with the B axis, in float32 or better; lengths are up to scale.

        Raises:
            ValueError: For wrong shapes, a head that the model doesn't have, images too small for tracks, and query
                points outside their view. Values on an accelerator are not checked, which would make the host wait;
                `geomtx.reconstruct` checks them, and the images' too.
        """
        images, query_points, patch_mask, heads = self.check_inputs(images, query_points, patch_mask, heads)
        tokens = self.encoder(images, patch_mask=patch_mask, taps=self.taps_of(heads))
        return self.run_heads(lambda head: tokens, heads, query_points)

    def run_heads(
        self,
        read: Callable[[str], Tokens | ProjectedTokens],
        heads: tuple[str, ...],
        query_points: Tensor | None = None,
        *,
        each_view: EachView | None = None,
        gather: Gather | None = None,
    ) -> Predictions:
        """Run heads on what an encoder gave.

        Args:
            read: Function from the name of a head to what it reads, called once a head.
            heads: Names of the heads to run.
            query_points: (B, N, 2) or (B, N, 3), for heads that track.
            each_view: Function that applies a function of single views, `each_view(function, tokens)`; defaults to one
                call with all views.
            gather: Brings the views of all processes together along axis 1; defaults to the identity.
        """
        modules = head_modules(self)
        results = {
            name: run_head(modules[name], read(name), query_points, each_view=each_view, gather=gather)
            for name in modules
            if name in heads
        }
        fields: dict[str, Any] = {}
        for name, result in results.items():
            if name == "camera":
                fields |= {"cameras": result.cameras, "pose_encodings": result.pose_encodings}
            elif name == "tracks":
                fields |= {"tracks": result.tracks, "track_iterations": result.iterations}
            elif name in HEADS:
                fields[name] = result
        extra = {name: result for name, result in results.items() if name not in HEADS}
        return Predictions(**fields, extra=extra or None)

    def head_modules(self) -> dict[str, nn.Module]:
        """Return name → head of all heads, the model's own first."""
        return head_modules(self)

    def taps_of(self, heads: tuple[str, ...]) -> tuple[int, ...]:
        """Return the layers that some heads read: those of their decoders, the camera head's, or else all taps."""
        modules, taps = head_modules(self), set()
        for name in heads:
            head = modules[name]
            decoder = getattr(head, "decoder", None)
            if isinstance(decoder, DPTDecoder):
                taps |= set(decoder.taps)
            elif isinstance(head, CameraHead):
                taps.add(self.config.taps[-1] if head.layer is None else head.layer)
            else:
                taps |= set(self.config.taps)
        return tuple(sorted(taps)) or self.config.taps

    def check_inputs(
        self,
        images: Tensor,
        query_points: Tensor | None,
        patch_mask: Tensor | None,
        heads: tuple[str, ...] | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, tuple[str, ...]]:
        """Return the arguments of `forward` with the B axis, and the names of the heads that run.

        Raises:
            ValueError: As `forward`.
        """
        modules = head_modules(self)
        trackers = [name for name, head in modules.items() if isinstance(head, TrackHead)]
        if heads is not None:
            check_heads(heads, self.heads)
            for head in trackers:
                if head in heads and query_points is None:
                    raise ValueError(f"query_points must be given for the head {head!r}, got None")
        heads = self.heads if heads is None else heads
        heads = tuple(head for head in heads if head not in trackers or query_points is not None)
        check_images("images", images)
        images = images[None] if images.ndim == 4 else images
        if patch_mask is not None and patch_mask.ndim == 3:
            patch_mask = patch_mask[None]
        if query_points is not None:
            query_points = batch_queries(query_points, images.shape[0], 2, 3)
            check_queries(query_points, images.shape[1], (images.shape[-2], images.shape[-1]))
            check_track_images(images, [modules[head] for head in heads if head in trackers])
        return images, query_points, patch_mask, heads

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        heads: tuple[str, ...] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        config: VGGTConfig | None = None,
        quantize: QuantizedType | None = None,
        extra_heads: Mapping[str, HeadSource] | None = None,
    ) -> VGGT:
        """Load weights, strictly; in evaluation mode.

        Args:
            source: "nano", the small model that comes with geomtx; a hub id ("facebook/VGGT-1B"); a folder
                (`model.safetensors`, sharded or not, with or without `config.json`); or a .safetensors, .pt, .pth,
                .bin or .ckpt file; with published or geomtx names.
            heads: Names of the heads to build and load; defaults to all that the checkpoint has.
            device: Device of the parameters; defaults to the CPU.
            dtype: Dtype of all parameters; defaults to that in the file, for "nano" to float32.
            config: Overrides the configuration found beside or within the weights. Without either it is VGGT-1B's.
            quantize: Format of the blocks' weights, "int8" or "fp8", see `geomtx.quantize_model`; defaults to none.
            extra_heads: The added heads that the weights are for, by name: a module, which is filled, or a function
                from the `VGGTConfig` to one; None leaves a head out. A `DenseHead` or `RGBHead` need not be given.

        Raises:
            ValueError: For missing, unexpected or misshapen tensors (the first ten are listed), a broken file, a
                pickle with code in it, an added head that has to be given; and as `geomtx.quantize_model`.
            ImportError: For quantised weights without torchao.
            FileNotFoundError: If the source is no file and not to be had from the hub.
        """
        checkpoint = open_vggt(source)
        if source in EMBEDDED and dtype is None:
            dtype = torch.float32
        numbers = config_of_checkpoint(checkpoint) if config is None else config
        if heads is not None:
            check_heads(heads, (*numbers.heads, *added_heads(checkpoint)))
            numbers = dataclasses.replace(numbers, heads=tuple(head for head in heads if head in numbers.heads))
        added, ignored = choose_heads(checkpoint, extra_heads, numbers, asked=heads)

        def build() -> VGGT:
            model = cls(numbers)
            model.extra_heads.update(added)
            return model

        parts = (*HEAD_MODULES.values(), *(f"extra_heads.{name}" for name in added))
        model = load_weights(checkpoint, build, VGGT_KEYS, device=device, dtype=dtype, ignored=ignored, parts=parts)
        state_licence(checkpoint.source)
        return model if quantize is None else quantize_model(model, quantize)

    @staticmethod
    def read_config(source: str | os.PathLike[str]) -> VGGTConfig:
        """The configuration of weights, without loading them; arguments and errors as in `from_pretrained`."""
        return config_of_checkpoint(open_vggt(source))

    def stored_form(self) -> StoredForm:
        """Return the names and configurations under which the model is stored, added heads too."""
        ours = describe_model("VGGT", self.config.to_dict(), self.extra_heads)
        return StoredForm(VGGT_KEYS, ours, published_config(self.config))
