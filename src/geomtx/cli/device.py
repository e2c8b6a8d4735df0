"""Devices by their names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geomtx.checks import close_matches

if TYPE_CHECKING:
    import torch

__all__ = ["check_device_name", "choose_device"]

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
