"""Whether a scene fits into memory, asked before the work begins."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch

from geomtx.inference.plan import LEAN_PLAN, PassSize, estimate_bytes, free_bytes

__all__ = ["check_scene_memory", "warn_of_size"]

logger = logging.getLogger(__name__)

_STORED_BYTES = 4  # a pixel: 8-bit colours and mask of the scene, beside the views
_MAP_NUMBERS = {"camera": 0, "depth": 2, "tracks": 0}  # a pixel, in float32; points and added heads have 4


def check_scene_memory(
    config: Any,
    image_hw: tuple[int, int],
    heads: Sequence[str],
    device: torch.device,
    *,
    num_views: int,
    at_once: int,
    element_size: int,
) -> None:
    """Refuse a scene that can't fit into what is free, however its pass is divided.

    What is counted is a lower bound: the views themselves are there already, and the estimate for the pass may be twice
    of what it takes.

    Args:
        config: Configuration of the model, see `estimate_bytes`; of others only the results are counted.
        image_hw: Height and width of the images in pixels.
        heads: Names of the heads that run.
        device: Device that the model runs on.
        num_views: Number of views of the scene.
        at_once: Number of views of a pass on this device.
        element_size: Bytes of a number in the model's precision.

    Raises:
        ValueError: With what is needed and what is free.
    """
    pixels = math.prod(image_hw)
    numbers = sum(_MAP_NUMBERS.get(head, 4) for head in heads)
    host = num_views * pixels * (_STORED_BYTES + 4 * numbers)
    on_device = 0
    if hasattr(config, "dpt_channels"):
        size = PassSize(at_once, image_hw, tuple(heads), element_size=element_size, device=device.type)
        on_device = estimate_bytes(config, LEAN_PLAN, size) // 2
    needed = {torch.device("cpu"): host}
    # On the CPU both are in the same memory, and the estimate has the maps of the pass in it.
    needed[device] = max(host, on_device) if device.type == "cpu" else on_device
    for place, size_needed in needed.items():
        free = free_bytes(place)
        if free is not None and size_needed > free:
            raise ValueError(
                f"size of the images must be small enough for memory, got {image_hw[1]}x{image_hw[0]}: "
                f"{num_views} views need at least {size_needed / 2**30:.3g} GiB on {place}, and {free / 2**30:.3g} GiB "
                "are free; use a smaller size (--size), fewer photos or windows (--window)"
            )


def warn_of_size(config: Any, image_hw: tuple[int, int]) -> None:
    """Log a warning for images more than twice as large as those that a model is made for."""
    made_for, side = getattr(config, "image_size", None), max(image_hw)
    if made_for and side > 2 * made_for:
        logger.warning(
            "images of %d pixels are %.1f times as large as those that the model is made for (%d pixels): it takes "
            "long, and the results may be worse than with smaller images (size=, --size)",
            side,
            side / made_for,
            made_for,
        )
