from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("viser")

import geomtx
from browser import Browser, Page
from geomtx.report import Viewer, open_viewer

SIZE = (1000, 700)
PANEL = 330  # width in pixels of what lies over the right of the picture
HARMLESS = ("log:", "info:", "warning: THREE.Clock", "warning: [.WebGL-")  # of the driver and the library


@pytest.fixture(scope="module")
def page(browser: Browser, scene: geomtx.Scene) -> Iterator[tuple[Viewer, Page]]:
    with open_viewer(scene) as viewer, browser.open(viewer.url, size=SIZE, offline=False) as page:
        wait(page, viewer._server.get_clients)
        viewer._panel.nodes.change(cameras=False, tracks=False)
        yield viewer, page


def wait(page: Page, condition: Callable[[], Any], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, page.messages
        page.settle()


def share_of_points(page: Page) -> float:
    """The share of the picture that is not background, when it has come to rest: things fade in."""
    before = -1.0
    for _ in range(100):
        page.settle()
        pixels = np.asarray(page.screenshot())[150:, : SIZE[0] - PANEL].astype(int)
        share = float((pixels.min(-1) < 200).mean())
        if share == before and share > 0:
            return share
        before = share
    raise AssertionError("the picture does not come to rest")


def test_the_page_shows_points_and_its_slider_leaves_some_out(page: tuple[Viewer, Page]):
    viewer, page = page
    full = share_of_points(page)
    assert full > 0.1
    page.evaluate("document.querySelector('[role=slider]').focus()")
    page.press("End")
    wait(page, lambda: viewer._panel.percent.value == 99)
    wait(page, lambda: share_of_points(page) < 0.5 * full)
    assert [each for each in page.messages if not each.startswith(HARMLESS)] == []
    assert [each for each in page.requests if not each.startswith((viewer.url, "data:", "blob:"))] == []


def test_two_clicks_on_the_page_measure_a_distance(page: tuple[Viewer, Page], scene: geomtx.Scene):
    viewer, page = page
    panel = viewer._panel
    panel.percent.value = 0
    share_of_points(page)
    panel.measuring.value = True
    (client,) = viewer._server.get_clients().values()
    camera = client.camera
    rotation = np.array(_matrix(camera.wxyz))
    wanted = [scene.point_map().value[0, row, column].double().numpy() for row, column in ((30, 20), (60, 70))]
    for number, point in enumerate(wanted):
        local = (panel.shown.frame.to_viewer(point) - camera.position) @ rotation
        focal = SIZE[1] / 2 / np.tan(camera.fov / 2)
        x, y = local[:2] / local[2] * focal + np.array(SIZE) / 2
        page.click(float(x), float(y))
        wait(page, lambda number=number: len(panel.measure._ends) == number + 1)
    told = float(panel.distance.content.strip("*").split()[0])
    assert told == pytest.approx(np.linalg.norm(wanted[0] - wanted[1]), rel=0.01)


def _matrix(wxyz: np.ndarray) -> np.ndarray:
    import viser

    return viser.transforms.SO3(wxyz).as_matrix()
