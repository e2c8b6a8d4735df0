"""The paper's ablations in small: which attention, which losses. `benchmarks/ablations.py OUT [--steps N] [ARM …]`.

Every arm is the nano recipe with fewer and smaller batches of two views, with the same steps, scenes, initial seeds and
number of parameters; a loss that is off leaves its head where it is, untrained, as the paper's does. All are measured
on the same scenes that none was trained on. A run that was stopped goes on where it was, and one that is done is only
measured again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from common import mean_and_error, write_result
from geomtx import VGGT
from geomtx.data.synthetic.render import HELD_OUT_SCENES, held_out_seed
from geomtx.geometry import normalize_scene
from geomtx.metrics import Evaluation, evaluate_predictions
from geomtx.training.config import TrainingConfig
from geomtx.training.config_file import load_config
from geomtx.training.data import build_source
from geomtx.training.step import predict
from geomtx.training.trainer import Trainer

# Smaller pictures (32x40) and models (64) had after 900 steps not found out that views can be matched: all arms alike.
SMALLER = (
    "data.images=32",
    "data.views={2: 1}",
    "data.workers=0",
    "validation.every=0",
    "ema=0.99",
    "checkpoint.every=500",
    "log={every: 50, tensorboard: false}",
)
ARMS = {
    "alternating": (),
    "global_only": ("model.numbers.scopes=[global, global]",),
    "cross_attention": ("model.numbers.scopes=[frame, cross]",),
    "without_camera_loss": ("loss.terms.camera=null",),
    "without_depth_loss": ("loss.terms.depth=null",),
    "without_track_loss": ("loss.terms.tracks=null",),
    "without_bearing": ("loss.terms.points.bearing=0",),
    "alternating_other_seed": ("seed=1",),
    "alternating_third_seed": ("seed=2",),
    "global_only_other_seed": ("model.numbers.scopes=[global, global]", "seed=1"),
}
# Of heads that an arm doesn't train.
UNTRAINED = {
    "without_camera_loss": ("auc", "rra", "rta", "ate", "unprojected"),
    "without_depth_loss": ("depth", "unprojected"),
    "without_track_loss": ("track",),
}
SCENES = HELD_OUT_SCENES["ablations"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of the runs")
    parser.add_argument("arms", nargs="*", default=list(ARMS), help=f"of {', '.join(ARMS)}")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--scenes", type=int, default=256, help="to measure on")
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--output", type=Path, help="folder of the result")
    arguments = parser.parse_args()
    for arm in arguments.arms:
        if arm not in ARMS:
            parser.error(f"arm must be one of {', '.join(ARMS)}, got {arm!r}")
    found: dict[str, Any] = {}
    evaluations: dict[str, Evaluation] = {}
    scenes = None
    for arm in arguments.arms:
        config = load_config("nano", [*SMALLER, *ARMS[arm], f"schedule.steps={arguments.steps}"])
        if scenes is None:
            scenes = render_held_out(config, arguments.scenes, arguments.views)
        weights, record = train(config, arguments.folder / arm)
        evaluations[arm] = measure(VGGT.from_pretrained(weights), scenes)
        found[arm] = {**record, **describe(evaluations[arm], UNTRAINED.get(arm, ()))}
        reference = evaluations.get("alternating")
        if reference is not None and arm != "alternating":
            found[arm]["difference"] = compare(evaluations[arm], reference, UNTRAINED.get(arm, ()))
        # After every arm: whoever stops the rest keeps these.
        write_result("ablations", settings(arguments), found, folder=arguments.output, show=False)
    print_table(found)


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "recipe": "nano",
        "overrides": list(SMALLER),
        "arms": {arm: list(ARMS[arm]) for arm in arguments.arms},
        "steps": arguments.steps,
        "threads": torch.get_num_threads(),
        "held_out_scenes": [SCENES[0], SCENES[arguments.scenes - 1]],
        "views": arguments.views,
        "numbers": "[mean, standard error over scenes]; difference: to the arm alternating, scene by scene",
    }


def train(config: TrainingConfig, folder: Path, *, task: Any = None) -> tuple[Path, dict[str, Any]]:
    """The weights, and what is to be said of the run; a task takes the place of the configuration's."""
    start = time.perf_counter()
    trainer = Trainer(config, folder, resume=(folder / "checkpoint.pt").exists(), progress=False, task=task)
    first = trainer.step
    weights = trainer.train() if first < config.schedule.steps else trainer.folder.weights
    record = {
        "parameters": sum(parameter.numel() for parameter in trainer.bare_model.parameters()),
        "skipped_steps": trainer.num_skipped,
    }
    if first == 0:
        record["training_s"] = round(time.perf_counter() - start, 1)
    return weights, record


def render_held_out(config: TrainingConfig, count: int, num_views: int, *, among: range = SCENES) -> list[Any]:
    draw = build_source(config.data, patch_size=1, held_out=True)  # rendered at the size that is asked for
    seeds = [held_out_seed(index) for index in among[:count]]
    parts = [seeds[i : i + 32] for i in range(0, count, 32)]
    return [normalize_scene(draw(part, num_views, config.data.image_hw))[0] for part in parts]


@torch.inference_mode()
def measure(model: VGGT, scenes: list[Any]) -> Evaluation:
    model.eval()
    parts = [evaluate_predictions(predict(model, batch), batch, max_queries=1000) for batch in scenes]
    return Evaluation(*(torch.cat(column) for column in zip(*parts, strict=True)))


def describe(evaluation: Evaluation, untrained: tuple[str, ...]) -> dict[str, Any]:
    return {
        name: mean_and_error(getattr(evaluation, name).tolist())
        for name in Evaluation._fields[:-1]
        if not name.startswith(untrained or ("nothing",))
    } | {"failed": int(evaluation.failed.sum())}


def compare(evaluation: Evaluation, reference: Evaluation, untrained: tuple[str, ...]) -> dict[str, Any]:
    return {
        name: mean_and_error((getattr(evaluation, name) - getattr(reference, name)).tolist())
        for name in Evaluation._fields[:-1]
        if not name.startswith(untrained or ("nothing",))
    }


def print_table(found: dict[str, Any]) -> None:
    columns = ("head_overall", "unprojected_overall", "auc_30", "depth_abs_rel", "track_delta")
    print(f"{'':24}" + "".join(f"{name:>24}" for name in columns))
    for arm, numbers in found.items():
        cells = (numbers.get(name) for name in columns)
        print(f"{arm:24}" + "".join(f"{'' if c is None else f'{c[0]:.4f} ± {c[1]:.4f}':>24}" for c in cells))


if __name__ == "__main__":
    main()
