from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("viser")

import viser

import geomtx
from browser import Browser, Page
from geomtx.report import Viewer, open_viewer

SIZE = (640, 400)
PANEL = 335  # width in pixels of what lies over the right of the picture
TITLE_TOP = 345  # where what lies over the left of it begins, when it is small
HARMLESS = ("log:", "info:", "warning: THREE.Clock", "warning: [.WebGL-")  # of the driver and the library


@pytest.fixture(scope="module")
def page(browser: Browser, scene: geomtx.Scene) -> Iterator[tuple[Viewer, Page]]:
    with open_viewer(scene) as viewer, browser.open(viewer.url, size=SIZE, offline=False) as page:
        wait(page, viewer._server.get_clients)
        viewer._server.gui.main_panel.minimize()
        viewer._panel.nodes.change(cameras=False, tracks=False, point_size=0.5)  # there is less to draw
        yield viewer, page


def wait(page: Page, condition: Callable[[], Any], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, page.messages
        page.settle()


def click_until(page: Page, place: list[float], condition: Callable[[], Any]) -> None:
    """Click again where nothing came of it: the page listens for clicks some time after it was told to."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, page.messages
        page.click(*place)
        answer = time.monotonic() + 3
        while not condition() and time.monotonic() < answer:
            page.evaluate("0")
            time.sleep(0.02)


def share_of_points(page: Page) -> float:
    """The share of the picture that is not background, when it has come to rest: things fade in."""
    before = -1.0
    for _ in range(100):
        page.settle()
        pixels = np.asarray(page.screenshot())[150:TITLE_TOP, : SIZE[0] - PANEL].astype(int)
        share = float((pixels.min(-1) < 200).mean())
        if share == before:
            return share
        before = share
    raise AssertionError("the picture does not come to rest")


def test_the_page_shows_points_and_its_slider_leaves_some_out(page: tuple[Viewer, Page]):
    viewer, page = page
    wait(page, lambda: share_of_points(page) > 0.1)
    full = share_of_points(page)
    page.evaluate("document.querySelector('[role=slider]').focus()")
    page.press("End")
    wait(page, lambda: viewer._panel.percent.value == 99)
    wait(page, lambda: share_of_points(page) < 0.5 * full)
    assert [each for each in page.messages if not each.startswith(HARMLESS)] == []
    assert [each for each in page.requests if not each.startswith((viewer.url, "data:", "blob:"))] == []


def test_two_clicks_on_the_page_measure_a_distance(page: tuple[Viewer, Page]):
    viewer, page = page
    panel = viewer._panel
    panel.percent.value = 0
    panel.measuring.value = True
    (client,) = viewer._server.get_clients().values()
    points = panel.nodes.points.astype(float)
    local = (points - client.camera.position) @ viser.transforms.SO3(client.camera.wxyz).as_matrix()
    focal = SIZE[1] / 2 / np.tan(client.camera.fov / 2)
    pixels = local[:, :2] / local[:, 2:] * focal + np.array(SIZE) / 2
    # What nothing lies over: neither the panel nor a message of the page.
    free = np.flatnonzero(
        (local[:, 2] > 0) & (pixels > (40, 160)).all(1) & (pixels < (SIZE[0] - PANEL - 20, TITLE_TOP)).all(1)
    )
    ends = free[pixels[free, 0].argmin()], free[pixels[free, 0].argmax()]
    # What the panel says is the last that a click changes, on a thread of the server.
    click_until(page, pixels[ends[0]].tolist(), lambda: "second point" in panel.distance.content)
    click_until(page, pixels[ends[1]].tolist(), lambda: "**" in panel.distance.content)
    told = float(panel.distance.content.partition("**")[2].split()[0])
    assert told == pytest.approx(np.linalg.norm(points[ends[0]] - points[ends[1]]) * panel.shown.frame.unit, rel=0.01)


def test_a_narrow_window_shows_the_picture_until_the_controls_are_touched(browser: Browser, page: tuple[Viewer, Page]):
    viewer, _ = page
    width, height = 400, 800
    is_picture = f"document.elementFromPoint({width - 60}, {height * 0.7:g}).tagName === 'CANVAS'"
    with browser.open(viewer.url, size=(width, height), offline=False, touch=True) as phone:
        phone.wait("document.querySelector('[aria-label^=\"Expand panel\"]')")
        phone.wait(is_picture)
        phone.click_on('[aria-label^="Expand panel"]')
        phone.wait(f"!({is_picture}) && document.querySelector('[role=tab]')")
        assert phone.evaluate("[...document.querySelectorAll('[role=tab]')].map(tab => tab.textContent)") == [
            "Scene", "Photos", "Distance", "Path",
        ]  # fmt: skip
        assert phone.evaluate("document.documentElement.scrollWidth") == width
