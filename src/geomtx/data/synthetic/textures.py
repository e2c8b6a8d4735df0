"""Solid textures: a colour for every point of space, so that no surface needs coordinates of its own."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.types import show_shapes

__all__ = ["NUM_WAVES", "Textures", "paint"]

NUM_WAVES = 4


@show_shapes
class Textures(NamedTuple):
    """One texture for each of U surfaces a scene.

    A few plane waves are added (marble, clouds, stripes) or multiplied (checkers), and a threshold, soft or hard,
    chooses between two colours; two faster waves add grain.

    Attributes:
        waves: (B, U, NUM_WAVES, 3), radians a length.
        phases: (B, U, NUM_WAVES), radians.
        product: (B, U), 1 = the waves are multiplied, 0 = added.
        sharpness: (B, U), slope of the threshold.
        colors: (B, U, 2, 3) in [0, 1].
        grain: (B, U), amplitude of the grain.
    """

    waves: Tensor
    phases: Tensor
    product: Tensor
    sharpness: Tensor
    colors: Tensor
    grain: Tensor


def paint(textures: Textures, surface: Tensor, points: Tensor, footprint: Tensor) -> Tensor:
    """Colours of points.

    Args:
        textures: Of B scenes.
        surface: (B, V, R) int64, which texture.
        points: (B, V, R, 3).
        footprint: (B, V, R), how wide a pixel is there, in the points' unit: faster waves fade to their mean, as
            they do in a photo, instead of aliasing.

    Returns:
        (B, V, R, 3) in [0, 1].
    """
    batch = torch.arange(len(surface), device=surface.device)[:, None, None]
    waves = textures.waves[batch, surface]
    angle = torch.einsum("bvrwc,bvrc->bvrw", waves, points) + textures.phases[batch, surface]
    # A box as wide as the pixel, to second order.
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
