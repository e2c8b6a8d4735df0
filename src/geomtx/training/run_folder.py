"""The files of a run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from geomtx.models.vggt import VGGT, VGGTConfig
from geomtx.training.config import LogSection, TrainingConfig
from geomtx.training.config_file import save_config
from geomtx.training.log import TrainingLog
from geomtx.training.state import read_state, write_state

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["RunFolder"]

logger = logging.getLogger("geomtx")


class RunFolder:
    """Where a run keeps its configuration, log, checkpoints and weights.

    Args:
        path: Is made when the run starts.
        config: Of the run.
    """

    def __init__(self, path: Path, config: TrainingConfig) -> None:
        self.path = path
        self.config = config
        self.checkpoint = path / "checkpoint.pt"
        self.weights = path / "weights"

    def open(self, *, resume: bool) -> dict[str, Any] | None:
        """The state to go on from; None for a new run.

        Raises:
            FileNotFoundError: If there is none to go on from.
            ValueError: If there is one and it isn't asked for, or the folder is a file.
        """
        if os.path.lexists(self.path) and not self.path.is_dir():
            found = "a link to nothing" if self.path.is_symlink() and not self.path.exists() else "a file"
            raise ValueError(f"output must be a folder, got '{self.path}', which is {found}")
        if resume:
            return read_state(self.checkpoint)
        if self.checkpoint.exists():
            raise ValueError(f"output folder must have no run in it, got '{self.path}'; --resume goes on with it")
        return None

    def start(self, accelerator: Accelerator) -> None:
        """Make the folder, and write the configuration that the run goes by from now on."""
        if accelerator.is_main_process:
            self.path.mkdir(parents=True, exist_ok=True)
            save_config(self.config, self.path / "config.yaml")
        accelerator.wait_for_everyone()

    def build_model(self, state: dict[str, Any]) -> VGGT:
        """The checkpoint's model, with random weights; says what else of the configuration has changed.

        Weights that the run began with are not read again: the checkpoint has what became of them.

        Raises:
            ValueError: If the configuration asks for another model, naming the numbers that differ.
        """
        config = VGGTConfig.from_dict(state["model_config"])
        stored, section = config.to_dict(), self.config.model
        now = stored if section.weights is not None else section.model_config().to_dict()
        if section.heads is not None and set(section.heads) != set(stored["heads"]):
            now = {**stored, "heads": list(section.heads)}
        keys = [key for key in now if stored[key] != now[key]]
        if keys:
            wanted, found = (", ".join(f"{key} {numbers.get(key)}" for key in keys) for numbers in (now, stored))
            raise ValueError(f"checkpoint must be of a model with {wanted}, got '{self.checkpoint}' with {found}")
        differences = sorted(set(_flatten(state["config"])) ^ set(_flatten(self.config.to_dict())))
        if differences:
            changed = ", ".join(dict.fromkeys(key for key, _ in differences))
            logger.warning("The run goes on with another configuration than it began with: %s.", changed)
        return VGGT(config)

    def open_log(self, start: int, total: int, progress: bool | None) -> TrainingLog:
        """The log, to go on after `start` steps."""
        section: LogSection = self.config.log
        return TrainingLog(self.path, section, start=start, total=total, progress=progress)

    def save(self, state: dict[str, Any], config: VGGTConfig) -> None:
        """Write the checkpoint, then the weights: averaged ones where there are."""
        state = {**state, "config": self.config.to_dict(), "model_config": config.to_dict()}
        keep_every = self.config.checkpoint.keep_every
        if keep_every and state["step"] % keep_every == 0:
            write_state(state, self.path / f"checkpoint-{state['step']:07d}.pt")
        write_state(state, self.checkpoint)
        averages = {} if state["average"] is None else state["average"]["averages"]
        save_weights({**state["model"], **averages}, config, self.weights)


def save_weights(weights: dict[str, Tensor], config: VGGTConfig, folder: Path) -> None:
    """Write whole tensors by parameter name as a folder that `VGGT.from_pretrained` loads."""
    with torch.device("meta"):
        model = VGGT(config)
    model.load_state_dict(weights, assign=True)
    model.save_pretrained(folder)


def _flatten(values: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, value as text)."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", repr(value)
