from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import geomtx
from geomtx.export import columns, comparison, draw_comparison
from geomtx.export.canvas import MUTED
from geomtx.export.colormap import color_table
from geomtx.export.plan import draw_plan
from geomtx.export.table import Caption, Column, Heading, choose_rows, draw_page
from geomtx.types import DenseMap, Predictions
from scene.known_scene import known_scene


def strip(scene: geomtx.Scene, *kept: str) -> geomtx.Scene:
    predictions = Predictions(**{name: getattr(scene.predictions, name) for name in kept})
    return dataclasses.replace(scene, predictions=predictions, query_points=None)


@pytest.fixture(scope="module")
def truth(scene: geomtx.Scene) -> geomtx.Scene:
    return strip(scene, "cameras", "depth")


def with_depth(scene: geomtx.Scene, value: torch.Tensor) -> geomtx.Scene:
    depth = DenseMap(value, torch.ones_like(value))
    return dataclasses.replace(scene, predictions=scene.predictions._replace(depth=depth))


def test_a_perfect_prediction_in_another_unit_has_no_error(scene: geomtx.Scene, truth: geomtx.Scene) -> None:
    predicted, errors = comparison._compare_depth(scene.rescale(7.0), truth)
    assert truth.predictions.depth is not None
    torch.testing.assert_close(predicted.float(), truth.predictions.depth.value)
    assert errors.max() < 1e-3


def test_errors_are_per_cent_of_the_truth_after_one_scale_for_all_views(truth: geomtx.Scene) -> None:
    assert truth.predictions.depth is not None
    true = truth.predictions.depth.value
    wrong = true.clone()
    wrong[3] *= 1.3  # one view of four moves the one scale by little, and by the same for all
    _, errors = comparison._compare_depth(with_depth(truth, wrong), truth)
    moved = errors[:3].median() / 100
    assert moved < 0.08
    torch.testing.assert_close(errors[3].median(), 100 * (1.3 * (1 - moved) - 1), rtol=1e-3, atol=0)
    assert comparison._describe_error(errors[3]) == f"median error {errors[3].median():.0f} %"


def test_what_is_not_known_is_no_error(truth: geomtx.Scene) -> None:
    assert truth.predictions.depth is not None
    masks = truth.masks.clone()
    masks[0] = False
    garbage = truth.predictions.depth.value.clone()
    garbage[0] = 1e9
    garbage[1, :4] = torch.nan
    known = dataclasses.replace(truth, masks=masks)
    _, errors = comparison._compare_depth(with_depth(known, garbage), known)
    assert errors[0].isnan().all()
    assert errors[1, :4].isnan().all()
    assert errors[~errors.isnan()].max() < 1e-3
    assert comparison._describe_error(errors[0]) == ""
    draw_comparison(with_depth(known, garbage), known)


def test_both_depths_have_the_same_colours(scene: geomtx.Scene, truth: geomtx.Scene) -> None:
    predicted, errors = comparison._compare_depth(scene.rescale(0.2), truth)
    true, guessed, wrong = comparison._depth_columns(predicted, errors, truth, [0, 2])
    assert true.value_range == guessed.value_range
    for a, b in zip(true.pictures, guessed.pictures, strict=True):
        difference = np.abs(np.array(a).astype(int) - np.array(b).astype(int))
        assert (difference.max(axis=-1) > 4).mean() < 0.01  # rounding between two colours
    assert (np.array(wrong.pictures[0]) == color_table("hot")[0]).all()


@pytest.mark.parametrize(
    ("kept", "num_columns", "titles"),
    [
        (("cameras", "depth", "points"), 4, ["true point cloud", "predicted point cloud", "cameras from above"]),
        (("cameras",), 1, ["true point cloud", "cameras from above"]),
        (("points",), 1, ["true point cloud", "predicted point cloud"]),
        (("depth",), 4, ["true point cloud"]),
        ((), 1, ["true point cloud"]),
    ],
)
def test_missing_heads(
    scene: geomtx.Scene,
    truth: geomtx.Scene,
    kept: tuple[str, ...],
    num_columns: int,
    titles: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pages = []

    def record(*page: object) -> Image.Image:
        pages.append(page)
        return draw_page(*page)  # type: ignore[arg-type]

    monkeypatch.setattr(comparison, "draw_page", record)
    draw_comparison(strip(scene, *kept), truth, title="mine", facts=["a fact"])
    ((heading, drawn, captions, panels),) = pages
    assert heading.title == "mine"
    assert heading.facts[-1] == "a fact"
    assert len(drawn) == num_columns
    assert [title.split(",")[0] for title, _ in panels] == titles
    assert [caption.note != "" for caption in captions] == ["depth" in kept] * 4


def test_predictions_that_are_not_finite_are_drawn(truth: geomtx.Scene) -> None:
    assert truth.predictions.cameras is not None
    cameras = truth.predictions.cameras._replace(cam_from_world=truth.predictions.cameras.cam_from_world * torch.nan)
    broken = with_depth(truth, torch.full((4, 84, 112), torch.nan))
    broken = dataclasses.replace(broken, predictions=broken.predictions._replace(cameras=cameras))
    draw_comparison(broken, truth)


def test_other_views_are_refused(truth: geomtx.Scene, tmp_path: Path) -> None:
    other = known_scene(tmp_path, 3)
    with pytest.raises(ValueError, match=r"scene.masks must have shape \(4, 84, 112\), got \(3, 84, 112\)"):
        draw_comparison(other, truth)


def test_the_plan_joins_predicted_and_true_cameras() -> None:
    centers = np.array([[0.0, 0, 0], [1, 0, 0]])
    corners = centers[:, None] + np.array([[-0.1, -0.1, 0.2], [0.1, -0.1, 0.2], [0.1, 0.1, 0.2], [-0.1, 0.1, 0.2]])
    up = np.array([0, 0, 1.0])
    nothing = np.empty((0, 3)), np.empty((0, 3), np.uint8)
    alone = draw_plan((300, 300), *nothing, centers, corners, labels=[], units="m")
    joined = draw_plan((300, 300), *nothing, centers, corners, labels=[], units="m", truth=(centers + up, corners + up))

    def grey(image: Image.Image) -> int:
        return int((np.abs(np.array(image).astype(int) - MUTED).max(axis=-1) < 12).sum())

    assert grey(joined) > 1.5 * grey(alone)


def test_rows_of_a_page() -> None:
    assert choose_rows(3, 8) == [0, 1, 2]
    assert choose_rows(11, 4) == [0, 3, 7, 10]
    red, blue = (Image.new("RGB", (40, 30), color) for color in ((200, 0, 0), (0, 0, 200)))
    asked = []

    def panel(wh: tuple[int, int]) -> Image.Image:
        asked.append(wh)
        return Image.new("RGB", wh, (0, 200, 0))

    for num_rows in (1, 3):
        captions = [Caption(n, (1, 2, 3), f"view {n}", "note") for n in range(num_rows)]
        page = draw_page(Heading("t", ["f"]), [Column("a", [red, blue, red][:num_rows])], captions, [("p", panel)] * 3)
        pixels = np.array(page)
        reds, blues, greens = ((pixels == color).all(-1) for color in ((200, 0, 0), (0, 0, 200), (0, 200, 0)))
        assert greens.sum() == 3 * asked[-1][0] * asked[-1][1], "panels lie on the page, beside one another"
        assert not greens[reds.any(1)].any() if num_rows == 1 else greens[reds.any(1)].any()
        assert blues.any() == (num_rows > 1)


def test_maps_are_cropped_to_the_photo(scene: geomtx.Scene) -> None:
    masks = scene.masks.clone()
    masks[1, :20] = False
    masks[1, :, 100:] = False
    part = dataclasses.replace(scene, masks=masks)
    assert columns.content_box(part, 1) == (0, 20, 100, 84)
    assert columns.crop_photo(part, 1).size == (100, 64)
    values = torch.ones(4, 84, 112)
    values[1, :20] = 1e6
    values[2, 3] = torch.inf
    assert columns.value_range(values, part, [1, 2]) == (1.0, 1.0)
    column = columns.map_column("t", values, part, [1, 3], colormap="hot")
    assert [picture.size for picture in column.pictures] == [(100, 64), (112, 84)]
    masks[1] = False
    assert columns.content_box(part, 1) == (0, 0, 112, 84)
    assert columns.value_range(values, part, [1]) == (0.0, 1.0)
