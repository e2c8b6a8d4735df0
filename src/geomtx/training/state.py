"""Checkpoints of a run: all that it takes to go on as if it had never stopped."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

__all__ = [
    "capture_rng",
    "check_finite",
    "full_tensor",
    "kept_rng",
    "load_into",
    "read_state",
    "restore_rng",
    "training_state",
    "write_state",
]

_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


def training_state(model: nn.Module, optimiser: Optimizer) -> dict[str, Any]:
    """Weights and moments by parameter names, whole and on the CPU, of a model that may be wrapped or sharded.

    All processes have to take part; only the first gets the values.
    """
    weights, moments = get_state_dict(model, optimiser, options=_FULL)
    return {"model": weights, "optimiser": moments}


def load_into(model: nn.Module, optimiser: Optimizer, state: Mapping[str, Any]) -> None:
    """The inverse of `training_state`; learning rate, decay and the like of the groups stay what they are.

    Parameters that never had a gradient have no moments; those that are trained only now begin without.

    Raises:
        ValueError: If the weights are not those of the model by name and shape. The model is unchanged.
    """
    _check_same_model(model, state["model"])
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimiser.param_groups]
    # Copies: torch puts its shards in the place of what it is given.
    weights, moments = tree_map(lambda leaf: leaf, (state["model"], state["optimiser"]))
    set_model_state_dict(model, weights, options=_FULL)
    set_optimizer_state_dict(model, optimiser, moments, options=dataclasses.replace(_FULL, strict=False))
    # torch makes up moments for those that have none.
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    for parameter in list(optimiser.state):
        if names[parameter] not in state["optimiser"]["state"]:
            del optimiser.state[parameter]
    # What the configuration says now counts, not what the checkpoint's said.
    for group, options in zip(optimiser.param_groups, groups, strict=True):
        group.update(options)


def _check_same_model(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    stored, own = ({name: tuple(t.shape) for name, t in w.items()} for w in (weights, model.state_dict()))
    for name in {**own, **stored}:
        if stored.get(name) != own.get(name):
            found, wanted = (shapes.get(name, "nothing") for shapes in (stored, own))
            raise ValueError(f"checkpoint must be of this model, with its adapters, got {found} for {wanted} in {name}")


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor as a whole, on the CPU, where it may be sharded; all processes have to take part."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu()


def copy_full_(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded."""
    if isinstance(target, DTensor):
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    target.copy_(value)


def check_finite(weights: Mapping[str, Tensor], gather: Callable[[Any], list[Any]]) -> None:
    """Require finite numbers, in all processes at once.

    Args:
        weights: By name; they may be sharded.
        gather: Gives every process's value to all.

    Raises:
        ValueError: Naming a tensor with NaN or infinity.
    """
    local = {name: t.to_local() if isinstance(t, DTensor) else t for name, t in weights.items()}
    bad = next((name for name, tensor in local.items() if not tensor.isfinite().all()), None)
    bad = next((name for name in gather(bad) if name is not None), None)
    if bad is not None:
        raise ValueError(f"weights must be finite, got NaN or infinity in {bad}; they are not written, older ones stay")


def write_state(state: Mapping[str, Any], path: Path) -> None:
    """Write a file that is there completely or not at all, also if the machine loses power meanwhile."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_state(path: Path) -> dict[str, Any]:
    """Read what `write_state` wrote, tensors on the CPU, without running code.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is broken or something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint must be a file, got '{path}', which doesn't exist")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # broken pickles fail in many ways
        raise ValueError(f"checkpoint must be a file of a training run, got '{path}', which is broken") from error
    if not isinstance(state, dict) or not {"model", "optimiser", "step", "model_config"} <= state.keys():
        raise ValueError(f"checkpoint must be a file of a training run, got '{path}', which holds something else")
    return state


def capture_rng(device: torch.device) -> dict[str, Any]:
    """States of all random number generators that a step may draw from, of this process."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    assert isinstance(keys, np.ndarray)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
    }
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state(device)
    return state


def restore_rng(state: Mapping[str, Any], device: torch.device) -> None:
    """The inverse of `capture_rng`."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "device" in state and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state["device"], device)


@contextmanager
def kept_rng(device: torch.device, seed: int) -> Iterator[None]:
    """Within the block, torch draws from `seed`; after it, everything goes on as if nothing had been drawn."""
    state = capture_rng(device)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        restore_rng(state, device)
