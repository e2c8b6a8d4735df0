"""Camera and register tokens that go before the patches of every view."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geomtx.types import Float

__all__ = ["SpecialTokens"]


class SpecialTokens(nn.Module):
    """One camera token and some registers a view; the first view has its own set, which makes it the reference.

    Args:
        dim: Width C.
        num_registers: Register tokens a view.
        std: Of the first tokens.

    Attributes:
        first_view: Index in its scene of the first view that is given; above 0 where another process holds the first.
    """

    def __init__(self, dim: int, *, num_registers: int = 4, std: float = 1e-2) -> None:
        super().__init__()
        self.std = std
        self.num_tokens = 1 + num_registers
        self.first_view = 0
        self.camera = nn.Parameter(torch.zeros(1, 2, 1, dim))
        self.registers = nn.Parameter(torch.zeros(1, 2, num_registers, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the tokens.

        Larger than what a block adds, they would hide the pictures; much smaller, the first view would soon look like
        the others.
        """
        nn.init.normal_(self.camera, std=self.std)
        nn.init.normal_(self.registers, std=self.std)

    def forward(self, patches: Float[Tensor, "b s p c"]) -> Float[Tensor, "b s p2 c"]:
        """Put the special tokens before the patches, (B, S, P, C) → (B, S, P + num_tokens, C)."""
        special = self.tokens(patches.shape[1]).to(patches.dtype)
        return torch.cat([special.expand(patches.shape[0], -1, -1, -1), patches], dim=2)

    def tokens(self, num_views: int) -> Float[Tensor, "1 s p c"]:
        """The special tokens of so many views, (1, S, num_tokens, C)."""
        # Which set a view takes: 0 for the first, 1 for all others; an index, so that one program serves any S.
        kind = torch.arange(self.first_view, self.first_view + num_views, device=self.camera.device).clamp(max=1)
        return torch.cat([self.camera, self.registers], dim=2)[:, kind]
