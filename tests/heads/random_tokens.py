"""Tokens to test heads with."""

import torch

from geomtx import Tokens


def random_tokens(
    num_scenes: int = 2,
    num_views: int = 3,
    *,
    dim: int = 16,
    grid_hw: tuple[int, int] = (2, 3),
    patch: int = 14,
    layers: tuple[int, ...] = (0, 1, 2, 3),
    num_special: int = 3,
    mask: torch.Tensor | None = None,
) -> Tokens:
    num_tokens = num_special + grid_hw[0] * grid_hw[1]
    return Tokens(
        {layer: torch.randn(num_scenes, num_views, num_tokens, dim, dtype=torch.float64) for layer in layers},
        num_special,
        (patch * grid_hw[0], patch * grid_hw[1]),
        grid_hw,
        mask,
    )


def cast(tokens: Tokens, dtype: torch.dtype) -> Tokens:
    return tokens._replace(layers={index: layer.to(dtype) for index, layer in tokens.layers.items()})
