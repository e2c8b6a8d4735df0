"""Bundle adjustment against pycolmap: `benchmarks/bundle_adjustment.py solver|large|training`.

- solver: the problem of `tests/geometry/bundle_problem.py` with known costs, 20 views and 2,000 points. Solves of ours,
  the layout of the observations included, alternate with solves of pycolmap, the construction of its adjuster
  included and that of its reconstruction not; one thread each.
- large: 60 views and 10,000 points, 299,762 observations; with the peak of memory of a process that does nothing else.
- training: a step of nano's recipe with 8 views, with and without 4 steps of the solver on 512 points of each scene
  between the predictions and a loss on the refined poses.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from common import write_result

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from geometry.bundle_problem import Arrays, draw_arrays, to_problem
from geomtx import VGGT, TrackLabels, VGGTConfig, normalize_scene
from geomtx.geometry import BundleOptions, BundleProblem, adjust_bundle
from geomtx.losses.consistency.warp import sample_maps
from geomtx.training.config_file import load_config
from geomtx.training.data import build_source
from geomtx.training.optim import build_clip_groups, build_parameter_groups, clip_gradients
from geomtx.training.prepare import build_loss
from geomtx.training.step import predict

LARGE = {"num_views": 60, "num_points": 10_000}
VIEWS, POINTS, STEPS = 8, 512, 4
# Name → loss, whether focal lengths are refined, function tolerance; None is pycolmap's default.
PYCOLMAP = {
    "pycolmap, defaults": ("trivial", True, None),
    "pycolmap, known focal lengths": ("trivial", False, None),
    "pycolmap, known focal lengths, function_tolerance 1e-9": ("trivial", False, 1e-9),
}
OURS = {
    "geomtx": BundleOptions(),
    "geomtx, shared focal lengths": BundleOptions(focal="shared"),
    "geomtx, float32": BundleOptions(),
}
ONCE = {
    "soft_l1": (BundleOptions("soft_l1"), ("soft_l1", False, 1e-9)),
    "huber": (BundleOptions("huber"), ("huber", False, 1e-9)),
    "cauchy": (BundleOptions("cauchy"), ("cauchy", False, 1e-9)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["solver", "large", "alone", "training"])
    parser.add_argument("--repeats", type=int, help="solves or steps of each kind (11; large 3)")
    parser.add_argument("--output", type=Path, help="folder of the result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "alone":
        print(json.dumps(solve_alone()))
        return
    measure = {"solver": measure_solver, "large": measure_large, "training": measure_training}[arguments.what]
    settings, results = measure(arguments.repeats)
    write_result(f"bundle_adjustment_{arguments.what}", {"threads": 1, **settings}, results, folder=arguments.output)


def measure_solver(repeats: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
    repeats = repeats or 11
    arrays = draw_arrays()
    kinds: dict[str, Callable[[], dict[str, Any]]] = {}
    for name, options in OURS.items():
        dtype = torch.float32 if "float32" in name else torch.float64
        kinds[name] = lambda options=options, dtype=dtype: solve_ours(arrays, options, dtype)  # type: ignore[misc]
    for name, asked in PYCOLMAP.items():
        kinds[name] = lambda asked=asked: solve_pycolmap(arrays, *asked)  # type: ignore[misc]
    results = alternate(kinds, repeats)
    for loss, (options, asked) in ONCE.items():
        results[f"geomtx, {loss}"] = summarize([solve_ours(arrays, options)])
        results[f"pycolmap, {loss}"] = summarize([solve_pycolmap(arrays, *asked)])
    return {"num_views": 20, "num_points": 2000, "observations": len(arrays.view), "solves": repeats}, results


def measure_large(repeats: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
    repeats = repeats or 3
    arrays = draw_arrays(**LARGE)
    results = alternate(
        {
            "geomtx": lambda: solve_ours(arrays, BundleOptions()),
            "pycolmap, known focal lengths, function_tolerance 1e-9": lambda: solve_pycolmap(
                arrays, "trivial", False, 1e-9
            ),
        },
        repeats,
    )
    command = [sys.executable, __file__, "alone"]
    alone = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    results["geomtx, in a process of its own"] = json.loads(alone)
    return {**LARGE, "observations": len(arrays.view), "solves": repeats}, results


def solve_alone() -> dict[str, Any]:
    """A solve of the large problem, with the peak of memory of this process."""
    problem = to_problem(draw_arrays(**LARGE))
    start = time.perf_counter()
    result = adjust_bundle(problem)
    return {
        "seconds": round(time.perf_counter() - start, 3),
        "final_cost": result.final_cost.item(),
        "peak_resident_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
    }


def alternate(kinds: dict[str, Callable[[], dict[str, Any]]], repeats: int) -> dict[str, Any]:
    """One solve of each kind after the other, so that all meet the same load of the machine."""
    solves: dict[str, list[dict[str, Any]]] = {name: [] for name in kinds}
    next(iter(kinds.values()))()  # what is loaded and allocated at the first call
    for _ in range(repeats):
        for name, solve in kinds.items():
            solves[name].append(solve())
    return {name: summarize(each) for name, each in solves.items()}


def summarize(solves: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = [each.pop("seconds") for each in solves]
    times = {"median_s": round(statistics.median(seconds), 4), "min_s": round(min(seconds), 4)}
    return {**solves[0], **times, "seconds": [round(each, 4) for each in seconds]}


def solve_ours(arrays: Arrays, options: BundleOptions, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    problem = to_problem(arrays)
    cameras = type(problem.cameras)(*(each.to(dtype) for each in problem.cameras))
    problem = problem._replace(cameras=cameras, points=problem.points.to(dtype), coords_px=problem.coords_px.to(dtype))
    start = time.perf_counter()
    result = adjust_bundle(problem, options)
    seconds = time.perf_counter() - start
    return {
        "initial_cost": round(result.initial_cost.item(), 6),
        "final_cost": round(result.final_cost.item(), 6),
        "steps": [result.steps.item(), result.rejected.item()],
        "seconds": seconds,
    }


def solve_pycolmap(arrays: Arrays, loss: str, focal: bool, tolerance: float | None) -> dict[str, Any]:
    from geometry.bundle_pycolmap import build, solve_reconstruction

    reconstruction = build(arrays)
    start = time.perf_counter()
    solved = solve_reconstruction(reconstruction, loss, focal=focal, function_tolerance=tolerance)
    seconds = time.perf_counter() - start
    summary = solved.ceres_summary
    return {
        "initial_cost": round(summary.initial_cost, 6),
        "final_cost": round(summary.final_cost, 6),
        "steps": [summary.num_successful_steps, summary.num_unsuccessful_steps],
        "seconds": seconds,
    }


def measure_training(repeats: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
    repeats = repeats or 5
    config = load_config("nano")
    num_scenes = config.data.images // VIEWS
    model = VGGT(VGGTConfig.nano()).train()
    section = dataclasses.replace(config.data, num_tracks=POINTS)
    draw = build_source(section, patch_size=model.config.patch_size)
    batch = normalize_scene(draw(range(num_scenes), VIEWS, config.data.image_hw))[0]
    tracks = batch.tracks
    # The head of tracks has as many as in the recipe; the solver has them all.
    few = slice(config.data.num_tracks)
    recipe = TrackLabels(tracks.coords_px[:, :, few], tracks.visible[:, :, few], tracks.valid[:, few])
    batch = batch._replace(tracks=recipe)
    optimiser = torch.optim.AdamW(build_parameter_groups(model, config.optimiser), lr=1e-6)
    groups = build_clip_groups(model, config.optimiser.clip)
    loss = build_loss(config.loss)

    def step(with_solver: bool) -> float:
        start = time.perf_counter()
        predictions = predict(model, batch)
        total = loss(predictions, batch).total
        if with_solver:
            total = total + refined_loss(predictions, batch, tracks)
        total.backward()
        clip_gradients(groups)
        optimiser.step()
        optimiser.zero_grad()
        assert bool(total.detach().isfinite())
        return time.perf_counter() - start

    times: dict[bool, list[float]] = {False: [], True: []}
    step(True)
    for _ in range(repeats):
        for with_solver, seconds in times.items():
            seconds.append(step(with_solver))
    results: dict[str, Any] = {
        name: {"median_s": round(statistics.median(each), 4), "seconds": [round(s, 4) for s in each]}
        for name, each in (("without the solver", times[False]), ("with the solver", times[True]))
    }
    results["ratio of the medians"] = round(statistics.median(times[True]) / statistics.median(times[False]), 3)
    settings = {"recipe": "nano", "scenes": num_scenes, "views": VIEWS, "points": POINTS, "solver_steps": STEPS}
    return {**settings, "observations": int(tracks.visible.sum()), "repeats": repeats}, results


def refined_loss(predictions: Any, batch: Any, tracks: Any) -> torch.Tensor:
    """Error of the poses that the solver makes of the predicted cameras and points with true tracks."""
    num_scenes, num_views, num_points = tracks.visible.shape
    start = tracks.coords_px[:, 0]
    maps = predictions.points.value[:, 0].movedim(-1, 1)
    points = sample_maps(maps, start[:, None])[:, :, 0].mT
    index = torch.meshgrid(torch.arange(num_views), torch.arange(num_points), indexing="ij")
    view, point = (each.flatten().expand(num_scenes, -1) for each in index)
    weights = (tracks.visible & tracks.valid[:, None]).float().flatten(1)
    problem = BundleProblem(predictions.cameras, points, view, point, tracks.coords_px.flatten(1, 2), weights)
    refined = adjust_bundle(problem, BundleOptions("huber", 1.0, damping=1e-2, fixed_steps=STEPS))
    return (refined.cameras.cam_from_world - batch.cameras.cam_from_world).abs().mean()


if __name__ == "__main__":
    main()
