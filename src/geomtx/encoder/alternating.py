"""Alternating attention over the views of a scene (VGGT, Wang et al. 2025, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from geomtx.checks import check_images, check_mask, check_option, check_positive, check_shape
from geomtx.encoder.patches import Backbone, grid_of, normalize_images
from geomtx.encoder.pose_injection import leave_as_is, pose_table
from geomtx.encoder.scopes import (
    BLOCKS_OF,
    AcrossViews,
    AmongSpecial,
    AttentionTable,
    Scope,
    WithinViews,
    ask_head_dim,
    check_order,
    mask_own_view,
    number_blocks,
)
from geomtx.encoder.special import SpecialTokens
from geomtx.layers.attention import key_mask
from geomtx.layers.block import Attend
from geomtx.layers.rope import RotaryTable, grid_positions, rotary_table
from geomtx.types import Bool, EmbeddedViews, Float, Tokens

__all__ = ["AlternatingEncoder", "Scope"]


class AlternatingEncoder(nn.Module):
    """Encode views by a backbone and by blocks that attend within each view or across the views of a scene.

    `order` is a sequence of layers, and each layer is a sequence of scopes, which say how the next block attends:

    - "frame": the next of `frame_blocks`, on each view by itself;
    - "global": the next of `global_blocks`, on all tokens of all views;
    - "cross": the next of `global_blocks`, where a view attends to the tokens of all other views;
    - "register": the next of `global_blocks`, on the special tokens of all views alone; patches stay as they are;
    - "pose": the next of `pose_blocks`, on the patches of views whose poses are known; nothing without poses.

    The output of a layer is the concatenation of its blocks' outputs along the channels. VGGT is
    `(("frame", "global"),) * 24`; `(("global", "global"),) * 24` with 48 global blocks is its global-only variant.

    `forward` has three steps, which can be called one by one: `embed` computes the tokens of images, `attention`
    returns the functions that run a block of each scope, and `run` is the loop over the blocks. `geomtx.inference` runs
    the same loop with other functions: on a part of the tokens at a time, with fewer keys, or on several processes.

    Args:
        backbone: Module that computes patch tokens of normalised images, see `Backbone`; for instance
            `VisionTransformer` or `PatchEmbedding`.
        frame_blocks: Modules called as `block(x, rope=…, mask=…)`, for instance `TransformerBlock`, in order of use.
        global_blocks: Modules of the same kind, for all other scopes.
        order: Layers of scopes, see above; defaults to `("frame", "global")` for every pair of blocks.
        taps: Indices of the layers that the heads read; defaults to all layers.
        num_registers: Number of register tokens of a view, beside its camera token.
        special_std: Standard deviation of the initial camera and register tokens.
        head_dim: Number of channels of an attention head, for the rotary table; defaults to the first block's
            `attention.head_dim`.
        rope_base: Base of the rotary positions; None for no positions beyond the backbone's.
        special: Module that puts special tokens before the patches, with their number as `num_tokens`; defaults to
            `SpecialTokens`.
        pose_blocks: Modules that inject poses, for instance `PoseBlock`, in order of use.
        normalize: Function that normalises images for the backbone; defaults to `normalize_images`.

    Raises:
        ValueError: If `order` doesn't use every block once, the backbone's width is not the blocks', or a tap is not a
            layer.
    """

    def __init__(
        self,
        backbone: Backbone,
        frame_blocks: Iterable[nn.Module],
        global_blocks: Iterable[nn.Module],
        *,
        order: tuple[tuple[Scope, ...], ...] | None = None,
        taps: tuple[int, ...] | None = None,
        num_registers: int = 4,
        special_std: float = 1e-2,
        head_dim: int | None = None,
        rope_base: float | None = 100.0,
        special: nn.Module | None = None,
        pose_blocks: Iterable[nn.Module] = (),
        normalize: Callable[[Tensor], Tensor] = normalize_images,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        if special is None:
            special = SpecialTokens(backbone.dim, num_registers=num_registers, std=special_std)
        self.special: Any = special
        self.frame_blocks = nn.ModuleList(frame_blocks)
        self.global_blocks = nn.ModuleList(global_blocks)
        self.pose_blocks = nn.ModuleList(pose_blocks)
        self.normalize = normalize
        self.order = (("frame", "global"),) * len(self.frame_blocks) if order is None else order
        self.taps = tuple(range(len(self.order))) if taps is None else tuple(taps)
        if head_dim is None and rope_base is not None:
            head_dim = ask_head_dim([*self.frame_blocks, *self.global_blocks])
        self.head_dim = head_dim
        self.rope_base = rope_base
        check_order(self.order, len(self.frame_blocks), len(self.global_blocks), len(self.pose_blocks))
        self._numbered_order = number_blocks(self.order)
        for block in (*self.frame_blocks, *self.global_blocks, *self.pose_blocks):
            width = getattr(getattr(block, "attention", None), "dim", backbone.dim)
            if width != backbone.dim:
                raise ValueError(f"blocks must be as wide as the backbone, {backbone.dim} channels, got {width}")
        for tap in self.taps:
            check_option("tap", tap, range(len(self.order)))

    def forward(
        self,
        images: Float[Tensor, "*batch s 3 h w"],
        *,
        patch_mask: Bool[Tensor, "*batch s rows columns"] | None = None,
        taps: tuple[int, ...] | None = None,
        camera_shift: Float[Tensor, "*batch s c"] | None = None,
        patch_shift: Float[Tensor, "*batch s p c"] | None = None,
        poses: tuple[Tensor, Tensor] | None = None,
    ) -> Tokens:
        """Encode the views of scenes.

        Args:
            images: Images in [0, 1], (B, S, 3, H, W), or (S, 3, H, W) for one scene; the first view is the reference.
            patch_mask: Mask of the valid patches, (B, S, H/patch, W/patch) bool; defaults to all. No token attends to
                the others, and their content is not read. In a view without any valid patch, the special tokens are
                invalid too.
            taps: Layers to keep; defaults to the encoder's `taps`. Nothing after the last of them is computed.
            camera_shift: Vectors added to the camera tokens, (B, S, C), see `CameraConditioning`; defaults to none.
            patch_shift: Vectors added to the patch tokens, (B, S, patches, C); defaults to none.
            poses: Known `cam_from_world` (B, S, 3, 4) of the views, and the mask (B, S) of those that are known, for
                the scope "pose"; defaults to none.

        Returns:
            Tokens of the tapped layers.

        Raises:
            ValueError: If a shape is another one, a side is not a multiple of the patch, or a tap is no layer.
        """
        taps = self.check_taps(taps)
        views = self.embed(
            images, patch_mask=patch_mask, camera_shift=camera_shift, patch_shift=patch_shift, poses=poses
        )
        tokens, layers = views.without_layers(), self.run(views.x, self.attention(views), taps)
        del views  # the blocks' first input need not outlive the first block
        return tokens._replace(layers=dict(map(self.join_layer, layers)))

    def embed(
        self,
        images: Float[Tensor, "*batch s 3 h w"],
        *,
        patch_mask: Bool[Tensor, "*batch s rows columns"] | None = None,
        camera_shift: Float[Tensor, "*batch s c"] | None = None,
        patch_shift: Float[Tensor, "*batch s p c"] | None = None,
        poses: tuple[Tensor, Tensor] | None = None,
        extra_patches: Float[Tensor, "*scenes t p c"] | None = None,
        first_view: int = 0,
        each_view: Callable[..., Tensor] | None = None,
    ) -> EmbeddedViews:
        """Compute the tokens of images: the backbone's patch tokens, preceded by camera and register tokens.

        Args:
            images: Images in [0, 1], see `forward`.
            patch_mask: Mask of the valid patches, see `forward`.
            camera_shift: Vectors added to the camera tokens, see `forward`.
            patch_shift: Vectors added to the patch tokens, see `forward`.
            poses: Known poses of the views and their mask, see `forward`.
            extra_patches: Patch tokens of further views, (B, T, patches, C), on the same grid; for instance rays of
                views without an image. They follow the images' views, with the special tokens of views that aren't the
                first. Defaults to none.
            first_view: Index in its scene of the first image.
            each_view: Function that applies a function of single views,
                `each_view(function, images (B·S, …), mask (B·S, …))`; defaults to one call with all views.

        Raises:
            ValueError: If a shape is another one, a side is not a multiple of the patch, or there is no view.
        """
        patches, patch_mask, image_hw = self._run_backbone(images, patch_mask, each_view)
        if patch_shift is not None:
            patch_shift = patch_shift[None] if patch_shift.ndim == 3 else patch_shift
            check_shape("patch_shift", patch_shift, tuple(patches.shape))
            patches = patches + patch_shift.to(patches.dtype)
        if extra_patches is not None:
            patches = _append(patches, extra_patches)
        if camera_shift is not None:
            camera_shift = camera_shift[None] if camera_shift.ndim == 2 else camera_shift
            num_views = patches.shape[1] - (0 if extra_patches is None else extra_patches.shape[-3])
            check_shape("camera_shift", camera_shift, (patches.shape[0], num_views, patches.shape[-1]))
        x = self.special(patches, first_view=first_view, camera_shift=camera_shift)
        mask = None
        if patch_mask is not None:
            mask = self._mask_tokens(patch_mask)
            mask = nn.functional.pad(mask, (0, 0, 0, x.shape[1] - mask.shape[1]), value=True)
        grid_hw = grid_of(image_hw, self.backbone.patch_size)
        views = EmbeddedViews(x, self.special.num_tokens, image_hw, grid_hw, mask, first_view)
        if poses is None:
            return views
        check_shape("poses", poses[0], (*x.shape[:2], 3, 4))
        check_mask("mask of poses", poses[1], tuple(x.shape[:2]))
        return views._replace(poses=poses[0], posed=poses[1])

    def attention(self, views: EmbeddedViews) -> dict[Scope, Attend]:
        """Return the functions that run a block of each scope on all tokens of these views at once.

        Args:
            views: Tokens of the views before the first block, from `embed`.
        """
        rope = self.rotary_table(views)
        across = self.rotary_across(views, rope)
        of_scene = None if across is None else across.repeat(views.x.shape[1])
        mask = None if views.mask is None else key_mask(views.mask.flatten(0, 1))
        scene_mask = None if views.mask is None else key_mask(views.mask.flatten(1, 2))
        table: dict[Scope, Attend] = {"frame": WithinViews(rope, mask), "global": AcrossViews(of_scene, scene_mask)}
        if any("cross" in layer for layer in self.order):
            table["cross"] = AcrossViews(of_scene, mask_own_view(views.x, views.mask))
        if any("register" in layer for layer in self.order):
            special, num_views = views.num_special, views.x.shape[1]
            rope = None if across is None else across.rows(slice(0, special)).repeat(num_views)
            mask = None if views.mask is None else key_mask(views.mask[:, :, :special].flatten(1, 2))
            table["register"] = AmongSpecial(special, AcrossViews(rope, mask))
        if len(self.pose_blocks):
            table["pose"] = leave_as_is
            if views.poses is not None:
                poses = pose_table(views, ask_head_dim(self.pose_blocks))
                table["pose"] = AcrossViews(poses, key_mask(poses.active))
        return table

    def run(
        self,
        x: Float[Tensor, "b s p c"],
        attend: AttentionTable,
        taps: tuple[int, ...],
        *,
        keep: Callable[[Tensor], Tensor] | None = None,
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Run the blocks: x ← block(x) for the scopes of every layer, one after the other.

        Args:
            x: Tokens, (B, S, P, C).
            attend: Functions that run a block of each scope, for instance `attention(views)`.
            taps: Indices of the layers to yield.
            keep: Function that copies a block's output in a tapped layer before the layer's next block writes over it;
                defaults to the identity, for blocks that write into tensors of their own.

        Yields:
            Index and block outputs, (B, S, P, C) each, of every tapped layer when it is reached.
        """
        lists = {"frame": self.frame_blocks, "global": self.global_blocks, "pose": self.pose_blocks}
        for index, layer in enumerate(self._numbered_order[: max(taps, default=-1) + 1]):
            outputs = []
            for place, (scope, number) in enumerate(layer):
                block = lists[BLOCKS_OF[scope]][number]
                x = attend[scope](number, block, x)
                if index in taps:
                    outputs.append(x if keep is None or place == len(layer) - 1 else keep(x))
            if index in taps:
                yield index, outputs

    def collect(self, views: EmbeddedViews, attend: AttentionTable, taps: tuple[int, ...] | None = None) -> Tokens:
        """Run the blocks and return the tokens of the tapped layers.

        Args:
            views: Tokens of the views before the first block, from `embed`.
            attend: Functions that run a block of each scope, for instance `attention(views)`.
            taps: Indices of the layers to keep; defaults to the encoder's `taps`.
        """
        layers = self.run(views.x, attend, self.taps if taps is None else taps)
        return views.without_layers()._replace(layers=dict(map(self.join_layer, layers)))

    def join(self, outputs: Sequence[Float[Tensor, "*batch p c"]], num_special: int) -> Float[Tensor, "*batch p c2"]:
        """Return the tokens of a layer from its blocks' outputs: their concatenation along the channels.

        An encoder may normalise here. Tokens are worked on one by one, so some of them may be joined alone.

        Args:
            outputs: Outputs of the layer's blocks for the same tokens, (..., P, C) each.
            num_special: Number of special tokens among them, which come first.
        """
        return torch.cat(list(outputs), dim=-1)

    def join_layer(self, layer: tuple[int, Sequence[Tensor]]) -> tuple[int, Tensor]:
        """Return index and tokens of a layer that `run` yields, (B, S, P, C'); for `map`, which holds no other layer.

        Args:
            layer: Index of the layer and its blocks' outputs, (B, S, P, C) each.
        """
        return layer[0], self.join(layer[1], self.special.num_tokens)

    def check_taps(self, taps: tuple[int, ...] | None) -> tuple[int, ...]:
        """Return `taps`, or the encoder's for None.

        Args:
            taps: Indices of layers; None for the encoder's `taps`.

        Raises:
            ValueError: If a tap is no layer.
        """
        for tap in taps or ():
            check_option("tap", tap, range(len(self.order)))
        return self.taps if taps is None else taps

    def rotary_table(self, views: EmbeddedViews) -> RotaryTable | None:
        """Return the rotary table of the tokens of a view, in float32 or better; None without rotary positions.

        Args:
            views: Tokens of the views before the first block, from `embed`.
        """
        if self.rope_base is None or self.head_dim is None:
            return None
        positions = grid_positions(views.grid_hw, views.num_special, views.x.device)
        dtype = torch.promote_types(views.x.dtype, torch.float32)
        return rotary_table(positions, self.head_dim, base=self.rope_base, dtype=dtype)

    def rotary_across(self, views: EmbeddedViews, within: RotaryTable | None) -> RotaryTable | None:
        """Return the rotary table of the tokens of a view in blocks across views; by default that within views.

        Args:
            views: Tokens of the views before the first block, from `embed`.
            within: Result of `rotary_table`.
        """
        return within

    @property
    def rotates(self) -> bool:
        """Whether blocks rotate queries and keys by position."""
        return self.rope_base is not None

    def _run_backbone(
        self, images: Tensor, patch_mask: Tensor | None, each_view: Callable[..., Tensor] | None
    ) -> tuple[Tensor, Tensor | None, tuple[int, int]]:
        """Return the backbone's tokens (B, S, P, C), the mask of patches (B, S, patches), and the images' size."""
        check_images("images", images)
        images = images[None] if images.ndim == 4 else images
        check_positive("number of views", images.shape[1])
        image_hw = (images.shape[-2], images.shape[-1])
        patch_mask = self._check_mask(patch_mask, images, grid_of(image_hw, self.backbone.patch_size))
        of_view = None if patch_mask is None else patch_mask.flatten(0, 1)
        tokens = (each_view or _call)(self._embed_patches, images.flatten(0, 1), of_view)
        return tokens.unflatten(0, images.shape[:2]), patch_mask, image_hw

    def _embed_patches(self, images: Tensor, patch_mask: Tensor | None, **options: Any) -> Tensor:
        return self.backbone(self.normalize(images), patch_mask, **options)

    def _check_mask(self, mask: Tensor | None, images: Tensor, grid_hw: tuple[int, int]) -> Tensor | None:
        """Return the mask of patches as (B, S, patches)."""
        if mask is None:
            return None
        if mask.dtype != torch.bool:
            raise ValueError(f"patch_mask must be bool, got {mask.dtype}")
        mask = mask[None] if mask.ndim == 3 else mask
        check_shape("patch_mask", mask, (images.shape[0], images.shape[1], *grid_hw))
        return mask.flatten(2)

    def _mask_tokens(self, patch_mask: Tensor) -> Tensor:
        """Return which tokens are valid, (B, S, P): special tokens are valid where any patch of their view is."""
        special = patch_mask.any(dim=-1, keepdim=True).expand(-1, -1, self.special.num_tokens)
        return torch.cat([special, patch_mask], dim=-1)


def _call(function: Callable[..., Tensor], *args: Any) -> Tensor:
    return function(*args)


def _append(patches: Tensor, extra: Tensor) -> Tensor:
    """Append the patch tokens of T further views, (B, S, patches, C) → (B, S + T, patches, C)."""
    extra = extra[None] if extra.ndim == 3 else extra
    check_shape("extra_patches", extra, (patches.shape[0], "T", *patches.shape[2:]))
    if extra.shape[1] == 0:
        raise ValueError("extra_patches must be of at least one view, got 0")
    return torch.cat([patches, extra.to(patches.dtype)], dim=1)
