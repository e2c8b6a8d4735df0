"""Embedding of images as patch tokens."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from geomtx.checks import check_divisible, check_shape
from geomtx.layers.precision import Float32Conv2d
from geomtx.types import Bool, Float

__all__ = [
    "Backbone",
    "ImageNormalization",
    "PatchEmbedding",
    "drop_masked",
    "grid_of",
    "mask_pixels",
    "normalize_images",
]

# ImageNet's statistics, rounded to float32 as in training; in float64 the rounding would show in tracks.
IMAGENET_MEAN = (0.48500001430511475, 0.4560000002384186, 0.4059999883174896)
IMAGENET_STD = (0.2290000021457672, 0.2240000069141388, 0.22499999403953552)


def normalize_images(
    images: Float[Tensor, "*batch 3 h w"],
    *,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> Float[Tensor, "*batch 3 h w"]:
    """Return (images - mean) / std for every channel.

    Args:
        images: Images in [0, 1], (..., 3, H, W).
        mean: Mean of each channel; defaults to ImageNet's. Plain numbers, as a tensor would be copied from the host in
            every call.
        std: Standard deviation of each channel; defaults to ImageNet's.
    """
    channels = images.unbind(-3)
    return torch.stack([(x - m) / s for x, m, s in zip(channels, mean, std, strict=True)], dim=-3)


class ImageNormalization(nn.Module):
    """`normalize_images` with mean and standard deviation that are stored with the weights.

    They are buffers, (1, 3, 1, 1), and start as ImageNet's.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        """Return (images - mean) / std for every channel."""
        return (images - self.mean.to(images.dtype)) / self.std.to(images.dtype)


def mask_pixels(patch_mask: Bool[Tensor, "*batch r q"], image_hw: tuple[int, int]) -> Bool[Tensor, "*batch h w"]:
    """Return the mask of the pixels of patches, (..., rows, columns) → (..., H, W).

    Args:
        patch_mask: Mask of the patches.
        image_hw: Height and width of the images in pixels, multiples of the numbers of rows and columns.
    """
    rows, columns = patch_mask.shape[-2:]
    return patch_mask.repeat_interleave(image_hw[0] // rows, -2).repeat_interleave(image_hw[1] // columns, -1)


def grid_of(image_hw: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Return the numbers of rows and columns of patches.

    Args:
        image_hw: Height and width of the images in pixels.
        patch_size: Side of a patch in pixels.

    Raises:
        ValueError: If a side is not a multiple of the patch size.
    """
    check_divisible("image height", image_hw[0], patch_size)
    check_divisible("image width", image_hw[1], patch_size)
    return image_hw[0] // patch_size, image_hw[1] // patch_size


def drop_masked(
    images: Float[Tensor, "n c h w"], mask: Bool[Tensor, "n p"], patch_size: int
) -> Float[Tensor, "n c h w"]:
    """Set the pixels of invalid patches to zero.

    So their values, NaN included, influence neither the embedding nor the gradient of its weights.

    Args:
        images: Images, (N, C, H, W).
        mask: Mask of the valid patches, (N, P) bool.
        patch_size: Side of a patch in pixels.
    """
    invalid = ~repeat(mask, "n (r q) -> n 1 (r h) (q w)", r=images.shape[-2] // patch_size, h=patch_size, w=patch_size)
    return images.masked_fill(invalid, 0.0)


@runtime_checkable
class Backbone(Protocol):
    """Protocol of the backbone of an `AlternatingEncoder`, a module.

    Attributes:
        dim: Number of channels C of the tokens.
        patch_size: Side of a patch in pixels.
    """

    dim: int
    patch_size: int

    def __call__(self, images: Tensor, patch_mask: Tensor | None = None) -> Tensor:
        """Return patch tokens (N, P, C) of normalised images (N, 3, H, W); `patch_mask` (N, P) says which are valid."""
        ...


class PatchEmbedding(nn.Module):
    """A convolution with the patch as kernel and stride: one token for each patch, row by row.

    Usable as the backbone of an `AlternatingEncoder`.

    Args:
        dim: Number of channels C of the tokens.
        patch_size: Side of a patch in pixels.
        in_channels: Number of channels of the images.
        in_float32: Whether to compute in float32 or better, whatever the precision of the weights; for images that
            differ little from one pixel to the next, such as rays.
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
        """Embed images.

        Args:
            images: Normalised images, (N, in_channels, H, W), H and W multiples of the patch size.
            patch_mask: Mask of the valid patches, (N, P) bool; the others are embedded as zeros. Defaults to all.

        Raises:
            ValueError: If the number of channels is another one, or a side is not a multiple of the patch size.
        """
        check_shape("images", images, ("N", self.project.in_channels, "H", "W"))
        grid_of((images.shape[-2], images.shape[-1]), self.patch_size)
        if patch_mask is not None:
            images = drop_masked(images, patch_mask, self.patch_size)
        if not isinstance(self.project, Float32Conv2d):
            images = images.to(self.project.weight.dtype)
        return rearrange(self.project(images), "n c r q -> n (r q) c")
