"""Curves of a training run: `benchmarks/curves.py RUN/log.jsonl OUT.png`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Title, whether of validation, and the curves: name in the log → label.
PANELS = (
    ("Depth and points: plain error in training", False, {"loss_reg_depth": "depth", "loss_reg_point": "points"}),
    ("Cameras: losses in training", False, {"loss_T": "translation", "loss_R": "rotation", "loss_FL": "field of view"}),
    ("Held-out scenes: depth", True, {"delta_1.25/2v": "δ < 1.25, 2 views", "delta_1.25/4v": "δ < 1.25, 4 views"}),
    ("Held-out scenes: cameras", True, {"auc@30/2v": "AUC@30, 2 views", "auc@30/4v": "AUC@30, 4 views"}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    records = [json.loads(line) for line in arguments.log.read_text(encoding="utf-8").splitlines()]
    figure, axes = plt.subplots(2, 2, figsize=(11, 6.5), layout="constrained")
    for axis, (title, validation, curves) in zip(axes.flat, PANELS, strict=True):
        kind = "validation" if validation else "train"
        draw(axis, [record for record in records if record["kind"] == kind], curves, smooth=1 if validation else 5)
        axis.set_title(title, fontsize=11, loc="left")
        axis.set_xlabel("step")
        axis.set_ylim(0, 1 if validation else None)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=9)
    figure.savefig(arguments.output, dpi=110)
    print(f"wrote {arguments.output}")


def draw(axis: Any, records: list[dict[str, Any]], curves: dict[str, str], *, smooth: int) -> None:
    """Each point is the mean of the last `smooth` records."""
    for name, label in curves.items():
        values = [(record["step"], record[name]) for record in records if name in record]
        means = [
            sum(value for _, value in values[max(0, end - smooth) : end]) / min(smooth, end)
            for end in range(1, len(values) + 1)
        ]
        axis.plot([step for step, _ in values], means, label=label, marker="o" if smooth == 1 else None, markersize=3)


if __name__ == "__main__":
    main()
