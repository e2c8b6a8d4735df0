"""Nano on rooms that it never saw, against opponents: `benchmarks/nano.py [WEIGHTS] [--quick] [--views 2 4 8] …`.

Rooms like those it was trained on (recipe) and harder ones (default: more things, wider baselines, shadows), with seeds
that training never draws. All are scored by `geomtx.metrics`:

- model: WEIGHTS.
- constant: the best guess that has seen no picture, `geomtx.metrics.fit_constant_guess`, fitted to other rooms of the
  same kind. Of its two directions of cameras, each measure gets the one that is better on the rooms it was fitted to.
- opencv: SIFT, essential matrix, per pair of views; it gets the TRUE intrinsics. As it lives on pixels, once on the
  model's pictures and once on larger ones of the same rooms. A pair that fails counts as no rotation and 90 degrees.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from common import mean_and_error, write_result
from geomtx import VGGT, SceneBatch, normalize_scene
from geomtx.data.synthetic.render import HELD_OUT_SCENES, held_out_seed
from geomtx.metrics import (
    ConstantGuess,
    Evaluation,
    evaluate_predictions,
    fit_constant_guess,
    pose_auc,
    pose_recall,
    summarize,
)
from geomtx.training.config import DataSection
from geomtx.training.config_file import load_config
from geomtx.training.data import DrawScenes, build_source
from geomtx.training.step import predict
from nano_baselines import opencv_two_view_poses, score_pairs, score_sparse_depth

SCENES, FITTED_SCENES = HELD_OUT_SCENES["nano"], HELD_OUT_SCENES["constant guess"]
FIT_VIEWS = 4
BATCH = 8
MAX_QUERIES = 2000  # points of a cloud that are looked from; to all others
ENLARGED = 4  # times the model's pictures, for OpenCV
POSE_MEASURES = ("ate", *(f"{name}_{t}" for name in ("auc", "rra", "rta") for t in (5, 15, 30)))
TABLE = ("auc_5", "auc_30", "rra_15", "rta_15", "ate", "depth_abs_rel", "depth_delta", "head_overall",
         "unprojected_overall", "track_jaccard", "track_delta", "track_visibility")  # fmt: skip


class FittedGuess(NamedTuple):
    guess: ConstantGuess
    other: ConstantGuess  # with other directions of the cameras
    better_with_other: tuple[str, ...]  # measures for which that scores better on the rooms it was fitted to


def main() -> None:
    arguments = parse_arguments()
    config = load_config(arguments.recipe)
    model = VGGT.from_pretrained(arguments.weights, device=arguments.device, dtype=torch.float32).eval()
    results: dict[str, Any] = {}
    for kind, section in {"recipe": config.data, "default": dataclasses.replace(config.data, style={})}.items():
        draw = build_source(section, patch_size=model.config.patch_size, held_out=True)
        fitted = fit_guess(draw, section, arguments.fitted)
        for views in arguments.views:
            scenes = render(draw, section, views, arguments.scenes, arguments.device)
            found = {
                "model": evaluate_model(model, scenes),
                "constant": evaluate_guess(fitted, scenes),
            }
            if importlib.util.find_spec("cv2"):
                for name, enlarged in (("opencv", 1), ("opencv_enlarged", ENLARGED)):
                    found[name] = evaluate_opencv(draw, section, views, arguments.scenes, enlarged)
            results.setdefault(kind, {})[f"{views} views"] = found
            print_table(f"{kind}, {views} views", found)
            if arguments.output is not None or not arguments.quick:
                # After every row: whoever stops the rest keeps these.
                write_result(
                    "nano", settings(arguments, config.data, model), results, folder=arguments.output, show=False
                )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="?", default="nano", help="as for VGGT.from_pretrained")
    parser.add_argument("--recipe", default="nano", help="configuration whose rooms and size of pictures are taken")
    parser.add_argument("--views", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--scenes", type=int, default=64, help="of each kind and number of views")
    parser.add_argument("--fitted", type=int, default=256, help="scenes that the constant guess is fitted to")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="8 scenes, 2 and 4 views; writes only with --output")
    parser.add_argument("--output", type=Path, help="folder of the result")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.scenes, arguments.fitted, arguments.views = 8, 32, [2, 4]
    return arguments


def settings(arguments: argparse.Namespace, section: DataSection, model: VGGT) -> dict[str, Any]:
    return {
        "weights": str(arguments.weights) if arguments.weights == "nano" else Path(arguments.weights).name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "recipe": arguments.recipe,
        "style": section.style,
        "image_hw": list(section.image_hw),
        "views": arguments.views,
        "scenes": arguments.scenes,
        "held_out_scenes": [SCENES[0], SCENES[arguments.scenes - 1]],
        "fitted_scenes": [FITTED_SCENES[0], FITTED_SCENES[arguments.fitted - 1]],
        "fitted_views": FIT_VIEWS,
        "max_queries": MAX_QUERIES,
        "opencv_enlarged": ENLARGED,
        "device": arguments.device,
        "numbers": "[mean, standard error over scenes]",
    }


def render(draw: DrawScenes, section: DataSection, views: int, count: int, device: str) -> list[SceneBatch]:
    seeds = [held_out_seed(index) for index in SCENES[:count]]
    parts = [seeds[i : i + BATCH] for i in range(0, count, BATCH)]
    return [normalize_scene(draw(part, views, section.image_hw, device=torch.device(device)))[0] for part in parts]


def fit_guess(draw: DrawScenes, section: DataSection, count: int) -> FittedGuess:
    seeds = [held_out_seed(index) for index in FITTED_SCENES[:count]]
    parts = [seeds[i : i + BATCH] for i in range(0, count, BATCH)]
    scenes = [draw(part, FIT_VIEWS, section.image_hw) for part in parts]
    guess = fit_constant_guess(scenes)
    only_cameras = [SceneBatch(batch.images, batch.cameras) for batch in scenes]
    turned = fit_constant_guess(only_cameras, direction="rta").translations
    other = dataclasses.replace(guess, translations=turned)
    scores = [summarize(evaluate_predictions(g.predict(b), b) for b in only_cameras) for g in (guess, other)]
    better = [name for name in POSE_MEASURES if is_better(name, scores[1][name], scores[0][name])]
    return FittedGuess(guess, other, tuple(better))


def is_better(name: str, value: float, other: float) -> bool:
    return value < other if name == "ate" else value > other


@torch.inference_mode()
def evaluate_model(model: VGGT, scenes: Iterable[SceneBatch]) -> dict[str, Any]:
    return describe([evaluate_predictions(predict(model, b), b, max_queries=MAX_QUERIES) for b in scenes])


def evaluate_guess(fitted: FittedGuess, scenes: Sequence[SceneBatch]) -> dict[str, Any]:
    found = describe([evaluate_predictions(fitted.guess.predict(b), b, max_queries=MAX_QUERIES) for b in scenes])
    poses = [b._replace(depth=None, points=None, tracks=None) for b in scenes]
    other = describe([evaluate_predictions(fitted.other.predict(b), b) for b in poses])
    return found | {name: other[name] for name in fitted.better_with_other if name in other}


def evaluate_opencv(draw: DrawScenes, section: DataSection, views: int, count: int, enlarged: int) -> dict[str, Any]:
    """Pose measures, of all pairs and of depth where points were triangulated, in view 0 alone."""
    image_hw = (section.image_hw[0] * enlarged, section.image_hw[1] * enlarged)
    columns: dict[str, list[float]] = {}
    for index in SCENES[:count]:
        scene = draw([held_out_seed(index)], views, image_hw)
        assert scene.cameras is not None
        assert scene.depth is not None
        pictures = (scene.images[0].movedim(1, -1) * 255).round().byte().numpy()
        poses = opencv_two_view_poses(pictures, scene.cameras.intrinsics[0].numpy())
        errors = score_pairs(poses, scene.cameras.cam_from_world[0])
        depth = score_sparse_depth(poses, scene.depth[0, 0])
        row = {"failed_pairs": float(poses.failed.mean())}
        for name, values in (
            ("auc", pose_auc(errors.larger_deg(), (5, 15, 30))),
            ("rra", pose_recall(errors.rotation_deg, (5, 15, 30))),
            ("rta", pose_recall(errors.translation_deg, (5, 15, 30))),
        ):
            row |= {f"{name}_{t}": float(value) for t, value in zip((5, 15, 30), values, strict=True)}
        row |= {"sparse_depth_abs_rel": float(depth.abs_rel), "sparse_depth_delta": float(depth.delta_1)}
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return {name: mean_and_error(values) for name, values in columns.items()}


def describe(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """[mean, standard error] of what was measured; `failed` says how many scenes had predictions that aren't finite."""
    columns = {name: torch.cat([getattr(e, name) for e in evaluations]).tolist() for name in Evaluation._fields}
    failed = int(sum(columns.pop("failed")))
    numbers = {name: mean_and_error(values) for name, values in columns.items()}
    return {name: pair for name, pair in numbers.items() if not math.isnan(pair[0])} | {"failed": failed}


def print_table(title: str, found: dict[str, Any]) -> None:
    print(f"\n{title:22}" + "".join(f"{method:>18}" for method in found))
    for name in TABLE:
        cells = (numbers.get(name) for numbers in found.values())
        print(f"{name:22}" + "".join(f"{'' if c is None else f'{c[0]:.3f} ± {c[1]:.3f}':>18}" for c in cells))


if __name__ == "__main__":
    main()
