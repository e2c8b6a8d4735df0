"""Views that come to an encoder as tokens, beside those that come as images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from geomtx.checks import check_shape
from geomtx.types import Float

__all__ = ["ExtraViews", "append_views", "shift_tokens"]


class ExtraViews(NamedTuple):
    """Further views of the scenes, for instance those of which a picture is to be made.

    Attributes:
        patches: (B, T, patches, C), on the same grid as the images' patches. They get the special tokens of views that
            aren't the first, and come after the images' views.
        isolated: In global blocks, no other view sees these: views of images attend to one another, as if there were
            no others, and each extra view to those and to itself. False = all attend to all.
    """

    patches: Float[Tensor, "b t p c"]
    isolated: bool = False


def append_views(patches: Float[Tensor, "b s p c"], extra: ExtraViews) -> Float[Tensor, "b s2 p c"]:
    """(B, S, patches, C) → (B, S + T, patches, C).

    Raises:
        ValueError: If the extra views are none, or of other scenes, another grid or another width.
    """
    check_shape("extra_views.patches", extra.patches, (patches.shape[0], "T", *patches.shape[2:]))
    if extra.patches.shape[1] == 0:
        raise ValueError("extra_views must be at least one view, got 0")
    return torch.cat([patches, extra.patches.to(patches.dtype)], dim=1)


def shift_tokens(
    x: Float[Tensor, "b s p c"], shift: Float[Tensor, "b s2 p2 c"], first: int
) -> Float[Tensor, "b s p c"]:
    """Add to the tokens from `first` on of the first views."""
    missing = (x.shape[1] - shift.shape[1], x.shape[2] - first - shift.shape[2])
    return x + nn.functional.pad(shift.to(x.dtype), (0, 0, first, missing[1], 0, missing[0]))
