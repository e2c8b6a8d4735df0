"""Camera and register tokens that precede the patch tokens of every view."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geomtx.types import Float

__all__ = ["RegisterTokens", "SpecialTokens"]


class SpecialTokens(nn.Module):
    """Camera and register tokens, one set for the first view of a scene, its reference, and one for all other views.

    Args:
        dim: Number of channels C of the tokens.
        num_registers: Number of register tokens of a view.
        std: Standard deviation of the initial tokens.
    """

    first_is_reference = True
    """Whether the first view of a scene is another one than the rest, whatever it shows."""

    def __init__(self, dim: int, *, num_registers: int = 4, std: float = 1e-2) -> None:
        super().__init__()
        self.std = std
        self.num_tokens = 1 + num_registers
        self.camera = nn.Parameter(torch.zeros(1, 2, 1, dim))
        self.registers = nn.Parameter(torch.zeros(1, 2, num_registers, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial tokens.

        Tokens much larger than what a block adds would hide the images; with much smaller ones the first view would
        not differ from the others.
        """
        nn.init.normal_(self.camera, std=self.std)
        nn.init.normal_(self.registers, std=self.std)

    def forward(
        self,
        patches: Float[Tensor, "b s p c"],
        *,
        first_view: int = 0,
        camera_shift: Float[Tensor, "b s2 c"] | None = None,
    ) -> Float[Tensor, "b s p2 c"]:
        """Put the special tokens before the patches, (B, S, P, C) → (B, S, P + num_tokens, C).

        Args:
            patches: Patch tokens, (B, S, P, C).
            first_view: Index in its scene of the first of these views; above 0 where other processes hold earlier ones.
            camera_shift: Vectors added to the camera tokens of the first S' views, (B, S', C); defaults to none.
        """
        num_scenes, num_views = patches.shape[:2]
        # Index of each view's set: 0 for the first view, 1 for all others. Computed, so that one graph serves any S.
        kind = torch.arange(first_view, first_view + num_views, device=self.camera.device).clamp(max=1)
        special = torch.cat([self.camera, self.registers], dim=2)[:, kind].to(patches.dtype)
        special = special.expand(num_scenes, -1, -1, -1)
        if camera_shift is not None:
            missing = (0, 0, 0, self.num_tokens - 1, 0, num_views - camera_shift.shape[1])
            special = special + nn.functional.pad(camera_shift.to(patches.dtype)[:, :, None], missing)
        return torch.cat([special, patches], dim=2)


class RegisterTokens(nn.Module):
    """Register tokens that are the same for every view, so that no view is the reference (Pi3, Wang et al. 2025).

    Args:
        dim: Number of channels C of the tokens.
        num_tokens: Number of register tokens of a view.
        std: Standard deviation of the initial tokens.
    """

    first_is_reference = False

    def __init__(self, dim: int, num_tokens: int = 5, *, std: float = 1e-2) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.registers = nn.Parameter(torch.zeros(1, 1, num_tokens, dim))
        nn.init.normal_(self.registers, std=std)

    def forward(
        self, patches: Float[Tensor, "b s p c"], *, first_view: int = 0, camera_shift: Tensor | None = None
    ) -> Float[Tensor, "b s p2 c"]:
        """Put the register tokens before the patches, (B, S, P, C) → (B, S, P + num_tokens, C).

        Args:
            patches: Patch tokens, (B, S, P, C).
            first_view: Index in its scene of the first of these views; it has no influence.
            camera_shift: None, as there are no camera tokens.

        Raises:
            ValueError: For a `camera_shift`.
        """
        if camera_shift is not None:
            raise ValueError("camera_shift must be None for an encoder without camera tokens, got vectors")
        registers = self.registers.to(patches.dtype).expand(*patches.shape[:2], -1, -1)
        return torch.cat([registers, patches], dim=2)
