"""Photos to files by `geomtx reconstruct`, with whole networks: `photos.py PHOTOS [--models …] [--views 1 8 24] …`.

Weights are made up (see `weights.py`), so that only time and memory mean something. Of each model and number of views:

- the command as a user runs it, all of it, from the photos to the files: seconds and the most memory that the process
  had, interpreter and libraries included;
- the forward pass alone: seconds, operations of all matrix products, and the share of what the machine reaches in
  products of large float32 matrices, measured between the passes of the same process.

A folder with fewer photos than views gives some more than once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import geomtx
from common import write_result
from geomtx.inference import predict
from geomtx.models.registry import empty_model
from weights import MODELS

SIDE = 2048  # of the matrices whose product is the measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    names = [name for name in MODELS if name.startswith("depth-anything")]
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=names)
    parser.add_argument("--views", type=int, nargs="+", default=[1, 8, 24])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bfloat16-views", type=int, nargs="*", default=[1])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="folder of the results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results: dict[str, Any] = {}
    settings = {
        "views": arguments.views, "repeats": arguments.repeats, "threads": arguments.threads, "matrices": SIDE,
        "weights": "made up",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        cases = list_cases(arguments, Path(folder))
        # Before the passes: a process that is started counts as its own memory what this one has at that moment.
        for case in cases:
            results.setdefault(case.model, {})[case.name] = run_commands(case, arguments)
        for case in cases:
            row = results[case.model][case.name]
            row |= measure_pass(case, arguments.repeats)
            print(case.model, case.name, row, flush=True)
            # After every row: whoever stops the rest keeps these.
            write_result("photos", settings, results, folder=arguments.output, show=False)


class Case(NamedTuple):
    """A model, its weights, a folder of photos and a precision."""

    model: str
    weights: Path
    photos: Path
    views: int
    dtype: str

    @property
    def name(self) -> str:
        return f"{self.views} view{'s' * (self.views > 1)}, {self.dtype}"


def list_cases(arguments: argparse.Namespace, folder: Path) -> list[Case]:
    """All cases, with weights and photos in place."""
    cases = []
    for model in arguments.models:
        weights = folder / model.replace("/", "_")
        script = str(Path(__file__).with_name("weights.py"))
        subprocess.run([sys.executable, script, str(weights), model], check=True)
        numbers = [(views, "float32") for views in arguments.views]
        numbers += [(views, "bfloat16") for views in arguments.bfloat16_views]
        cases += [
            Case(model, weights, gather(arguments.photos, views, folder), views, dtype) for views, dtype in numbers
        ]
    return cases


def gather(photos: Path, views: int, folder: Path) -> Path:
    """A folder of as many photos, those of another in turn."""
    chosen = folder / f"{views}_photos"
    if not chosen.exists():
        chosen.mkdir()
        paths = sorted(path for path in photos.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        for index in range(views):
            path = paths[index % len(paths)]
            shutil.copy(path, chosen / f"{index:03}{path.suffix}")
    return chosen


def run_commands(case: Case, arguments: argparse.Namespace) -> dict[str, float]:
    """What the whole command takes."""
    found = [run_command(case, arguments.threads) for _ in range(arguments.repeats)]
    return {
        "command_s": round(statistics.median(took for took, _ in found), 2),
        "command_peak_gib": round(max(peak for _, peak in found), 2),
    }


def measure_pass(case: Case, repeats: int) -> dict[str, Any]:
    """What the forward pass alone takes, and the machine's rate in between."""
    model = geomtx.load_model(case.weights, dtype=getattr(torch, case.dtype))
    views = geomtx.load_views(case.photos, model=model)
    operations = count_operations(case.weights, len(views), views.image_hw)
    seconds, rates = [], []
    with torch.inference_mode():
        for _ in range(repeats):
            rates.append(matrix_rate())
            start = time.perf_counter()
            predict(model, views.images, patch_mask=views.patch_mask)
            seconds.append(time.perf_counter() - start)
        rates.append(matrix_rate())
    median, rate = statistics.median(seconds), statistics.median(rates)
    return {
        "image_hw": list(views.images.shape[-2:]),
        "pass_s": round(median, 2),
        "gflop": round(operations / 1e9),
        "matrix_gflop_per_s": round(rate / 1e9, 1),
        "share_of_matrix_rate": round(operations / median / rate, 3),
    }


def run_command(case: Case, threads: int) -> tuple[float, float]:
    """Seconds of the command, and GiB that its process had at most."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "geomtx", "reconstruct", str(case.photos), "-o", out]
        command += ["--weights", str(case.weights), "--dtype", case.dtype, "--overwrite"]
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        assert process.stderr is not None
        complaints = process.stderr.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise RuntimeError(complaints[-2000:])
        return time.perf_counter() - start, usage.ru_maxrss / 2**20


def count_operations(weights: Path, views: int, image_hw: tuple[int, int]) -> int:
    """Operations of a forward pass, two for a multiplication with addition, of matrix products alone.

    On tensors without values. Attention is in plain products there, because torch doesn't count its kernels for CPUs.
    """
    model = empty_model(weights)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model = model.to_empty(device="cpu")
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(views, 3, *image_hw))
    return counter.get_total_flops()


def matrix_rate() -> float:
    """Operations a second in a product of two large float32 matrices, the better of three."""
    a, b = torch.rand(SIDE, SIDE), torch.rand(SIDE, SIDE)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * SIDE**3 / best


if __name__ == "__main__":
    main()
