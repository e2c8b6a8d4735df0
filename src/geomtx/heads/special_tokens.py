"""Base of the heads that read special tokens of one layer of an encoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from geomtx.checks import check_shape
from geomtx.types import Bool, Tokens

__all__ = ["SpecialTokenHead"]


class SpecialTokenHead(nn.Module):
    """Base of heads that read special tokens of one layer: the camera tokens, or all special tokens.

    A subclass may extend `select`, which works on each view by itself, and has `predict`, which gets the tokens of all
    views; so views may be in several processes.

    Args:
        dim: Number of channels C of the tokens.
        layer: Index of the encoder's layer to read; defaults to the last one that was kept.
    """

    reads_all = False
    """Whether all special tokens of a view are read, instead of its camera token alone."""

    def __init__(self, dim: int, *, layer: int | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.layer = layer

    def forward(self, tokens: Tokens) -> Any:
        """Return what `predict` makes of the tokens of all views.

        Args:
            tokens: Tokens of an encoder; only special tokens of one layer are read.

        Raises:
            ValueError: If the layer wasn't kept or has another number of channels.
        """
        mask = None if tokens.mask is None else tokens.mask[:, :, 0]
        return self.predict(self.select(tokens), tokens.image_hw, mask)

    def select(self, tokens: Tokens) -> Tensor:
        """Return all that the head reads: camera tokens, (B, S, C), or special tokens, (B, S, R, C).

        Args:
            tokens: Tokens of an encoder that kept the head's layer.
        """
        layer = tokens.layer(max(tokens.layers) if self.layer is None else self.layer)
        check_shape("tokens", layer, ("B", "S", "P", self.dim))
        return layer[:, :, : tokens.num_special] if self.reads_all else layer[:, :, 0]

    def predict(self, selected: Tensor, image_hw: tuple[int, int], view_mask: Bool[Tensor, "b s"] | None = None) -> Any:
        """Predict from what `select` returns for all views of the scenes.

        Args:
            selected: Tokens, (B, S, C) or (B, S, R, C).
            image_hw: Height and width of the images in pixels.
            view_mask: Mask of the valid views, (B, S) bool; defaults to all.
        """
        raise NotImplementedError
