"""A rendered video through `geomtx reconstruct` and `geomtx track`, against the truth.

    video.py [--videos 6] [--frames 40] [--views 8] [--output FOLDER] [--picture FILE]

The camera moves through rooms that stand still, as nano's training scenes do. Each video is written as H.264, and its
chosen frames as photos without loss for comparison. Of the reconstruction: how far the times of the frames are from the
true ones, and poses and depth against the truth, from the video and from the photos. Of the tracks: positions against
the truth where points are visible, and visibility; `still` stays where it is and calls every point visible.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import geomtx
from common import mean_and_error, write_result
from geomtx import SceneBatch
from geomtx.cli import main as run_command
from geomtx.data.synthetic.motion import MotionStyle
from geomtx.data.synthetic.photos import save_photos, truth_in_views
from geomtx.data.synthetic.render import HELD_OUT_SCENES, VideoStyle, held_out_seed, render_videos
from geomtx.data.synthetic.rooms import RoomStyle
from geomtx.metrics import evaluate_predictions
from geomtx.types import Cameras, DenseMap, Predictions
from geomtx.views.video import read_frames, read_timeline, write_video

VIDEOS = HELD_OUT_SCENES["videos"]
FRAME_HW = (144, 192)  # three times nano's, so that truth is sampled at centres of pixels
FPS = 10
MOST_QUERIES = 24
CLOSE_PX = 6.0  # a thirty-second of the width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=6)
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--output", type=Path, help="folder of the result")
    parser.add_argument("--picture", type=Path, help="JPEG file for frames of the first video with tails")
    arguments = parser.parse_args()
    run("demo", "-o", tempfile.mkdtemp())  # what is loaded and compiled on first use is left out of the times
    found: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, index in enumerate(VIDEOS[: arguments.videos]):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            truth = render(held_out_seed(index), arguments.frames)
            write_video(folder / "clip.mp4", to_pixels(truth.images[0]), fps=FPS)
            found.append(measure_scene(truth, folder, arguments.views) | measure_tracks(truth, folder))
            print(" ".join(f"{name} {value:.4g}" for name, value in found[-1].items()), flush=True)
            if number == 0 and arguments.picture:
                draw_tails(folder, arguments.picture)
    results = {name: mean_and_error([each[name] for each in found]) for name in found[0]}
    settings = {
        "weights": "nano",
        "videos": arguments.videos,
        "frames": arguments.frames,
        "views": arguments.views,
        "frame_hw": list(FRAME_HW),
        "fps": FPS,
        "close_px": CLOSE_PX,
        "held_out": VIDEOS[0],
        "numbers": "[mean, standard error over videos]; shares in 0 … 1, px of the frames, seconds",
    }
    write_result("video", settings, results, folder=arguments.output)


def render(seed: int, num_frames: int) -> SceneBatch:
    style = VideoStyle(RoomStyle.nano(), MotionStyle(moving=0.0))
    return render_videos([seed], num_frames, FRAME_HW, num_tracks=64, supersample=2, style=style)


def to_pixels(images: Tensor) -> list[np.ndarray]:
    return list((images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy())


def run(*arguments: object) -> float:
    """Run a command, and return the seconds."""
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        code = run_command([str(each) for each in arguments])
    if code:
        raise SystemExit(errors.getvalue())
    return time.perf_counter() - start


def measure_scene(truth: SceneBatch, folder: Path, num_views: int) -> dict[str, float]:
    """The scene of the video, and that of the same frames as photos without loss."""
    seconds = run("reconstruct", folder / "clip.mp4", "--weights", "nano", "--max-views", num_views, "-o", folder / "v")
    scene = geomtx.Scene.load(folder / "v")
    indices = [int(re.findall(r"_(\d+)\.jpg$", name)[0]) for name in scene.names]
    chosen = take_views(truth, indices)
    save_photos(chosen.images[0], folder / "photos")
    run("reconstruct", folder / "photos", "--weights", "nano", "-o", folder / "p")
    from_video = score(scene, chosen, folder / "v" / "frames")
    from_photos = score(geomtx.Scene.load(folder / "p"), chosen, folder / "photos")
    return {
        "views": float(len(scene)),
        "time_error_s": max(abs(time - index / FPS) for time, index in zip(scene.times, indices, strict=True)),
        **{f"{name}_video": value for name, value in from_video.items()},
        **{f"{name}_photos": value for name, value in from_photos.items()},
        "reconstruct_s": seconds,
    }


def take_views(truth: SceneBatch, indices: list[int]) -> SceneBatch:
    """Cameras and depth of some frames."""
    assert truth.cameras is not None
    assert truth.depth is not None
    cameras = Cameras(*(part[:, indices] for part in truth.cameras))
    mask = None if truth.mask is None else truth.mask[:, indices]
    return SceneBatch(truth.images[:, indices], cameras, None, truth.depth[:, indices], None, mask)


def score(scene: geomtx.Scene, truth: SceneBatch, photos: Path) -> dict[str, float]:
    views = geomtx.load_views(photos, model=geomtx.VGGTConfig.nano())
    cameras, _, depth, *_ = scene.predictions
    assert cameras is not None
    assert depth is not None
    batch = Predictions(cameras=Cameras(*(part[None] for part in cameras)), depth=DenseMap(*(d[None] for d in depth)))
    found = evaluate_predictions(batch, truth_in_views(truth, views))
    return {"auc_30": float(found.auc_30), "depth_abs_rel": float(found.depth_abs_rel)}


def measure_tracks(truth: SceneBatch, folder: Path) -> dict[str, float]:
    """Tracks from the first frame on, of points that are visible in it."""
    labels = truth.tracks
    assert labels is not None
    points = (labels.visible[0, 0] & labels.valid[0]).nonzero()[:MOST_QUERIES, 0]
    coords, visible = labels.coords_px[0][:, points], labels.visible[0][:, points]
    queries = [f"--query=0,{x:.3f},{y:.3f}" for x, y in coords[0].tolist()]
    seconds = run("track", folder / "clip.mp4", "--weights", "nano", *queries, "-o", folder / "t")
    with np.load(folder / "t" / "tracks.npz") as arrays:
        tracks = torch.from_numpy(arrays["tracks"]).transpose(0, 1)
        seen = torch.from_numpy(~arrays["occluded"]).T
        time_error = float(np.abs(arrays["times"] - np.arange(len(coords)) / FPS).max())
    still = coords[:1].expand_as(coords)
    measured = {"queries": float(len(points)), "frame_time_error_s": time_error, "track_s": seconds}
    for name, places, said in (("nano", tracks, seen), ("still", still, torch.ones_like(visible))):
        errors = (places - coords).norm(dim=-1)[1:][visible[1:]]
        measured[f"median_px_{name}"] = float(errors.median())
        measured[f"close_{name}"] = float((errors < CLOSE_PX).double().mean())
        measured[f"visibility_{name}"] = float((said[1:] == visible[1:]).double().mean())
    return measured


def draw_tails(folder: Path, path: Path) -> None:
    """Frames of the video of tracks of a grid, beside one another."""
    run("track", folder / "clip.mp4", "--weights", "nano", "--grid", 6, "-o", folder / "g")
    video = folder / "g" / "tracks.mp4"
    timeline = read_timeline(video)
    last = len(timeline.times) - 1
    frames = [picture for _, picture in read_frames(video, timeline, [0, last // 4, last // 2])]
    width, height = frames[0].size
    sheet = Image.new("RGB", (len(frames) * (width + 8) - 8, height), "white")
    for place, frame in enumerate(frames):
        sheet.paste(frame, (place * (width + 8), 0))
    sheet.save(path, quality=85)


if __name__ == "__main__":
    main()
