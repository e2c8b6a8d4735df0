"""Pictures of the viewer for the docs: run `geomtx demo`, then `viewer_pictures.py geomtx-demo docs/images`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from browser import Browser, Page
from geomtx.report import open_viewer

_SIZES = {"viewer": (1300, 800), "viewer_phone": (400, 800)}
_CALM, _PATIENCE = 1.0, 60.0  # seconds without a change in the window, and how long to wait for them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scene", type=Path, help="folder that `geomtx demo` wrote")
    parser.add_argument("out", type=Path, help="folder to write viewer.png and viewer_phone.png to")
    arguments = parser.parse_args()
    browser = Browser()
    try:
        with open_viewer(arguments.scene) as viewer:
            for name, size in _SIZES.items():
                path = arguments.out / f"{name}.png"
                with browser.open(viewer.url, size=size, offline=False) as page:
                    picture = take(page)
                # A palette halves the file, and nobody sees it.
                picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
                    path, optimize=True
                )
                print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
    finally:
        browser.close()


def take(page: Page) -> Image.Image:
    """The window when it has come to rest, without the message that software draws slowly."""
    page.wait("document.querySelector('[role=tab], [aria-label^=\"Expand panel\"]')")
    before, calm, end = np.empty(0), time.monotonic(), time.monotonic() + _PATIENCE
    while time.monotonic() < min(calm + _CALM, end):
        page.evaluate("document.querySelectorAll('.mantine-Notification-closeButton').forEach(each => each.click())")
        page.settle()
        now = np.asarray(page.screenshot())
        if not np.array_equal(before, now):
            before, calm = now, time.monotonic()
    return Image.fromarray(before)


if __name__ == "__main__":
    main()
