"""Maps from patch tokens by convolutions that double the resolution three times (Pi3X)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geomtx.checks import check_divisible
from geomtx.layers.conv import NormedResidualConv
from geomtx.layers.position import aspect_grid
from geomtx.layers.precision import Float32Conv2d
from geomtx.types import Float

__all__ = ["Upsampler"]

_GRID_DIM = 2  # channels of a pixel's position


class Upsampler(nn.Module):
    """Stages of a transposed convolution and residual units, resizing to the image, and two convolutions an output.

    Before every stage, and at the end, the position of each pixel in the image is appended to the map, see
    `aspect_grid`. Convolutions repeat the border.

    Args:
        dim: Number of channels of the tokens.
        stages: Number of channels after each stage, multiples of 16; each stage doubles rows and columns.
        out_dims: Number of channels of each output; outputs are concatenated.
        hidden_dim: Number of channels between an output's two convolutions.

    Raises:
        ValueError: If a stage's number of channels is no multiple of 16.
    """

    def __init__(
        self, dim: int, *, stages: Sequence[int] = (256, 128, 64), out_dims: Sequence[int], hidden_dim: int = 32
    ) -> None:
        super().__init__()
        for channels in stages:
            check_divisible("channels of a stage", channels, 16)
        self.hidden_dim = hidden_dim
        self.out_dim = stages[-1]
        self.stages = nn.ModuleList(UpsamplingStage(a, b) for a, b in pairwise((dim, *stages)))
        last = stages[-1] + _GRID_DIM
        self.hidden = nn.ModuleList(
            nn.Conv2d(last, hidden_dim, 3, padding=1, padding_mode="replicate") for _ in out_dims
        )
        self.out = nn.ModuleList(Float32Conv2d(hidden_dim, channels, 1) for channels in out_dims)

    def forward(
        self, patches: Float[Tensor, "n p c"], grid_hw: tuple[int, int], image_hw: tuple[int, int]
    ) -> Float[Tensor, "n c_out h w"]:
        """Return maps of the images' size, (N, sum of out_dims, H, W), in float32 or better.

        Args:
            patches: Patch tokens, (N, P, dim).
            grid_hw: Numbers of rows and columns of patches.
            image_hw: Height and width of the images in pixels.
        """
        x = patches.mT.unflatten(2, grid_hw)
        for stage in self.stages:
            x = stage(x, image_hw)
        x = append_position(F.interpolate(x, size=image_hw, mode="bilinear", align_corners=False), image_hw)
        return torch.cat([out(hidden(x).relu()) for hidden, out in zip(self.hidden, self.out, strict=True)], dim=1)

    @property
    def peak_numbers(self) -> int:
        """Numbers for a pixel at the peak: the resized map, with its position, with its border, and a hidden map."""
        return 3 * (self.out_dim + _GRID_DIM) + self.hidden_dim


class UpsamplingStage(nn.Module):
    """Append the position, double rows and columns by a transposed convolution, and refine by convolutions.

    Args:
        dim: Number of channels of the input.
        out_dim: Number of channels of the output.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.enlarge = nn.ConvTranspose2d(dim + _GRID_DIM, out_dim, 2, stride=2)
        self.smooth = nn.Conv2d(out_dim, out_dim, 3, padding=1, padding_mode="replicate")
        self.units = nn.ModuleList(NormedResidualConv(out_dim) for _ in range(2))

    def forward(self, x: Float[Tensor, "n c h w"], image_hw: tuple[int, int]) -> Float[Tensor, "n c_out h2 w2"]:
        """Return maps of twice the size, (N, out_dim, 2H, 2W); `image_hw` is the size of the images in pixels."""
        x = self.smooth(self.enlarge(append_position(x, image_hw)))
        for unit in self.units:
            x = unit(x)
        return x


def append_position(x: Float[Tensor, "n c h w"], image_hw: tuple[int, int]) -> Float[Tensor, "n c2 h w"]:
    """Append the coordinates x and y of each pixel of a map in the image as channels, see `aspect_grid`.

    Args:
        x: Maps, (N, C, H, W), each of the whole image.
        image_hw: Height and width of the images in pixels.
    """
    columns, rows = aspect_grid((x.shape[-2], x.shape[-1]), image_hw, x)
    size = (x.shape[0], 1, x.shape[-2], x.shape[-1])
    grid = [columns.expand(size), rows[:, None].expand(size)]
    return torch.cat([x, *(each.to(x.dtype) for each in grid)], dim=1)
