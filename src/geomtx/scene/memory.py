"""How a reconstruction is cut into pieces to fit into the memory that there is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from geomtx.models.config import VGGTConfig
from geomtx.models.memory import LEAN_PLAN, PLANS, MemoryPlan, estimate_bytes, weight_bytes

__all__ = ["Memory", "choose_plan", "free_bytes"]

Memory = Literal["auto", "low"] | int

_MEMINFO = Path("/proc/meminfo")  # Linux
_GROUP = Path("/sys/fs/cgroup")  # of a container, version 2
_SHARE = 0.9  # of what is free: an allocator's pieces don't fill it


def choose_plan(
    model: nn.Module,
    num_views: int,
    image_hw: tuple[int, int],
    heads: Sequence[str],
    memory: Memory,
    view_chunk: int,
    num_processes: int = 1,
    held: int = 0,
) -> MemoryPlan | None:
    """The first plan, from all at once to the leanest, that fits.

    Args:
        model: Its own weights are where they are already.
        num_views: S; of this process where there are several.
        image_hw: Of the images.
        heads: That run.
        memory: "auto" = what is free now on the model's device; "low" = the leanest; or bytes of the device, weights
            included.
        view_chunk: Of the dense heads where no plan is needed.
        num_processes: That share the scene.
        held: Bytes that the pass holds besides, whatever the plan.

    Returns:
        None = all at once; also for "auto" and a model other than VGGT, whose memory isn't known.

    Raises:
        ValueError: For another `memory`, for bytes that the leanest plan doesn't fit into, and for a model other than
            VGGT unless "auto".
    """
    if memory not in ("auto", "low") and (not isinstance(memory, int) or isinstance(memory, bool) or memory < 1):
        raise ValueError(f"memory must be 'auto', 'low' or a whole number of bytes, got {memory!r}")
    config = getattr(model, "config", None)
    if not isinstance(config, VGGTConfig):
        if memory != "auto":
            raise ValueError(f"memory must be 'auto' for a model other than VGGT, got {memory!r}")
        return None
    if memory == "low":
        return LEAN_PLAN
    parameter = next(model.parameters())
    if isinstance(memory, int):
        budget: float = memory - weight_bytes(model)
    else:
        free = free_bytes(parameter.device)
        budget = float("inf") if free is None else _SHARE * free
    budget -= held
    sizes = {
        plan: estimate_bytes(
            config,
            plan,
            num_views,
            image_hw,
            heads=heads,
            element_size=parameter.element_size(),
            view_chunk=view_chunk,
            num_processes=num_processes,
            device=parameter.device.type,
        )
        for plan in (None, *PLANS)
    }
    fitting = [plan for plan, size in sizes.items() if size <= budget]
    if fitting:
        return fitting[0]
    if isinstance(memory, int):
        least = (min(sizes.values()) + memory - budget) / 2**20
        raise ValueError(f"memory must be at least {least:,.1f} MiB for this scene, got {memory / 2**20:,.1f}")
    return LEAN_PLAN


def free_bytes(device: torch.device) -> int | None:
    """Memory that can be had on a device now; None = not known."""
    if device.type == "cpu":
        # Not what nobody uses: files that were read fill that up, and make room when it is needed.
        lines = _MEMINFO.read_text(encoding="ascii").splitlines() if _MEMINFO.is_file() else []
        available = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
        free = [] if available is None else [1024 * int(available)]
        return min([*free, *_free_in_group()], default=None)
    module = torch.get_device_module(device)
    if not hasattr(module, "mem_get_info"):
        return None
    free, _ = module.mem_get_info(device)
    # What the allocator holds but nobody uses.
    return free + module.memory_reserved(device) - module.memory_allocated(device)


def _free_in_group() -> list[int]:
    """What a container may still take, if it is limited."""
    files = [_GROUP / name for name in ("memory.max", "memory.current")]
    if not all(path.is_file() for path in files):
        return []
    most, taken = (path.read_text(encoding="ascii").strip() for path in files)
    return [] if most == "max" else [max(0, int(most) - int(taken))]
