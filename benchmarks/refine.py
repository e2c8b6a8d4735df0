"""What `geomtx.refine` does for rooms with known truth: `benchmarks/refine.py [--scenes N] [--image-hw H W]`.

Eight photos of each room. Three starts: the scene that nano predicts; the truth, disturbed as a large model's result
may be: cameras turned by 2 degrees and moved by a twentieth of their distance from the room's middle, focal lengths 3 %
too long, and the depth of each view scaled by up to 5 %; and the truth, disturbed as a poor result may be, by 20
degrees and a fifth. Correspondences come from the truth, with noise of half a pixel and 10 % outliers; from SIFT; from
nano's tracker; from the depth maps. Wrong ones, which must be refused, are the true tracks with the places of other
points, and pairs of observations of which half are anywhere. Both solvers; for wrong ones, geomtx's.

Poses are measured by the areas under the curve of pairwise errors, in 0 … 1, and by the reprojection error of true
tracks that are triangulated with the cameras, in pixels of the photos (median).
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import geomtx
from common import write_result
from geomtx.data.synthetic.photos import save_photos, truth_in_views
from geomtx.data.synthetic.render import HELD_OUT_SCENES, held_out_seed, render_scenes
from geomtx.data.synthetic.rooms import RoomStyle
from geomtx.metrics import pairwise_pose_errors, pose_auc
from geomtx.scene import ObservedPoints, Scene, match_points, observe_points, track_points
from geomtx.scene.refine import refine
from geomtx.scene.tracked_points import TrackedPixels, observed_tracks
from geomtx.types import Cameras, DenseMap, Predictions, SceneBatch

VIEWS, TRACKS = 8, 512
NOISE_PX, OUTLIERS = 0.5, 0.1
SOLVERS = ("torch", "pycolmap")
WRONG = ("places of other points", "pairs, half wrong")
MEASURES = ("auc_5", "auc_30", "reprojection_px", "seconds", "refined")
SCENES = HELD_OUT_SCENES["refinement"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=6)
    parser.add_argument("--image-hw", type=int, nargs=2, default=[240, 320])
    parser.add_argument("--output", type=Path, help="folder of the result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = geomtx.load_model("nano")
    rows: dict[str, dict[str, list[dict[str, float]]]] = {}
    for index in range(arguments.scenes):
        for start, found in measure_scene(model, SCENES[index], tuple(arguments.image_hw)).items():
            for name, row in found.items():
                rows.setdefault(start, {}).setdefault(name, []).append(row)
        results = {start: {name: summarize(each) for name, each in found.items()} for start, found in rows.items()}
        print_table(results, index + 1)
    height, width = arguments.image_hw
    settings = {
        "scenes": arguments.scenes, "views": VIEWS, "image_hw": arguments.image_hw, "weights": "nano", "threads": 1,
        "noise_px": NOISE_PX, "outliers": OUTLIERS,
        "numbers": "means over scenes; of reprojection_px and seconds, medians",
    }  # fmt: skip
    write_result(f"refine_{height}x{width}", settings, results, folder=arguments.output, show=False)


def measure_scene(model: Any, index: int, image_hw: tuple[int, int]) -> dict[str, dict[str, dict[str, float]]]:
    truth = render_scenes([held_out_seed(index)], VIEWS, image_hw, num_tracks=TRACKS, style=RoomStyle.nano())
    with tempfile.TemporaryDirectory() as folder:
        save_photos(truth.images[0], Path(folder))
        views = geomtx.load_views(folder, model=model)
        predicted = geomtx.reconstruct(model, views)
        in_views = truth_in_views(truth, views)
        starts = {
            "nano": predicted,
            "disturbed truth": disturb(predicted, in_views, index),
            "turned truth": disturb(predicted, in_views, index, degrees=20.0, share=0.2),
        }
        found: dict[str, dict[str, dict[str, float]]] = {}
        for start, scene in starts.items():
            rows = found.setdefault(start, {"before": score(scene, truth)})
            for name, (observations, seconds) in find_all(model, scene, in_views, index).items():
                for solver in SOLVERS[: 1 if name in WRONG else None]:
                    began = time.perf_counter()
                    refined = refine(scene, observations, solver=solver)  # type: ignore[arg-type]
                    took = time.perf_counter() - began
                    row = {**score(refined, truth), "seconds": took, "refined": float(refined.refined)}
                    rows[f"{name}, {solver}"] = {**row, "correspondence_seconds": seconds}
    return found


def disturb(scene: Scene, truth: SceneBatch, seed: int, *, degrees: float = 2.0, share: float = 0.05) -> Scene:
    """The truth in place of the predictions, with wrong cameras and depth."""
    generator = torch.Generator().manual_seed(seed)
    assert truth.cameras is not None
    assert truth.depth is not None
    pose, intrinsics = (each[0].double().clone() for each in truth.cameras)
    axis = torch.randn(VIEWS, 3, generator=generator).double()
    axis[0] = 0
    turn = torch.deg2rad(torch.tensor(degrees)) * torch.nn.functional.normalize(axis, dim=-1)
    cross = torch.linalg.cross(turn[:, None], torch.eye(3).double().expand(VIEWS, 3, 3)).mT
    centers = -(pose[:, :, :3].mT @ pose[:, :, 3:])
    spread = (centers - centers.mean(0)).norm(dim=1).mean()
    moved = centers + share * spread * torch.randn(VIEWS, 3, 1, generator=generator).double()
    moved[0] = centers[0]
    rotation = torch.matrix_exp(cross) @ pose[:, :, :3]
    pose = torch.cat([rotation, -rotation @ moved], dim=-1)
    intrinsics[:, [0, 1], [0, 1]] *= 1.03
    factors = 1 + 0.05 * (2 * torch.rand(VIEWS, 1, 1, generator=generator) - 1)
    depth = DenseMap(truth.depth[0].float() * factors, torch.ones_like(truth.depth[0].float()))
    predictions = Predictions(Cameras(pose.float(), intrinsics.float()), depth=depth)
    return dataclasses.replace(scene, predictions=predictions, masks=scene.masks & (depth.value > 0))


def find_all(model: Any, scene: Scene, truth: SceneBatch, seed: int) -> dict[str, tuple[ObservedPoints, float]]:
    """Name of the source → its observations, and the seconds that they took."""
    sources: dict[str, Callable[[], ObservedPoints]] = {
        "truth": lambda: observed_tracks(scene, noisy_tracks(scene, truth, seed)),
        "sift": lambda: match_points(scene),
        "nano": lambda: track_points(model, scene),
        "depth maps": lambda: observe_points(scene, max_points=5000),
        WRONG[0]: lambda: observed_tracks(scene, mix(noisy_tracks(scene, truth, seed), seed)),
        WRONG[1]: lambda: observed_tracks(scene, pair(noisy_tracks(scene, truth, seed, outliers=0.5))),
    }
    found = {}
    for name, find in sources.items():
        began = time.perf_counter()
        observations = find()
        found[name] = (observations, time.perf_counter() - began)
    return found


def noisy_tracks(scene: Scene, truth: SceneBatch, seed: int, *, outliers: float = OUTLIERS) -> TrackedPixels:
    """True tracks from the first view, with noise of half a pixel of the photos, and a share of them anywhere."""
    generator = torch.Generator().manual_seed(seed)
    assert truth.tracks is not None
    coords = truth.tracks.coords_px[0].double()
    shrink = scene.transforms[0].scale[0]
    coords = coords + NOISE_PX * shrink * torch.randn(coords.shape, generator=generator).double()
    height, width = scene.images.shape[-2:]
    size = torch.tensor([width - 1.0, height - 1.0]).double()
    wrong = torch.rand(coords.shape[:2], generator=generator) < outliers
    anywhere = torch.rand(coords.shape, generator=generator).double() * size
    coords = torch.where(wrong[..., None], anywhere, coords)
    seen = truth.tracks.visible[0] & truth.tracks.valid[0] & (coords >= 0).all(-1) & (coords <= size).all(-1)
    return TrackedPixels(coords, seen, torch.ones(seen.shape), torch.zeros(TRACKS).long())


def mix(tracks: TrackedPixels, seed: int) -> TrackedPixels:
    """In all views but the first, each track has the place of another."""
    generator = torch.Generator().manual_seed(seed)
    coords = tracks.coords_px.clone()
    for view in range(1, VIEWS):
        rows = tracks.seen[view].nonzero()[:, 0]
        coords[view, rows] = coords[view, rows[torch.randperm(len(rows), generator=generator)]]
    return tracks._replace(coords_px=coords)


def pair(tracks: TrackedPixels) -> TrackedPixels:
    """Of each track, the observation in its first view and one other, of the views in turn."""
    place = (torch.arange(VIEWS)[:, None] - 1 - torch.arange(TRACKS)) % (VIEWS - 1)
    place = place.where(tracks.seen, VIEWS)
    nearest = place[1:] == place[1:].amin(0)
    return tracks._replace(seen=tracks.seen & torch.cat([torch.ones_like(tracks.seen[:1]), nearest]))


def score(scene: Scene, truth: SceneBatch) -> dict[str, float]:
    assert scene.cameras is not None
    assert truth.cameras is not None
    errors = pairwise_pose_errors(scene.cameras.cam_from_world[None].double(), truth.cameras.cam_from_world.double())
    auc = pose_auc(errors.larger_deg(), (5, 30)).flatten().tolist()
    return {"auc_5": auc[0], "auc_30": auc[1], "reprojection_px": reprojection_error(scene.cameras, truth)}


def reprojection_error(cameras: Cameras, truth: SceneBatch) -> float:
    """Median distance in pixels of true tracks from their own triangulation with the cameras."""
    assert truth.tracks is not None
    projection = cameras.intrinsics.double() @ cameras.cam_from_world.double()  # (S, 3, 4)
    coords, seen = truth.tracks.coords_px[0].double(), truth.tracks.visible[0] & truth.tracks.valid[0]
    # Two equations a view: (p₃ x - p₁) · X = 0 and (p₃ y - p₂) · X = 0.
    rows = coords[..., None] * projection[:, None, 2:] - projection[:, None, :2]
    rows = torch.where(seen[..., None, None], rows, 0.0) / projection[:, None, 2:, :3].norm(dim=-1, keepdim=True)
    stacked = rows.movedim(1, 0).flatten(1, 2)  # (N, 2·S, 4)
    points = torch.linalg.svd(stacked).Vh[:, -1]
    images = torch.einsum("sij,nj->sni", projection, points)
    distance = (images[..., :2] / images[..., 2:] - coords).norm(dim=-1)
    enough = seen & (seen.sum(0) > 1)
    return float(distance[enough].median())


def summarize(rows: list[dict[str, float]]) -> dict[str, float]:
    def middle(name: str, values: list[float]) -> float:
        typical = name.endswith(("px", "seconds"))
        return round((statistics.median if typical else statistics.fmean)(values), 4)

    return {name: middle(name, [row[name] for row in rows]) for name in rows[0]}


def print_table(results: dict[str, dict[str, dict[str, float]]], num: int) -> None:
    for start, found in results.items():
        print(f"\n{start}, {num} scenes{'':12}" + "".join(f"{name:>18}" for name in MEASURES))
        for name, row in found.items():
            print(f"{name:28}" + "".join(f"{row.get(each, float('nan')):18.3f}" for each in MEASURES))


if __name__ == "__main__":
    main()
