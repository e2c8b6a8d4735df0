"""Residual convolutions of the DPT decoder."""

from __future__ import annotations

from torch import Tensor, nn

from geomtx.types import Float

__all__ = ["ResidualConv"]


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
