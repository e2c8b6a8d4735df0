from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import geomtx
from browser import Browser, Page
from geomtx.files import is_own
from geomtx.geometry import project
from geomtx.report import write_page
from geomtx.report.web_pictures import picture_side
from geomtx.report.web_scene import pack_points
from geomtx.scene.points import PointCloud
from geomtx.types import Cameras, DenseMap, Predictions

pytestmark = pytest.mark.usefixtures("small_pictures")

EVIL = "</script><b>Küche & Flur.png"


@pytest.fixture(scope="module")
def page_file(scene: geomtx.Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(path, scene)
    return path


@pytest.fixture
def text(page_file: Path) -> str:
    return page_file.read_text(encoding="utf-8")


def numbers_of(text: str) -> dict[str, Any]:
    """What the page's script reads; JSON without NaN."""
    found = re.search(r'id="scene">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1], parse_constant=pytest.fail)


def test_a_page_holds_all_that_it_shows(text: str, scene: geomtx.Scene) -> None:
    assert "://" not in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert len(re.findall(r'<img[^>]*src="data:image/jpeg', text)) == 3 * len(scene) + 1
    for name in scene.names:
        assert f'<span class="name">{name}</span>' in text
    assert "{{" not in text
    assert numbers_of(text)["count"] == len(scene.points(0).xyz)


def test_what_users_wrote_is_text(scene: geomtx.Scene, tmp_path: Path) -> None:
    odd = dataclasses.replace(
        scene,
        names=(EVIL, *scene.names[1:]), notice="<i>{{css}}", units="</script>", provenance={"<weights>": "<u>"},
    )  # fmt: skip
    write_page(tmp_path / "a.html", odd, title="<s>&")
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert text.count("</script>") == 3
    for raw in ("<b>", "<i>", "<u>", "<s>", "<weights>"):
        assert raw not in text
    assert "<title>&lt;s&gt;&amp;</title>" in text
    assert "&lt;b&gt;Küche &amp; Flur.png" in text
    assert '<p class="notice" role="note">&lt;i&gt;{{css}}</p>' in text
    assert numbers_of(text)["units"] == "</script>"


def test_the_same_scene_gives_the_same_bytes(scene: geomtx.Scene, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_page(tmp_path / name, scene)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_saved_page_is_known_as_geomtxs_own(text: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(text.replace("geomtx reconstruction", "mine"), encoding="utf-8")
    (tmp_path / "other.html").write_text(text.replace('content="geomtx ', 'content="mkdocs '), encoding="utf-8")
    assert is_own(tmp_path / "report.html")
    assert not is_own(tmp_path / "other.html")


def test_a_page_has_at_most_so_many_points(scene: geomtx.Scene, tmp_path: Path) -> None:
    write_page(tmp_path / "a.html", scene, max_points=150)
    numbers = numbers_of((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert numbers["count"] == numbers["first"][-1] <= 150
    with pytest.raises(ValueError, match="max_points must be a whole number, at least 1, got 0"):
        write_page(tmp_path / "b.html", scene, max_points=0)
    with pytest.raises(ValueError, match=r"percentile must be in 0 … 100, got 101"):
        write_page(tmp_path / "b.html", scene, percentile=101)
    assert not (tmp_path / "b.html").exists()


def test_what_is_not_finite_is_left_out(scene: geomtx.Scene, tmp_path: Path) -> None:
    depth, cameras, tracks = (getattr(scene.predictions, name) for name in ("depth", "cameras", "tracks"))
    value, poses, coords = depth.value.clone(), cameras.cam_from_world.clone(), tracks.coords_px.clone()
    value[0, :40], poses[1], coords[:, 0] = torch.nan, torch.inf, torch.nan
    odd = Predictions(
        Cameras(poses, cameras.intrinsics),
        depth=DenseMap(value, depth.confidence),
        tracks=tracks._replace(coords_px=coords),
    )
    write_page(tmp_path / "a.html", dataclasses.replace(scene, predictions=odd))
    numbers = numbers_of((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert [camera is None for camera in numbers["cameras"]] == [False, True, False, False]
    assert numbers["count"] > 0
    nothing = torch.full_like(value, torch.nan)
    odd = Predictions(Cameras(torch.full_like(poses, torch.nan), cameras.intrinsics), depth=DenseMap(nothing, nothing))
    write_page(tmp_path / "b.html", dataclasses.replace(scene, predictions=odd, query_points=None))
    text = (tmp_path / "b.html").read_text(encoding="utf-8")
    assert "No camera is known." in text
    assert 'id="space"' not in text


@pytest.mark.parametrize("kept", ["", "cameras", "depth", "points", "cameras points"])
def test_scenes_have_what_they_have(kept: str, scene: geomtx.Scene, tmp_path: Path) -> None:
    some = Predictions(**{name: getattr(scene.predictions, name) for name in kept.split()})
    write_page(tmp_path / "a.html", dataclasses.replace(scene, predictions=some, query_points=None))
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert ('id="space"' in text) is (kept not in ("", "depth"))
    assert ('class="scale depth"' in text) is (kept not in ("", "cameras"))
    assert text.count('class="card"') == len(scene)


def test_points_are_packed_into_ten_bytes_each(scene: geomtx.Scene) -> None:
    cloud = scene.points(0)
    packed = pack_points(cloud, len(scene))
    count = len(packed.xyz)
    assert len(packed.data) == 10 * count
    grid = np.frombuffer(packed.data, "<u2", 3 * count).reshape(-1, 3)
    found = packed.low + grid / 65535 * packed.size
    assert np.abs(found - packed.xyz).max() <= packed.size.max() / 65535 / 2 * 1.01
    rank = np.frombuffer(packed.data, np.uint8, offset=9 * count)
    kept = len(scene.points(30).xyz)
    assert abs((rank >= int(2.56 * 30)).sum() - kept) <= 0.005 * count + 1, "what is left as Scene.points leaves it"
    for view in range(len(scene)):
        assert packed.first[view + 1] - packed.first[view] == int((cloud.view == view).sum())


def test_points_of_one_confidence_are_never_left_out_and_far_ones_are() -> None:
    xyz = torch.cat([torch.rand(999, 3), torch.full((1, 3), 1e30)])
    cloud = PointCloud(
        xyz, torch.zeros(1000, 3, dtype=torch.uint8), torch.ones(1000), torch.zeros(1000, dtype=torch.long)
    )
    packed = pack_points(cloud, 1)
    assert packed.num_far == 1
    assert packed.size.max() < 1
    assert set(packed.data[9 * 999 :]) == {255}


def test_pictures_are_smaller_where_there_are_many() -> None:
    assert [picture_side(num) for num in (1, 16, 64, 100, 10_000)] == [640, 640, 320, 256, 128]


# In a browser


@pytest.fixture(scope="module")
def page(browser: Browser, page_file: Path) -> Iterator[Page]:
    with browser.open(page_file) as page:
        page.wait("geomtx.frames > 0")
        page.evaluate("document.querySelectorAll('.hint').forEach(each => { each.hidden = true; })")
        yield page


def colored(page: Page) -> float:
    """Share of the pixels of the view in space that are not of its background."""
    page.settle()
    pixels = np.asarray(page.screenshot(".stage")).astype(int)
    return float((np.abs(pixels - pixels[5, -5]).sum(-1) > 12).mean())


def test_a_page_opens_from_disk_without_errors_or_requests(page: Page, page_file: Path) -> None:
    assert page.messages == []
    assert [each for each in page.requests if not each.startswith("data:")] == [page_file.as_uri()]
    for name in ("frusta", "images"):
        page.click_on(f"#{name}")
    assert colored(page) > 0.05, "points alone"


def test_sliders_and_switches_change_what_is_drawn(page: Page) -> None:
    page.fill("#confidence", "0")
    everything = colored(page)
    page.fill("#confidence", "90")
    few = colored(page)
    assert 0 < few < 0.7 * everything
    page.fill("#size", "20")
    assert colored(page) > 1.2 * few
    page.click_on("#none")
    assert colored(page) < 0.02
    page.click_on("#frusta")
    assert colored(page) > 0.005
    page.click_on("#all")
    page.fill("#size", "0")
    page.fill("#confidence", "0")
    assert colored(page) > 0.9 * everything


def test_two_clicks_measure_the_distance_between_two_points(page: Page, scene: geomtx.Scene) -> None:
    page.click_on("#view-0 [data-camera]")
    page.wait("geomtx.frames > 1 && !geomtx.moving")
    page.box(".stage")
    page.settle()
    cloud = scene.points(0)
    xyz, cameras = cloud.xyz[cloud.view == 0], scene.cameras
    assert cameras is not None
    where, _ = project(xyz[None], cameras.intrinsics[:1], cameras.cam_from_world[:1])
    ends = [xyz[(where[0] - torch.tensor(goal)).norm(dim=-1).argmin()] for goal in ([20.0, 20.0], [90.0, 60.0])]
    for end in ends:
        page.click(*page.evaluate(f"geomtx.locate({end.tolist()})"))
    page.wait("geomtx.distance !== null")
    assert page.evaluate("geomtx.distance") == pytest.approx(float((ends[0] - ends[1]).norm()), rel=0.01)
    assert page.evaluate("document.querySelector('.distance').textContent").endswith("(no unit: up to scale)")
    page.wait("document.querySelectorAll('.ruler line').length === 1")  # with the next frame


def test_mouse_wheel_and_keys_move_the_eye(page: Page) -> None:
    page.click_on("#reset")
    page.wait("!geomtx.moving")
    place = numbers_of(page.evaluate("document.documentElement.outerHTML"))["cameras"][0]["corners"][0]
    locate, (left, top, width, height) = f"geomtx.locate({place})", page.box(".stage")
    seen = [page.evaluate(locate)]
    middle = (left + width / 2, top + height / 2)
    page.drag(middle, (middle[0] + 60, middle[1] + 10))
    page.settle()
    seen.append(page.evaluate(locate))
    page.drag(middle, (middle[0] + 60, middle[1]), button="right")
    page.settle()
    seen.append(page.evaluate(locate))
    page.send("Input.dispatchMouseEvent", type="mouseWheel", x=middle[0], y=middle[1], deltaX=0, deltaY=300)
    page.settle()
    seen.append(page.evaluate(locate))
    page.evaluate("document.querySelector('canvas').focus()")
    page.press("ArrowLeft")
    page.settle()
    seen.append(page.evaluate(locate))
    moves = np.diff(np.array(seen), axis=0)
    assert (np.abs(moves).max(axis=1) > 2).all()
    page.press("r")
    page.wait("!geomtx.moving")
    page.settle()
    assert page.evaluate(locate) == pytest.approx(seen[0], abs=0.5)


def test_fingers_turn_and_zoom(browser: Browser, page_file: Path) -> None:
    """Two places of the scene come apart when two fingers do, and move together when one finger turns."""

    def touch(kind: str, *fingers: tuple[float, float]) -> None:
        points = [{"x": x, "y": y, "id": index} for index, (x, y) in enumerate(fingers)]
        page.send("Input.dispatchTouchEvent", type=kind, touchPoints=points)

    with browser.open(page_file, size=(400, 800), touch=True) as page:
        page.wait("geomtx.frames > 0")
        numbers = numbers_of(page.evaluate("document.documentElement.outerHTML"))
        low, size = np.array(numbers["box"]["low"]), np.array(numbers["box"]["size"])
        ends = [(low + size * share).tolist() for share in ((0.45, 0.5, 0.9), (0.55, 0.5, 0.9))]
        locate = f"{json.dumps(ends)}.map(each => geomtx.locate(each))"
        left, top, width, height = page.box(".stage")
        x, y = left + width / 2, top + height / 2
        start = np.array(page.evaluate(locate))
        touch("touchStart", (x, y))
        touch("touchMove", (x + 20, y))
        touch("touchMove", (x + 40, y))
        touch("touchEnd")
        page.settle()
        turned = np.array(page.evaluate(locate))
        assert np.abs(turned - start).max() > 2
        touch("touchStart", (x - 20, y), (x + 20, y))
        touch("touchMove", (x - 30, y), (x + 30, y))
        touch("touchMove", (x - 40, y), (x + 40, y))
        touch("touchEnd")
        page.settle()
        zoomed = np.array(page.evaluate(locate))
        apart = np.linalg.norm(np.diff([turned, zoomed], axis=1)[:, 0], axis=-1)
        assert apart[1] > 1.3 * apart[0]
        assert page.evaluate("geomtx.distance") is None, "no finger has clicked"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_fits_a_phone_and_is_light_or_dark(browser: Browser, page_file: Path, scheme: str) -> None:
    with browser.open(page_file, size=(400, 800), scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        ground = "getComputedStyle(document.body).backgroundColor"
        before = page.evaluate(ground)
        assert before == {"light": "rgb(255, 255, 255)", "dark": "rgb(13, 17, 23)"}[scheme]
        page.click_on("#theme")
        assert page.evaluate(ground) != before


@pytest.mark.usefixtures("browser")  # skipped where there is none
def test_without_webgl_a_picture_is_shown_and_a_line_says_so(page_file: Path) -> None:
    with closing(Browser(["--disable-3d-apis"])) as browser, browser.open(page_file) as page:
        assert page.evaluate("document.querySelector('.stage img').checkVisibility()")
        assert page.evaluate("document.querySelector('canvas')") is None
        assert page.evaluate("document.querySelector('.problem').checkVisibility()")
        assert not page.evaluate("document.querySelector('.controls').checkVisibility()")
        picture = page.screenshot(".stage")
        assert len(picture.getcolors(2**24) or ()) > 100
        assert page.messages == []
