"""What every benchmark records: where it ran, of which commit, with which versions."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import re
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import geomtx

RESULTS = Path(__file__).parent / "results" / geomtx.__version__


def latest_results(pattern: str) -> list[Path]:
    """Files of results by name, each of the latest version that measured it."""
    versions = sorted(RESULTS.parent.iterdir(), key=lambda folder: [int(part) for part in folder.name.split(".")])
    latest = {path.name: path for folder in versions for path in folder.glob(pattern)}
    return [latest[name] for name in sorted(latest)]


def describe_machine() -> dict[str, Any]:
    """Processor, memory and GPU; no host names."""
    cpu = platform.processor() or platform.machine()
    flags: set[str] = set()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in lines.items()}
        cpu, flags = fields.get("model name", cpu), set(fields.get("flags", "").split())
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "instructions": sorted(flags & {"avx2", "avx512f", "avx512_bf16", "amx_tile"}),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def describe_code() -> dict[str, Any]:
    """Commit, whether the tree differs from it, and versions."""

    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=False
        ).stdout.strip()

    return {
        "commit": git("rev-parse", "HEAD") or None,
        "modified": bool(git("status", "--porcelain", "--untracked-files=no", "--", "../src")),
        "geomtx": geomtx.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
    }


def measure_time(function: Callable[[], object], *, warmup: int, repeats: int) -> dict[str, Any]:
    """Seconds of every repeat, with the GPU's work waited for; median, least and most."""
    for _ in range(warmup):
        function()
    seconds = []
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        function()
        synchronize()
        seconds.append(time.perf_counter() - start)
    return {
        "warmup": warmup,
        "seconds": [round(s, 4) for s in seconds],
        "median_s": round(statistics.median(seconds), 4),
        "min_s": round(min(seconds), 4),
        "max_s": round(max(seconds), 4),
    }


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory_gib(device: str) -> dict[str, float]:
    """Peak so far: of the process (interpreter and libraries included) on a CPU, of the allocator on a GPU."""
    if torch.device(device).type == "cuda":
        return {
            "peak_allocated_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3),
            "peak_reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 3),
        }
    return {"peak_resident_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)}


def mean_and_error(values: Sequence[float]) -> list[float]:
    """Mean of what is not NaN, and its standard error; NaN where there is none."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return [math.nan, math.nan]
    error = statistics.stdev(known) / math.sqrt(len(known)) if len(known) > 1 else math.nan
    return [round(statistics.fmean(known), 5), round(error, 5)]


def write_result(
    name: str, settings: dict[str, Any], results: Any, *, folder: Path | None = None, show: bool = True
) -> Path:
    """Write `<folder>/<name>.json`, by default under `results/<version>/`; lists of plain values on one line each."""
    path = (RESULTS if folder is None else folder) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "machine": describe_machine(),
        "code": describe_code(),
        "settings": settings,
        "results": results,
    }
    path.write_text(_to_json(record) + "\n", encoding="utf-8")
    if show:
        print(_to_json(results))
    print(f"wrote {path}")
    return path


def _to_json(value: Any) -> str:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    # A line break: no string has one, so that its brackets are left alone.
    return re.sub(r"\[\n[^\[\]{}\"]*\]", lambda found: json.dumps(json.loads(found[0])), text)
