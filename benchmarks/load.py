"""Time and peak memory of loading a checkpoint: `load.py FILE`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import geomtx
from common import measure_time, peak_memory_gib, write_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--output", type=Path, help="folder of the result")
    arguments = parser.parse_args()
    before = peak_memory_gib("cpu")["peak_resident_gib"]
    timing = measure_time(lambda: geomtx.VGGT.from_pretrained(arguments.weights), warmup=0, repeats=1)
    peak = peak_memory_gib("cpu")["peak_resident_gib"]
    size = arguments.weights.stat().st_size / 2**30
    results = {
        "file_gib": round(size, 3),
        "resident_before_gib": before,
        "peak_resident_gib": peak,
        "peak_over_file": round(peak / size, 3),
        **timing,
    }
    write_result("load", {"threads": torch.get_num_threads()}, results, folder=arguments.output)


if __name__ == "__main__":
    main()
