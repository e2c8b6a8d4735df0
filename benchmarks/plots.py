"""Plots of the docs from the JSON files; `report.py --plots` draws them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def plot_memory(records: list[dict[str, Any]], path: Path) -> None:
    """Counted peaks, and the laws through them."""
    records = [record for record in records if "depth" in record["settings"]["heads"]]
    if not records:
        return
    figure, axes = plt.subplots(1, len(records), figsize=(5.5 * len(records), 4), layout="constrained", squeeze=False)
    for axis, record in zip(axes[0], records, strict=True):
        height, width = record["settings"]["size"]
        for plan, found in record["results"].items():
            peaks = {int(key.split()[0]): value["peak_gib"] for key, value in found.items() if key.endswith("views")}
            axis.plot(list(peaks), list(peaks.values()), marker="o", markersize=4, label=plan)
        axis.set_title(f"Peak of a pass, {height} × {width}, bfloat16", fontsize=11, loc="left")
        axis.set_xlabel("views")
        axis.set_ylabel("GiB")
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=9)
    save(figure, path)


def plot_time(records: list[dict[str, Any]], path: Path) -> None:
    """Times on a GPU by number of views, a line a candidate."""
    records = [record for record in records if record["settings"]["size"] == [336, 518]]
    if not records:
        return
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    lines: dict[str, dict[int, float]] = {}
    for record in records:
        for name, found in record["results"].items():
            if "median_s" in found:
                lines.setdefault(name, {})[record["settings"]["views"]] = 1000 * found["median_s"]
    for name, line in lines.items():
        axis.plot(sorted(line), [line[views] for views in sorted(line)], marker="o", markersize=4, label=name)
    axis.set_title("A pass at 336 × 518, bfloat16", fontsize=11, loc="left")
    axis.set_xlabel("views")
    axis.set_ylabel("ms")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=9)
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")
