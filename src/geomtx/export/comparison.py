"""A picture of what a model predicts beside the truth: depth, errors, point clouds, cameras."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from geomtx.checks import check_shape
from geomtx.export.canvas import view_color
from geomtx.export.columns import crop_photo, map_column, value_range
from geomtx.export.files import scene_cloud
from geomtx.export.panel import cloud_panel, cloud_viewpoint, plan_panel
from geomtx.export.report import describe_views
from geomtx.export.table import Caption, Column, DrawPanel, Heading, choose_rows, draw_page
from geomtx.metrics.depth import median_scale
from geomtx.scene.alignment import align_scene
from geomtx.scene.scene import Scene

__all__ = ["draw_comparison"]

_WORST = 50.0  # relative error at the end of the colours, per cent


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
        scene: Of a model. What it lacks is left out.
        truth: Of the same views; `masks` say where it is known.
        title: First line.
        facts: More for the second line.
        percentile: Of the predicted points, see `Scene.points`; true points are all drawn.
        max_views: More views than that are represented by as many, evenly spaced.

    Raises:
        ValueError: For other views or images of other sizes.
    """
    check_shape("scene.masks", scene.masks, tuple(truth.masks.shape))
    shown = choose_rows(len(scene), max_views)
    columns = [Column("photo", [crop_photo(scene, view) for view in shown])]
    notes = [""] * len(scene)
    if scene.predictions.depth is not None and truth.predictions.depth is not None:
        predicted, errors = _compare_depth(scene, truth)
        columns += _depth_columns(predicted, errors, truth, shown)
        notes = [_describe_error(errors[view][truth.masks[view]]) for view in range(len(scene))]
    captions = [Caption(view, view_color(view, len(scene)), scene.names[view], notes[view]) for view in shown]
    heading = Heading(title, [*describe_views(scene, shown), *facts], scene.notice)
    return draw_page(heading, columns, captions, _panels(scene, truth, shown, percentile))


def _compare_depth(scene: Scene, truth: Scene) -> tuple[Tensor, Tensor]:
    """Scaled depth (S, H, W), and its relative error in per cent; NaN where the truth isn't known."""
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


def _panels(scene: Scene, truth: Scene, shown: list[int], percentile: float) -> list[tuple[str, DrawPanel]]:
    """Both clouds and the cameras, as far as the prediction has them."""
    true_cloud = scene_cloud(truth, 0.0, None)
    if true_cloud is None:
        return []
    panels: list[tuple[str, DrawPanel]] = [("true point cloud", lambda wh: cloud_panel(truth, true_cloud, wh))]
    aligned = align_scene(scene, truth) if _can_be_aligned(scene) else None
    cloud = None if aligned is None else scene_cloud(aligned, percentile, None)
    if aligned is not None and cloud is not None:
        panels.append(
            (
                "predicted point cloud",
                lambda wh: cloud_panel(aligned, cloud, wh, viewpoint=cloud_viewpoint(truth, true_cloud, wh)),
            )
        )
    if aligned is not None and aligned.predictions.cameras is not None:
        title = "cameras from above, the true ones in grey"
        panels.append((title, lambda wh: plan_panel(aligned, true_cloud, wh, shown, truth=truth)))
    return panels


def _can_be_aligned(scene: Scene) -> bool:
    return scene.predictions.cameras is not None or scene.predictions.points is not None
