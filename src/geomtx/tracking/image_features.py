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
    """A small residual network on the pixels of every view by itself.

    Each stage halves the size by a convolution of stride 2, followed by two residual units. The outputs of all stages,
    averaged to the size of the last one and concatenated, are projected to the feature maps.

    Args:
        dim: Number of channels C of the feature maps.
        width: Number of channels of the stages, a multiple of 4.
        stride: Side in pixels of the image of a pixel of the feature maps: 2, 4 or 8.

    Raises:
        ValueError: If `stride` or `width` is another number.
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
        """Return feature maps, (B, S, dim, H / stride, W / stride).

        Args:
            video: Images in [0, 1], (B, S, 3, H, W), with sides that are multiples of the stride.

        Raises:
            ValueError: If the shape is another one, or the images are integers.
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
