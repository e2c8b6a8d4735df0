"""A model of pairs against alternating attention, by the same loss: `pair_training.py OUT [--steps N] …`.

Both arms are the recipe "dust3r_nano" with fewer steps: the same rooms, loss of points, optimiser, steps and initial
seeds, three of each; a DUSt3R, and a VGGT of nano size with its head of points, of about as many parameters. Both are
measured on the same rooms that none was trained on, as is the best constant guess, fitted to others. Intervals are of
95 % over the seeds, by Student's t. A run that was stopped goes on where it was, and one that is done is only measured
again.

Time and memory are those of a training step, in one process, in turns: round after round each arm takes one, every
other round in the opposite order. Time is that of the processor, which others on the machine change less.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ablations import SMALLER, render_held_out
from common import mean_and_error, write_result
from geomtx import VGGT, DenseMap, DUSt3R, Predictions, VGGTConfig
from geomtx.data.synthetic.render import HELD_OUT_SCENES
from geomtx.inference import PairPrediction
from geomtx.inference.pair_maps import PairedView
from geomtx.metrics import evaluate_predictions, fit_constant_guess
from geomtx.training.config import ModelSection, TrainingConfig
from geomtx.training.config_file import load_config
from geomtx.training.tasks.pairs import DUSt3RTask, PairBatch, PairLoss
from geomtx.types import SceneBatch
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

# With patches of 16 pixels a step of either arm takes the same time.
FEWER = (*SMALLER, "data.images=16", "checkpoint.every=100", "model.numbers.patch_size=16")
ARMS = {
    "pairs": (),
    "alternating": ("model.kind=vggt", "model.preset=nano", "model.numbers={heads: [points], patch_size: 16}"),
}
GUESS = "constant guess"
COLUMNS = ("point_error", "point_error_second", "head_overall")


@dataclasses.dataclass(frozen=True)
class AlternatingTask(DUSt3RTask):
    """A VGGT's points of two views, trained and scored as DUSt3R's."""

    def build_model(self, section: ModelSection) -> Any:
        return VGGT(section.model_config())

    def rebuild_model(self, numbers: dict[str, Any]) -> Any:
        return VGGT(VGGTConfig.from_dict(numbers))

    def predict(self, model: nn.Module, batch: PairBatch) -> PairPrediction:
        return as_pair(model(batch.images).points)


TASKS = {"pairs": DUSt3RTask(), "alternating": AlternatingTask()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the runs")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--scenes", type=int, default=256, help="to measure on, and to fit the constant guess to")
    parser.add_argument("--rounds", type=int, default=20, help="of the measurement of time")
    parser.add_argument("--output", type=Path, help="folder of the result")
    arguments = parser.parse_args()

    def configure(arm: str, seed: int) -> TrainingConfig:
        return config_of(arm, seed, arguments.steps)

    results: dict[str, Any] = {"cost": compare_costs(arguments.rounds)}
    config = configure("pairs", 0)
    scenes = render_held_out(config, arguments.scenes, 2)
    guess = fit_constant_guess(render_held_out(config, arguments.scenes, 2, among=HELD_OUT_SCENES[GUESS]))
    guessed = average([score_points(guess.predict(batch).points, batch) for batch in scenes])
    results["constant guess"] = {name: value[0] for name, value in guessed.items()}
    results["runs"] = {}
    scores: dict[str, dict[int, dict[str, float]]] = {arm: {} for arm in (*ARMS, GUESS)}
    for arm, seed, weights, record in train_in_turns(ARMS, arguments.seeds, configure, arguments.folder, TASKS):
        model = (VGGT if arm == "alternating" else DUSt3R).from_pretrained(weights)
        found = average(measure(TASKS[arm], model, scenes))
        results["runs"][f"{arm}, seed {seed}"] = {**record, **found}
        scores[arm][seed] = {name: value[0] for name, value in found.items()}
        scores[GUESS][seed] = results["constant guess"]
        differences = [("pairs", "alternating"), ("pairs", GUESS), ("alternating", GUESS)]
        results["accuracy"] = compare_arms(scores, differences)
        # After every run: whoever stops the rest keeps these.
        write_result(
            "pair_training",
            describe_runs(arguments, "dust3r_nano", FEWER, ARMS),
            results,
            folder=arguments.output,
            show=False,
        )
    print_table(results["accuracy"], COLUMNS)


def config_of(arm: str, seed: int, steps: int) -> TrainingConfig:
    return load_config("dust3r_nano", [*FEWER, *ARMS[arm], f"seed={seed}", f"schedule.steps={steps}"])


# Accuracy


@torch.inference_mode()
def measure(task: DUSt3RTask, model: nn.Module, scenes: list[SceneBatch]) -> list[dict[str, torch.Tensor]]:
    """Scores of every scene, batch by batch."""
    model.eval()
    found = []
    for batch in scenes:
        pair = task.predict(model, task.prepare(batch))
        maps = zip(pair.first.points, pair.second.points, strict=True)
        found.append(score_points(DenseMap(*(torch.stack(both, dim=1) for both in maps)), batch))
    return found


def score_points(points: DenseMap | None, batch: SceneBatch) -> dict[str, torch.Tensor]:
    """Scores of points (B, 2, H, W, 3) in the first camera, whoever predicted them, (B,) each."""
    assert points is not None
    task = TASKS["pairs"]
    scores = task.score(as_pair(points), task.prepare(batch))
    clouds = evaluate_predictions(Predictions(points=points), batch, max_queries=1000)
    names = ("head_accuracy", "head_completeness", "head_overall")
    return scores | {name: getattr(clouds, name) for name in names}


def average(found: list[dict[str, torch.Tensor]]) -> dict[str, list[float]]:
    """Mean and standard error over the scenes."""
    return {name: mean_and_error(torch.cat([part[name] for part in found]).tolist()) for name in found[0]}


def as_pair(points: DenseMap) -> PairPrediction:
    """Points of two views, as a model of pairs gives them."""
    views = ((value, confidence) for value, confidence in zip(*(part.unbind(1) for part in points), strict=True))
    return PairPrediction(*(PairedView(DenseMap(*view)) for view in views))


# Time and memory


def compare_costs(rounds: int) -> dict[str, Any]:
    """Processor seconds and bytes of a training step of each arm on the same batch, and numbers of parameters."""
    config = config_of("pairs", 0, 1)
    batch = render_held_out(config, config.data.images // 2, 2)[0]
    models = {arm: TASKS[arm].build_model(config_of(arm, 0, 1).model).train() for arm in ARMS}
    calls = {arm: (lambda arm=arm, model=model: step(TASKS[arm], model, batch)) for arm, model in models.items()}
    seconds = take_turns(calls, rounds, clock=time.process_time)
    found = {
        "parameters": {arm: sum(each.numel() for each in model.parameters()) for arm, model in models.items()},
        "median_s": {arm: round(statistics.median(times), 5) for arm, times in seconds.items()},
        "time_ratio": interval([b / a for a, b in zip(seconds["alternating"], seconds["pairs"], strict=True)]),
        "peak_mib": {arm: round(peak_bytes(call) / 2**20, 2) for arm, call in calls.items()},
    }
    print(found, flush=True)
    return found


def step(task: DUSt3RTask, model: nn.Module, batch: SceneBatch) -> None:
    """A forward and a backward pass, without the optimiser's step."""
    prepared = task.prepare(batch)
    loss = PairLoss(task)(task.predict(model, prepared), prepared)
    loss.total.backward()
    model.zero_grad(set_to_none=True)


if __name__ == "__main__":
    main()
