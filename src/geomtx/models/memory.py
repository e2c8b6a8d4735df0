"""How much memory a forward pass of VGGT takes, and how it is cut into pieces to take less."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from geomtx.checks import check_count
from geomtx.models.config import VGGTConfig

__all__ = ["LEAN_PLAN", "PLANS", "MemoryPlan", "check_plan", "estimate_bytes", "weight_bytes"]


_MARGIN = 1.08  # for what is small beside the rest and not named


class MemoryPlan(NamedTuple):
    """How a forward pass without gradients is cut into pieces. The result is that of the whole but for rounding.

    Attributes:
        view_chunk: Views at a time in the backbone, in frame blocks and in the dense heads.
        token_chunk: Tokens at a time in global blocks; each still attends to all.
        tap_device: Where what the dense heads keep of the encoder's layers waits for them, "cpu" for the host's memory;
            None = the model's.
        output_device: Where depth and points are put together; None = the model's.
        part_device: Where the frame blocks' part of a layer that is kept waits for the global block's; None = the
            model's.
    """

    view_chunk: int
    token_chunk: int
    tap_device: str | None = None
    output_device: str | None = "cpu"
    part_device: str | None = None


PLANS = (
    MemoryPlan(8, 32768),
    MemoryPlan(4, 8192),
    MemoryPlan(4, 8192, tap_device="cpu"),
    MemoryPlan(1, 4096, tap_device="cpu", part_device="cpu"),
)
"""From those that take the most to those that take the least."""
LEAN_PLAN = PLANS[-1]


def estimate_bytes(
    config: VGGTConfig,
    plan: MemoryPlan | None,
    num_views: int,
    image_hw: tuple[int, int],
    *,
    heads: Sequence[str] = ("camera", "depth", "points"),
    element_size: int = 2,
    view_chunk: int = 4,
    num_processes: int = 1,
    device: str | None = None,
) -> int:
    """Bytes beyond the weights at the peak of a forward pass of one scene on the model's device, tracks left out.

    A head that was added counts as one of points.

    Counted on fake tensors, peaks are between half of that and all (`tests/models/test_memory.py`).

    Args:
        config: Of the model.
        plan: None = all at once, with `view_chunk` views at a time in the dense heads.
        num_views: S; of one process where there are several.
        image_hw: Of the images.
        heads: That run.
        element_size: Bytes of a number of the model's precision.
        view_chunk: Where there is no plan.
        num_processes: That share the scene, see `geomtx.predict_parallel`; not counted, but added up from what they
            exchange.
        device: Type of the model's device: what waits there takes its memory. None = one that the plan doesn't name.
    """
    rows, columns = image_hw[0] // config.patch_size, image_hw[1] // config.patch_size
    of_view = rows * columns + 1 + config.num_registers
    tokens = num_views * of_view
    row = config.dim * element_size
    dense = [head for head in heads if head != "camera"]
    pixels = math.prod(image_hw)
    # Merged maps of every view, of which some are alive at once, and the positions' signals in float32, once.
    view_chunk = min(view_chunk if plan is None else plan.view_chunk, num_views)
    decoding = int(pixels * config.dpt_features * (1.1 * element_size * view_chunk + 4)) * bool(dense)
    # Maps in float32, value and confidence; of heads that were added, as many as of points.
    numbers = sum({"depth": 2, "tracks": 0}.get(head, 4) for head in dense)
    outputs = num_views * pixels * 4 * numbers
    if plan is None:
        # Two outputs of blocks a tap; queries, keys, values, and their rotation in float32; or the MLP's inner layer.
        layers = tokens * row * 2 * (len(config.taps) if dense else 1)
        # Of several processes: what is sent and received; or keys and values of all, where heads can't be shared.
        exchanged = 0 if num_processes == 1 else max(6, 2 * num_processes + 3)
        work = tokens * (row * (10 + exchanged) + config.dim * 16)
        return int(_MARGIN * (layers + max(work, decoding + outputs)))
    kept = [
        0 if plan.tap_device not in (None, device) else element_size * num_views * rows * columns * len(dense) * count
        for count in config.dpt_channels
    ]
    work = max(min(plan.token_chunk, tokens), view_chunk * of_view)
    work *= row * 7 + config.dim * 18  # queries and keys, and their rotation in float32; or the MLP's inner layer
    # Keys and values; of several processes those of all besides, and what travels.
    held = (2 if num_processes == 1 else 2 * num_processes + 3) * tokens * row
    # The tokens, the frame block's beside them, what is held, what is kept of three taps; or of all, without those.
    beside = 0 if plan.part_device not in (None, device) else tokens * row
    encoding = tokens * row + beside + max(held + sum(kept[:-1]) + work, sum(kept))
    fetched = sum(config.dpt_channels) * element_size * rows * columns
    heads_peak = sum(kept) + decoding + view_chunk * fetched * bool(dense)
    return int(_MARGIN * max(encoding, heads_peak + (outputs if plan.output_device in (None, device) else 0)))


def check_plan(plan: MemoryPlan) -> None:
    """Require chunks of at least one, and devices.

    Raises:
        ValueError: Otherwise.
    """
    if not isinstance(plan, MemoryPlan):
        raise ValueError(f"memory_plan must be a MemoryPlan, got {plan!r}")
    check_count("view_chunk of memory_plan", plan.view_chunk)
    check_count("token_chunk of memory_plan", plan.token_chunk)
    for name in ("tap_device", "output_device", "part_device"):
        device = getattr(plan, name)
        try:
            torch.device("cpu" if device is None else device)
        except (RuntimeError, TypeError):
            raise ValueError(f"{name} of memory_plan must be a device, got {device!r}") from None


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters; of quantised ones those that they are stored in, not those that they stand for."""
    return sum(_stored_bytes(parameter) for parameter in model.parameters())


def _stored_bytes(tensor: Tensor) -> int:
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.numel() * tensor.element_size()
    names, _ = tensor.__tensor_flatten__()
    return sum(_stored_bytes(getattr(tensor, name)) for name in names)
