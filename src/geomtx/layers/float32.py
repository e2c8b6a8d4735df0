"""Layers that compute in float32 or better whatever the precision of the model around them.

The ends of a network, where a rounding step of bfloat16 would be seen in a pose or a depth, run as float32 islands:
autocast is off inside, half-precision weights are widened on the fly, float64 stays float64.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geomtx.types import Float

__all__ = ["Float32Conv2d", "Float32Linear", "at_least_float32"]


def at_least_float32(x: Tensor) -> Tensor:
    """Widen half precision to float32; float32 and float64 stay as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Float32Linear(nn.Linear):
    """`nn.Linear` in float32 or better."""

    def forward(self, x: Float[Tensor, "*batch c_in"]) -> Float[Tensor, "*batch c_out"]:
        """(..., in_features) → (..., out_features), float32 or better."""
        with torch.autocast(x.device.type, enabled=False):
            dtype = torch.promote_types(at_least_float32(x).dtype, self.weight.dtype)
            bias = None if self.bias is None else self.bias.to(dtype)
            return F.linear(x.to(dtype), self.weight.to(dtype), bias)


class Float32Conv2d(nn.Conv2d):
    """`nn.Conv2d` in float32 or better."""

    def forward(self, x: Float[Tensor, "n c_in h w"]) -> Float[Tensor, "n c_out h2 w2"]:
        """(N, in_channels, H, W) → (N, out_channels, H', W'), float32 or better."""
        with torch.autocast(x.device.type, enabled=False):
            dtype = torch.promote_types(at_least_float32(x).dtype, self.weight.dtype)
            bias = None if self.bias is None else self.bias.to(dtype)
            return self._conv_forward(x.to(dtype), self.weight.to(dtype), bias)
