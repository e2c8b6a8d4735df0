"""CroCo (Weinzaepfel et al. 2022, 2023): an image completed from another view of the scene, to learn its geometry."""

from __future__ import annotations

import torch
from torch import Tensor

from geomtx.checks import check_range
from geomtx.models.dust3r.config import CroCoConfig
from geomtx.models.dust3r.keys import CROCO_KEYS
from geomtx.models.dust3r.parts import build_completion_decoder, build_encoder
from geomtx.models.dust3r.pretrained import PretrainedPairModel
from geomtx.types import Bool, Float

__all__ = ["CroCo", "draw_hidden"]


class CroCo(PretrainedPairModel):
    """An encoder of single images, and a decoder that predicts the hidden patches of one image from another's.

    It is what DUSt3R's training begins with, see `DUSt3R.from_croco`; its own is scored by
    `geomtx.losses.completion_loss`.

    Args:
        config: Configuration of the model; `CroCoConfig()` is the largest published one, `.tiny()` one for tests.

    Raises:
        ValueError: For a configuration of another class.
    """

    kind = "CroCo"
    keys = CROCO_KEYS
    config_type = CroCoConfig

    def __init__(self, config: CroCoConfig) -> None:
        super().__init__(config)
        self.encoder = build_encoder(config)
        self.decoder = build_completion_decoder(config)

    def forward(
        self, first: Float[Tensor, "n 3 h w"], second: Float[Tensor, "n 3 h2 w2"], hidden: Bool[Tensor, "n p"]
    ) -> Float[Tensor, "n p v"]:
        """Predict all patches of the first images; differentiable.

        Args:
            first: Images that are completed, in [0, 1], (N, 3, H, W); sides are multiples of the patch size.
            second: Other views of the same scenes, (N, 3, H', W').
            hidden: Mask of the patches of the first images that the model doesn't see, row by row, (N, P) bool, as many
                in each image; see `draw_hidden`.

        Returns:
            Patches, (N, P, 3 · patch²): row, column and colour of each pixel, in order.

        Raises:
            ValueError: For images or a mask of another shape or type.
        """
        return self.decoder(self.encode(first, hidden), self.encode(second), hidden)


def draw_hidden(
    num_images: int, num_patches: int, *, ratio: float = 0.9, generator: torch.Generator | None = None
) -> Bool[Tensor, "n p"]:
    """Return a random mask of hidden patches, as many in each image, (num_images, num_patches) bool on the CPU.

    Args:
        num_images: Number of images.
        num_patches: Number of patches of an image.
        ratio: Share of the patches that are hidden, 0 … 1; the number is rounded down. Defaults to CroCo's 0.9.
        generator: Source of random numbers; defaults to torch's.

    Raises:
        ValueError: For a ratio out of range.
    """
    check_range("ratio", ratio, 0, 1)
    ranks = torch.rand(num_images, num_patches, generator=generator).argsort(dim=1).argsort(dim=1)
    return ranks < int(ratio * num_patches)
