from __future__ import annotations

import dataclasses

import pytest
import torch
from PIL import Image

import geomtx
from geomtx.report import comparison, draw_comparison
from geomtx.types import DenseMap, Predictions


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


def test_both_depths_have_the_same_colours(scene: geomtx.Scene, truth: geomtx.Scene) -> None:
    predicted, errors = comparison._compare_depth(scene.rescale(0.2), truth)
    true, guessed, wrong = comparison._depth_columns(predicted, errors, truth, [0, 2])
    assert (true.limits, true.colormap) == (guessed.limits, guessed.colormap)
    assert wrong.limits == (0.0, 50.0)
    assert [len(column.cells) for column in (true, guessed, wrong)] == [2, 2, 2]


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

    def record(*page: object, **options: object) -> Image.Image:
        pages.append(page)
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(comparison, "draw_page", record)
    draw_comparison(strip(scene, *kept), truth, title="mine", facts=["a fact"])
    ((heading, drawn, captions, panels),) = pages
    assert heading.title == "mine"
    assert heading.facts[-1] == "a fact"
    assert len(drawn) == num_columns
    assert [title.split(",")[0] for title, _ in panels] == titles
    assert [caption.note != "" for caption in captions] == ["depth" in kept] * 4


@pytest.mark.usefixtures("small_pictures")
def test_predictions_that_are_not_finite_are_drawn(truth: geomtx.Scene) -> None:
    assert truth.predictions.cameras is not None
    cameras = truth.predictions.cameras._replace(cam_from_world=truth.predictions.cameras.cam_from_world * torch.nan)
    broken = with_depth(truth, torch.full((4, 84, 112), torch.nan))
    broken = dataclasses.replace(broken, predictions=broken.predictions._replace(cameras=cameras))
    draw_comparison(broken, truth, max_views=1)


def test_other_views_are_refused(truth: geomtx.Scene) -> None:
    per_view = {name: getattr(truth, name)[:3] for name in ("names", "images", "masks", "transforms", "paths")}
    other = dataclasses.replace(truth, predictions=Predictions(), **per_view)
    with pytest.raises(ValueError, match=r"scene.masks must have shape \(4, 84, 112\), got \(3, 84, 112\)"):
        draw_comparison(other, truth)
