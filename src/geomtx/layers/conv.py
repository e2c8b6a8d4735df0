"""Residual convolutions of the DPT decoder."""

from __future__ import annotations

from torch import Tensor, nn

from geomtx.types import Float

__all__ = ["ResidualConv"]


class ResidualConv(nn.Module):
    """r + conv(ReLU(conv(r))) with r = ReLU(x).

    The skip carries the rectified input. The usual pre-activation unit (He et al. 2016) would carry x itself; published
    DPT weights were trained this way.

    Args:
        dim: Number of channels C of the maps.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Transform feature maps, (N, C, H, W) → (N, C, H, W)."""
        rectified = x.relu()
        return rectified + self.conv2(self.conv1(rectified).relu())
