"""A VGGT smaller still than `VGGTConfig.tiny`: of everything that repeats there is as little as shows that it does."""

from __future__ import annotations

from typing import Any

import torch

from geomtx import VGGT, VGGTConfig


def lean_config(**changes: Any) -> VGGTConfig:
    """`VGGTConfig.tiny` with two layers and one block, or two iterations, of all else; `changes` replace values."""
    numbers: dict[str, Any] = {
        "depth": 2,
        "taps": (0, 0, 1, 1),
        "vit_depth": 1,
        "camera_depth": 1,
        "camera_iterations": 2,
        "track_depth": 1,
        "track_iterations": 2,
    }
    return VGGTConfig.tiny(**{**numbers, **changes})


def build_lean(**changes: Any) -> VGGT:
    """A model of `lean_config` whose weights are not all near their initial value, in evaluation mode."""
    return visible(VGGT(lean_config(**changes))).eval()


def visible(model: VGGT) -> VGGT:
    """Larger LayerScales, which at their start hide most of what the blocks do."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.uniform_(0.2, 0.6)
    return model
