"""How much memory a forward pass takes, and how it is divided to take less."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from geomtx.checks import check_count
from geomtx.encoder.alternating import AlternatingEncoder
from geomtx.heads.head import Head, HeadFootprint
from geomtx.layers.precision import Float32Conv2d, Float32Linear

__all__ = [
    "LEAN_PLAN",
    "PLANS",
    "WHOLE",
    "Memory",
    "MemoryPlan",
    "PassSize",
    "autocast_bytes",
    "check_plan",
    "choose_plan",
    "estimate_bytes",
    "free_bytes",
    "is_known",
    "weight_bytes",
]

_MARGIN = 1.08  # for small tensors that the sum leaves out

Memory = Literal["auto", "low"] | int

_MEMINFO = Path("/proc/meminfo")  # Linux
_GROUP = Path("/sys/fs/cgroup")  # of a container, version 2
_SHARE = 0.9  # of what is free: fragments of an allocator don't fill it


class MemoryPlan(NamedTuple):
    """How a forward pass without gradients is divided to need less memory. The result is the same up to rounding.

    Attributes:
        view_chunk: Number of views at a time in the dense heads and, with a `token_chunk`, in the backbone and in frame
            blocks; None for all.
        token_chunk: Number of tokens at a time in global blocks, each still attending to all keys, with outputs written
            over inputs; None for the encoder at once.
        tap_device: Device where projections of tapped layers wait for the dense heads, "cpu" for the host's memory;
            None for the model's.
        output_device: Device where depth and points are put together; None for the model's.
        part_device: Device where a tapped layer's frame-block output waits for the global block's; None for the
            model's.
    """

    view_chunk: int | None
    token_chunk: int | None = None
    tap_device: str | None = None
    output_device: str | None = "cpu"
    part_device: str | None = None


WHOLE = MemoryPlan(None, output_device=None)
"""Everything at once."""
PLANS = (
    MemoryPlan(8, 32768),
    MemoryPlan(4, 8192),
    MemoryPlan(4, 8192, tap_device="cpu"),
    MemoryPlan(1, 4096, tap_device="cpu", part_device="cpu"),
)
"""Plans from the most memory to the least."""
LEAN_PLAN = PLANS[-1]


class PassSize(NamedTuple):
    """What the memory of a forward pass depends on, beside the model and the plan.

    Attributes:
        num_views: Number of views of this process.
        image_hw: Height and width of the images in pixels.
        heads: Names of the heads that run.
        element_size: Bytes of a number in the model's precision.
        view_chunk: Number of views at a time in the dense heads where there is no plan.
        num_processes: Number of processes that share the scene.
        device: Type of the model's device: what a plan keeps there counts. None for a device that the plan doesn't
            name.
    """

    num_views: int
    image_hw: tuple[int, int]
    heads: tuple[str, ...] = ("camera", "depth", "points")
    element_size: int = 2
    view_chunk: int = 4
    num_processes: int = 1
    device: str | None = None


def is_known(model: Any) -> bool:
    """Return whether a model's memory can be estimated: its own heads are `Head`, on an `AlternatingEncoder`."""
    if not isinstance(getattr(model, "encoder", None), AlternatingEncoder) or not hasattr(model, "own_heads"):
        return False
    return all(isinstance(head, Head) for head in model.own_heads().values())


def estimate_bytes(model: Any, plan: MemoryPlan | None, size: PassSize) -> int:
    """Estimate the bytes beyond the weights at the peak of a forward pass of one scene, on the model's device.

    It adds up what the model's own parts hold: the encoder's tokens, blocks and tapped layers, and what the heads say
    of themselves, see `geomtx.heads.head.HeadFootprint`. Tracks are left out. Peaks that were counted on tensors
    without values lie between half of the estimate and the whole of it. Copies of weights under autocast come on top,
    see `autocast_bytes`; so do recorded passes (`compile="graphs"`), each of which holds the memory of a whole pass.

    Args:
        model: The model, on any device, also on "meta".
        plan: Division of the pass; None for all at once, with `size.view_chunk` views at a time in the dense heads.
        size: Sizes of the pass.
    """
    encoder, patch_size = model.encoder, model.config.patch_size
    heads = {id(head): head for name, head in model.head_modules().items() if name in size.heads}
    footprints = (head.footprint(patch_size) for head in heads.values() if isinstance(head, Head))
    found = [each for each in footprints if each is not None]
    num_patches = size.image_hw[0] // patch_size * (size.image_hw[1] // patch_size)
    # Of heads that nothing is known of, and of those that read whole layers and say no more.
    whole = {
        tap
        for head in heads.values()
        if not isinstance(head, Head) or (head.reads == "layers" and head.footprint(patch_size) is None)
        for tap in (head.layers_read(encoder.taps) if isinstance(head, Head) else encoder.taps)
    }
    pass_ = _Pass(
        encoder,
        found,
        num_patches,
        of_view=num_patches + encoder.special.num_tokens,
        row=encoder.backbone.dim * size.element_size,
        taps=model.taps_of(size.heads),
        whole=sum(len(encoder.order[tap]) for tap in whole),
    )
    return int(_MARGIN * (_whole_bytes(pass_, size) if plan is None else _divided_bytes(pass_, plan, size)))


class _Pass(NamedTuple):
    """What a pass consists of.

    Attributes:
        encoder: The encoder.
        heads: Memory of the dense heads that run.
        num_patches: Number of patches of a view.
        of_view: Number of tokens of a view.
        row: Bytes of a token in the model's precision.
        taps: Layers that the heads read.
        whole: Number of outputs of blocks that wait as they are for heads that read whole layers.
    """

    encoder: Any
    heads: list[HeadFootprint]
    num_patches: int
    of_view: int
    row: int
    taps: tuple[int, ...]
    whole: int

    def decoding(self, num_views: int, size: PassSize) -> int:
        """Bytes at the peak of decoding some views."""
        numbers = [size.element_size * num_views * head.decoding + 4 * head.shared for head in self.heads]
        return int(math.prod(size.image_hw) * max(numbers, default=0))

    def results(self, size: PassSize) -> int:
        """Bytes of the maps of all views, in float32."""
        return int(4 * size.num_views * math.prod(size.image_hw) * sum(head.results for head in self.heads))

    @property
    def rotated(self) -> int:
        """Bytes of a token's queries, keys and their rotation in float32; 0 without rotary positions."""
        return 16 * self.encoder.backbone.dim if self.encoder.rotates else 0


def _whole_bytes(pass_: _Pass, size: PassSize) -> int:
    """Bytes of a pass all at once."""
    tokens, row = size.num_views * pass_.of_view, pass_.row
    # The blocks' outputs of every tapped layer; queries, keys, values and their rotation, or the MLP's hidden layer.
    layers = tokens * row * sum(len(pass_.encoder.order[tap]) for tap in pass_.taps)
    # Several processes: what is sent and received; or all keys and values, where heads can't be shared.
    exchanged = 0 if size.num_processes == 1 else max(6, 2 * size.num_processes + 3)
    work = tokens * (row * (10 + exchanged) + pass_.rotated)
    decoding = pass_.decoding(min(size.view_chunk, size.num_views), size)
    return layers + max(work, decoding + pass_.results(size))


def _divided_bytes(pass_: _Pass, plan: MemoryPlan, size: PassSize) -> int:
    """Bytes of a pass in parts."""
    encoder, row, device = pass_.encoder, pass_.row, size.device
    tokens = size.num_views * pass_.of_view
    view_chunk = min(plan.view_chunk or size.num_views, size.num_views)
    waits_here = plan.tap_device in (None, device)
    of_patch = size.element_size * pass_.num_patches
    # Projections of a view for all heads, but for those of the last layer, and with them.
    before = of_patch * sum(sum(head.projected[:-1]) for head in pass_.heads)
    whole = of_patch * sum(sum(head.projected) for head in pass_.heads)
    layers = tokens * row * pass_.whole * waits_here
    kept_before, kept = (size.num_views * each * waits_here + layers for each in (before, whole))
    across = bool(len(encoder.global_blocks))
    at_work = view_chunk * pass_.of_view
    if across:
        at_work = max(min(plan.token_chunk or tokens, tokens), at_work)
    work = at_work * (7 * row + (18 * pass_.rotated // 16 or 3 * row))
    # Keys and values; with several processes also those of all, and what is sent.
    held = (2 if size.num_processes == 1 else 2 * size.num_processes + 3) * tokens * row * across
    if across and encoder.rope_base is not None:
        held += tokens * 8 * encoder.head_dim  # the rotary table of all tokens, in float32
    # Tokens; the output of a frame block that waits for its global block; and the larger of two moments: a global block
    # at work, with its keys and values and three taps kept, or the end, with all taps kept.
    pairs = any(len(encoder.order[tap]) > 1 for tap in pass_.taps)
    beside = tokens * row * (pairs and plan.part_device in (None, device))
    encoding = tokens * row + beside + max(held + kept_before + work, kept)
    fetched = max((of_patch * sum(head.projected) for head in pass_.heads), default=0)
    heads_peak = kept + pass_.decoding(view_chunk, size) + view_chunk * fetched
    results = pass_.results(size) if plan.output_device in (None, device) else 0
    return max(encoding, heads_peak + results)


def check_plan(plan: MemoryPlan) -> None:
    """Require positive numbers of views and tokens, and names of devices.

    Raises:
        ValueError: Otherwise.
    """
    if not isinstance(plan, MemoryPlan):
        raise ValueError(f"plan must be a MemoryPlan, got {plan!r}")
    for name in ("view_chunk", "token_chunk"):
        if getattr(plan, name) is not None:
            check_count(f"{name} of plan", getattr(plan, name))
    if plan.token_chunk is not None and plan.view_chunk is None:
        raise ValueError("view_chunk of plan must be given with a token_chunk, got None")
    for name in ("tap_device", "output_device", "part_device"):
        device = getattr(plan, name)
        try:
            torch.device("cpu" if device is None else device)
        except (RuntimeError, TypeError):
            raise ValueError(f"{name} of plan must be a device, got {device!r}") from None


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters; quantised ones count as they are stored."""
    return sum(_stored_bytes(parameter) for parameter in model.parameters())


def autocast_bytes(model: nn.Module) -> int:
    """Return an upper bound on the bytes of the half-precision copies of float32 weights that autocast keeps.

    Frozen weights are copied as well, but each only while it is used.
    """
    return sum(
        2 * parameter.numel()
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
        if not isinstance(module, Float32Linear | Float32Conv2d)
        for parameter in module.parameters(recurse=False)
        if parameter.requires_grad and parameter.dtype == torch.float32
    )


def _stored_bytes(tensor: Tensor) -> int:
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.numel() * tensor.element_size()
    names, _ = tensor.__tensor_flatten__()
    return sum(_stored_bytes(getattr(tensor, name)) for name in names)


def choose_plan(model: nn.Module, size: PassSize, memory: Memory, *, held: int = 0) -> MemoryPlan | None:
    """Choose the first plan that fits, from all at once to the leanest.

    Args:
        model: The model, with its weights where they will be.
        size: Sizes of the pass; precision and device are read from the model.
        memory: "auto" for what is free now on the model's device; "low" for the leanest plan; or bytes of the device,
            weights included.
        held: Bytes that the pass holds besides, whatever the plan.

    Returns:
        The plan; None for all at once, also for "auto" and a model whose memory isn't known.

    Raises:
        ValueError: For another `memory`, for bytes that the leanest plan doesn't fit into, and, unless "auto", for a
            model whose memory isn't known.
    """
    if memory not in ("auto", "low") and (not isinstance(memory, int) or isinstance(memory, bool) or memory < 1):
        raise ValueError(f"memory must be 'auto', 'low' or a whole number of bytes, got {memory!r}")
    if memory == "low" and hasattr(model, "run_heads"):
        return LEAN_PLAN
    if not is_known(model):
        if memory != "auto":
            raise ValueError(f"memory must be 'auto' for a model whose memory isn't known, got {memory!r}")
        return None
    parameter = next(model.parameters())
    if isinstance(memory, int):
        budget: float = memory - weight_bytes(model)
    else:
        free = free_bytes(parameter.device)
        budget = float("inf") if free is None else _SHARE * free
    budget -= held
    size = size._replace(element_size=parameter.element_size(), device=parameter.device.type)
    sizes = {plan: estimate_bytes(model, plan, size) for plan in (None, *PLANS)}
    fitting = [plan for plan, bytes_needed in sizes.items() if bytes_needed <= budget]
    if fitting:
        return fitting[0]
    if isinstance(memory, int):
        least = (min(sizes.values()) + memory - budget) / 2**20
        raise ValueError(f"memory must be at least {least:,.1f} MiB for this scene, got {memory / 2**20:,.1f}")
    return LEAN_PLAN


def free_bytes(device: torch.device) -> int | None:
    """Return the bytes that can be allocated on a device now; None if that isn't known."""
    if device.type == "cpu":
        # MemAvailable, not MemFree: the cache of files makes room when memory is needed.
        lines = _MEMINFO.read_text(encoding="ascii").splitlines() if _MEMINFO.is_file() else []
        available = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
        free = [] if available is None else [1024 * int(available)]
        return min([*free, *_free_in_group()], default=None)
    module = torch.get_device_module(device)
    if not hasattr(module, "mem_get_info"):
        return None
    free, _ = module.mem_get_info(device)
    # Cached blocks of the allocator are free, too.
    return free + module.memory_reserved(device) - module.memory_allocated(device)


def _free_in_group() -> list[int]:
    """Return the bytes that a container may still allocate, if it is limited."""
    files = [_GROUP / name for name in ("memory.max", "memory.current")]
    if not all(path.is_file() for path in files):
        return []
    most, taken = (path.read_text(encoding="ascii").strip() for path in files)
    if most == "max":
        return []
    # Files that were read stay in memory until it is needed, and count as taken.
    statistics = _GROUP / "memory.stat"
    lines = statistics.read_text(encoding="ascii").splitlines() if statistics.is_file() else []
    cached = next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
    return [max(0, int(most) - int(taken) + cached)]
