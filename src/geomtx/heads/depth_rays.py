"""Head with two maps from one decoder's projections: depth and rays (Depth Anything 3, Lin et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from geomtx.heads.dense import activate_confidence
from geomtx.heads.dpt import DecoderHead, DPTDecoder, FusionChain, add_position_signal
from geomtx.heads.head import HeadFootprint, run_view_by_view
from geomtx.layers.precision import Float32Conv2d
from geomtx.types import DenseMap, Float, ProjectedTokens, Tokens

__all__ = ["DepthRayHead", "RayBranch"]

RAY_DIM = 6
"""Number of channels of a ray: direction and origin."""


class DepthRayHead(DecoderHead):
    """Predict depth and, by a second chain of fusions, the ray through each pixel of a smaller map.

    Args:
        decoder: Decoder from tokens to a feature map of the images' size.
        rays: Whether there are rays.
        hidden_dim: Number of channels before the last convolutions.
    """

    run_in_parts = run_view_by_view

    def __init__(self, decoder: DPTDecoder, *, rays: bool = True, hidden_dim: int = 32) -> None:
        super().__init__(decoder)
        self.hidden = nn.Conv2d(decoder.out_channels, hidden_dim, 3, padding=1)
        self.out = Float32Conv2d(hidden_dim, 2, 1)
        self.rays = (
            RayBranch(decoder.features, hidden_dim=hidden_dim, rectified_skip=decoder.rectified_skip) if rays else None
        )

    def forward(self, tokens: Tokens | ProjectedTokens, maps: Sequence[str] = ("depth", "rays")) -> dict[str, DenseMap]:
        """Predict the maps of every view by itself.

        Args:
            tokens: Tokens of an encoder that kept the decoder's taps; or their projections, see `DPTDecoder`.
            maps: Names of the maps to compute, "depth" and "rays".

        Returns:
            Name → map, in float32 or better: depth and confidence (B, S, H, W); rays (B, S, h, w, 6) with confidence
            (B, S, h, w), where h and w are eight times the numbers of rows and columns of patches.

        Raises:
            ValueError: If a tap wasn't kept or has another number of channels.
        """
        projected = self.decoder.project_all(tokens)
        reduced = self.decoder.reduce_taps(projected.maps)
        found: dict[str, DenseMap] = {}
        if "depth" in maps:
            features = self.decoder.finish(self.decoder.fuse(reduced), projected.image_hw)
            out = self.out(self.hidden(features).relu())
            found["depth"] = DenseMap(out[:, 0].exp(), activate_confidence(out[:, 1]))
        if "rays" in maps and self.rays is not None:
            found["rays"] = self.rays(reduced, projected.image_hw)
        return {
            name: DenseMap(*(each.unflatten(0, projected.views) for each in dense)) for name, dense in found.items()
        }

    def footprint(self, patch_size: int) -> HeadFootprint:
        """Return the memory that the head takes.

        Args:
            patch_size: Side of a patch in pixels.
        """
        results = 2 + (0 if self.rays is None else (RAY_DIM + 1) * (8 / patch_size) ** 2)
        return self.decoder.footprint(
            hidden_dim=self.hidden.out_channels, results=results, patch_size=patch_size, keeps_reduced=True
        )


class RayOutput(nn.Module):
    """Five convolutions in a row, an encoding of the position, and two more to the channels of a ray.

    Args:
        features: Number of channels of the merged map.
        hidden_dim: Number of channels before the last convolution.
    """

    def __init__(self, features: int, *, hidden_dim: int = 32) -> None:
        super().__init__()
        widths = (features, features // 2) * 3
        self.smooth = nn.Sequential(*(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths)))
        self.hidden = nn.Conv2d(features // 2, hidden_dim, 3, padding=1)
        self.norm = nn.LayerNorm(hidden_dim)
        self.out = Float32Conv2d(hidden_dim, RAY_DIM + 1, 1)

    def forward(self, merged: Float[Tensor, "n c h w"], image_hw: tuple[int, int]) -> Float[Tensor, "n c_out h w"]:
        """Return ray and logarithm of the confidence less 1 for each pixel of the merged map, (N, 7, H, W)."""
        x = self.hidden(add_position_signal(self.smooth(merged), image_hw))
        return self.out(self.norm(x.movedim(1, -1)).movedim(-1, 1).relu())


class RayBranch(nn.Module):
    """Predict rays from the reduced layers of a DPT decoder.

    Args:
        features: Number of channels of the reduced layers.
        hidden_dim: Number of channels before the last convolution.
        rectified_skip: Whether the residual units' skips are rectified, see `ResidualConv`.
    """

    def __init__(self, features: int, *, hidden_dim: int = 32, rectified_skip: bool = True) -> None:
        super().__init__()
        self.fuse = FusionChain(features, rectified_skip=rectified_skip)
        self.output = RayOutput(features, hidden_dim=hidden_dim)
        # Published checkpoints have outputs of the three coarser merged maps, which nothing uses; without gradients, so
        # that DDP doesn't wait for them.
        self.coarse_outputs = nn.ModuleList(RayOutput(features, hidden_dim=hidden_dim) for _ in range(3))
        self.coarse_outputs.requires_grad_(False)
        self.unused_parameters = tuple(f"coarse_outputs.{name}" for name, _ in self.coarse_outputs.named_parameters())
        """Parameters that no output depends on; a checkpoint may be without them."""

    def forward(self, reduced: Sequence[Float[Tensor, "n c _ _"]], image_hw: tuple[int, int]) -> DenseMap:
        """Return rays (N, h, w, 6), directions before origins, and their confidence (N, h, w).

        Args:
            reduced: Layers from fine to coarse, (N, features, ·, ·) each; the map has twice the size of the finest.
            image_hw: Height and width of the images in pixels.
        """
        out = self.output(self.fuse(reduced), image_hw)
        value, log_confidence = torch.split(out, [RAY_DIM, 1], dim=1)
        return DenseMap(value.movedim(1, -1), activate_confidence(log_confidence[:, 0]))
