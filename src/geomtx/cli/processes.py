"""A command as one of several processes, started by torchrun."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["device_of_process", "is_first_process", "joined_processes", "num_processes"]

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
