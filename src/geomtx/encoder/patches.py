"""Images to patch tokens."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from geomtx.checks import check_divisible, check_shape
from geomtx.layers.float32 import Float32Conv2d
from geomtx.types import Bool, Float

__all__ = ["Backbone", "PatchEmbedding", "drop_masked", "grid_of", "normalize_images"]

# ImageNet's, rounded to float32 as in training: the tracker is so sensitive that in float64 the difference would show.
IMAGENET_MEAN = (0.48500001430511475, 0.4560000002384186, 0.4059999883174896)
IMAGENET_STD = (0.2290000021457672, 0.2240000069141388, 0.22499999403953552)


def normalize_images(
    images: Float[Tensor, "*batch 3 h w"],
    *,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> Float[Tensor, "*batch 3 h w"]:
    """(images - mean) / std a channel, images in [0, 1].

    Channel by channel, with plain numbers: a tensor of constants would be copied from the host in every call.
    """
    channels = images.unbind(-3)
    return torch.stack([(x - m) / s for x, m, s in zip(channels, mean, std, strict=True)], dim=-3)


def grid_of(image_hw: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches.

    Raises:
        ValueError: If a side is not a multiple of the patch size.
    """
    check_divisible("image height", image_hw[0], patch_size)
    check_divisible("image width", image_hw[1], patch_size)
    return image_hw[0] // patch_size, image_hw[1] // patch_size


def drop_masked(
    images: Float[Tensor, "n c h w"], mask: Bool[Tensor, "n p"], patch_size: int
) -> Float[Tensor, "n c h w"]:
    """Zero the patches that don't take part.

    Before the embedding, so that nothing of their content, not even a NaN, goes any further: neither forward nor, as a
    factor of the weights' gradient, backward.
    """
    rows, columns = images.shape[-2] // patch_size, images.shape[-1] // patch_size
    blocks = images.unflatten(-1, (columns, patch_size)).unflatten(-3, (rows, patch_size))
    out = ~mask.unflatten(-1, (rows, columns))[:, None, :, None, :, None]
    return blocks.masked_fill(out, 0.0).flatten(-2).flatten(-3, -2)


@runtime_checkable
class Backbone(Protocol):
    """What an `AlternatingEncoder` asks of its backbone, a module.

    Attributes:
        dim: Width C of the tokens.
        patch_size: Side of a patch, pixels.
    """

    dim: int
    patch_size: int

    def __call__(self, images: Tensor, patch_mask: Tensor | None = None) -> Tensor:
        """Normalised images (N, 3, H, W) and a mask (N, P), True = takes part → patch tokens (N, P, C)."""
        ...


class PatchEmbedding(nn.Module):
    """A convolution of patch size and stride: one token a patch, row by row.

    Usable as the backbone of an `AlternatingEncoder`.

    Args:
        dim: Width C of the tokens.
        patch_size: Side of a patch, pixels.
        in_channels: Of the images.
        in_float32: Compute in float32 or better, whatever the precision of the weights: for what differs little from
            one pixel to the next.
    """

    def __init__(self, dim: int, *, patch_size: int = 14, in_channels: int = 3, in_float32: bool = False) -> None:
        super().__init__()
        self.dim = dim
        self.patch_size = patch_size
        kind = Float32Conv2d if in_float32 else nn.Conv2d
        self.project = kind(in_channels, dim, kernel_size=patch_size, stride=patch_size)

    def forward(
        self, images: Float[Tensor, "n c_in h w"], patch_mask: Bool[Tensor, "n p"] | None = None
    ) -> Float[Tensor, "n p c"]:
        """Embed.

        Args:
            images: (N, in_channels, H, W), normalised, H and W multiples of the patch size.
            patch_mask: (N, P), True = takes part; the others are embedded as zeros.

        Raises:
            ValueError: For other sizes.
        """
        check_shape("images", images, ("N", self.project.in_channels, "H", "W"))
        grid_of((images.shape[-2], images.shape[-1]), self.patch_size)
        if patch_mask is not None:
            images = drop_masked(images, patch_mask, self.patch_size)
        if not isinstance(self.project, Float32Conv2d):
            images = images.to(self.project.weight.dtype)
        return self.project(images).flatten(2).transpose(1, 2)
