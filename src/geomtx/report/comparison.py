"""A picture that compares what a model predicts with the truth: depth, errors, point clouds, cameras."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from geomtx.checks import check_shape
from geomtx.metrics.depth import median_scale
from geomtx.report.cells import map_column, page_aspect, photo_column, value_range
from geomtx.report.layout import Caption, Column, Heading, Panel, choose_rows, draw_page, view_color
from geomtx.report.page import describe_scene
from geomtx.report.panels import draw_cloud, draw_plan, sample_points
from geomtx.scene.align import align_scene
from geomtx.scene.files.save import scene_cloud
from geomtx.scene.scene import Scene

__all__ = ["draw_comparison"]

_WORST = 50.0  # relative error in per cent at the end of the colours


def draw_comparison(
    scene: Scene,
    truth: Scene,
    *,
    title: str = "prediction against truth",
    facts: Sequence[str] = (),
    percentile: float = 20.0,
    max_views: int = 8,
) -> Image.Image:
    """Draw the comparison.

    A row for each view has the photo, the true and the predicted depth in the same colours, the prediction scaled by
    the ratio of the medians over all views, and its relative error. Beside the rows are both point clouds from the
    same viewpoint and the cameras from above, the prediction brought to the truth by `align_scene`.

    Args:
        scene: Scene that a model predicts. Predictions that it lacks are left out.
        truth: True scene of the same views; its `masks` say where depth is known.
        title: First line.
        facts: Short texts for the second line.
        percentile: Percentile of confidence from which predicted points are drawn, see `Scene.points`; true points are
            all drawn.
        max_views: Largest number of rows. More views than that are represented by as many, evenly spaced.

    Returns:
        An RGB picture.

    Raises:
        ValueError: If the views or the sizes of the images differ.
    """
    check_shape("scene.masks", scene.masks, tuple(truth.masks.shape))
    shown = choose_rows(len(scene), max_views)
    columns = [photo_column("photo", scene, shown)]
    notes = [""] * len(scene)
    if scene.predictions.depth is not None and truth.predictions.depth is not None:
        predicted, errors = _compare_depth(scene, truth)
        columns += _depth_columns(predicted, errors, truth, shown)
        notes = [_describe_error(errors[view][truth.masks[view]]) for view in range(len(scene))]
    captions = [Caption(view, view_color(view, len(scene)), scene.names[view], notes[view]) for view in shown]
    heading = Heading(title, [*describe_scene(scene, shown), *facts], scene.notice)
    panels = _panels(scene, truth, shown, percentile)
    return draw_page(heading, columns, captions, panels, aspect=page_aspect(scene, shown))


def _compare_depth(scene: Scene, truth: Scene) -> tuple[Tensor, Tensor]:
    """Return the scaled depth (S, H, W), and its relative error in per cent, NaN where the truth is unknown."""
    assert scene.predictions.depth is not None
    assert truth.predictions.depth is not None
    predicted, true = scene.predictions.depth.value.double(), truth.predictions.depth.value.double()
    known = truth.masks & scene.masks & predicted.isfinite() & true.isfinite() & (true > 0)
    if known.any():
        predicted = predicted * median_scale(predicted.flatten(), true.flatten(), known.flatten())
    return predicted, torch.where(known, 100 * (predicted - true).abs() / true, torch.nan)


def _depth_columns(predicted: Tensor, errors: Tensor, truth: Scene, shown: list[int]) -> list[Column]:
    assert truth.predictions.depth is not None
    true = truth.predictions.depth.value
    limits = value_range(true, truth, shown)
    return [
        map_column("true depth", true, truth, shown, colormap="turbo", limits=limits),
        map_column("predicted depth", predicted, truth, shown, colormap="turbo", limits=limits),
        map_column("relative error, %", errors, truth, shown, colormap="hot", limits=(0.0, _WORST)),
    ]


def _describe_error(errors: Tensor) -> str:
    finite = errors[errors.isfinite()]
    return f"median error {finite.median():.0f} %" if len(finite) else ""


def _panels(scene: Scene, truth: Scene, shown: list[int], percentile: float) -> list[Panel]:
    """Return both clouds and the cameras, as far as the prediction has them."""
    true_cloud = scene_cloud(truth, 0.0, None)
    if true_cloud is None:
        return []
    true = sample_points(truth, true_cloud)
    panels = [Panel("true point cloud", lambda axes: draw_cloud(axes, truth, true))]
    aligned = align_scene(scene, truth) if _can_be_aligned(scene) else None
    if aligned is None:
        return panels
    cloud = scene_cloud(aligned, percentile, None)
    if cloud is not None:
        points = sample_points(aligned, cloud)
        title = "predicted point cloud, from the same place"
        panels.append(Panel(title, lambda axes: draw_cloud(axes, aligned, points, frame=(truth, true))))
    if aligned.predictions.cameras is not None:
        title = "cameras from above, the true ones in grey"
        panels.append(Panel(title, lambda axes: draw_plan(axes, aligned, true, shown, truth=truth)))
    return panels


def _can_be_aligned(scene: Scene) -> bool:
    return scene.predictions.cameras is not None or scene.predictions.points is not None
