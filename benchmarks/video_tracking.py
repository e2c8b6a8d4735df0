"""Trackers in video on nano's features, against each other and against opponents.

    video_tracking.py train REGIME RUNS [--steps N] [--set KEY=VALUE …]   into RUNS/REGIME; goes on if it was begun
    video_tracking.py evaluate RUNS [--videos 48]                         all regimes that are there

Regimes, each with the same number of steps and the same batches of rendered videos (recipe video_tracker_nano):

- frozen: nano stays as it is; the decoder of features and the tracker are trained.
- all: nano is trained too, with a tenth of the rate, and practises its own tasks on rooms that stand still.
- lora: as all, but only adapters of rank 8 in nano's encoder are trained, with the full rate.
- scratch: as all, from random weights, with the full rate and without practice.
- images: the same tracker on a small network on pixels in place of nano.

Opponents: nano's own head of tracks, which knows no order of the views; pyramidal Lucas-Kanade, if OpenCV is installed;
still, every point stays where it was. Scores are TAP-Vid's, on videos with seeds that training never draws; the
measures of nano's own tasks are on rooms that stand still, before and after.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from baselines.lucas_kanade import track_lucas_kanade
from common import mean_and_error, write_result
from geomtx import VGGT, SceneBatch
from geomtx.data.synthetic.render import HELD_OUT_SCENES, held_out_seed
from geomtx.metrics import evaluate_tapvid, labels_to_tapvid
from geomtx.metrics.tracking import QueryMode
from geomtx.models.video_tracker import VideoTracker
from geomtx.training.config import TrainingConfig
from geomtx.training.config_file import load_config
from geomtx.training.data import RenderedScenes, build_source
from geomtx.training.tasks.video_tracker import is_seen
from geomtx.training.trainer import Trainer
from original_tasks import compare_tasks, measure_tasks
from track_sheet import draw_track_sheet

RECIPE = "video_tracker_nano"
REGIMES: dict[str, list[str]] = {
    "frozen": ["freeze=[features.vggt]", "task.rehearsal=null", "optimiser.groups={}"],
    "all": [],
    "lora": [
        "freeze=[features.vggt]",
        "lora={patterns: [features.vggt.encoder.*], rank: 8, alpha: 8}",
        "optimiser.groups={}",
    ],
    "scratch": ["model.weights=null", "task.rehearsal=null", "optimiser.groups={}"],
    "images": ["model.weights=null", "task.rehearsal=null", "task.tracker={features: images}", "optimiser.groups={}"],
}
VIDEOS, ROOMS = HELD_OUT_SCENES["videos"], HELD_OUT_SCENES["rooms beside videos"]
ROOM_VIEWS = 4

# (S, 3, H, W), (N, 3) → (S, N, 2) and whether they are seen, (S, N)
TrackVideo = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def main() -> None:
    arguments = parse_arguments()
    if arguments.command == "train":
        train(arguments)
    else:
        evaluate(arguments)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("regime", choices=tuple(REGIMES))
    training.add_argument("runs", type=Path)
    training.add_argument("--steps", type=int, help="of the optimiser; default: the recipe's")
    training.add_argument("--until", type=int, help="stop there, to go on another time")
    training.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the configuration")
    training.add_argument("--cpu", action="store_true")
    evaluation = commands.add_parser("evaluate")
    evaluation.add_argument("runs", type=Path)
    evaluation.add_argument("--videos", type=int, default=48)
    evaluation.add_argument("--rooms", type=int, default=64, help="for the original tasks")
    evaluation.add_argument("--frames", type=int, default=12)
    evaluation.add_argument("--tracks", type=int, default=64)
    evaluation.add_argument("--support-grid", type=int, default=5)
    evaluation.add_argument(
        "--seen", choices=("visibility", "cotracker2", "cotracker3"), default="visibility",
        help="when a point counts as seen: visibility above 0.5, above 0.9, or times confidence above 0.6; the last "
        "two are for trackers that are rarely wrong",
    )  # fmt: skip
    evaluation.add_argument("--output", type=Path, help="folder of the result")
    evaluation.add_argument("--sheet", type=Path, help="contact sheet; default: RUNS/tracks.png")
    return parser.parse_args()


def train(arguments: argparse.Namespace) -> None:
    steps = [] if arguments.steps is None else [f"schedule.steps={arguments.steps}"]
    config = load_config(RECIPE, [*REGIMES[arguments.regime], *steps, *arguments.set])
    folder = arguments.runs / arguments.regime
    resume = (folder / "checkpoint.pt").exists()
    trainer = Trainer(config, folder, resume=resume, cpu=arguments.cpu)
    before, start = trainer.step, time.perf_counter()
    trainer.train(arguments.until)
    seconds = time.perf_counter() - start
    print(f"{arguments.regime}: steps {before} to {trainer.step} in {seconds:.0f} s")


def evaluate(arguments: argparse.Namespace) -> None:
    config = load_config(RECIPE)
    weights = {name: arguments.runs / name / "weights" for name in REGIMES}
    models = {name: VideoTracker.from_pretrained(path).eval() for name, path in weights.items() if path.is_dir()}
    nano = VGGT.from_pretrained("nano").eval()
    methods: dict[str, TrackVideo] = {
        name: tracker_of(model, arguments.support_grid, arguments.seen) for name, model in models.items()
    }
    methods |= {"nano's own head": static_tracker(nano), "still": stay}
    if importlib.util.find_spec("cv2"):
        methods["lucas-kanade"] = track_lucas_kanade
    videos = render_held_out(config, arguments)
    results: dict[str, Any] = {"tracking": {}, "original": {}}
    for name, track in methods.items():
        results["tracking"][name] = score_method(track, videos)
        print_row(name, results["tracking"][name])
    rooms = render_rooms(config, arguments.rooms)
    before = measure_tasks(nano, rooms)
    results["original"]["nano"] = compare_tasks(before, before)
    for name, model in models.items():
        if model.config.features == "vggt":
            results["original"][name] = found = compare_tasks(measure_tasks(model.vggt, rooms), before)
            print(f"{name:18}" + "".join(f"  {key} {pair[0]:+.3f}" for key, pair in found["minus_before"].items()))
    draw_sheet(methods, videos[0]).save(arguments.sheet or arguments.runs / "tracks.png")
    write_result("video_tracking", settings(arguments, config, models), results, folder=arguments.output, show=False)


def settings(arguments: argparse.Namespace, config: TrainingConfig, models: dict[str, VideoTracker]) -> dict[str, Any]:
    logs = {name: arguments.runs / name / "config.yaml" for name in models}
    return {
        "recipe": RECIPE,
        "steps": {name: load_config(path).schedule.steps for name, path in logs.items()},
        "parameters": {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()},
        "image_hw": list(config.data.image_hw),
        "frames": arguments.frames,
        "tracks": arguments.tracks,
        "videos": arguments.videos,
        "rooms": arguments.rooms,
        "room_views": ROOM_VIEWS,
        "support_grid": arguments.support_grid,
        "seen": arguments.seen,
        "held_out": [VIDEOS[0], ROOMS[0]],
        "numbers": "[mean, standard error over videos or rooms]",
    }


def render_held_out(config: TrainingConfig, arguments: argparse.Namespace) -> list[SceneBatch]:
    """One video each."""
    section = dataclasses.replace(config.data, num_tracks=arguments.tracks)
    draw = build_source(section, patch_size=config_patch(config), held_out=True)
    seeds = [held_out_seed(index) for index in VIDEOS[: arguments.videos]]
    return [draw([seed], arguments.frames, section.image_hw) for seed in seeds]


def config_patch(config: TrainingConfig) -> int:
    return config.model.model_config().patch_size


def render_rooms(config: TrainingConfig, count: int) -> list[SceneBatch]:
    """Rooms that stand still, eight a batch, as nano was trained on."""
    original = load_config("nano")
    draw = build_source(original.data, patch_size=config_patch(config), held_out=True)
    assert isinstance(draw, RenderedScenes)
    seeds = [held_out_seed(index) for index in ROOMS[:count]]
    return [draw(seeds[i : i + 8], ROOM_VIEWS, original.data.image_hw) for i in range(0, count, 8)]


def tracker_of(model: VideoTracker, support_grid: int, rule: Any) -> TrackVideo:
    def track(video: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        tracks = model(video, queries, support_grid=support_grid).tracks
        seen = tracks.visibility > 0.5 if rule == "visibility" else is_seen(tracks, rule)
        return tracks.coords_px[0], seen[0]

    return track


def static_tracker(model: VGGT) -> TrackVideo:
    def track(video: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        tracks = model(video, queries, heads=("tracks",)).tracks
        assert tracks is not None
        return tracks.coords_px[0], tracks.visibility[0] > 0.5

    return track


def stay(video: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    coords = queries[:, 1:].expand(len(video), -1, -1)
    return coords, torch.ones_like(coords[..., 0], dtype=torch.bool)


@torch.inference_mode()
def score_method(track: TrackVideo, videos: list[SceneBatch]) -> dict[str, Any]:
    """Mode → measure → [mean, standard error]."""
    found: dict[str, Any] = {}
    modes: tuple[QueryMode, ...] = ("first", "strided")
    for mode in modes:
        labelled = [labels_to_tapvid(video)[0] for video in videos]
        image_hw = (videos[0].images.shape[-2], videos[0].images.shape[-1])
        scores = evaluate_tapvid(track, labelled, mode=mode, image_hw=image_hw).videos
        columns = {"aj": scores.average_jaccard, "delta": scores.average_delta, "oa": scores.occlusion_accuracy}
        found[mode] = {name: mean_and_error(values.tolist()) for name, values in columns.items()}
    return found


@torch.inference_mode()
def draw_sheet(methods: dict[str, TrackVideo], video: SceneBatch) -> Any:
    """Tracks from frame 0 on, a row for each method, below the truth."""
    labels = video.tracks
    assert labels is not None
    chosen = labels.visible[0, 0].nonzero()[:16, 0]
    coords = labels.coords_px[0][:, chosen]
    queries = torch.cat([torch.zeros(len(chosen), 1), coords[0]], dim=-1)
    rows = {"truth": (coords, labels.visible[0][:, chosen])}
    rows |= {name: track(video.images[0], queries) for name, track in methods.items()}
    return draw_track_sheet(video.images[0], rows)


def print_row(name: str, found: dict[str, Any]) -> None:
    cells = [f"{100 * mean:5.1f} ± {100 * error:3.1f}" for mode in found.values() for mean, error in mode.values()]
    print(f"{name:18}" + "  ".join(cells) + "   (AJ, delta, OA; first, strided)")


if __name__ == "__main__":
    main()
