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
    """How many processes torchrun has started; 1 without it, whatever a cluster's jobs have of its variables."""
    if any(name not in os.environ for name in _VARIABLES):
        return 1
    try:
        return int(os.environ["WORLD_SIZE"])
    except ValueError:
        raise ValueError(f"WORLD_SIZE must be a whole number, got {os.environ['WORLD_SIZE']!r}") from None


def is_first_process() -> bool:
    """Whether this is the process that writes; there is always one."""
    return num_processes() == 1 or os.environ["RANK"] == "0"


def device_of_process(device: torch.device) -> torch.device:
    """Of several processes each gets a GPU of its own; a single one keeps `device`.

    Raises:
        ValueError: For devices that several processes can't work on, one GPU for all of them, more than GPUs.
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
    """Have the default process group, if there are several processes, while the block runs."""
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
