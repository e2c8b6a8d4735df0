"""What the approximations for many views cost in accuracy and save in time: `long.py accuracy|time […]`.

    long.py accuracy [--views 16 24] [--scenes 64]      held-out rooms, all modes on the same ones
    long.py time [--views 24] [--preset nano]           all modes in turn, round after round, in one process

Results are `long_accuracy_VIEWS.json` and `long_time.json`: accuracy doesn't mind a busy machine, time does. They are
written after every row, and a run that was stopped goes on where it was if settings and code are the same. Modes:

- exact;
- `keys K/stride R`: patches of K views, on every R-th row and column, are keys;
- `local N`: the first N global blocks run within views;
- `windows SIZE/OVERLAP`: stitched by shared points.

Accuracy is given as mean, and as mean difference to exact on the same scenes, each with its standard error.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from common import RESULTS, describe_code, mean_and_error, synchronize, write_result
from geomtx import VGGT, Predictions, SceneBatch, VGGTConfig, reconstruct
from geomtx.data.synthetic.render import MOST_VIEWS
from geomtx.inference import GlobalApproximation, predict
from geomtx.metrics import evaluate_predictions
from geomtx.scene import WindowPlan
from geomtx.training.config_file import load_config
from geomtx.training.data import build_source
from nano import MAX_QUERIES, SCENES, render

HEADS = ("camera", "depth", "points")
MEASURES = ("auc_30", "auc_5", "rra_5", "rta_5", "depth_delta", "depth_abs_rel", "head_overall", "unprojected_overall")
TABLE = ("auc_30", "auc_5", "depth_delta", "unprojected_overall")


class Mode(NamedTuple):
    approximation: GlobalApproximation | None = None
    window: WindowPlan | None = None


def list_modes(views: int, num_global: int) -> dict[str, Mode]:
    """Those that mean something for so many views and global blocks; exact first."""
    quarter, half = views // 4, views // 2
    modes = {"exact": Mode()}
    for keys, stride, local in (
        (views, 2, 0), (half, 1, 0), (half, 2, 0), (quarter, 1, 0), (quarter, 2, 0),
        (views, 1, 1), (views, 1, 2), (half, 1, 1), (quarter, 2, 1),
    ):  # fmt: skip
        parts = [f"keys {keys}/stride {stride}"] if keys < views or stride > 1 else []
        parts += [f"local {local}"] if local else []
        if local <= num_global:
            modes[", ".join(parts)] = Mode(GlobalApproximation(keys, stride, local))
    if views > 8:
        modes["windows 8/2"] = Mode(None, WindowPlan(8, 2))
        modes["windows 8/4"] = Mode(None, WindowPlan(8, 4))
        modes["windows 8/4, keys 4/stride 1"] = Mode(GlobalApproximation(4), WindowPlan(8, 4))
    return modes


def main() -> None:
    arguments = parse_arguments()
    if arguments.command == "accuracy":
        measure_accuracy(arguments)
    else:
        measure_times(arguments)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, views in (("accuracy", [16, MOST_VIEWS]), ("time", [MOST_VIEWS])):
        command = commands.add_parser(name)
        command.add_argument("weights", nargs="?", default="nano", help="as for VGGT.from_pretrained")
        command.add_argument("--views", type=int, nargs="+", default=views)
        command.add_argument("--device", default="cpu")
        command.add_argument("--modes", nargs="+", metavar="TEXT", help="only exact and those whose name holds one")
        command.add_argument("--output", type=Path, default=RESULTS, help="folder of the result")
        if name == "accuracy":
            command.add_argument("--recipe", default="nano", help="configuration whose rooms and size are taken")
            command.add_argument("--scenes", type=int, default=64)
        else:
            command.add_argument("--preset", choices=("tiny", "nano", "small", "base", "1b"), help="random weights")
            command.add_argument("--size", type=int, nargs=2, default=(64, 64), metavar=("H", "W"))
            command.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
            command.add_argument("--repeats", type=int, default=7)
    return parser.parse_args()


def choose_modes(arguments: argparse.Namespace, views: int, model: VGGT) -> dict[str, Mode]:
    modes = list_modes(views, len(model.encoder.global_blocks))
    wanted = arguments.modes
    return {name: m for name, m in modes.items() if not wanted or name == "exact" or any(w in name for w in wanted)}


def resume(name: str, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a run with the same settings and code has left."""
    path = folder / f"{name}.json"
    if not path.is_file():
        return {}
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["settings"] != json.loads(json.dumps(settings)) or record["code"] != describe_code():
        raise SystemExit(f"{path} is of other settings or code: move it away, or choose another --output")
    return record["results"]


# Accuracy


def measure_accuracy(arguments: argparse.Namespace) -> None:
    config = load_config(arguments.recipe)
    model = VGGT.from_pretrained(arguments.weights, heads=HEADS, device=arguments.device, dtype=torch.float32)
    draw = build_source(config.data, patch_size=model.config.patch_size, held_out=True)
    settings = {
        "weights": str(arguments.weights) if arguments.weights == "nano" else Path(arguments.weights).name,
        "recipe": arguments.recipe,
        "image_hw": list(config.data.image_hw),
        "scenes": arguments.scenes,
        "held_out_scenes": [SCENES[0], SCENES[arguments.scenes - 1]],
        "max_queries": MAX_QUERIES,
        "device": torch.device(arguments.device).type,
        "numbers": "[mean, standard error over scenes]",
    }
    for views in arguments.views:
        file_name = f"long_accuracy_{views}"
        results = resume(file_name, settings, arguments.output)
        found: dict[str, Any] = results.setdefault(f"{views} views", {})
        modes = {name: mode for name, mode in choose_modes(arguments, views, model).items() if name not in found}
        scenes = render(draw, config.data, views, arguments.scenes, arguments.device) if modes else []
        for name, mode in modes.items():
            values = evaluate_mode(model, mode, scenes)
            exact = values if name == "exact" else found["exact"]["scenes"]
            found[name] = {
                "mean": {m: mean_and_error(values[m]) for m in MEASURES},
                "minus_exact": {m: mean_and_error(subtract(values[m], exact[m])) for m in MEASURES},
                "scenes": values,
            }
            write_result(file_name, settings, results, folder=arguments.output, show=False)
            row = found[name]
            cells = (f"{m} {row['mean'][m][0]:.4f} ({describe(row['minus_exact'][m])})" for m in TABLE)
            print(f"{views} views, {name:30}", *cells, flush=True)


@torch.inference_mode()
def evaluate_mode(model: VGGT, mode: Mode, batches: list[SceneBatch]) -> dict[str, list[float]]:
    """Every measure of every scene; a scene whose predictions are not finite fails loudly."""
    values: dict[str, list[float]] = {name: [] for name in MEASURES}
    for batch in batches:
        if mode.window is None:
            predictions = predict(model, batch.images, heads=HEADS, approximation=mode.approximation)
        else:
            scenes = [reconstruct(model, images, heads=HEADS, **mode._asdict()) for images in batch.images]
            predictions = stack([scene.predictions for scene in scenes], batch.images.device)
        batch = batch._replace(tracks=None)
        evaluation = evaluate_predictions(predictions, batch, max_queries=MAX_QUERIES)
        assert not evaluation.failed.any(), "predictions must be finite"
        for name in MEASURES:
            values[name] += [round(value, 6) for value in getattr(evaluation, name).tolist()]
    return values


def stack(scenes: list[Predictions], device: torch.device) -> Predictions:
    """A batch of single scenes."""
    parts: dict[str, Any] = {}
    for name in ("cameras", "depth", "points"):
        values = [getattr(scene, name) for scene in scenes]
        parts[name] = type(values[0])(*(torch.stack(each) for each in zip(*values, strict=True)))
    return tree_map_only(Tensor, lambda part: part.to(device), Predictions(**parts))


def subtract(values: list[float], others: list[float]) -> list[float]:
    return [value - other for value, other in zip(values, others, strict=True)]


def describe(difference: list[float]) -> str:
    mean, error = difference
    return f"{mean:+.4f}" if math.isnan(error) else f"{mean:+.4f} ± {error:.4f}"


# Time


def measure_times(arguments: argparse.Namespace) -> None:
    torch.manual_seed(0)
    if arguments.preset is None:
        model = VGGT.from_pretrained(arguments.weights, heads=HEADS, dtype=torch.float32)
    else:
        make = VGGTConfig if arguments.preset == "1b" else getattr(VGGTConfig, arguments.preset)
        model = VGGT(make(heads=HEADS))
    model = model.to(arguments.device, getattr(torch, arguments.dtype)).eval()
    settings = {
        "weights": "random" if arguments.preset else Path(arguments.weights).name,
        "preset": arguments.preset,
        "size": list(arguments.size),
        "device": torch.device(arguments.device).type,
        "dtype": arguments.dtype,
        "repeats": arguments.repeats,
        "threads": torch.get_num_threads(),
        "measured": "geomtx.reconstruct, all modes in turn in every round, after one round of warm-up",
    }
    results = resume("long_time", settings, arguments.output)
    for views in arguments.views:
        modes = choose_modes(arguments, views, model)
        if modes.keys() <= results.get(f"{views} views", {}).keys():
            continue
        # All of a row anew: a time is compared with that of exact in the same rounds.
        found = time_modes(model, torch.rand(views, 3, *arguments.size), modes, arguments.repeats)
        results[f"{views} views"] = found
        write_result("long_time", settings, results, folder=arguments.output, show=False)
        for name, row in found.items():
            print(f"{views} views, {name:30} {row['median_s']:9.4f} s, {row['over_exact']:.3f} of exact", flush=True)


def time_modes(model: VGGT, images: Tensor, modes: dict[str, Mode], repeats: int) -> dict[str, Any]:
    """Seconds of every mode, and its median over that of exact in the same rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in modes}
    for _ in range(1 + repeats):
        for name, mode in modes.items():
            synchronize()
            start = time.perf_counter()
            reconstruct(model, images, heads=HEADS, **mode._asdict())
            synchronize()
            seconds[name].append(round(time.perf_counter() - start, 5))
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    return {
        name: {
            "median_s": round(medians[name], 5),
            "over_exact": round(medians[name] / medians["exact"], 4),
            "seconds": times[1:],
        }
        for name, times in seconds.items()
    }


if __name__ == "__main__":
    main()
