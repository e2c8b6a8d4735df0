"""Pictures from new places, by a small model in four regimes: `benchmarks/nvs.py train REGIME`, then `… evaluate`.

Rooms of nano's style, 48x64 pixels; four pictures go in, two come out (recipe `nvs_nano`). All regimes have the same
steps, scenes and new parts:

- frozen: nano as it is; only the new parts learn.
- all: nano learns too, at a lower rate, with its original losses on half of the scenes (rehearsal).
- lora: adapters in nano's encoder learn in place of its weights, with rehearsal too.
- scratch: the same model from random weights, at the full rate. Nothing of the original tasks is in it.

`train` writes RUNS/REGIME and goes on where it was stopped, `evaluate` reads RUNS/*/weights. Held-out scenes, the
first four views in, the other two out. Two opponents that learn nothing: the input picture of the nearest camera, and
the mean colour of the input pictures. The original tasks are measured on scenes of four views, before (nano) and after.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from common import mean_and_error, write_result
from geomtx import VGGT, SceneBatch, invert_rigid, normalize_scene
from geomtx.data.synthetic.render import HELD_OUT_SCENES, held_out_seed, render_scenes
from geomtx.data.synthetic.rooms import RoomStyle
from geomtx.metrics import psnr, ssim
from geomtx.models.nvs import VGGTForNVS
from geomtx.training.config import TrainingConfig
from geomtx.training.config_file import load_config
from geomtx.training.tasks.nvs import NvsTask
from geomtx.training.trainer import Trainer
from original_tasks import compare_tasks, measure_tasks

SCENES = HELD_OUT_SCENES["novel views"]
NUM_INPUTS, NUM_TARGETS = 4, 2
TASK_VIEWS, NUM_TRACKS = 4, 8
BATCH = 8
REGIMES: dict[str, tuple[str, ...]] = {
    "frozen": ("freeze=[vggt]", "task.rehearsal=null", "optimiser.groups={}", "optimiser.clip={'*': 1.0}"),
    "all": (),
    "lora": (
        "freeze=[vggt]",
        "lora={patterns: ['vggt.encoder.*.qkv', 'vggt.encoder.*.out', 'vggt.encoder.*.mlp.*'], rank: 8, alpha: 16}",
        "optimiser.groups={'vggt.*': {lr: 0.6}}",
        "task.rehearsal.weight=0.05",
    ),
    "scratch": (
        "model.weights=null",
        "model.preset=nano",
        "task.rehearsal=null",
        "optimiser.groups={'vggt.*': {lr: 0.3}}",
    ),
}
SCALE = 3  # of the pictures in the grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train")
    train.add_argument("regime", choices=REGIMES)
    train.add_argument("--steps", type=int, default=3000)
    train.add_argument("--minutes", type=float, help="stop, with a checkpoint, after so long")
    train.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another number of the recipe")
    train.add_argument("--gpu", action="store_true", help="train on the GPU, if there is one; the CPU otherwise")
    evaluate = commands.add_parser("evaluate")
    evaluate.add_argument("--scenes", type=int, default=128)
    evaluate.add_argument("--rows", type=int, default=6, help="of the picture grid, a scene each")
    evaluate.add_argument("--output", type=Path, help="folder of the result and the picture grid")
    arguments = parser.parse_args()
    if arguments.command == "train":
        train_regime(arguments)
    else:
        evaluate_regimes(arguments)


def load_regime(regime: str, steps: int, changes: Iterable[str] = ()) -> TrainingConfig:
    return load_config("nvs_nano", (*REGIMES[regime], f"schedule.steps={steps}", *changes))


def train_regime(arguments: argparse.Namespace) -> None:
    config = load_regime(arguments.regime, arguments.steps, arguments.set)
    folder = arguments.runs / arguments.regime
    resume = (folder / "checkpoint.pt").is_file()
    trainer = Trainer(config, folder, resume=resume, cpu=not arguments.gpu)
    timer = None
    if arguments.minutes is not None:
        timer = threading.Timer(60 * arguments.minutes, setattr, (trainer, "stop_requested", True))
        timer.daemon = True
        timer.start()
    first, start = trainer.step, time.perf_counter()
    trainer.train()
    if timer is not None:
        timer.cancel()
    seconds = (time.perf_counter() - start) / max(1, trainer.step - first)
    print(f"{arguments.regime}: {trainer.step} of {config.schedule.steps} steps, {seconds:.2f} s each")


def evaluate_regimes(arguments: argparse.Namespace) -> None:
    task = NvsTask(**{**load_regime("all", 1).task, "rehearsal": None})
    scenes = list(render(arguments.scenes, NUM_INPUTS + NUM_TARGETS))  # in their order: the first views go in
    views = list(render(arguments.scenes, TASK_VIEWS))
    pictures: dict[str, list[Tensor]] = {"true": [batch.images[:, NUM_INPUTS:] for batch in scenes]}
    pictures["nearest"] = [nearest_pictures(batch) for batch in scenes]
    pictures["mean_color"] = [mean_colors(batch) for batch in scenes]
    before = measure_tasks(VGGT.from_pretrained("nano"), views)
    results: dict[str, Any] = {"nano": {"tasks": compare_tasks(before, before)}}
    steps = {}
    for regime in REGIMES:
        folder = arguments.runs / regime
        if not (folder / "weights").is_dir():
            print(f"no weights in {folder}: {regime} is left out")
            continue
        model = VGGTForNVS.from_pretrained(folder / "weights", dtype=torch.float32)
        pictures[regime] = [make_pictures(model, task, batch) for batch in scenes]
        results[regime] = {"tasks": compare_tasks(measure_tasks(model.vggt, views), before)}
        steps[regime] = torch.load(folder / "checkpoint.pt", weights_only=True)["step"]
    for name, made in pictures.items():
        if name != "true":
            results.setdefault(name, {})["pictures"] = measure_pictures(made, pictures["true"])
    settings = {
        "recipe": "nvs_nano",
        "steps": steps,
        "regimes": {name: list(changes) for name, changes in REGIMES.items()},
        "image_hw": list(scenes[0].images.shape[-2:]),
        "inputs": NUM_INPUTS,
        "targets": NUM_TARGETS,
        "unit": task.unit,
        "scenes": arguments.scenes,
        "held_out_scenes": [SCENES[0], SCENES[arguments.scenes - 1]],
        "task_views": TASK_VIEWS,
        "numbers": "[mean, standard error over scenes]; pictures: means over a scene's targets first",
    }
    path = write_result("nvs", settings, results, folder=arguments.output, show=False)
    print_tables(results)
    inputs = torch.cat([batch.images[:, :NUM_INPUTS] for batch in scenes])
    save_grid(path.with_suffix(".png"), inputs, {k: torch.cat(v) for k, v in pictures.items()}, arguments.rows)


def render(count: int, views: int) -> Iterator[SceneBatch]:
    seeds = [held_out_seed(index) for index in SCENES[:count]]
    image_hw = load_regime("all", 1).data.image_hw
    for start in range(0, count, BATCH):
        part = seeds[start : start + BATCH]
        yield normalize_scene(render_scenes(part, views, image_hw, num_tracks=NUM_TRACKS, style=RoomStyle.nano()))[0]


@torch.inference_mode()
def make_pictures(model: VGGTForNVS, task: NvsTask, batch: SceneBatch) -> Tensor:
    return task.predict(model, batch).images


def nearest_pictures(batch: SceneBatch) -> Tensor:
    """Of every target, the input picture whose camera's centre is nearest."""
    assert batch.cameras is not None
    centers = invert_rigid(batch.cameras.cam_from_world)[..., 3]
    distance = (centers[:, NUM_INPUTS:, None] - centers[:, None, :NUM_INPUTS]).norm(dim=-1)
    rows = torch.arange(len(centers))[:, None]
    return batch.images[rows, distance.argmin(dim=-1)]


def mean_colors(batch: SceneBatch) -> Tensor:
    mean = batch.images[:, :NUM_INPUTS].mean((1, 3, 4))[:, None, :, None, None]
    return mean.expand_as(batch.images[:, NUM_INPUTS:])


def measure_pictures(made: Iterable[Tensor], true: Iterable[Tensor]) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = {"psnr": [], "ssim": []}
    for a, b in zip(made, true, strict=True):
        for name, measure in (("psnr", psnr), ("ssim", ssim)):
            columns[name] += measure(a, b).mean(dim=1).tolist()
    return {name: mean_and_error(values) for name, values in columns.items()}


def print_tables(results: dict[str, Any]) -> None:
    pictures = {name: found["pictures"] for name, found in results.items() if "pictures" in found}
    tasks = {name: found["tasks"]["minus_before"] for name, found in results.items() if "tasks" in found}
    for part, rows in (("pictures", pictures), ("tasks, change", tasks)):
        columns = list(next(iter(rows.values())))
        print(f"\n{part:14}" + "".join(f"{name:>18}" for name in columns))
        for name, numbers in rows.items():
            print(f"{name:14}" + "".join(f"{numbers[c][0]:>9.3f} ± {numbers[c][1]:.3f} " for c in columns))


def save_grid(path: Path, inputs: Tensor, pictures: dict[str, Tensor], rows: int) -> None:
    """A row for every scene's first target: inputs, truth, what was made; labelled, pixels enlarged as they are."""
    columns: dict[str, Tensor] = {f"input {i + 1}": inputs[:rows, i] for i in range(inputs.shape[1])}
    columns |= {name.replace("_", " "): made[:rows, 0] for name, made in pictures.items()}
    height, width = (SCALE * side for side in inputs.shape[-2:])
    gap, head = 4, 16
    canvas = Image.new("RGB", (len(columns) * (width + gap), head + rows * (height + gap)), "white")
    draw = ImageDraw.Draw(canvas)
    for column, (name, images) in enumerate(columns.items()):
        draw.text((column * (width + gap) + 2, 2), name, fill="black")
        for row, image in enumerate(images):
            pixels = (image.movedim(0, -1).clamp(0, 1) * 255).round().byte().numpy()
            tile = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
            canvas.paste(tile, (column * (width + gap), head + row * (height + gap)))
    canvas.save(path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
