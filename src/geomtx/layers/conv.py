"""Residual convolutions of dense heads."""

from __future__ import annotations

from torch import Tensor, nn

from geomtx.types import Float

__all__ = ["NormedResidualConv", "ResidualConv"]


class ResidualConv(nn.Module):
    """r + conv(ReLU(conv(r))) with r = ReLU(x), or x + conv(ReLU(conv(r))).

    In VGGT's weights the skip carries the rectified input r. The usual pre-activation unit (He et al. 2016) carries x
    itself, as in Depth Anything 3.

    Args:
        dim: Number of channels C of the maps.
        rectified_skip: Whether the skip carries r instead of x.
    """

    def __init__(self, dim: int, *, rectified_skip: bool = True) -> None:
        super().__init__()
        self.rectified_skip = rectified_skip
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Transform feature maps, (N, C, H, W) → (N, C, H, W)."""
        rectified = x.relu()
        return (rectified if self.rectified_skip else x) + self.conv2(self.conv1(rectified).relu())


class NormedResidualConv(nn.Module):
    """x + conv(ReLU(norm(conv(ReLU(norm(x)))))) with twice as many channels between the convolutions (Pi3X).

    The first norm is over all channels, the second over groups of 32. Convolutions repeat the border.

    Args:
        dim: Number of channels of the maps, a multiple of 16.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(1, dim)
        self.conv1 = nn.Conv2d(dim, 2 * dim, 3, padding=1, padding_mode="replicate")
        self.norm2 = nn.GroupNorm(2 * dim // 32, 2 * dim)
        self.conv2 = nn.Conv2d(2 * dim, dim, 3, padding=1, padding_mode="replicate")

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Transform feature maps, (N, C, H, W) → (N, C, H, W)."""
        hidden = self.conv1(self.norm1(x).relu())
        return x + self.conv2(self.norm2(hidden).relu())
