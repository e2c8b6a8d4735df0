"""Scalars of a run: lines of JSON, TensorBoard, and a bar of progress."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from geomtx.training.config import LogSection
from geomtx.training.distributed import import_extra

__all__ = ["LOG_FILE", "ScalarMeans", "TrainingLog"]

LOG_FILE = "log.jsonl"
# On the bar, by their names in the log.
_SHORT = {"objective": "loss", "loss_camera": "camera", "loss_depth": "depth", "loss_point": "points", "auc@30": "auc"}


class ScalarMeans:
    """Means over steps, on the device until they are read."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor | float, int]] = {}

    def add(self, scalars: dict[str, Tensor]) -> None:
        """Count the scalars of a step."""
        for name, value in scalars.items():
            total, count = self._sums.get(name, (0, 0))
            self._sums[name] = (value.double() + total, count + 1)

    def sums(self) -> dict[str, tuple[float, int]]:
        """Name → (sum, count), of what was added since the last call."""
        sums = self.peek()
        self._sums = {}
        return sums

    def peek(self) -> dict[str, tuple[float, int]]:
        """As `sums`, without a new start."""
        return {name: (float(total), count) for name, (total, count) in self._sums.items()}

    def load(self, sums: dict[str, tuple[float, int]]) -> None:
        """Go on from what `peek` gave."""
        self._sums = dict(sums)

    @staticmethod
    def merge(processes: list[dict[str, tuple[float, int]]]) -> dict[str, float]:
        """Name → mean over the steps of all processes."""
        names = dict.fromkeys(name for sums in processes for name in sums)
        found = {name: [sums[name] for sums in processes if name in sums] for name in names}
        return {name: sum(s for s, _ in pairs) / sum(n for _, n in pairs) for name, pairs in found.items()}


class TrainingLog:
    """Writes `log.jsonl`, one line a call, and the same for TensorBoard.

    Args:
        folder: Of the run.
        section: What to write.
        start: Steps that were done before; what a stopped run logged after them is dropped.
        total: Steps in all.
        progress: Show a bar on stderr; None = if that is a terminal.
    """

    def __init__(
        self, folder: Path, section: LogSection, *, start: int, total: int, progress: bool | None = None
    ) -> None:
        self._path = folder / LOG_FILE
        self._keep_lines(start)
        self._file = self._path.open("a", encoding="utf-8")
        self._writer: Any = None
        if section.tensorboard:
            # TensorBoard's own writer says on import, at length, when TensorFlow isn't there.
            logging.getLogger("tensorboard").setLevel(logging.ERROR)
            import_extra("tensorboard")
            writer = import_extra("torch.utils.tensorboard").SummaryWriter
            self._writer = writer(str(folder / "tensorboard"), purge_step=start + 1)
        disable = None if progress is None else not progress
        self.bar = tqdm(total=total, initial=start, unit="step", disable=disable, dynamic_ncols=True)

    def _keep_lines(self, last_step: int) -> None:
        if not self._path.is_file():
            return
        lines = self._path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if (step := _step_of(line)) is not None and step <= last_step]
        self._path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def write(self, step: int, scalars: dict[str, float], *, kind: str = "train") -> None:
        """Scalars after `step` steps; `kind` is what TensorBoard groups by."""
        # NaN is no JSON.
        plain = {name: value if abs(value) < float("inf") else None for name, value in scalars.items()}
        self._file.write(json.dumps({"step": step, "kind": kind, **plain}) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in scalars.items():
                self._writer.add_scalar(f"{kind}/{name}", value, step)
        if kind == "train":
            shown = {short: f"{scalars[name]:.3g}" for name, short in _SHORT.items() if name in scalars}
            self.bar.set_postfix(shown, refresh=False)

    def close(self) -> None:
        """Flush everything."""
        self.bar.close()
        self._file.close()
        if self._writer is not None:
            self._writer.close()


def _step_of(line: str) -> int | None:
    """None for the torn last line of a killed process."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None
