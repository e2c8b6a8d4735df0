"""Seconds until a headless Chromium shows the first points of `geomtx view`, by the number of points."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from browser import Browser
from common import RESULTS, describe_code, describe_machine
from geomtx import Scene
from geomtx.report import open_viewer
from geomtx.types import Cameras, DenseMap, Predictions
from geomtx.views import ViewTransform

SIZE = (1000, 700)
NUM_VIEWS = 8


def wavy_wall(num_points: int) -> Scene:
    """Photos of a wall with waves and random colours, in which every pixel is a point."""
    height = round((num_points / NUM_VIEWS / 1.25) ** 0.5)
    width = round(num_points / NUM_VIEWS / height)
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    depth = (3 + 0.2 * torch.sin(7 * x) * torch.cos(5 * y)).expand(NUM_VIEWS, -1, -1).contiguous()
    pose = torch.eye(3, 4).repeat(NUM_VIEWS, 1, 1)
    pose[:, 0, 3] = torch.linspace(-1, 1, NUM_VIEWS)
    intrinsics = torch.tensor([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1.0]]).repeat(NUM_VIEWS, 1, 1)
    images = torch.randint(0, 200, (NUM_VIEWS, 3, height, width), generator=torch.Generator().manual_seed(0))
    identity = ViewTransform.identity((height, width))
    return Scene(
        names=tuple(f"{view}.png" for view in range(NUM_VIEWS)),
        transforms=(identity,) * NUM_VIEWS,
        images=images.to(torch.uint8),
        masks=torch.ones(NUM_VIEWS, height, width, dtype=torch.bool),
        predictions=Predictions(
            Cameras(pose, intrinsics), None, DenseMap(depth, torch.rand_like(depth) + 1), None, None
        ),
    )


def measure(browser: Browser, folder: Path) -> dict[str, float]:
    """Seconds to read and serve a scene, and from then to points in a browser that is running; the number of points."""
    start = time.monotonic()
    with open_viewer(folder, max_points=10**7) as viewer:
        viewer._panel.nodes.change(cameras=False, percent=0)
        served = time.monotonic()
        with browser.open(viewer.url, size=SIZE, offline=False) as page:
            share = 0.0
            while share < 0.05:  # the middle of the window, where neither the panel nor a message of the page lies
                assert time.monotonic() < served + 300, page.messages
                pixels = np.asarray(page.screenshot())[200:600, 100:600]
                share = float((pixels.min(-1) < 200).mean())
            return {
                "points": len(viewer._panel.nodes.points),
                "seconds_to_serve": round(served - start, 2),
                "seconds_to_first_points": round(time.monotonic() - served, 2),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, nargs="+", default=[100_000, 500_000, 10**6])
    parser.add_argument("--work", type=Path, required=True, help="folder for the scenes")
    parser.add_argument("--output", type=Path, default=RESULTS / "viewer.json")
    arguments = parser.parse_args()
    browser, rows = Browser(), []
    try:
        for count in arguments.points:
            folder = arguments.work / str(count)
            wavy_wall(count).save(folder, formats=(), report=False, overwrite=True)
            rows.append(measure(browser, folder))
            print(rows[-1], flush=True)
    finally:
        browser.close()
    result = {"machine": describe_machine(), "code": describe_code(), "window": SIZE, "rows": rows}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
