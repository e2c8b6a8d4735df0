"""Photos to files by `geomtx reconstruct` with models that see pairs: `pair_photos.py PHOTOS [--views 2 8] …`.

Weights are made up (see `weights.py`), so that only time and memory mean something. Of each model and number of photos,
the command as a user runs it, from the photos to the files: seconds and the most memory that its process had,
interpreter and libraries included; how often the model encoded a photo and decoded a pair, and the seconds of each;
what the command said where made-up weights left it nothing to align.

A folder with fewer photos than asked for gives some more than once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from common import write_result
from geomtx.cli import main as run_geomtx
from geomtx.models.dust3r import DUSt3R
from photos import gather
from weights import MODELS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    names = [name for name in MODELS if name.startswith("naver")]
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    parser.add_argument("--views", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="folder of the results")
    arguments = parser.parse_args()
    settings = {"views": arguments.views, "threads": arguments.threads, "weights": "made up"}
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for model in arguments.models:
            weights = Path(scratch) / model.replace("/", "_")
            script = str(Path(__file__).with_name("weights.py"))
            subprocess.run([sys.executable, script, str(weights), model], check=True)
            for views in arguments.views:
                photos = gather(arguments.photos, views, Path(scratch))
                row = run_command(photos, weights, arguments.threads)
                results.setdefault(model, {})[f"{views} photos"] = row
                print(model, views, row, flush=True)
                # After every row: whoever stops the rest keeps these.
                write_result("pair_photos", settings, results, folder=arguments.output, show=False)


def run_command(photos: Path, weights: Path, threads: int) -> dict[str, Any]:
    """What the command takes in a process of its own."""
    with tempfile.TemporaryDirectory() as out:
        command = ["reconstruct", str(photos), "-o", f"{out}/scene", "--weights", str(weights)]
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, __file__, f"{out}/counts.json", *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), CHILD: "1"},
        )
        assert process.stderr is not None
        said = process.stderr.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        counts = json.loads(Path(out, "counts.json").read_text())
        row = {
            "command_s": round(seconds, 1),
            "command_cpu_s": round(usage.ru_utime + usage.ru_stime, 1),  # what a busy machine doesn't change much
            "command_peak_gib": round(usage.ru_maxrss / 2**20, 2),
            **counts,
        }
        if status:
            row["error"] = said.strip().splitlines()[-1]
        return row


CHILD = "GEOMTX_BENCHMARK_CHILD"


def run_counted(counts: str, command: list[str]) -> int:
    """Run the command in this process, and write how often and how long its model ran."""
    found: dict[str, float] = {"photos_encoded": 0, "encode_s": 0.0, "pairs_decoded": 0, "decode_s": 0.0}

    def count(method: Callable[..., Any], number: str, seconds: str, size: Callable[[Any], int]) -> Callable[..., Any]:
        def counted(self: Any, *inputs: Any) -> Any:
            start = time.perf_counter()
            result = method(self, *inputs)
            found[number] += size(inputs[0])
            found[seconds] = round(found[seconds] + time.perf_counter() - start, 2)
            return result

        return counted

    DUSt3R.encode = count(DUSt3R.encode, "photos_encoded", "encode_s", len)  # type: ignore[method-assign]
    DUSt3R.decode = count(  # type: ignore[method-assign]
        DUSt3R.decode, "pairs_decoded", "decode_s", lambda tokens: tokens.views[0]
    )
    code = run_geomtx(command)
    Path(counts).write_text(json.dumps(found))
    return code


if __name__ == "__main__":
    if os.environ.get(CHILD):
        sys.exit(run_counted(sys.argv[1], sys.argv[2:]))
    main()
