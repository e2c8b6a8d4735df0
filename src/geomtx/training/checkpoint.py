"""Checkpoints of a run, from which it continues exactly as if it had never stopped, and the folder that holds its
files.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import itertools
import logging
import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_model
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

from geomtx.checkpoint.files import CONFIG, INDEX, WEIGHTS
from geomtx.files import check_writable, list_inputs, staged_folder, user_path
from geomtx.training.config import LogSection, TrainingConfig
from geomtx.training.config_file import CONFIG_FILE, save_config
from geomtx.training.log import LOG_FILE, TrainingLog
from geomtx.training.tasks.task import Task

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = [
    "RunFolder",
    "capture_rng",
    "check_finite",
    "copy_to_meta",
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
    """Return weights and moments by parameter names, whole and on the CPU, of a model that may be wrapped or sharded.

    All processes have to take part; only the first gets the values.
    """
    weights, moments = get_state_dict(model, optimiser, options=_FULL)
    return {"model": weights, "optimiser": moments}


def load_into(model: nn.Module, optimiser: Optimizer, state: Mapping[str, Any]) -> None:
    """Restore what `training_state` returned; learning rate and weight decay of the groups stay what they are.

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
    """Return a tensor, which may be sharded, whole and on the CPU; all processes have to take part."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu()


def copy_full_(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded."""
    if isinstance(target, DTensor):
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    target.copy_(value)


def check_finite(weights: Mapping[str, Tensor], gather: Callable[[Any], list[Any]]) -> None:
    """Require finite numbers, in all processes at once.

    Args:
        weights: Name → tensor, which may be sharded.
        gather: Function from a process's value to the list of all processes' values.

    Raises:
        ValueError: Naming a tensor with NaN or infinity.
    """
    local = {name: t.to_local() if isinstance(t, DTensor) else t for name, t in weights.items()}
    bad = next((name for name, tensor in local.items() if not tensor.isfinite().all()), None)
    bad = next((name for name in gather(bad) if name is not None), None)
    if bad is not None:
        raise ValueError(f"weights must be finite, got NaN or infinity in {bad}; they are not written, older ones stay")


def write_state(state: Mapping[str, Any], path: Path) -> None:
    """Write a file completely or not at all, also if the machine loses power meanwhile."""
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
    """Return the states of all random number generators of this process that a step may draw from."""
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
    """Restore the states that `capture_rng` returned."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "device" in state and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state["device"], device)


@contextmanager
def kept_rng(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch with `seed` within the block, and restore all generators after it."""
    state = capture_rng(device)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        restore_rng(state, device)


logger = logging.getLogger("geomtx")

_WEIGHT_FILES = (WEIGHTS, CONFIG, INDEX)
_FILES = (CONFIG_FILE, LOG_FILE, *(f"weights/{name}" for name in _WEIGHT_FILES))
_KEPT = f"checkpoint-{7 * '[0-9]'}.pt"


class RunFolder:
    """The folder with a run's configuration, log, checkpoints and weights.

    Args:
        path: Path of the folder, which is made when the run starts.
        config: Configuration of the run.
    """

    def __init__(self, path: Path, config: TrainingConfig) -> None:
        self.path = user_path(path)
        self.config = config
        self._stale: list[Path] = []
        self._overwrite = False
        self.checkpoint = self.path / "checkpoint.pt"
        self.weights = self.path / "weights"

    def open(self, *, resume: bool, overwrite: bool = False) -> dict[str, Any] | None:
        """Return the state to resume from, or None for a new run.

        Args:
            resume: Whether to go on with the run in the folder.
            overwrite: Whether files that a run writes may be replaced if geomtx did not write them, and a new run begin
                where there is one; `start` removes them then.

        Raises:
            FileNotFoundError: If there is none to go on from.
            ValueError: If there is one and it isn't asked for, or the folder is a file.
            FileExistsError: If a file that the run would replace is not geomtx's, or is read for the run.
        """
        if os.path.lexists(self.path) and not self.path.is_dir():
            found = "a link to nothing" if self.path.is_symlink() and not self.path.exists() else "a file"
            raise ValueError(f"output must be a folder, got '{self.path}', which is {found}")
        self._overwrite = overwrite
        if resume:
            state = read_state(self.checkpoint)
            check_writable(self.path, self._taken(CONFIG_FILE, LOG_FILE), overwrite=overwrite)
            return state
        kept = sorted(path.name for path in self.path.glob(_KEPT))
        if not overwrite and (self.checkpoint.exists() or kept):
            raise ValueError(
                f"output folder must have no run in it, got '{self.path}'; --resume goes on with it, "
                "--overwrite begins a new one in its place"
            )
        # All that `start` removes, so that nothing that is read goes.
        names = (self.checkpoint.name, *kept, *_FILES)
        inputs = list_inputs(self.config.model.weights)
        check_writable(self.path, self._taken(*names), overwrite=overwrite, inputs=inputs)
        self._stale = [self.path / name for name in names] if overwrite else []
        return None

    def check_weights(self, model: nn.Module) -> None:
        """Require, before any work is done, that the weights can be written.

        A model whose own `save_pretrained` has no `overwrite` decides by itself what it replaces.

        Raises:
            FileExistsError: If a file in their place is not geomtx's, and the run was not opened with `overwrite`.
        """
        if not hasattr(model, "save_pretrained") or _has_overwrite(model.save_pretrained):
            check_writable(self.weights, _WEIGHT_FILES, overwrite=self._overwrite)

    def _taken(self, *names: str) -> list[str]:
        """Return the names without that of an empty log: a run was stopped before its first line, which is added to."""
        log = self.path / LOG_FILE
        return [name for name in names if name != LOG_FILE or not (log.is_file() and log.stat().st_size == 0)]

    def start(self, accelerator: Accelerator) -> None:
        """Make the folder and write the configuration of the run."""
        if accelerator.is_main_process:
            self.path.mkdir(parents=True, exist_ok=True)
            for path in self._stale:
                path.unlink(missing_ok=True)
            save_config(self.config, self.path / CONFIG_FILE)
        accelerator.wait_for_everyone()

    def build_model(self, state: dict[str, Any], task: Task) -> nn.Module:
        """Return the checkpoint's model, with random weights.

        Weights that the run began with are not read again: the checkpoint has what became of them.

        Raises:
            ValueError: If the configuration asks for another model, naming the numbers that differ.
        """
        section = self.config.model
        kind = state["config"]["model"].get("kind", "vggt")
        if kind != section.kind:
            raise ValueError(f"checkpoint must be of a model of kind {section.kind}, got '{self.checkpoint}' of {kind}")
        model: Any = task.rebuild_model(state["model_config"])
        stored = model.config.to_dict()
        now = stored if section.weights is not None else self._wanted_numbers(task)
        # Of other kinds, those of the VGGT inside.
        if section.heads is not None and set(section.heads) != set(stored.get("vggt", stored)["heads"]):
            now = {**stored, "heads": list(section.heads)}
        keys = [key for key in now if stored.get(key) != now[key]]
        if keys:
            wanted, found = (", ".join(f"{key} {numbers.get(key)}" for key in keys) for numbers in (now, stored))
            raise ValueError(f"checkpoint must be of a model with {wanted}, got '{self.checkpoint}' with {found}")
        return model

    def _wanted_numbers(self, task: Task) -> dict[str, Any]:
        with torch.device("meta"):
            model: Any = task.build_model(self.config.model)
        return model.config.to_dict()

    def report_changes(self, state: dict[str, Any]) -> None:
        """Warn of values of the configuration that differ from the checkpoint's."""
        before, now = (dict(_flatten(values)) for values in (state["config"], self.config.to_dict()))
        # A key that is newer than the checkpoint had its default.
        before = {key: value for key, value in _flatten(TrainingConfig().to_dict()) if key in now} | before
        changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
        if changed:
            logger.warning("The run goes on with another configuration than it began with: %s.", ", ".join(changed))

    def open_log(self, start: int, total: int, progress: bool | None) -> TrainingLog:
        """Open the log, to continue after `start` steps."""
        section: LogSection = self.config.log
        return TrainingLog(self.path, section, start=start, total=total, progress=progress)

    def save(self, state: dict[str, Any], blueprint: nn.Module) -> None:
        """Write the checkpoint, then the weights, averaged ones if there are any.

        Args:
            state: State of the run, as `open` returns it.
            blueprint: The run's model without values, see `copy_to_meta`. Its own `save_pretrained` writes the weights;
                without one, they are its state in `model.safetensors`.
        """
        config: Any = getattr(blueprint, "config", None)
        numbers = {} if config is None else config.to_dict()
        state = {**state, "config": self.config.to_dict(), "model_config": numbers}
        keep_every = self.config.checkpoint.keep_every
        if keep_every and state["step"] % keep_every == 0:
            write_state(state, self.path / f"checkpoint-{state['step']:07d}.pt")
        write_state(state, self.checkpoint)
        averages = {} if state["average"] is None else state["average"]["averages"]
        # A copy: the blueprint itself is not to hold on to the values.
        model: Any = copy.deepcopy(blueprint)
        model.load_state_dict({**state["model"], **averages}, assign=True)
        if hasattr(model, "save_pretrained"):
            options = {"overwrite": self._overwrite} if _has_overwrite(model.save_pretrained) else {}
            model.save_pretrained(self.weights, **options)
        else:
            with staged_folder(self.weights, (WEIGHTS,), overwrite=self._overwrite) as stage:
                save_model(model, str(stage / WEIGHTS), metadata={"geomtx": "weights"})


def copy_to_meta(model: nn.Module) -> nn.Module:
    """Return a deep copy of a model on the meta device: its parameters and buffers have no values and no memory."""
    memo: dict[int, Any] = {}
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        empty = tensor.detach().to("meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty
    return copy.deepcopy(model, memo)


def _has_overwrite(save: Any) -> bool:
    return "overwrite" in inspect.signature(save).parameters


def _flatten(values: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted keys and their values as text."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", repr(value)
