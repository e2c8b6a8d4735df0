"""Feature maps of raw pixels, for a tracker without a pretrained encoder."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from geomtx.checks import check_divisible, check_floating, check_option, check_shape
from geomtx.types import Float

__all__ = ["ImageFeatures"]

_GROUPS = 4


class ImageFeatures(nn.Module):
    """A small residual network on pixels, every view by itself.

    Each halving of the size is a convolution of stride 2 and two residual units; all scales, averaged to the last one,
    make the output together.

    Args:
        dim: Channels of the output.
        width: Channels within, a multiple of 4.
        stride: Pixels of the image a pixel of the output: 2, 4 or 8.

    Raises:
        ValueError: For another stride or width.
    """

    def __init__(self, dim: int = 128, *, width: int = 64, stride: int = 4) -> None:
        super().__init__()
        check_option("stride", stride, (2, 4, 8))
        check_divisible("width", width, _GROUPS)
        self.stride = stride
        self.stages = nn.ModuleList()
        for level in range(int(math.log2(stride))):
            entry = nn.Conv2d(width if level else 3, width, 3 if level else 7, stride=2, padding=1 if level else 3)
            self.stages.append(nn.Sequential(entry, _ResidualUnit(width), _ResidualUnit(width)))
        self.project = nn.Conv2d(width * len(self.stages), dim, 1)

    def forward(self, video: Float[Tensor, "b s 3 h w"]) -> Float[Tensor, "b s c h2 w2"]:
        """Images (B, S, 3, H, W) in [0, 1], sides multiples of the stride → (B, S, dim, H / stride, W / stride).

        Raises:
            ValueError: For another shape, and for bytes.
        """
        check_shape("video", video, ("B", "S", 3, "H", "W"))
        check_floating("video", video)
        for side in video.shape[-2:]:
            check_divisible("sides of video", side, self.stride)
        x, scales = 2 * video.flatten(0, 1).to(self.project.weight.dtype) - 1, []
        for stage in self.stages:
            x = stage(x)
            scales.append(x)
        size = (x.shape[-2], x.shape[-1])
        joined = [nn.functional.adaptive_avg_pool2d(scale, size) for scale in scales]
        return self.project(nn.functional.gelu(torch.cat(joined, dim=1))).unflatten(0, video.shape[:2])


class _ResidualUnit(nn.Module):
    """x + conv(GELU(norm(conv(GELU(norm(x)))))) (He et al. 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(_GROUPS, width),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(_GROUPS, width),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)
