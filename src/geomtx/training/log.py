"""Scalars of a run: lines of JSON, TensorBoard, and what is shown while it runs."""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from geomtx.training.config import LogSection
from geomtx.training.distributed import import_extra

__all__ = ["LOG_FILE", "ScalarMeans", "TrainingLog", "compare_validations"]

LOG_FILE = "log.jsonl"
# Name in the log → name that is shown.
_SHORT = {"objective": "loss", "loss_camera": "camera", "loss_depth": "depth", "loss_point": "points", "auc@30": "auc"}
# What is shown of a kind of model with other losses.
_OTHERS = ("loss_", "rehearsal_loss_", "psnr", "aj")


class ScalarMeans:
    """Means of scalars over steps; they stay on the device until they are read, in float32: some have no float64."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor | float, int]] = {}

    def add(self, scalars: dict[str, Tensor]) -> None:
        """Add the scalars of a step."""
        for name, value in scalars.items():
            total, count = self._sums.get(name, (0, 0))
            self._sums[name] = (value.float() + total, count + 1)

    def sums(self) -> dict[str, tuple[float, int]]:
        """Return name → (sum, count) of what was added since the last call."""
        sums = self.peek()
        self._sums = {}
        return sums

    def peek(self) -> dict[str, tuple[float, int]]:
        """Return what `sums` returns, without starting anew."""
        return {name: (float(total), count) for name, (total, count) in self._sums.items()}

    def load(self, sums: dict[str, tuple[float, int]]) -> None:
        """Continue from what `peek` returned."""
        self._sums = dict(sums)

    @staticmethod
    def merge(processes: list[dict[str, tuple[float, int]]]) -> dict[str, float]:
        """Return name → mean over the steps of all processes."""
        names = dict.fromkeys(name for sums in processes for name in sums)
        found = {name: [sums[name] for sums in processes if name in sums] for name in names}
        return {name: sum(s for s, _ in pairs) / sum(n for _, n in pairs) for name, pairs in found.items()}


class TrainingLog:
    """Writes `log.jsonl`, one line a call, and the same for TensorBoard; shows progress on stderr.

    Args:
        folder: Folder of the run.
        section: Section of the configuration to write.
        start: Number of steps that were done before; lines of later steps, which a stopped run left, are dropped.
        total: Number of steps in all.
        progress: Whether a bar is shown on stderr; defaults to a bar where stderr is a terminal, and elsewhere to a
            line for each line of the log.
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
        self._total = total
        is_terminal = sys.stderr.isatty()
        self._prints_lines = progress is None and not is_terminal
        self._started = (time.monotonic(), start)
        hides_bar = not (is_terminal if progress is None else progress)
        self.bar = tqdm(total=total, initial=start, unit="step", disable=hides_bar, dynamic_ncols=True)

    def _keep_lines(self, last_step: int) -> None:
        if not self._path.is_file():
            return
        lines = self._path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if (values := _parse(line)) and values["step"] <= last_step]
        self._path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def write(self, step: int, scalars: dict[str, float], *, kind: str = "train") -> None:
        """Write the scalars after `step` steps; `kind` is "train" or "validation"."""
        # NaN is no JSON.
        plain = {name: value if abs(value) < float("inf") else None for name, value in scalars.items()}
        self._file.write(json.dumps({"step": step, "kind": kind, **plain}) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in scalars.items():
                self._writer.add_scalar(f"{kind}/{name}", value, step)
        if kind == "train":
            shown = _choose(scalars)
            self.bar.set_postfix(shown, refresh=False)
            if self._prints_lines:
                tqdm.write(self._line(step, shown), file=sys.stderr)

    def _line(self, step: int, shown: dict[str, str]) -> str:
        start, first = self._started
        pace = (time.monotonic() - start) / max(step - first, 1)
        values = ", ".join(f"{name} {value}" for name, value in shown.items())
        return f"step {step}/{self._total}: {values}; {pace:.2g} s/step"

    def close(self) -> None:
        """Write and show everything."""
        self.bar.close()
        self._file.close()
        if self._writer is not None:
            self._writer.close()


def _choose(scalars: dict[str, float]) -> dict[str, str]:
    """Return the scalars that are shown, by their short names."""
    names = {name: short for name, short in _SHORT.items() if name in scalars}
    if len(names) < 2:
        names |= {name: name.removeprefix("loss_") for name in scalars if name.startswith(_OTHERS)}
    return {short: f"{scalars[name]:.3g}" for name, short in names.items()}


def compare_validations(folder: Path) -> str | None:
    """Return a table of the first and the last validation of a run; None if it has no two."""
    path = folder / LOG_FILE
    lines = map(_parse, path.read_text(encoding="utf-8").splitlines()) if path.is_file() else iter(())
    found = [values for values in lines if values and values["kind"] == "validation"]
    if len(found) < 2:
        return None
    before, after = found[0], found[-1]
    names = [name for name in after if name in before and name not in ("step", "kind")]
    width = max(map(len, names), default=0)
    rows = [f"{'validation':<{width}} {'step ' + str(before['step']):>12} {'step ' + str(after['step']):>12}"]
    rows += [f"{name:<{width}} {_number(before[name]):>12} {_number(after[name]):>12}" for name in names]
    return "\n".join(rows)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _parse(line: str) -> dict[str, Any] | None:
    """Return a line's values; None for the incomplete last line of a killed process."""
    try:
        values = json.loads(line)
        return values if {"step", "kind"} <= values.keys() else None
    except (ValueError, AttributeError):
        return None
