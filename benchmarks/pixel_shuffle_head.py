"""The pixel-shuffle head against the DPT head, in a VGGT of nano size: `pixel_shuffle_head.py OUT [--steps N] …`.

Both arms are the nano recipe with a camera head, depth and points, with fewer and smaller batches of two views: the
same steps, scenes and initial seeds, three of each. All are measured on the same scenes that none was trained on.
Intervals are of 95 % over the seeds, by Student's t. A run that was stopped goes on where it was, and one that is done
is only measured again.

Time and memory are those of a training step and of a forward pass, in one process, in turns: round after round each arm
takes one, every other round in the opposite order. Memory is counted in bytes of live tensors (see `memory.py`).
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ablations import SCENES, SMALLER, describe, measure, render_held_out, train
from common import write_result
from geomtx import VGGT
from geomtx.metrics import Evaluation
from geomtx.training.config import TrainingConfig
from geomtx.training.config_file import load_config
from memory import LiveBytes

PARTS = ("encoder", "camera_head", "depth_head", "point_head")
FEWER = (
    *SMALLER,
    "checkpoint.every=100",
    "model.numbers.heads=[camera, depth, points]",
    "loss.terms.tracks=null",
    "optimiser.clip={" + ", ".join(f'"{part}.*": 1.0' for part in PARTS) + "}",
)
ARMS = {"dpt": (), "pixel_shuffle": ("model.numbers.dense_head=pixel_shuffle",)}
SEEDS = (0, 1, 2)
UNTRAINED = ("track",)
# Half of the width of a 95 % interval in standard errors, by number of values less one (Student's t).
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the runs")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--scenes", type=int, default=256, help="to measure on")
    parser.add_argument("--rounds", type=int, default=20, help="of the measurement of time")
    parser.add_argument("--sizes", nargs="+", default=["48x64", "240x320"], help="of images whose passes are timed")
    parser.add_argument("--output", type=Path, help="folder of the result")
    arguments = parser.parse_args()
    # Nobody else works on the machine while time is measured, so that it comes first, before what may be stopped.
    results: dict[str, Any] = {"cost": {size: compare_costs(size, arguments.rounds) for size in arguments.sizes}}
    results["runs"] = {}
    evaluations: dict[str, dict[int, Evaluation]] = {arm: {} for arm in ARMS}
    scenes = None
    for turn, seed in enumerate(arguments.seeds):
        for arm in list(ARMS)[:: -1 if turn % 2 else 1]:
            config = config_of(arm, seed, arguments.steps)
            if scenes is None:
                scenes = render_held_out(config, arguments.scenes, 2)
            weights, record = train(config, arguments.folder / f"{arm}_{seed}")
            evaluations[arm][seed] = measure(VGGT.from_pretrained(weights), scenes)
            results["runs"][f"{arm}, seed {seed}"] = {**record, **describe(evaluations[arm][seed], UNTRAINED)}
            results["accuracy"] = compare_arms(evaluations)
            # After every run: whoever stops the rest keeps these.
            write_result("pixel_shuffle_head", settings(arguments), results, folder=arguments.output, show=False)
    print_table(results)


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "recipe": "nano",
        "overrides": list(FEWER),
        "arms": {arm: list(changes) for arm, changes in ARMS.items()},
        "steps": arguments.steps,
        "seeds": arguments.seeds,
        "threads": torch.get_num_threads(),
        "held_out_scenes": [SCENES[0], SCENES[arguments.scenes - 1]],
        "numbers": "runs: [mean, standard error over scenes]; accuracy: [mean, half of the 95 % interval over seeds]",
    }


def config_of(arm: str, seed: int, steps: int) -> TrainingConfig:
    return load_config("nano", [*FEWER, *ARMS[arm], f"seed={seed}", f"schedule.steps={steps}"])


# Accuracy


def compare_arms(evaluations: dict[str, dict[int, Evaluation]]) -> dict[str, dict[str, list[float]]]:
    """Mean over the seeds of each arm, and of the differences of seeds that both have."""
    names = [name for name in Evaluation._fields[:-1] if not name.startswith((*UNTRAINED, "nothing"))]

    def means(found: Evaluation) -> dict[str, float]:
        return {name: getattr(found, name).nanmean().item() for name in names}

    of = {arm: {seed: means(found) for seed, found in runs.items()} for arm, runs in evaluations.items()}
    both = of["dpt"].keys() & of["pixel_shuffle"].keys()
    differences = {
        seed: {name: of["pixel_shuffle"][seed][name] - of["dpt"][seed][name] for name in names} for seed in sorted(both)
    }
    columns = {**of, "pixel_shuffle - dpt": differences}
    return {
        arm: {name: interval([run[name] for run in runs.values()]) for name in names}
        for arm, runs in columns.items()
        if runs
    }


def interval(values: Sequence[float]) -> list[float]:
    """Mean and half of the 95 % interval; NaN for a single value, and where a value isn't finite."""
    half = math.nan
    if not all(map(math.isfinite, values)):
        return [math.nan, math.nan]
    if len(values) > 1:
        half = T_95.get(len(values) - 1, 1.96) * statistics.stdev(values) / math.sqrt(len(values))
    return [round(statistics.fmean(values), 5), round(half, 5)]


# Time and memory


def compare_costs(size: str, rounds: int) -> dict[str, Any]:
    """Seconds and bytes of a training step and of a forward pass of 4 scenes of two views, and their ratios."""
    height, width = (int(side) for side in size.split("x"))
    images = torch.rand(4, 2, 3, height, width)
    models = {arm: VGGT(config_of(arm, 0, 1).model.model_config()) for arm in ARMS}
    found: dict[str, Any] = {}
    for name, run in (("step", step), ("forward", forward)):
        calls = {arm: (lambda model=model, run=run: run(model, images)) for arm, model in models.items()}
        seconds = take_turns(calls, rounds)
        peaks = {arm: peak_bytes(call) for arm, call in calls.items()}
        found[name] = {
            "seconds": {arm: [round(each, 5) for each in times] for arm, times in seconds.items()},
            "median_s": {arm: round(statistics.median(times), 5) for arm, times in seconds.items()},
            "time_ratio": interval([b / a for a, b in zip(seconds["dpt"], seconds["pixel_shuffle"], strict=True)]),
            "median_time_ratio": round(
                statistics.median(b / a for a, b in zip(seconds["dpt"], seconds["pixel_shuffle"], strict=True)), 4
            ),
            "peak_mib": {arm: round(peak / 2**20, 2) for arm, peak in peaks.items()},
            "memory_ratio": round(peaks["pixel_shuffle"] / peaks["dpt"], 4),
        }
        print(size, name, found[name]["median_time_ratio"], found[name]["memory_ratio"], flush=True)
    found["head_parameters"] = {
        arm: sum(parameter.numel() for parameter in model.depth_head.parameters()) for arm, model in models.items()
    }
    return found


def step(model: VGGT, images: torch.Tensor) -> None:
    """A forward and a backward pass of a loss that all outputs are in."""
    model.train()
    found = model(images)
    total = sum(tensor.square().mean() for tensor in (found.pose_encodings, *found.depth, *found.points))
    total.backward()
    model.zero_grad(set_to_none=True)


@torch.no_grad()
def forward(model: VGGT, images: torch.Tensor) -> None:
    model.eval()
    model(images)


def take_turns(calls: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, round after round; one round before the first is not counted."""
    seconds: dict[str, list[float]] = {arm: [] for arm in calls}
    for turn in range(rounds + 1):
        for arm in list(calls)[:: -1 if turn % 2 else 1]:
            start = time.perf_counter()
            calls[arm]()
            if turn:
                seconds[arm].append(time.perf_counter() - start)
    return seconds


def peak_bytes(call: Callable[[], None]) -> int:
    """Most bytes that tensors of a call hold at a time; what is there before it isn't counted."""
    with LiveBytes() as live:
        call()
    return live.peak["cpu"]


def print_table(results: dict[str, Any]) -> None:
    columns = ("depth_abs_rel", "depth_delta", "head_overall", "unprojected_overall", "auc_30")
    print(f"{'':22}" + "".join(f"{name:>24}" for name in columns))
    for arm, numbers in results["accuracy"].items():
        cells = (f"{numbers[name][0]:.4f} ± {numbers[name][1]:.4f}" for name in columns)
        print(f"{arm:22}" + "".join(f"{cell:>24}" for cell in cells))


if __name__ == "__main__":
    main()
