"""Training in one process or several, on accelerate."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = [
    "build_accelerator",
    "gather_objects",
    "import_extra",
]


def import_extra(module: str) -> Any:
    """Import a module of the extra.

    Raises:
        ImportError: In one line that says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or module).partition(".")[0]
        raise ImportError(f"training needs {missing}, which is not installed: pip install geomtx[train]") from error


def build_accelerator(*, cpu: bool = False) -> Accelerator:
    """For this process; precision and accumulation are the configuration's, whatever the launcher's own says.

    Args:
        cpu: Train on the CPU, whatever else there is.

    Raises:
        ImportError: Without the packages of `pip install geomtx[train]`.
    """
    accelerate = import_extra("accelerate")
    ddp = accelerate.DistributedDataParallelKwargs(find_unused_parameters=False, gradient_as_bucket_view=True)
    once = accelerate.utils.GradientAccumulationPlugin(num_steps=1)
    # Without being told that it is on CPUs, accelerate takes each process of a launcher for a run of its own.
    cpu = cpu or not torch.accelerator.is_available()
    return accelerate.Accelerator(
        cpu=cpu, mixed_precision="no", gradient_accumulation_plugin=once, kwargs_handlers=[ddp]
    )


def gather_objects(accelerator: Accelerator, value: Any) -> list[Any]:
    """Every process's value, in all of them."""
    if accelerator.num_processes == 1:
        return [value]
    return import_extra("accelerate.utils").gather_object([value])
