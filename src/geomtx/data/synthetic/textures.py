"""Solid textures: functions from points of space to colours, which need no coordinates on the surface."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.types import show_shapes

__all__ = ["NUM_WAVES", "Textures", "paint"]

NUM_WAVES = 4


@show_shapes
class Textures(NamedTuple):
    """Textures of U surfaces in each of B scenes.

    A few plane waves are added (marble, clouds, stripes) or multiplied (checkers), and a sigmoid of the result mixes
    two colours; a product of two faster waves adds grain.

    Attributes:
        waves: Wave vectors in radians per metre, (B, U, NUM_WAVES, 3).
        phases: Phases in radians, (B, U, NUM_WAVES).
        product: 1 where the waves are multiplied, 0 where they are added, (B, U).
        sharpness: Slope of the sigmoid, (B, U).
        colors: Two RGB colours in [0, 1], (B, U, 2, 3).
        grain: Amplitude of the grain, (B, U).
    """

    waves: Tensor
    phases: Tensor
    product: Tensor
    sharpness: Tensor
    colors: Tensor
    grain: Tensor


def paint(textures: Textures, surface: Tensor, points: Tensor, footprint: Tensor) -> Tensor:
    """Return the colours of points on textured surfaces.

    Args:
        textures: Textures of B scenes.
        surface: Number of the texture at each point, (B, V, R) int64.
        points: Points (B, V, R, 3) in metres.
        footprint: Width of a pixel at each point in metres, (B, V, R). Waves that are shorter fade to their mean, as in
            a photo, instead of aliasing.

    Returns:
        RGB colours (B, V, R, 3) in [0, 1].
    """
    batch = torch.arange(len(surface), device=surface.device)[:, None, None]
    waves = textures.waves[batch, surface]
    angle = torch.einsum("bvrwc,bvrc->bvrw", waves, points) + textures.phases[batch, surface]
    # The mean of a wave over the width of a pixel, to second order.
    fade = torch.exp(-(waves.square().sum(-1)) * footprint.square()[..., None] / 24)
    ripples = angle.sin() * fade
    added = ripples.sum(-1) / NUM_WAVES**0.5
    multiplied = ripples[..., 0] * ripples[..., 1] * 1.5
    is_product = textures.product[batch, surface]
    value = added + is_product * (multiplied - added)
    share = torch.sigmoid(textures.sharpness[batch, surface] * value)[..., None]
    colors = textures.colors[batch, surface]
    grain = ((2.7 * angle[..., 0] + 1.3 * angle[..., 2]).sin() * (3.1 * angle[..., 1] - angle[..., 3]).sin())[..., None]
    grain = grain * (fade[..., :2].prod(-1) ** 9 * textures.grain[batch, surface])[..., None]
    return (colors[..., 0, :] + share * (colors[..., 1, :] - colors[..., 0, :]) + grain).clamp(0, 1)
