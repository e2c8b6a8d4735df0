"""The report: one picture of a whole scene, with photos, depth, confidence, cameras, point cloud and tracks."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from geomtx.report.cells import explain_tracks, map_column, page_aspect, photo_column, track_cell
from geomtx.report.layout import Caption, Column, Heading, Panel, Strip, choose_rows, draw_page, view_color
from geomtx.report.panels import draw_cloud, draw_plan, sample_points
from geomtx.report.text import count, describe_lengths
from geomtx.scene.content import SceneContent
from geomtx.scene.points import PointCloud

__all__ = ["describe_scene", "draw_report", "name_scene"]

_MOST_TRACKS = 30
_ROWS_FOR_TWO_CLOUDS = 5  # there is room for the cloud from both sides beside as many rows


def draw_report(
    scene: SceneContent, cloud: PointCloud | None = None, *, title: str | None = None, max_views: int = 8
) -> Image.Image:
    """Draw the report of a scene.

    A row for each view has the photo, the depth and its confidence. Beside the rows are the scene from above and the
    point cloud with the cameras; below them are the tracks, with the same number in every photo.

    Args:
        scene: Scene to show. What its model didn't predict is left out.
        cloud: Points to draw; None draws none.
        title: First line; defaults to "geomtx reconstruction", with the photos' folder where `provenance` has it.
        max_views: Largest number of rows. More views than that are represented by as many, evenly spaced.

    Returns:
        An RGB picture, the same for the same scene.
    """
    shown = choose_rows(len(scene), max_views)
    title = title or name_scene(scene)
    facts = [
        *describe_scene(scene, shown),
        *([count(len(cloud.xyz), "point")] if cloud is not None else []),
        describe_lengths(scene.units),
        "first camera's frame",
    ]
    captions = [
        Caption(view, view_color(view, len(scene)), scene.names[view], _size_of_photo(scene, view)) for view in shown
    ]
    return draw_page(
        Heading(title, facts, scene.notice),
        _columns(scene, shown, cloud),
        captions,
        _panels(scene, cloud, shown),
        aspect=page_aspect(scene, shown),
        strip=_tracks(scene, shown),
    )


def name_scene(scene: SceneContent) -> str:
    """Return the first line of a report, with the photos' folder where `provenance` has it."""
    photos = scene.provenance.get("photos")
    return "geomtx reconstruction" + (f" of {photos}" if photos else "")


def describe_scene(scene: SceneContent, shown: Sequence[int]) -> list[str]:
    """Return facts for a heading: how the scene was made, how many views there are and are shown, and their size."""
    height, width = scene.masks.shape[1:]
    num_views = len(scene)
    views = count(num_views, "view")
    if len(shown) < num_views:
        views = f"{len(shown)} of {num_views} views shown, evenly spaced"
    made = [f"{name} {value}" for name, value in scene.provenance.items() if name not in ("photos", "source")]
    return [*made, views, f"model's images {width} × {height}"]


def _size_of_photo(scene: SceneContent, view: int) -> str:
    height, width = scene.transforms[view].original_hw
    return f"{width} × {height}"


def _columns(scene: SceneContent, shown: Sequence[int], cloud: PointCloud | None) -> list[Column]:
    """Return photos and whatever maps there are."""
    columns = [photo_column("photo", scene, shown)]
    depth, points = scene.predictions.depth, scene.predictions.points
    threshold = None if cloud is None or len(cloud.confidence) == 0 else cloud.confidence.min().item()
    if depth is not None:
        columns.append(map_column("depth", depth.value, scene, shown, colormap="turbo"))
    elif points is not None:
        columns.append(map_column("distance of points", points.value.norm(dim=-1), scene, shown, colormap="turbo"))
    sure = depth or points
    if sure is not None:
        columns.append(map_column("confidence", sure.confidence, scene, shown, colormap="viridis", mark=threshold))
    return columns


def _panels(scene: SceneContent, cloud: PointCloud | None, shown: Sequence[int]) -> list[Panel]:
    """Return the plan and the cloud, as far as there are cameras or points."""
    panels: list[Panel] = []
    points = sample_points(scene, cloud)
    if cloud is not None or scene.predictions.cameras is not None:
        panels.append(Panel("seen from above", lambda axes: draw_plan(axes, scene, points, shown)))
    if cloud is None:
        return panels
    far = f" ({count(points.num_far, 'point')} far away left out)" if points.num_far else ""
    if len(shown) >= _ROWS_FOR_TWO_CLOUDS:
        panels.append(Panel(f"point cloud, from the left{far}", lambda axes: draw_cloud(axes, scene, points)))
        panels.append(Panel("point cloud, from the right", lambda axes: draw_cloud(axes, scene, points, yaw=-22.0)))
    else:
        panels.append(Panel(f"point cloud{far}", lambda axes: draw_cloud(axes, scene, points)))
    return panels


def _tracks(scene: SceneContent, shown: Sequence[int]) -> Strip | None:
    """Return the photos with numbered tracks, or None without tracks."""
    tracks = scene.predictions.tracks
    if tracks is None:
        return None
    total = tracks.coords_px.shape[1]
    chosen = choose_rows(total, _MOST_TRACKS)
    title = "tracks" if len(chosen) == total else f"tracks, {len(chosen)} of {total}"
    cells = [
        (Caption(view, view_color(view, len(scene)), scene.names[view], ""), track_cell(scene, view, chosen))
        for view in shown
    ]
    return Strip(title, cells, page_aspect(scene, shown), explain_tracks)
