"""VGGT's forward pass beside others, in turns in one run: `vggt_speed.py WEIGHTS [--cases 4x280x280 …] …`.

Every candidate is a process of its own with the same weights and images, and only one works at a time: round after
round, each takes one pass, every other round in the opposite order. Ratios are medians over the rounds, so what slows
the machine down slows all of them. On the CPU, tensors lie in huge pages: among small ones each process has its own
luck, and the same code has differed by 16 % between two processes. With `--fresh`, every pass is in a new process,
after one of a tiny image, so that no process's luck lasts and only one has its weights in memory.

Candidates: `plain` (geomtx as it is), `straightforward` (the published structure, written down simply), `pieces` and
`low` (memory plans), `compile` and `graphs`, `int8` and `fp8` (quantised), `sdpa_flash`, `sdpa_cudnn`, `math`, …
(attention). `--reference PATH` adds a checkout of the published code (package `vggt`), `--before PATH` another checkout
of geomtx.
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

import geomtx
from common import RESULTS, write_result
from geomtx.layers.backends import available_backends
from geomtx.models.published import find_weights

WORKER = Path(__file__).parent / "vggt_worker.py"
PLANS = ("pieces", "low")
MODES = ("compile", "graphs")
QUANTISED = ("int8", "fp8")
TINY = json.dumps({"views": 1, "size": (56, 56)})


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=lambda source: Path(find_weights(source)), help="nano, a folder or a file")
    parser.add_argument("--candidates", nargs="+", default=["plain", "straightforward"])
    parser.add_argument("--reference", type=Path, help="checkout of the published code")
    parser.add_argument("--before", type=Path, help="checkout of geomtx to compare with")
    parser.add_argument("--cases", nargs="+", type=parse_case, default=[(4, 280, 280)], metavar="VIEWSxHxW")
    parser.add_argument("--heads", default="camera,depth,points")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--view-chunk", type=int, default=1)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--fresh", action="store_true", help="a new process for each pass")
    parser.add_argument("--limit-s", type=float, default=600.0, help="after this no other round of a case is begun")
    parser.add_argument("--name", default="vggt", help="that the results' names begin with")
    parser.add_argument("--output", type=Path, help="folder of the results, one file a case")
    parser.add_argument("--skip-done", action="store_true", help="leave out cases that have a file there")
    arguments = parser.parse_args()
    if not arguments.weights.exists():
        parser.error(f"weights must be a file or a folder, got '{arguments.weights}'; weights.py makes some")
    known = ("plain", "straightforward", *PLANS, *MODES, *QUANTISED, *available_backends())
    for name in arguments.candidates:
        if name not in known:
            parser.error(f"candidate must be one of {', '.join(known)}, got {name!r}")
    return arguments


def parse_case(text: str) -> tuple[int, int, int]:
    views, height, width = map(int, text.split("x"))
    return views, height, width


def main() -> None:
    arguments = parse_arguments()
    folder = arguments.output or RESULTS
    prefix = f"{arguments.name}_{arguments.device}_{arguments.dtype}"
    names = {case: f"{prefix}_{'x'.join(map(str, case))}" for case in arguments.cases}
    if arguments.skip_done:
        names = {case: name for case, name in names.items() if not (folder / f"{name}.json").exists()}
    if not names:
        return
    workers = {} if arguments.fresh else start_all(arguments)
    try:
        for case, name in names.items():
            results = measure_case(workers, case, arguments)
            write_result(name, describe_settings(arguments, case), results, folder=folder)
    finally:
        for worker in workers.values():
            worker.kill()


def start_all(arguments: argparse.Namespace) -> dict[str, subprocess.Popen[str]]:
    workers: dict[str, subprocess.Popen[str]] = {}
    for name in list_candidates(arguments):
        worker = start(arguments, name)
        # One after the other: each needs room for loading.
        if "failed" in ask(worker, None):
            print(f"{name} could not be started and is left out", file=sys.stderr)
        else:
            workers[name] = worker
    if not workers:
        raise SystemExit("no candidate could be started")
    return workers


def measure_case(
    workers: dict[str, subprocess.Popen[str]], case: tuple[int, int, int], arguments: argparse.Namespace
) -> dict[str, Any]:
    """What each candidate took, round after round."""
    question = json.dumps({"views": case[0], "size": case[1:]})
    rounds: list[dict[str, Any]] = []
    candidates = list(list_candidates(arguments) if arguments.fresh else workers)
    begun, warmup = time.perf_counter(), arguments.warmup
    for index in range(warmup + arguments.repeats):
        if index > warmup and time.perf_counter() - begun > arguments.limit_s:
            break
        # Who has failed once has too little memory.
        gone = {name for found in rounds for name, answer in found.items() if "failed" in answer}
        order = [name for name in candidates[:: 1 if index % 2 else -1] if name not in gone]
        rounds.append(
            {name: ask(workers[name], question) if workers else ask_new(arguments, name, question) for name in order}
        )
    results = {name: summarize([found[name] for found in rounds if name in found], warmup) for name in candidates}
    first = next(iter(results))
    for found in results.values():
        if "seconds" in found and "seconds" in results[first]:
            pairs = zip(found["seconds"], results[first]["seconds"], strict=True)
            found[f"times_of_{first}"] = round(statistics.median(a / b for a, b in pairs), 3)
    return results


def describe_settings(arguments: argparse.Namespace, case: tuple[int, int, int]) -> dict[str, Any]:
    return {
        "weights": arguments.weights.name,
        "views": case[0],
        "size": case[1:],
        **{key: getattr(arguments, key) for key in ("heads", "dtype", "view_chunk", "warmup", "fresh")},
        "device": torch.device(arguments.device).type,
        "threads": torch.get_num_threads(),
        "before": commit_of(arguments.before),
        "reference": commit_of(arguments.reference),
    }


def list_candidates(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Name → arguments of the worker."""
    found: dict[str, list[str]] = {}
    for name in arguments.candidates:
        if name == "straightforward":
            found[name] = ["--kind", name]
        elif name in PLANS:
            found[name] = ["--plan", name]
        elif name in MODES:
            found[name] = ["--mode", name]
        elif name in QUANTISED:
            found[name] = ["--quantize", name]
        else:
            found[name] = [] if name == "plain" else ["--attention", name]
    if arguments.before:
        found["before"] = []
    if arguments.reference:
        found["published"] = ["--kind", "published", "--path", str(arguments.reference.resolve())]
    return found


def start(arguments: argparse.Namespace, name: str) -> subprocess.Popen[str]:
    extra, checkout = list_candidates(arguments)[name], arguments.before if name == "before" else None
    source = Path(geomtx.__file__).parent.parent if checkout is None else checkout.resolve() / "src"
    if not (source / "geomtx").is_dir():
        raise SystemExit(f"before must be a checkout of geomtx, got '{checkout}'")
    path = os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    command = [
        sys.executable, str(WORKER), str(arguments.weights), *extra,
        "--heads", arguments.heads, "--device", arguments.device, "--dtype", arguments.dtype,
        "--view-chunk", str(arguments.view_chunk),
    ]  # fmt: skip
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": path, "THP_MEM_ALLOC_ENABLE": "1"},  # huge pages, see above
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def ask(worker: subprocess.Popen[str], question: str | None) -> dict[str, Any]:
    """A worker's next answer, after a question or when it is ready."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        if question is not None:
            worker.stdin.write(question + "\n")
            worker.stdin.flush()
        return json.loads(worker.stdout.readline() or '{"failed": "process ended"}')
    except BrokenPipeError:
        return {"failed": "process ended"}


def ask_new(arguments: argparse.Namespace, name: str, question: str) -> dict[str, Any]:
    """Answer of a new worker, which has loaded and imported what it needs."""
    answer: dict[str, Any] = {}
    with start(arguments, name) as worker:
        for each in (None, TINY, question):
            answer = ask(worker, each)
            if "failed" in answer:
                break
        worker.kill()
    return answer


def summarize(answers: list[dict[str, Any]], warmup: int) -> dict[str, Any]:
    if "failed" in answers[-1]:
        return answers[-1]
    seconds = [found["seconds"] for found in answers[warmup:]]
    return {
        "first_pass_s": round(answers[0]["seconds"], 4),
        "seconds": [round(s, 4) for s in seconds],
        "median_s": round(statistics.median(seconds), 4),
        "min_s": round(min(seconds), 4),
        "max_s": round(max(seconds), 4),
        **{key: value for key, value in answers[-1].items() if key.startswith("peak")},
    }


def commit_of(checkout: Path | None) -> str | None:
    if checkout is None:
        return None
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "not a git checkout"


if __name__ == "__main__":
    main()
