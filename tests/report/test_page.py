from __future__ import annotations

import dataclasses
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

import geomtx
from geomtx.report import cells, draw_report, layout, page
from geomtx.report.layout import WARNING, choose_rows
from geomtx.types import Cameras, DenseMap, Predictions
from geomtx.views import ViewTransform

RED = (250, 0, 0)


@pytest.fixture(scope="module")
def photos_alone(scene: geomtx.Scene) -> geomtx.Scene:
    """The scene without predictions, which is drawn quickly."""
    return dataclasses.replace(scene, predictions=Predictions(), query_points=None)


def blank() -> Axes:
    return Figure((1, 1), dpi=100).add_axes((0, 0, 1, 1), frameon=False)


def test_a_report_shows_photos_maps_and_panels(scene: geomtx.Scene) -> None:
    image = draw_report(scene, scene.points())
    assert image.mode == "RGB"
    assert image.width > 1000
    assert image.height > 800
    assert len(image.getcolors(2**24)) > 5000


@pytest.mark.usefixtures("small_pictures")
def test_the_same_pixels_whatever_the_users_settings_are_which_stay(scene: geomtx.Scene) -> None:
    scene = dataclasses.replace(scene, predictions=Predictions(depth=scene.predictions.depth))
    before = np.asarray(draw_report(scene, max_views=1))
    with mpl.rc_context({"font.size": 30, "image.origin": "lower", "axes.linewidth": 7}):
        changed = np.asarray(draw_report(scene, max_views=1))
        assert mpl.rcParams["axes.linewidth"] == 7
    np.testing.assert_array_equal(before, changed)


@pytest.mark.parametrize(("name", "shown"), [("same", True), ("other", False), ("gone", False), ("broken", False)])
def test_photos_are_shown_themselves(scene: geomtx.Scene, tmp_path: Path, name: str, shown: bool) -> None:
    """A photo of the size that the transform knows replaces the model's image; another one, or none, does not."""
    Image.new("RGB", (112, 84), RED).save(tmp_path / "same.png")
    Image.new("RGB", (50, 40), RED).save(tmp_path / "other.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    axes = blank()
    cells.photo_column("", dataclasses.replace(scene, paths=(tmp_path / f"{name}.png",) * 4), [1]).cells[0](axes)
    pixels = np.asarray(axes.images[0].get_array())
    assert (pixels == RED).all() == shown
    if not shown:
        expected = scene.images[1].float().mean(dim=(1, 2)).numpy()
        np.testing.assert_allclose(pixels.mean(axis=(0, 1)), expected, atol=1)


def test_the_part_of_a_photo_that_the_model_saw() -> None:
    cropped = ViewTransform((200, 100), (60, 60), (0.6, 0.6), (0.0, -30.0))
    assert cells.seen_part(cropped) == pytest.approx((0, 50, 100, 150))
    padded = ViewTransform((100, 100), (60, 80), (0.6, 0.6), (10.0, 0.0))
    assert cells.seen_part(padded) == pytest.approx((0, 0, 100, 100))
    assert cells._image_extent(padded) == pytest.approx((-10 / 0.6, 70 / 0.6, 100, 0))


def test_maps_lie_over_the_photo(scene: geomtx.Scene) -> None:
    """A map that is 1 on the left half of a padded photo and 0 on its right half is split in the middle of the cell."""
    transform = ViewTransform((84, 84), (84, 112), (1.0, 1.0), (14.0, 0.0))
    values = torch.zeros(4, 84, 112)
    values[:, :, :56] = 1.0
    placed = dataclasses.replace(scene, transforms=(transform,) * 4)
    column = cells.map_column("t", values, placed, [0], colormap="gray", limits=(0, 1))
    axes = blank()
    column.cells[0](axes)
    assert axes.figure is not None
    pixels = np.asarray(layout.to_picture(axes.figure))[50, :, 0]
    assert (pixels[:49] == 255).all()
    assert (pixels[51:] == 0).all()


def test_values_of_colours(scene: geomtx.Scene) -> None:
    masks = scene.masks.clone()
    masks[1, :20] = False
    part = dataclasses.replace(scene, masks=masks)
    values = torch.ones(4, 84, 112)
    values[1, :20] = 1e6
    values[2, 3] = torch.inf
    assert cells.value_range(values, part, [1, 2]) == (1.0, 1.0)
    masks[1] = False
    assert cells.value_range(values, part, [1]) == (0.0, 1.0)


def test_the_heading_says_how_the_scene_was_made(scene: geomtx.Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    headings = []

    def record(heading: layout.Heading, *_: object, **__: object) -> Image.Image:
        headings.append(heading)
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(page, "draw_page", record)
    made = {"photos": "holiday", "weights": "nano"}
    draw_report(dataclasses.replace(scene, provenance=made), scene.points(), max_views=2)
    draw_report(dataclasses.replace(scene, provenance={}), title="mine")
    first, second = headings
    assert first.title == "geomtx reconstruction of holiday"
    assert first.facts[:2] == ["weights nano", "2 of 4 views shown, evenly spaced"]
    assert second.title == "mine"
    assert second.facts[0] == "4 views"


@pytest.mark.parametrize("notice", ["", "careful", "a sentence of a notice. " * 20])
def test_only_a_notice_is_shown_in_the_colour_of_warnings(photos_alone: geomtx.Scene, notice: str) -> None:
    pixels = np.array(draw_report(dataclasses.replace(photos_alone, notice=notice), max_views=1))
    assert ((pixels == WARNING).all(axis=-1).sum() > 10_000) == bool(notice)


@pytest.mark.usefixtures("small_pictures")
@pytest.mark.parametrize(
    "kept", [(), ("cameras",), ("depth",), ("points",), ("cameras", "depth"), ("cameras", "points")]
)
def test_missing_heads(scene: geomtx.Scene, kept: tuple[str, ...]) -> None:
    predictions = Predictions(**{name: getattr(scene.predictions, name) for name in kept})
    partial = dataclasses.replace(scene, predictions=predictions)
    has_cloud = "points" in kept or kept == ("cameras", "depth")
    image = draw_report(partial, partial.points(max_points=500) if has_cloud else None, max_views=2)
    assert image.width >= 120


@pytest.mark.usefixtures("small_pictures")
def test_many_views_are_represented_by_eight(photos_alone: geomtx.Scene) -> None:
    assert choose_rows(3, 8) == [0, 1, 2]
    assert choose_rows(11, 4) == [0, 3, 7, 10]
    many = {name: getattr(photos_alone, name) * 3 for name in ("names", "transforms", "paths")} | {
        name: torch.cat([getattr(photos_alone, name)] * 3) for name in ("images", "masks")
    }
    twelve = dataclasses.replace(photos_alone, **many)
    assert draw_report(twelve).size == draw_report(twelve, max_views=8).size


@pytest.mark.usefixtures("small_pictures")
def test_values_that_are_not_finite(scene: geomtx.Scene) -> None:
    assert scene.predictions.cameras is not None
    nothing = DenseMap(torch.full((4, 84, 112), torch.nan), torch.full((4, 84, 112), torch.nan))
    cameras = Cameras(scene.predictions.cameras.cam_from_world * torch.nan, scene.predictions.cameras.intrinsics)
    draw_report(dataclasses.replace(scene, predictions=Predictions(cameras=cameras, depth=nothing), query_points=None))


@pytest.mark.usefixtures("small_pictures")
def test_tracks_have_a_number_in_each_photo(scene: geomtx.Scene) -> None:
    """Each photo has the tracks that lie in it: the query as a square, a hidden one as a ring."""
    assert scene.predictions.tracks is not None
    visibility = scene.predictions.tracks.visibility.clone()
    visibility[2, 0] = 0.1
    coords = scene.predictions.tracks.coords_px.clone()
    coords[:, 1] = 1000.0
    tracks = scene.predictions.tracks._replace(visibility=visibility, coords_px=coords)
    changed = dataclasses.replace(scene, predictions=scene.predictions._replace(tracks=tracks))
    found = []
    for view in range(3):
        axes = blank()
        cells.track_cell(changed, view, [0, 1])(axes)
        (line,) = axes.lines
        found.append(
            (line.get_marker(), line.get_markerfacecolor() == "none", [text.get_text() for text in axes.texts])
        )
        expected = coords[view, 0] + 0.5
        assert (line.get_xdata()[0], line.get_ydata()[0]) == pytest.approx(expected.tolist())
    assert found == [("s", False, ["0"]), ("o", False, ["0"]), ("o", True, ["0"])]
    only = dataclasses.replace(scene, predictions=Predictions(tracks=scene.predictions.tracks))
    without = dataclasses.replace(scene, predictions=Predictions())
    assert draw_report(only, max_views=1).height > draw_report(without, max_views=1).height


@pytest.mark.usefixtures("small_pictures")
def test_names_that_are_no_plain_text(scene: geomtx.Scene, recwarn: pytest.WarningsRecorder) -> None:
    """Neither formulas nor letters that the font lacks nor what isn't Unicode stop or spoil a report."""
    names = ("$x^2", "写真.png", "a\nb\udcff.png", "long " * 80)
    made = {"photos": "$a_$", "weights": "写"}
    draw_report(dataclasses.replace(scene, names=names, provenance=made, units="$m_$"), max_views=1)
    assert [str(warning.message) for warning in recwarn if "lyph" in str(warning.message)] == []
