"""Runs of several arms from the same seeds, in turns, and the intervals of their differences."""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ablations import SCENES, train
from geomtx.training.config import TrainingConfig
from memory import LiveBytes

SEEDS = (0, 1, 2)
# Half of the width of a 95 % interval in standard errors, by number of values less one (Student's t).
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}

Scores = Mapping[str, float]


def train_in_turns(
    arms: Collection[str],
    seeds: Sequence[int],
    config_of: Callable[[str, int], TrainingConfig],
    folder: Path,
    tasks: Mapping[str, Any] | None = None,
) -> Iterator[tuple[str, int, Path, dict[str, Any]]]:
    """Train every arm from every seed; yields arm, seed, weights and what is to be said of the run.

    Every other seed has the arms in the opposite order. A run that was stopped goes on where it was, and one that is
    done is not trained again.

    Args:
        arms: Names of the arms.
        seeds: Seeds.
        config_of: Function from an arm and a seed to the configuration of the run.
        folder: Folder of the runs.
        tasks: Name of an arm → task in place of its configuration's.
    """
    for turn, seed in enumerate(seeds):
        for arm in list(arms)[:: -1 if turn % 2 else 1]:
            weights, record = train(config_of(arm, seed), folder / f"{arm}_{seed}", task=(tasks or {}).get(arm))
            yield arm, seed, weights, record


def compare_arms(
    of: Mapping[str, Mapping[int, Scores]], differences: Sequence[tuple[str, str]]
) -> dict[str, dict[str, list[float]]]:
    """Mean over the seeds of each arm, and of the differences of seeds that both of two arms have, with intervals.

    Args:
        of: Name of an arm → seed → scores by name.
        differences: Pairs of arms, the second of which is subtracted from the first.
    """
    columns: dict[str, Mapping[int, Scores]] = dict(of)
    for one, other in differences:
        both = sorted(of[one].keys() & of[other].keys())
        columns[f"{one} - {other}"] = {
            seed: {name: value - of[other][seed][name] for name, value in of[one][seed].items()} for seed in both
        }
    return {
        arm: {name: interval([run[name] for run in runs.values()]) for name in next(iter(runs.values()))}
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


def print_table(rows: Mapping[str, Mapping[str, Sequence[float]]], columns: Sequence[str]) -> None:
    """Print some scores of `compare_arms`."""
    print(f"{'':22}" + "".join(f"{name:>24}" for name in columns))
    for arm, numbers in rows.items():
        cells = (f"{numbers[name][0]:.4f} ± {numbers[name][1]:.4f}" for name in columns)
        print(f"{arm:22}" + "".join(f"{cell:>24}" for cell in cells))


def take_turns(
    calls: dict[str, Callable[[], None]], rounds: int, *, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each call, round after round, by a clock; one round before the first is not counted."""
    seconds: dict[str, list[float]] = {arm: [] for arm in calls}
    for turn in range(rounds + 1):
        for arm in list(calls)[:: -1 if turn % 2 else 1]:
            start = clock()
            calls[arm]()
            if turn:
                seconds[arm].append(clock() - start)
    return seconds


def peak_bytes(call: Callable[[], None]) -> int:
    """Most bytes that tensors of a call hold at a time; what is there before it isn't counted."""
    with LiveBytes() as live:
        call()
    return live.peak["cpu"]


def describe_runs(
    arguments: argparse.Namespace, recipe: str, overrides: Sequence[str], arms: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Return what a result says of how its runs were made.

    Args:
        arguments: Arguments with `steps`, `seeds` and `scenes`.
        recipe: Name of the configuration that all arms have in common.
        overrides: Changes of it for all arms.
        arms: Further changes, by the name of the arm.
    """
    return {
        "recipe": recipe,
        "overrides": list(overrides),
        "arms": {arm: list(changes) for arm, changes in arms.items()},
        "steps": arguments.steps,
        "seeds": arguments.seeds,
        "threads": torch.get_num_threads(),
        "held_out_scenes": [SCENES[0], SCENES[arguments.scenes - 1]],
        "numbers": "runs: [mean, standard error over scenes]; accuracy: [mean, half of the 95 % interval over seeds]",
    }
