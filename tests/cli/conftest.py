from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from geomtx.data.synthetic.photos import save_photos
from scene.known_scene import render_room


@pytest.fixture
def drawn_reports() -> None:
    """For tests whose reports are drawn; the reports of other tests are blank, as drawing takes most of the time."""


@pytest.fixture(autouse=True)
def _reports(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, small_pictures: None) -> None:
    if "drawn_reports" not in request.fixturenames:
        monkeypatch.setattr("geomtx.report.draw_report", lambda *_: Image.new("RGB", (4, 4)))
        monkeypatch.setattr("geomtx.report.web_page.render_cloud", lambda *_: Image.new("RGB", (4, 4)))


@pytest.fixture(scope="session")
def _rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("room")
    save_photos(render_room(3, (90, 120)).images[0], folder)
    return folder


@pytest.fixture
def photos(_rendered: Path, tmp_path: Path) -> Path:
    """A folder of three photos of a room, 120 x 90 pixels."""
    return Path(shutil.copytree(_rendered, tmp_path / "photos"))
