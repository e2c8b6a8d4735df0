"""report.html of 8 and of 100 photos: bytes, seconds to write it, seconds until a headless Chromium has drawn it.

Photos are JPEG files of a rendered room with grain, three times as wide as the model's images of 518 x 392; a hundred
of them are eight in turn. Chromium draws in software: a machine with a graphics card is quicker.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import geomtx
from common import write_result
from geomtx.data.synthetic.render import HELD_OUT_SCENES, held_out_seed, render_scenes
from geomtx.data.synthetic.rooms import RoomStyle
from geomtx.geometry import normalize_scene
from geomtx.report import write_page
from geomtx.types import Cameras, DenseMap, Predictions
from geomtx.views import ViewTransform

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from browser import Browser

IMAGE_HW, FACTOR = (392, 518), 3
RENDERED = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, nargs="+", default=[8, 100])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        rendered = make_scene(Path(folder))
        browser = Browser()
        try:
            for count in arguments.photos:
                results[f"{count} photos"] = measure(take(rendered, count), Path(folder), browser, arguments.repeats)
                print(count, results[f"{count} photos"], flush=True)
        finally:
            browser.close()
    settings = {"image_hw": IMAGE_HW, "photo_hw": [FACTOR * side for side in IMAGE_HW], "repeats": arguments.repeats}
    write_result("report_page", settings, results)


def make_scene(folder: Path) -> geomtx.Scene:
    """A room with its true cameras and depth, the confidence falling with the depth, and photos on disk."""
    seeds = [held_out_seed(HELD_OUT_SCENES["demo"][7])]
    room, _ = normalize_scene(render_scenes(seeds, RENDERED, IMAGE_HW, style=RoomStyle.nano()))
    assert room.cameras is not None
    assert room.depth is not None
    images = (room.images[0] + 0.03 * torch.randn(room.images[0].shape)).clamp(0, 1)
    pixels = (images * 255).round().to(torch.uint8)
    paths = [save_photo(each, folder / f"view_{index}.jpg") for index, each in enumerate(pixels)]
    depth = room.depth[0]
    photo_hw = (FACTOR * IMAGE_HW[0], FACTOR * IMAGE_HW[1])
    transform = ViewTransform(photo_hw, IMAGE_HW, (1 / FACTOR, 1 / FACTOR))
    return geomtx.Scene(
        names=tuple(path.name for path in paths),
        transforms=(transform,) * RENDERED,
        images=pixels,
        masks=torch.ones(depth.shape, dtype=torch.bool) if room.mask is None else room.mask[0],
        predictions=Predictions(
            cameras=Cameras(*(part[0] for part in room.cameras)), depth=DenseMap(depth, 1 + 1 / depth.clamp(min=0.1))
        ),
        paths=tuple(paths),
    )


def save_photo(pixels: Tensor, path: Path) -> Path:
    picture = Image.fromarray(pixels.movedim(0, -1).contiguous().numpy())
    picture.resize((FACTOR * picture.width, FACTOR * picture.height), Image.Resampling.BICUBIC).save(path, quality=92)
    return path


def take(scene: geomtx.Scene, count: int) -> geomtx.Scene:
    """As many views, the scene's own in turn."""
    views = torch.arange(count) % RENDERED
    predictions = scene.predictions
    assert predictions.cameras is not None
    assert predictions.depth is not None
    return geomtx.Scene(
        names=tuple(f"photo_{index}.jpg" for index in range(count)),
        transforms=tuple(scene.transforms[view] for view in views),
        images=scene.images[views],
        masks=scene.masks[views],
        predictions=Predictions(
            cameras=Cameras(*(part[views] for part in predictions.cameras)),
            depth=DenseMap(*(part[views] for part in predictions.depth)),
        ),
        paths=tuple(scene.paths[view] for view in views),
    )


def measure(scene: geomtx.Scene, folder: Path, browser: Browser, repeats: int) -> dict[str, Any]:
    path = folder / "report.html"
    write_seconds, cpu_seconds, frame_seconds = [], [], []
    write_page(path, scene)  # what is imported at first is imported
    for _ in range(repeats):
        start, cpu = time.perf_counter(), time.process_time()
        write_page(path, scene)
        write_seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu)
    for _ in range(repeats):
        start = time.perf_counter()
        with browser.open(path, size=(1300, 900)) as page:
            page.wait("window.geomtx && geomtx.frames > 0")
            frame_seconds.append(time.perf_counter() - start)
    return {
        "megabytes": round(path.stat().st_size / 1e6, 2),
        "write_seconds": round(statistics.median(write_seconds), 2),
        "write_cpu_seconds": round(statistics.median(cpu_seconds), 2),
        "first_frame_seconds": round(statistics.median(frame_seconds), 2),
    }


if __name__ == "__main__":
    main()
