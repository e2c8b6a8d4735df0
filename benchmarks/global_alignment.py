"""Global alignment of rendered rooms with known truth: `benchmarks/global_alignment.py methods|memory [--rooms N]`.

- methods: 20 views of 96x128 pixels, the complete graph of 380 pairs, with noise, outliers and wrong scales; the
  published steps of Adam and reweighted least squares, one after the other on the same maps. Pose AUC@5 before and
  after, seconds (the start, which both have in common, by itself), steps, loss.
- memory: peak of memory of a process that aligns photos with their neighbours, against the number of pairs. Freed
  memory goes back to the system at once there, so that the peak is of what is in use.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from common import write_result
from geomtx.inference import PairMaps
from geomtx.metrics.pose import exact_pose_auc, pairwise_pose_errors
from geomtx.scene.pairs import AlignmentOptions, align_pairs
from geomtx.types import SceneBatch
from pair_rooms import room_pairs

VIEWS, IMAGE_HW = 20, (96, 128)
METHODS = {
    "start": AlignmentOptions("published", steps=0),
    "published": AlignmentOptions("published"),
    "fast": AlignmentOptions("fast"),
}
MEMORY_VIEWS, OFFSETS = 20, (2, 5, 9, 19)
_RETURN_FREED = {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "0"}  # of glibc


def measure(room: SceneBatch, maps: PairMaps, options: AlignmentOptions) -> dict[str, Any]:
    """Align once."""
    assert room.cameras is not None
    start = time.perf_counter()
    found = align_pairs(maps, options=options)
    seconds = time.perf_counter() - start
    errors = pairwise_pose_errors(found.cameras.cam_from_world, room.cameras.cam_from_world[0])
    return {
        "auc_5": round(100 * exact_pose_auc(errors.larger_deg(), (5,)).item(), 2),
        "median_degrees": round(errors.larger_deg().median().item(), 4),
        "seconds": round(seconds, 2),
        "steps": found.steps,
        "loss": float(found.losses[-1]),
    }


def compare_methods(num_rooms: int) -> dict[str, Any]:
    """Every method on every room."""
    results: dict[str, Any] = {}
    for index in range(num_rooms):
        room, maps = room_pairs(index, VIEWS, IMAGE_HW)
        found = {name: measure(room, maps, options) for name, options in METHODS.items()}
        for name, each in found.items():
            print(index, name, each, flush=True)
        after_start = {name: found[name]["seconds"] - found["start"]["seconds"] for name in ("published", "fast")}
        found["ratio"] = {
            "loss": found["fast"]["loss"] / found["published"]["loss"],
            "seconds": found["fast"]["seconds"] / found["published"]["seconds"],
            "seconds_after_start": after_start["fast"] / max(after_start["published"], 1e-9),
        }
        results[f"room {index}"] = found
    return results


def measure_memory(offsets: int) -> dict[str, Any]:
    """Make pairs and align them, in this process; on Linux, where the peak of rendering can be forgotten."""
    _, maps = room_pairs(0, MEMORY_VIEWS, IMAGE_HW, offsets=offsets)
    own = sum(each.nbytes for part in maps[1:] for each in part) / 2**20
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_mib()
    align_pairs(maps)
    return {"pairs": len(maps.pairs), "maps_mib": own, "before_mib": before, "peak_mib": _peak_mib()}


def _peak_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def compare_memory() -> dict[str, Any]:
    """Peak of memory of a process for each number of pairs, before and during alignment."""
    results = {}
    for offsets in OFFSETS:
        command = [sys.executable, __file__, "memory", "--worker", str(offsets)]
        environment = {**os.environ, **_RETURN_FREED}
        output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
        found = json.loads(output.splitlines()[-1])
        results[str(found.pop("pairs"))] = found
        print(found, flush=True)
    pairs, peaks = [float(each) for each in results], [each["peak_mib"] for each in results.values()]
    slope, intercept = statistics.linear_regression(pairs, peaks)
    line = {
        "slope_mib": slope,
        "intercept_mib": intercept,
        "largest_off_mib": max(abs(intercept + slope * x - y) for x, y in zip(pairs, peaks, strict=True)),
        "maps_mib": next(each["maps_mib"] / float(num) for num, each in results.items()),
    }
    return {"pairs": results, "line": line}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("methods", "memory"))
    parser.add_argument("--rooms", type=int, default=3)
    parser.add_argument("--worker", type=int)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure_memory(arguments.worker)))
        return
    settings = {"threads": torch.get_num_threads(), "views": VIEWS, "image_hw": IMAGE_HW}
    results = compare_methods(arguments.rooms) if arguments.part == "methods" else compare_memory()
    write_result(f"global_alignment_{arguments.part}", settings, results)


if __name__ == "__main__":
    main()
