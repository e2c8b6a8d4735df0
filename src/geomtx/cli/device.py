"""Devices by their names."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["choose_device"]


def choose_device(name: str | None) -> torch.device:
    """The named device; None = the accelerator if there is one, else the CPU.

    Raises:
        ValueError: If there is no such device.
    """
    import torch

    if name is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device must be a device of this machine, got '{name}': {_first_line(error)}") from error
    if device.type == "meta":
        raise ValueError("--device must be a device that computes, got 'meta'")
    return device


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
