"""Novel view synthesis: VGGT's encoder on images and rays (VGGT, Wang et al. 2025, section 4.6)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import repeat
from torch import Tensor, nn

from geomtx.checks import check_images, check_mask, check_shape
from geomtx.encoder.alternating import AlternatingEncoder
from geomtx.encoder.conditioning import CameraConditioning, withhold
from geomtx.encoder.patches import PatchEmbedding
from geomtx.encoder.scopes import AttentionTable
from geomtx.geometry.projection import plucker_rays
from geomtx.heads.dense import RGBHead
from geomtx.heads.dpt import DPTDecoder
from geomtx.layers.attention import key_mask
from geomtx.layers.rope import RotaryTable
from geomtx.models.nvs.config import NVSConfig
from geomtx.models.published import open_weights
from geomtx.models.saved_model import HeadSource, kind_of, load_around_vggt, parse_stored, save_around_vggt
from geomtx.models.vggt.config import check_numbers
from geomtx.models.vggt.model import VGGT
from geomtx.types import Bool, Cameras, EmbeddedViews, Float, Tokens, show_shapes

__all__ = ["NVSConfig", "NVSPrediction", "VGGTForNVS"]


@show_shapes
class NVSPrediction(NamedTuple):
    """Output of `VGGTForNVS`.

    Attributes:
        images: Colours of the target views in [0, 1], (B, T, 3, H, W), in float32 or better.
    """

    images: Float[Tensor, "b t 3 h w"]


@dataclass(eq=False)
class _IsolatedViews:
    """Run a block on all tokens of a scene, where each of the last `num_isolated` views is seen by itself alone.

    Views of images attend to one another as if there were no others. Keys and values of these are projected once; no
    attention is computed to be masked.

    Attributes:
        num_isolated: Number of isolated views, 1 to S - 1.
        rope: Rotary table of the tokens of a view; None for none.
        mask: Boolean mask of the valid tokens, (B, S, P); None for all.
    """

    num_isolated: int
    rope: RotaryTable | None
    mask: Tensor | None

    def __call__(self, number: int, block: Any, x: Tensor) -> Tensor:
        num_targets, num_scenes = self.num_isolated, len(x)
        num_inputs = x.shape[1] - num_targets
        inputs = x[:, :num_inputs].flatten(1, 2)  # (B, S·P, C)
        targets = x[:, num_inputs:].flatten(0, 1)  # (B·T, P, C)
        input_rope = None if self.rope is None else self.rope.repeat(num_inputs)
        shared = block.project_keys(inputs, rope=input_rope)
        own = block.project_keys(targets, rope=self.rope)
        keys, values = (
            torch.cat([repeat(of_inputs, "b m h d -> (b t) m h d", t=num_targets), of_target], dim=1)
            for of_inputs, of_target in zip(shared, own, strict=True)
        )
        input_mask = target_mask = None
        if self.mask is not None:
            seen = self.mask[:, :num_inputs].flatten(1)
            own_mask = self.mask[:, num_inputs:].flatten(0, 1)
            input_mask = key_mask(seen)
            target_mask = key_mask(torch.cat([repeat(seen, "b m -> (b t) m", t=num_targets), own_mask], dim=1))
        inputs = block.attend_to(inputs, *shared, rope=input_rope, mask=input_mask)
        targets = block.attend_to(targets, keys, values, rope=self.rope, mask=target_mask)
        inputs = inputs.unflatten(1, (num_inputs, -1))
        return torch.cat([inputs, targets.unflatten(0, (num_scenes, -1))], dim=1)


class VGGTForNVS(nn.Module):
    """A VGGT that also synthesises views of cameras that took no image (novel view synthesis).

    A target view is given by the Plücker coordinates of its pixels' rays. A convolution makes patch tokens of them,
    which go through the alternating blocks as another view beside the images, and a head predicts colours from the
    result. The cameras of the images need not be known. `model.vggt` is the model inside, with its heads.

    Args:
        config: Configuration of the model.
        vggt: The VGGT inside, with the configuration `config.vggt`; defaults to one with random weights.

    Raises:
        ValueError: For a `vggt` of another configuration.
    """

    def __init__(self, config: NVSConfig, vggt: VGGT | None = None) -> None:
        super().__init__()
        if vggt is not None and vggt.config != config.vggt:
            raise ValueError("vggt must have the configuration config.vggt, got another one")
        numbers = config.vggt
        self.config = config
        self.vggt = VGGT(numbers) if vggt is None else vggt
        # In half precision neighbouring pixels would have the same ray.
        self.ray_embedding = PatchEmbedding(numbers.dim, patch_size=numbers.patch_size, in_channels=6, in_float32=True)
        # Which cameras are withheld in training is drawn in `_describe_inputs`, for rays and camera tokens alike.
        self.conditioning = CameraConditioning(numbers.dim, drop=0.0) if config.known_cameras else None
        decoder = DPTDecoder(
            2 * numbers.dim,
            config.rgb_features or numbers.dpt_features,
            channels=config.rgb_channels or numbers.dpt_channels,
            taps=numbers.taps,
        )
        self.rgb_head = RGBHead(decoder, hidden_dim=config.rgb_hidden)

    @property
    def encoder(self) -> AlternatingEncoder:
        """The VGGT's."""
        return self.vggt.encoder

    def forward(
        self,
        images: Float[Tensor, "*batch s 3 h w"],
        target_cameras: Cameras,
        *,
        input_cameras: Cameras | None = None,
        input_mask: Bool[Tensor, "*batch s"] | None = None,
    ) -> NVSPrediction:
        """Synthesise the views of target cameras; differentiable.

        Cameras are in the frame of the first input view and in the unit that the model is trained with:
        `geomtx.geometry.relate_cameras` brings known ones there, and the cameras that `vggt` predicts are there.

        Args:
            images: Input images in [0, 1], (B, S, 3, H, W), or (S, 3, H, W) for one scene; sides are multiples of the
                patch size.
            target_cameras: Target cameras, (B, T, 3, 4) and (B, T, 3, 3), intrinsics in pixels of images as large as
                `images`; without the B axis for one scene. With isolated targets (`config.isolate_targets`), a view is
                the same whichever other targets are asked for; otherwise targets attend to one another.
            input_cameras: Cameras of `images`, (B, S, …), for a model with `config.known_cameras` or
                `config.input_rays`; defaults to unknown cameras.
            input_mask: Boolean mask of the known input cameras, (B, S); defaults to all.

        Returns:
            `NVSPrediction`, always with the B axis.

        Raises:
            ValueError: For wrong shapes, no target, input cameras that the model doesn't take, or a mask of none; on
                the CPU, for input cameras in another frame.
        """
        views, attend = self.embed(images, target_cameras, input_cameras=input_cameras, input_mask=input_mask)
        return self.decode(self.encoder.collect(views, attend), target_cameras)

    def embed(
        self,
        images: Float[Tensor, "*batch s 3 h w"],
        target_cameras: Cameras,
        *,
        input_cameras: Cameras | None = None,
        input_mask: Bool[Tensor, "*batch s"] | None = None,
        each_view: Callable[..., Tensor] | None = None,
    ) -> tuple[EmbeddedViews, AttentionTable]:
        """Return the tokens of input and target views, and how the encoder's blocks are run on them.

        Arguments and errors are those of `forward`, and `each_view` that of `AlternatingEncoder.embed`.
        `encoder.collect(views, attend)` runs the blocks, `decode` makes images of the result.
        """
        check_images("images", images)
        single = images.ndim == 4
        images = images[None] if single else images
        targets = _check_cameras("target_cameras", target_cameras, images, single=single)
        shifts = self._describe_inputs(images, input_cameras, input_mask, single=single)
        rays = self._embed_rays(targets, (images.shape[-2], images.shape[-1]))
        views = self.encoder.embed(images, extra_patches=rays, each_view=each_view, **shifts)
        attend = self.encoder.attention(views)
        if self.config.isolate_targets:
            attend["global"] = _IsolatedViews(rays.shape[1], self.encoder.rotary_table(views), views.mask)
        return views, attend

    def decode(self, tokens: Tokens, target_cameras: Cameras) -> NVSPrediction:
        """Return the images of the target views, which are the last views of `tokens`."""
        num_targets = target_cameras.cam_from_world.shape[-3]
        return NVSPrediction(self.rgb_head(tokens.take_views(slice(-num_targets, None))))

    def _describe_inputs(
        self, images: Tensor, cameras: Cameras | None, mask: Tensor | None, *, single: bool
    ) -> dict[str, Any]:
        """Return what the known cameras add to the tokens of the images, as arguments of `encoder.embed`."""
        if cameras is None:
            if mask is not None:
                raise ValueError("input_mask must be None without input_cameras, got a mask")
            return {}
        if self.conditioning is None and not self.config.input_rays:
            raise ValueError(
                "input_cameras must be None for a model without config.known_cameras or config.input_rays, got some"
            )
        cameras = _check_cameras("input_cameras", cameras, images, single=single)
        check_shape("input_cameras.cam_from_world", cameras.cam_from_world, (*images.shape[:2], 3, 4))
        if mask is None:
            mask = torch.ones(images.shape[:2], dtype=torch.bool, device=images.device)
        mask = mask[None] if mask.ndim == 1 else mask
        check_mask("input_mask", mask, tuple(images.shape[:2]))
        _check_first(cameras, mask)
        mask = withhold(mask, self.config.camera_drop) if self.training else mask
        image_hw = (images.shape[-2], images.shape[-1])
        known: dict[str, Any] = {}
        if self.conditioning is not None:
            known["camera_shift"] = self.conditioning(cameras, image_hw, mask)
        if self.config.input_rays:
            identity = torch.eye(3, 4, dtype=cameras.cam_from_world.dtype, device=images.device)
            poses = torch.where(mask[..., None, None], cameras.cam_from_world, identity)
            intrinsics = torch.where(mask[..., None, None], cameras.intrinsics, identity[:, :3])
            tokens = self._embed_rays(Cameras(poses, intrinsics), image_hw)
            known["patch_shift"] = torch.where(mask[..., None, None], tokens, 0.0)
        return known

    def _embed_rays(self, cameras: Cameras, image_hw: tuple[int, int]) -> Float[Tensor, "b s p c"]:
        rays = plucker_rays(*cameras, image_hw, order=self.config.ray_order)
        return self.ray_embedding(rays.flatten(0, 1)).unflatten(0, rays.shape[:2])

    @classmethod
    def from_vggt(
        cls,
        source: VGGT | str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **numbers: Any,
    ) -> VGGTForNVS:
        """Start from a VGGT: encoder and heads are kept, what is new has random weights.

        Args:
            source: A model, which becomes part of this one, or as for `VGGT.from_pretrained`.
            device: Device of the model; defaults to that of `source`, or to the CPU.
            dtype: Precision of all parameters; defaults to that of `source`, and to its encoder's for what is new.
            numbers: Values of `NVSConfig`, except `vggt`.

        Raises:
            ValueError: For numbers that aren't the configuration's, and as `VGGT.from_pretrained`.
        """
        check_numbers("number", numbers, NVSConfig, without="vggt")
        vggt = source if isinstance(source, VGGT) else VGGT.from_pretrained(source, device=device, dtype=dtype)
        like = next(vggt.parameters())
        model = cls(NVSConfig(vggt=vggt.config, **numbers), vggt)
        for part in model.children():
            part.to(device=device or like.device, dtype=like.dtype if dtype is None and part is not vggt else dtype)
        return model.eval()

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        extra_heads: Mapping[str, HeadSource] | None = None,
        **numbers: Any,
    ) -> VGGTForNVS:
        """Load weights, strictly; in evaluation mode.

        Args:
            source: A folder or file of `save_pretrained`; or those of a plain VGGT, as for `VGGT.from_pretrained`:
                then as `from_vggt`.
            device: Device of the model; defaults to the CPU.
            dtype: Precision of all parameters; defaults to that of the files.
            extra_heads: Added heads of the VGGT inside, as for `VGGT.from_pretrained`.
            numbers: Values of `NVSConfig` for what a plain VGGT doesn't have.

        Raises:
            ValueError: For numbers where the weights bring theirs; for missing, unexpected or misshapen tensors, a
                configuration that makes no model, or an added head that has to be given.
            FileNotFoundError: If the source is no file and not to be had from the hub.
        """
        checkpoint = open_weights(source)
        if kind_of(checkpoint) == "VGGT":
            vggt = VGGT.from_pretrained(source, device=device, dtype=dtype, extra_heads=extra_heads)
            return cls.from_vggt(vggt, **numbers)
        config = parse_stored(checkpoint, "VGGTForNVS", NVSConfig.from_dict)
        if numbers:
            raise ValueError(f"numbers must be none for weights that bring theirs, got {', '.join(numbers)}")
        return load_around_vggt(checkpoint, "VGGTForNVS", lambda: cls(config), extra_heads, device=device, dtype=dtype)

    def save_pretrained(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write `model.safetensors` and `config.json` into a folder, both or none; with heads added to the VGGT inside.

        Raises:
            ValueError: For a quantised model, whose own numbers are lost.
        """
        return save_around_vggt(self, "VGGTForNVS", self.config.to_dict(), folder, overwrite=overwrite)


def _check_cameras(name: str, cameras: Cameras | None, images: Tensor, *, single: bool) -> Cameras:
    """With the B axis, at least one a scene, as many intrinsics as poses, and in one precision: float32 or better."""
    if cameras is None:
        raise ValueError(f"{name} must be given, got None")
    cameras = Cameras(*(t[None] for t in cameras)) if single else Cameras(*cameras)
    batch = images.shape[0]
    check_shape(f"{name}.cam_from_world", cameras.cam_from_world, (batch, "T", 3, 4))
    count = cameras.cam_from_world.shape[1]
    if count == 0:
        raise ValueError(f"{name} must be at least one a scene, got 0")
    check_shape(f"{name}.intrinsics", cameras.intrinsics, (batch, count, 3, 3))
    dtype = torch.promote_types(cameras.cam_from_world.dtype, cameras.intrinsics.dtype)
    return Cameras(*(t.to(torch.promote_types(dtype, torch.float32)) for t in cameras))


def _check_first(cameras: Cameras, mask: Tensor) -> None:
    """Require the first input camera to be the world, if it is known; only where looking costs nothing."""
    poses = cameras.cam_from_world[:, 0]
    if type(poses) is not Tensor or not poses.is_cpu or torch.compiler.is_compiling():
        return
    away = (poses - torch.eye(3, 4)).abs().amax((-2, -1)) > 1e-3
    if (away & mask[:, 0]).any():
        raise ValueError(
            "input_cameras must be in the frame of the first input view, got a first camera that is not the identity; "
            "geomtx.geometry.relate_cameras brings cameras there"
        )
