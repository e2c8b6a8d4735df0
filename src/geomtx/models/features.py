"""Feature maps from layers of an encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from geomtx.checks import check_option
from geomtx.encoder.alternating import AlternatingEncoder
from geomtx.types import Bool, Float, Tokens

__all__ = ["FeatureExtractor"]


class FeatureExtractor(nn.Module):
    """Feature maps of chosen layers of an encoder, for models of your own.

    `extractor(images)[4]` is layer 4 as (B, S, C, rows, columns), one pixel for each patch, with C the widths of
    the layer's blocks together: 2 · dim for VGGT. Nothing after the last chosen layer is computed.

    Args:
        model: A `geomtx.VGGT`, of which only the encoder is kept, or an `AlternatingEncoder`.
        layers: Indices of layers of the encoder, also of layers that no head reads; defaults to those that heads read.
        frozen: Whether the encoder stays in evaluation mode and no gradients are recorded. Its parameters keep their
            `requires_grad`; `geomtx.freeze` takes them out of an optimiser.

    Raises:
        ValueError: For another model, no layer, or a layer that the encoder doesn't have.
    """

    def __init__(self, model: nn.Module, layers: Sequence[int] | None = None, *, frozen: bool = False) -> None:
        super().__init__()
        encoder = model if isinstance(model, AlternatingEncoder) else getattr(model, "encoder", None)
        if not isinstance(encoder, AlternatingEncoder):
            raise ValueError(f"model must have an AlternatingEncoder, or be one, got {type(model).__name__}")
        self.layers = encoder.taps if layers is None else tuple(layers)
        if not self.layers:
            raise ValueError(f"layers must name at least one, got {layers!r}")
        for layer in self.layers:
            check_option("layer", layer, range(len(encoder.order)))
        self.frozen = frozen
        self.encoder = encoder
        self.train(self.training)

    def train(self, mode: bool = True) -> FeatureExtractor:
        """Set the mode of all modules; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(
        self,
        images: Float[Tensor, "*batch s 3 h w"],
        *,
        patch_mask: Bool[Tensor, "*batch s rows columns"] | None = None,
    ) -> dict[int, Tensor]:
        """Return layer → its patches as a map.

        Args:
            images: Images in [0, 1], (B, S, 3, H, W), or (S, 3, H, W) for one scene.
            patch_mask: Boolean mask of the valid patches, (B, S, rows, columns); maps are zero elsewhere. Defaults to
                all.

        Returns:
            Layer → (B, S, C, rows, columns), always with the B axis.

        Raises:
            ValueError: As `AlternatingEncoder`.
        """
        tokens = self.read_tokens(images, patch_mask=patch_mask)
        return {index: tokens.patch_map(index) for index in tokens.layers}

    def read_tokens(
        self,
        images: Float[Tensor, "*batch s 3 h w"],
        *,
        patch_mask: Bool[Tensor, "*batch s rows columns"] | None = None,
    ) -> Tokens:
        """Return the chosen layers with camera and register tokens, as heads read them; arguments as for `forward`."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.encoder(images, patch_mask=patch_mask, taps=self.layers)

    def extra_repr(self) -> str:
        """Return the layers, for `repr`."""
        return f"layers={self.layers}, frozen={self.frozen}"
