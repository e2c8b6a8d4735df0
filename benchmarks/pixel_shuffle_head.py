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
import statistics
from pathlib import Path
from typing import Any

import torch

from ablations import SMALLER, describe, measure, render_held_out
from common import write_result
from geomtx import VGGT
from geomtx.metrics import Evaluation
from geomtx.training.config import TrainingConfig
from geomtx.training.config_file import load_config
from paired_runs import (
    SEEDS,
    compare_arms,
    describe_runs,
    interval,
    peak_bytes,
    print_table,
    take_turns,
    train_in_turns,
)

PARTS = ("encoder", "camera_head", "depth_head", "point_head")
FEWER = (
    *SMALLER,
    "checkpoint.every=100",
    "model.numbers.heads=[camera, depth, points]",
    "loss.terms.tracks=null",
    "optimiser.clip={" + ", ".join(f'"{part}.*": 1.0' for part in PARTS) + "}",
)
ARMS = {"dpt": (), "pixel_shuffle": ("model.numbers.dense_head=pixel_shuffle",)}
UNTRAINED = ("track",)
COLUMNS = ("depth_abs_rel", "depth_delta", "head_overall", "unprojected_overall", "auc_30")


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
    scores: dict[str, dict[int, dict[str, float]]] = {arm: {} for arm in ARMS}
    scenes = None

    def configure(arm: str, seed: int) -> TrainingConfig:
        return config_of(arm, seed, arguments.steps)

    for arm, seed, weights, record in train_in_turns(ARMS, arguments.seeds, configure, arguments.folder):
        if scenes is None:
            scenes = render_held_out(configure(arm, seed), arguments.scenes, 2)
        found = measure(VGGT.from_pretrained(weights), scenes)
        scores[arm][seed] = scores_of(found)
        results["runs"][f"{arm}, seed {seed}"] = {**record, **describe(found, UNTRAINED)}
        results["accuracy"] = compare_arms(scores, [("pixel_shuffle", "dpt")])
        # After every run: whoever stops the rest keeps these.
        write_result(
            "pixel_shuffle_head",
            describe_runs(arguments, "nano", FEWER, ARMS),
            results,
            folder=arguments.output,
            show=False,
        )
    print_table(results["accuracy"], COLUMNS)


def config_of(arm: str, seed: int, steps: int) -> TrainingConfig:
    return load_config("nano", [*FEWER, *ARMS[arm], f"seed={seed}", f"schedule.steps={steps}"])


# Accuracy


def scores_of(found: Evaluation) -> dict[str, float]:
    """Means over the scenes of the scores of heads that are trained."""
    names = [name for name in Evaluation._fields[:-1] if not name.startswith((*UNTRAINED, "nothing"))]
    return {name: getattr(found, name).nanmean().item() for name in names}


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


if __name__ == "__main__":
    main()
