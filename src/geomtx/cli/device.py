"""The device that a command runs on: by its name, or as one of several processes that torchrun has started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from geomtx.checks import close_matches

if TYPE_CHECKING:
    import torch

__all__ = [
    "check_device_name",
    "choose_device",
    "device_of_process",
    "is_first_process",
    "joined_processes",
    "num_processes",
]

_KINDS = (
    *("cpu", "cuda", "mps", "xpu", "hpu", "npu", "mtia", "xla", "maia", "mlu", "musa", "ipu", "hip", "vulkan"),
    *("meta", "privateuseone"),
)
_OTHER_NAMES = {"gpu": "cuda", "nvidia": "cuda", "amd": "cuda", "rocm": "cuda", "metal": "mps", "apple": "mps"}


def check_device_name(name: str | None) -> None:
    """Require a name that PyTorch gives to a kind of device that computes; needs no torch, and so no time.

    Raises:
        ValueError: Otherwise; whether this machine has such a device is not asked.
    """
    if name is None:
        return
    kind, colon, index = name.partition(":")
    if kind not in _KINDS:
        hint = f"; did you mean '{_OTHER_NAMES[kind]}'?" if kind in _OTHER_NAMES else close_matches(kind, _KINDS)
        raise ValueError(f"--device must be a device of this machine, got '{name}': PyTorch has no such device{hint}")
    if colon and not index.isdecimal():
        raise ValueError(f"--device must be a device of this machine, got '{name}': after the colon stands a number")
    if kind == "meta":
        raise ValueError(f"--device must be a device that computes, got '{name}'")


def choose_device(name: str | None) -> torch.device:
    """Return the named device; without a name the accelerator if there is one, else the CPU.

    Raises:
        ValueError: If this machine has no such device.
    """
    import torch

    check_device_name(name)
    if name is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device must be a device of this machine, got '{name}': {_first_line(error)}") from error
    return device


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_BACKENDS = {"cpu": "gloo", "cuda": "nccl"}


def num_processes() -> int:
    """Return how many processes torchrun has started; 1 unless all of its variables are set (clusters set some)."""
    if any(name not in os.environ for name in _VARIABLES):
        return 1
    try:
        return int(os.environ["WORLD_SIZE"])
    except ValueError:
        raise ValueError(f"WORLD_SIZE must be a whole number, got {os.environ['WORLD_SIZE']!r}") from None


def is_first_process() -> bool:
    """Return whether this is the process that writes the results; there is always one."""
    return num_processes() == 1 or os.environ["RANK"] == "0"


def device_of_process(device: torch.device) -> torch.device:
    """Return the device of this process: a GPU of its own if there are several processes, else `device`.

    Raises:
        ValueError: For several processes on a device that can't be shared, on one GPU, or on fewer GPUs than processes.
    """
    import torch

    if num_processes() == 1 or device.type == "cpu":
        return device
    if device.type not in _BACKENDS or device.index is not None:
        raise ValueError(f"--device must be cpu or cuda, without a number, for several processes, got '{device}'")
    index = int(os.environ["LOCAL_RANK"])
    if index >= torch.cuda.device_count():
        raise ValueError(
            f"processes of a machine must be at most as many as its GPUs, {torch.cuda.device_count()}, got {index + 1}"
        )
    torch.cuda.set_device(index)
    return torch.device(device.type, index)


@contextmanager
def joined_processes(device: torch.device) -> Iterator[None]:
    """Keep torch.distributed's default process group while the block runs, if there are several processes."""
    import torch.distributed as dist

    if num_processes() == 1:
        yield
        return
    dist.init_process_group(_BACKENDS[device.type], device_id=None if device.type == "cpu" else device)
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()
