"""Encoder whose backbone's class token leads the tokens of every view (Depth Anything 3, Lin et al. 2025)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from geomtx.checks import check_option, check_shape
from geomtx.encoder.alternating import AlternatingEncoder
from geomtx.encoder.patches import Backbone, grid_of
from geomtx.encoder.reference_view import REFERENCE_RULES, ReferenceRule, choose_reference
from geomtx.layers.rope import RotaryTable, grid_positions, rotary_table
from geomtx.types import Bool, EmbeddedViews, Float, Tokens

__all__ = ["CameraTokens", "ClassTokenEncoder"]


class CameraTokens(nn.Module):
    """A learned token for the reference view of a scene, and one for all other views.

    Args:
        dim: Number of channels C of the tokens.
        std: Standard deviation of the initial tokens.
    """

    num_tokens = 1
    first_is_reference = False

    def __init__(self, dim: int, *, std: float = 1e-2) -> None:
        super().__init__()
        self.camera = nn.Parameter(torch.zeros(1, 2, dim))
        nn.init.normal_(self.camera, std=std)

    def forward(self, reference: Tensor, num_views: int, first_view: int = 0) -> Float[Tensor, "b s c"]:
        """Return the token of every view, (B, S, C).

        Args:
            reference: Index of each scene's reference view, (B,).
            num_views: Number of views S.
            first_view: Index in its scene of the first of these views.
        """
        views = torch.arange(first_view, first_view + num_views, device=reference.device)
        return self.camera[0, (views != reference[:, None]).long()]


class ClassToken(nn.Module):
    """Stands for special tokens where the backbone's class token stays, as in models of single views."""

    num_tokens = 1


class ClassTokenEncoder(AlternatingEncoder):
    """An `AlternatingEncoder` without register tokens, whose backbone gives a class token before the patches.

    For many views, the reference view is chosen by the class tokens, and camera tokens take the class tokens' place: a
    learned token of the reference view, one of the other views, or given vectors, for instance of known cameras. The
    views themselves stay in their order. Patches have their positions in the scope "frame"; across views all have the
    same one.

    Args:
        backbone: Module that computes class token and patch tokens of normalised images, (N, 1 + P, C), for instance
            `ViTStem`.
        frame_blocks: Blocks for the scope "frame", see `AlternatingEncoder`.
        global_blocks: Blocks for the scopes across views.
        reference: Rule by which the reference view is chosen, see `choose_reference`; None for an encoder of single
            views, in which the class token stays.
        tap_norm: Module that normalises the patch tokens of the last block of a tapped layer, (..., C).
        options: `order`, `taps`, `head_dim` and `rope_base`, as for `AlternatingEncoder`.

    Raises:
        ValueError: If the rule is unknown, and as `AlternatingEncoder`.
    """

    def __init__(
        self,
        backbone: Backbone,
        frame_blocks: Iterable[nn.Module],
        global_blocks: Iterable[nn.Module] = (),
        *,
        reference: ReferenceRule | None = "saddle_balanced",
        tap_norm: nn.Module,
        **options: Any,
    ) -> None:
        if reference is not None:
            check_option("reference", reference, REFERENCE_RULES)
        special = ClassToken() if reference is None else CameraTokens(backbone.dim)
        super().__init__(backbone, frame_blocks, global_blocks, special=special, **options)
        self.reference = reference
        self.tap_norm = tap_norm

    def forward(  # type: ignore[override]  # its views have camera tokens of their own, and nothing that is added
        self,
        images: Float[Tensor, "*batch s 3 h w"],
        *,
        patch_mask: Bool[Tensor, "*batch s rows columns"] | None = None,
        taps: tuple[int, ...] | None = None,
        camera_tokens: Float[Tensor, "*batch s c"] | None = None,
    ) -> Tokens:
        """Encode the views of scenes.

        Args:
            images: Images in [0, 1], (B, S, 3, H, W), or (S, 3, H, W) for one scene.
            patch_mask: Mask of the valid patches, (B, S, H/patch, W/patch) bool; defaults to all.
            taps: Layers to keep; defaults to the encoder's `taps`. Nothing after the last of them is computed.
            camera_tokens: Camera tokens of the views, (B, S, C), in place of learned ones; defaults to these.

        Returns:
            Tokens of the tapped layers; token 0 of a view is not normalised.

        Raises:
            ValueError: If a shape is another one, a side is not a multiple of the patch, or a tap is no layer.
        """
        taps = self.check_taps(taps)
        views = self.embed(images, patch_mask=patch_mask, camera_tokens=camera_tokens)
        tokens, layers = views.without_layers(), self.run(views.x, self.attention(views), taps)
        del views
        return tokens._replace(layers=dict(map(self.join_layer, layers)))

    def embed(  # type: ignore[override]
        self,
        images: Float[Tensor, "*batch s 3 h w"],
        *,
        patch_mask: Bool[Tensor, "*batch s rows columns"] | None = None,
        camera_tokens: Float[Tensor, "*batch s c"] | None = None,
        first_view: int = 0,
        each_view: Callable[..., Tensor] | None = None,
        gather: Callable[[Tensor], Tensor] | None = None,
    ) -> EmbeddedViews:
        """Compute the tokens of images: the backbone's patch tokens, preceded by the camera token or the class token.

        Args:
            images: Images in [0, 1], see `forward`.
            patch_mask: Mask of the valid patches, see `forward`.
            camera_tokens: Camera tokens of these views, see `forward`.
            first_view: Index in its scene of the first image.
            each_view: Function that applies a function of single views, see `AlternatingEncoder.embed`.
            gather: Function that concatenates the views of all processes along axis 1, from which the reference view is
                chosen; defaults to the identity.

        Raises:
            ValueError: If a shape is another one, a side is not a multiple of the patch, or there is no view.
        """
        x, patch_mask, image_hw = self._run_backbone(images, patch_mask, each_view)
        mask = None if patch_mask is None else self._mask_tokens(patch_mask)
        if camera_tokens is not None:
            camera_tokens = camera_tokens[None] if camera_tokens.ndim == 2 else camera_tokens
            check_shape("camera_tokens", camera_tokens, (*x.shape[:2], x.shape[-1]))
        elif self.reference is not None:
            valid = None if mask is None else mask[:, :, 0]
            reference = self._choose(x[:, :, 0], valid, gather or (lambda each: each))
            camera_tokens = self.special(reference, x.shape[1], first_view)
        if camera_tokens is not None:
            x = torch.cat([camera_tokens[:, :, None].to(x.dtype), x[:, :, 1:]], dim=2)
        return EmbeddedViews(x, 1, image_hw, grid_of(image_hw, self.backbone.patch_size), mask, first_view)

    def _choose(self, class_tokens: Tensor, valid: Tensor | None, gather: Callable[[Tensor], Tensor]) -> Tensor:
        assert self.reference is not None, "asked for only where there is a rule"
        if valid is not None:
            valid = gather(valid.to(torch.uint8)).bool()
            valid = valid | ~valid.any(dim=-1, keepdim=True)
        return choose_reference(gather(class_tokens), self.reference, valid=valid)

    def rotary_across(self, views: EmbeddedViews, within: RotaryTable | None) -> RotaryTable | None:
        """Return the rotary table of blocks across views: all patches are at (1, 1), the camera token at (0, 0)."""
        if within is None or self.head_dim is None or self.rope_base is None:
            return None
        positions = grid_positions(views.grid_hw, views.num_special, views.x.device).clamp(max=1)
        return rotary_table(positions, self.head_dim, base=self.rope_base, dtype=within.cos.dtype)

    def join(self, outputs: Sequence[Float[Tensor, "*batch p c"]], num_special: int) -> Float[Tensor, "*batch p c2"]:
        """Return the tokens of a layer: its blocks' outputs side by side, the last one's patch tokens normalised."""
        *others, last = outputs
        patches = self.tap_norm(last[..., num_special:, :])
        last = torch.cat([last[..., :num_special, :], patches], dim=-2) if num_special else patches
        return torch.cat([*others, last], dim=-1)
