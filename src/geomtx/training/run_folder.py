"""The files of a run."""

from __future__ import annotations

import copy
import itertools
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_model
from torch import nn

from geomtx.checkpoint import CONFIG, INDEX, WEIGHTS
from geomtx.files import check_writable, list_inputs, staged_folder, user_path
from geomtx.training.config import LogSection, TrainingConfig
from geomtx.training.config_file import CONFIG_FILE, save_config
from geomtx.training.log import LOG_FILE, TrainingLog
from geomtx.training.state import read_state, write_state
from geomtx.training.task import Task

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["RunFolder", "copy_to_meta"]

logger = logging.getLogger("geomtx")

_FILES = (CONFIG_FILE, LOG_FILE, *(f"weights/{name}" for name in (WEIGHTS, CONFIG, INDEX)))
_KEPT = f"checkpoint-{7 * '[0-9]'}.pt"


class RunFolder:
    """Where a run keeps its configuration, log, checkpoints and weights.

    Args:
        path: Is made when the run starts.
        config: Of the run.
    """

    def __init__(self, path: Path, config: TrainingConfig) -> None:
        self.path = user_path(path)
        self.config = config
        self._stale: list[Path] = []
        self.checkpoint = self.path / "checkpoint.pt"
        self.weights = self.path / "weights"

    def open(self, *, resume: bool, overwrite: bool = False) -> dict[str, Any] | None:
        """The state to go on from; None for a new run.

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
        if resume:
            state = read_state(self.checkpoint)
            check_writable(self.path, self._taken(CONFIG_FILE, LOG_FILE), overwrite=overwrite)
            return state
        if not overwrite and (self.checkpoint.exists() or any(self.path.glob(_KEPT))):
            raise ValueError(
                f"output folder must have no run in it, got '{self.path}'; --resume goes on with it, "
                "--overwrite begins a new one in its place"
            )
        inputs = list_inputs(self.config.model.weights)
        check_writable(self.path, self._taken(*_FILES), overwrite=overwrite, inputs=inputs)
        self._stale = [self.path / name for name in ("checkpoint.pt", *_FILES)] if overwrite else []
        return None

    def _taken(self, *names: str) -> list[str]:
        """Without the log if it is empty: that of a run that was stopped before its first line, which is added to."""
        log = self.path / LOG_FILE
        return [name for name in names if name != LOG_FILE or not (log.is_file() and log.stat().st_size == 0)]

    def start(self, accelerator: Accelerator) -> None:
        """Make the folder, and write the configuration that the run goes by from now on."""
        if accelerator.is_main_process:
            self.path.mkdir(parents=True, exist_ok=True)
            for path in self._stale:
                path.unlink(missing_ok=True)
            save_config(self.config, self.path / CONFIG_FILE)
        accelerator.wait_for_everyone()

    def build_model(self, state: dict[str, Any], task: Task) -> nn.Module:
        """The checkpoint's model, with random weights.

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
        """Say what of the configuration is otherwise than in the checkpoint."""
        before, now = (dict(_flatten(values)) for values in (state["config"], self.config.to_dict()))
        # A key that is newer than the checkpoint had its default.
        before = {key: value for key, value in _flatten(TrainingConfig().to_dict()) if key in now} | before
        changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
        if changed:
            logger.warning("The run goes on with another configuration than it began with: %s.", ", ".join(changed))

    def open_log(self, start: int, total: int, progress: bool | None) -> TrainingLog:
        """The log, to go on after `start` steps."""
        section: LogSection = self.config.log
        return TrainingLog(self.path, section, start=start, total=total, progress=progress)

    def save(self, state: dict[str, Any], blueprint: nn.Module) -> None:
        """Write the checkpoint, then the weights: averaged ones where there are.

        Args:
            state: Of the run.
            blueprint: Its model without values, see `copy_to_meta`. Its own `save_pretrained` writes the weights;
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
            model.save_pretrained(self.weights)
        else:
            with staged_folder(self.weights, (WEIGHTS,)) as stage:
                save_model(model, str(stage / WEIGHTS), metadata={"geomtx": "weights"})


def copy_to_meta(model: nn.Module) -> nn.Module:
    """A deep copy of a model that costs no memory: its parameters and buffers have no values."""
    memo: dict[int, Any] = {}
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        empty = tensor.detach().to("meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty
    return copy.deepcopy(model, memo)


def _flatten(values: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, value as text)."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", repr(value)
