"""Alternating attention over the views of a scene (VGGT, Wang et al. 2025, section 3.2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from geomtx.checks import check_floating, check_option, check_positive, check_shape
from geomtx.encoder.chunks import EncoderChunks, check_blocks, embed_in_chunks, set_aside
from geomtx.encoder.extra_views import ExtraViews, append_views, shift_tokens
from geomtx.encoder.keys import GlobalApproximation, check_approximation, choose_keys
from geomtx.encoder.patches import Backbone, grid_of, normalize_images
from geomtx.encoder.scopes import Scope, ask_head_dim, check_order, scope_masks
from geomtx.encoder.special import SpecialTokens
from geomtx.layers.attention import KeySubset, key_mask
from geomtx.layers.block import TransformerBlock
from geomtx.layers.chunked import run_batch_in_chunks, run_in_chunks
from geomtx.layers.rope import RotaryTable, grid_positions, rotary_table
from geomtx.types import Bool, Float, Tokens

__all__ = ["AlternatingEncoder", "Scope"]


class AlternatingEncoder(nn.Module):
    """A backbone a view, then blocks that attend within a view or across the views of a scene.

    Which block comes when, and over what it attends, is data. `order` is a sequence of layers, each a
    sequence of scopes:

    - "frame": the next of `frame_blocks`, each view by itself;
    - "global": the next of `global_blocks`, all tokens of all views;
    - "cross": the next of `global_blocks`, each view over the tokens of all other views.

    The output of a layer is the outputs of its blocks side by side on the channels. VGGT is `(("frame", "global"),)`
    times 24; `(("global", "global"),) * 24` with 48 global blocks is its global-only variant.

    Args:
        backbone: Normalised images to patch tokens, see `Backbone`; `VisionTransformer` and `PatchEmbedding` are such
            modules.
        frame_blocks: Modules `block(x, rope=, mask=)`, for instance `TransformerBlock`, in order of use.
        global_blocks: Likewise.
        order: See above; None = ("frame", "global") for every pair of blocks.
        taps: Indices of the layers whose output the heads read; None = all.
        num_registers: Register tokens a view, beside the camera token.
        special_std: Of the first camera and register tokens.
        head_dim: Of the blocks' attention, for the rotary table; None = ask the first block's `attention.head_dim`.
        rope_base: Of the rotary positions; None = no positions beyond the backbone's.

    Raises:
        ValueError: If `order` doesn't use up the blocks exactly, or a tap is not a layer.
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
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.special = SpecialTokens(backbone.dim, num_registers=num_registers, std=special_std)
        self.frame_blocks = nn.ModuleList(frame_blocks)
        self.global_blocks = nn.ModuleList(global_blocks)
        self.order = (("frame", "global"),) * len(self.frame_blocks) if order is None else order
        self.taps = tuple(range(len(self.order))) if taps is None else tuple(taps)
        if head_dim is None and rope_base is not None:
            head_dim = ask_head_dim([*self.frame_blocks, *self.global_blocks])
        self.head_dim = head_dim
        self.rope_base = rope_base
        check_order(self.order, len(self.frame_blocks), len(self.global_blocks))
        for tap in self.taps:
            check_option("tap", tap, range(len(self.order)))

    def forward(
        self,
        images: Float[Tensor, "*batch s 3 h w"],
        *,
        patch_mask: Bool[Tensor, "*batch s rows columns"] | None = None,
        taps: tuple[int, ...] | None = None,
        approximation: GlobalApproximation | None = None,
        camera_shift: Float[Tensor, "*batch s c"] | None = None,
        patch_shift: Float[Tensor, "*batch s p c"] | None = None,
        extra_views: ExtraViews | None = None,
    ) -> Tokens:
        """Encode scenes.

        Args:
            images: (B, S, 3, H, W) in [0, 1], or (S, 3, H, W) for one scene; the first view is the reference.
            patch_mask: (B, S, H/patch, W/patch) bool, True = takes part. The others are keys to nothing, and nothing
                of their content is read; a view without any patch drops out with its special tokens.
            taps: Keep these layers in place of the encoder's taps; nothing after the last of them is computed.
            approximation: What global blocks may leave out; None = nothing. Not with the scope "cross".
            camera_shift: (B, S, C), added to the camera tokens: what is known of the cameras, see `CameraConditioning`.
            patch_shift: (B, S, patches, C), added to the patches' tokens: what is known of them beside their image.
            extra_views: Views that are tokens already; the result has them after the images' views. Not with an
                approximation.

        Raises:
            ValueError: For other shapes, sides that are no multiples of the patch, a tap that is no layer, an
                approximation that these blocks can't take, or isolated views in blocks of scope "cross".
        """
        tokens, layers = self.stream(
            images,
            patch_mask=patch_mask,
            taps=taps,
            approximation=approximation,
            camera_shift=camera_shift,
            patch_shift=patch_shift,
            extra_views=extra_views,
        )
        # A function's arguments are let go when it returns, a loop's variables only when they are assigned again.
        return tokens._replace(layers=dict(map(_join, layers)))

    def stream(
        self,
        images: Float[Tensor, "*batch s 3 h w"],
        *,
        patch_mask: Bool[Tensor, "*batch s rows columns"] | None = None,
        taps: tuple[int, ...] | None = None,
        approximation: GlobalApproximation | None = None,
        camera_shift: Float[Tensor, "*batch s c"] | None = None,
        patch_shift: Float[Tensor, "*batch s p c"] | None = None,
        extra_views: ExtraViews | None = None,
        chunks: EncoderChunks | None = None,
    ) -> tuple[Tokens, Iterator[tuple[int, tuple[Tensor, ...]]]]:
        """Encode scenes and hand out every tapped layer when it is reached, so that it need not be kept.

        Args:
            images: As for `forward`. With `chunks` they may be on another device than the model and in another
                precision: views come over as they are needed.
            patch_mask: As for `forward`.
            taps: As for `forward`.
            approximation: As for `forward`.
            camera_shift: As for `forward`.
            patch_shift: As for `forward`.
            extra_views: As for `forward`; not with `chunks`.
            chunks: Work on some views or tokens at a time, without gradients; None = all at once.

        Returns:
            `Tokens` without layers; and an iterator of (index, outputs of the layer's blocks), (B, S, P, C) each, whose
            concatenation is the layer. With `chunks` they hold only until the next is asked for, and all but the last
            are on `chunks.device`.

        Raises:
            ValueError: As `forward`; with `chunks`, for blocks that are no `TransformerBlock`.
        """
        images = images[None] if images.ndim == 4 else images
        check_shape("images", images, ("B", "S", 3, "H", "W"), ("S", 3, "H", "W"))
        check_floating("images", images)
        check_positive("number of views", images.shape[1])
        taps = self.taps if taps is None else taps
        for tap in taps:
            check_option("tap", tap, range(len(self.order)))
        if approximation is not None:
            self._check_approximation(approximation)
        image_hw = (images.shape[-2], images.shape[-1])
        grid_hw = grid_of(image_hw, self.backbone.patch_size)
        patch_mask = self._check_mask(patch_mask, images, grid_hw)
        mask = None if patch_mask is None else self.token_mask(patch_mask)
        if extra_views is not None:
            self._check_extra_views(extra_views, approximation, chunks)
        if chunks is None:
            patches = self._embed(images.flatten(0, 1), None if patch_mask is None else patch_mask.flatten(0, 1))
            patches = patches.unflatten(0, images.shape[:2])
            x = self.special(patches if extra_views is None else append_views(patches, extra_views))
        else:
            check_blocks((*self.frame_blocks, *self.global_blocks))
            x = embed_in_chunks(self._embed, self.special, images, patch_mask, chunks.views)
        if camera_shift is not None:
            camera_shift = camera_shift[None] if camera_shift.ndim == 2 else camera_shift
            check_shape("camera_shift", camera_shift, (*images.shape[:2], x.shape[-1]))
            x = shift_tokens(x, camera_shift[:, :, None], 0)
        if patch_shift is not None:
            patch_shift = patch_shift[None] if patch_shift.ndim == 3 else patch_shift
            check_shape("patch_shift", patch_shift, (*images.shape[:2], grid_hw[0] * grid_hw[1], x.shape[-1]))
            x = shift_tokens(x, patch_shift, self.special.num_tokens)
        num_extra = x.shape[1] - images.shape[1]
        if mask is not None and num_extra:
            mask = torch.cat([mask, mask.new_ones(mask.shape[0], num_extra, mask.shape[2])], dim=1)
        num_apart = num_extra if extra_views is not None and extra_views.isolated else 0
        layers = self._run_blocks(x, mask, grid_hw, taps, approximation or GlobalApproximation(), chunks, num_apart)
        return Tokens({}, self.special.num_tokens, image_hw, grid_hw, mask), layers

    def _check_approximation(self, approximation: GlobalApproximation) -> None:
        check_approximation(approximation, len(self.global_blocks))
        if any("cross" in layer for layer in self.order):
            raise ValueError(f"approximation must be None with the scope 'cross', got {approximation}")
        if approximation.num_key_views is not None or approximation.stride > 1:
            check_blocks(self.global_blocks)

    def _check_extra_views(self, extra_views: ExtraViews, approximation: object, chunks: object) -> None:
        if approximation is not None or chunks is not None:
            raise ValueError("extra_views must be None with an approximation or chunks, got some")
        if extra_views.isolated:
            check_blocks(self.global_blocks, "isolated views")
            if any("cross" in layer for layer in self.order):
                raise ValueError("extra_views must not be isolated with the scope 'cross', got isolated=True")

    def _embed(self, images: Tensor, patch_mask: Tensor | None) -> Tensor:
        return self.backbone(normalize_images(images), patch_mask)

    def _check_mask(self, mask: Tensor | None, images: Tensor, grid_hw: tuple[int, int]) -> Tensor | None:
        """Shape the patch mask to (B, S, P)."""
        if mask is None:
            return None
        if mask.dtype != torch.bool:
            raise ValueError(f"patch_mask must be bool, got {mask.dtype}")
        mask = mask[None] if mask.ndim == 3 else mask
        check_shape("patch_mask", mask, (images.shape[0], images.shape[1], *grid_hw))
        return mask.flatten(2)

    def token_mask(self, patch_mask: Bool[Tensor, "b s patches"]) -> Bool[Tensor, "b s p"]:
        """(B, S, patches) → (B, S, P): special tokens take part where any patch of their view does."""
        special = patch_mask.any(dim=-1, keepdim=True).expand(-1, -1, self.special.num_tokens)
        return torch.cat([special, patch_mask], dim=-1)

    def _run_blocks(
        self,
        x: Tensor,
        mask: Tensor | None,
        grid_hw: tuple[int, int],
        taps: tuple[int, ...],
        approximation: GlobalApproximation,
        chunks: EncoderChunks | None,
        num_apart: int = 0,
    ) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
        """Yield (index, outputs) of every tapped layer, up to the last."""
        ropes, masks = self._tables(x, grid_hw), scope_masks(self.order, x, mask)
        keys = choose_keys(
            x, approximation, num_special=self.special.num_tokens, grid_hw=grid_hw, rope=ropes["frame"], mask=mask
        )
        if keys is not None and mask is not None:
            masks["global"] = key_mask(mask.flatten(1).gather(1, keys.tokens))
        num_local = approximation.num_local_layers
        blocks = {"frame": iter(self.frame_blocks), "global": iter(self.global_blocks)}
        for index, layer in enumerate(self.order[: max(taps, default=-1) + 1]):
            outputs: list[Tensor] = []
            for scope in layer:
                block = next(blocks["frame" if scope == "frame" else "global"])
                if scope == "global" and num_local > 0:
                    scope, num_local = "frame", num_local - 1
                if chunks is not None and outputs:
                    outputs[-1] = set_aside(outputs[-1], chunks.device)  # the next block writes over it
                if scope == "global" and num_apart:
                    assert isinstance(block, TransformerBlock)
                    x = block.attend_apart(x, num_apart, rope=ropes["frame"], mask=mask)
                else:
                    chosen = keys if scope == "global" else None
                    x = self._run_block(block, x, scope, ropes[scope], masks[scope], chosen, chunks)
                if index in taps:
                    outputs.append(x)
            if index in taps:
                yield index, tuple(outputs)

    def _run_block(
        self,
        block: nn.Module,
        x: Tensor,
        scope: Scope,
        rope: RotaryTable | None,
        mask: Tensor | None,
        keys: KeySubset | None,
        chunks: EncoderChunks | None,
    ) -> Tensor:
        num_scenes, num_views = x.shape[:2]
        merged = x.flatten(0, 1) if scope == "frame" else x.flatten(1, 2)
        if chunks is None:
            # Blocks of other classes need not know of keys.
            merged = block(merged, rope=rope, mask=mask, **({} if keys is None else {"keys": keys}))
            return merged.unflatten(*((0, (num_scenes, num_views)) if scope == "frame" else (1, (num_views, -1))))
        if scope == "frame":
            run_batch_in_chunks(block, merged, chunks.views, rope=rope, mask=mask)
        else:
            assert isinstance(block, TransformerBlock)
            run_in_chunks(block, merged, chunks.tokens, rope=rope, mask=mask, keys=keys)
        return x

    def _tables(self, x: Tensor, grid_hw: tuple[int, int]) -> dict[Scope, RotaryTable | None]:
        if self.rope_base is None or self.head_dim is None:
            return {"frame": None, "global": None, "cross": None}
        positions = grid_positions(grid_hw, self.special.num_tokens, x.device)
        dtype = torch.promote_types(x.dtype, torch.float32)
        of_view = rotary_table(positions, self.head_dim, base=self.rope_base, dtype=dtype)
        of_scene = of_view.repeat(x.shape[1])
        return {"frame": of_view, "global": of_scene, "cross": of_scene}


def _join(layer: tuple[int, tuple[Tensor, ...]]) -> tuple[int, Tensor]:
    return layer[0], torch.cat(layer[1], dim=-1)
