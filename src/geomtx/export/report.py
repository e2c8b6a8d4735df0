"""A picture of a whole scene: photos, depth, confidence, the cameras from above and the point cloud."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw

from geomtx.export.canvas import count, view_color
from geomtx.export.columns import content_box, crop_photo, map_column
from geomtx.export.panel import cloud_panel, plan_panel
from geomtx.export.table import Caption, Column, DrawPanel, Heading, choose_rows, draw_page
from geomtx.scene.pointcloud import PointCloud
from geomtx.scene.scene import Scene
from geomtx.views.transform import lies_inside

__all__ = ["describe_views", "draw_report"]


def draw_report(
    scene: Scene, cloud: PointCloud | None = None, *, title: str = "geomtx reconstruction", max_views: int = 8
) -> Image.Image:
    """Draw the report: a row for each view, and beside the rows the plan and the point cloud.

    Args:
        scene: What there is of it is shown.
        cloud: Points to draw; None = no points.
        title: First line.
        max_views: More views than that are represented by as many, evenly spaced.
    """
    shown = choose_rows(len(scene), max_views)
    facts = [
        *describe_views(scene, shown),
        *([count(len(cloud.xyz), "point")] if cloud is not None else []),
        f"lengths {scene.units}" if scene.units == "up to scale" else f"lengths in {scene.units}",
        "first camera's frame",
    ]
    captions = [
        Caption(view, view_color(view, len(scene)), scene.names[view], _size_of_photo(scene, view)) for view in shown
    ]
    return draw_page(
        Heading(title, facts, scene.notice), _columns(scene, shown, cloud), captions, _panels(scene, cloud, shown)
    )


def describe_views(scene: Scene, shown: list[int]) -> list[str]:
    """How many views, and their size: facts for a heading."""
    height, width = scene.masks.shape[1:]
    num_views = len(scene)
    views = f"{len(shown)} of {num_views} views" if len(shown) < num_views else count(num_views, "view")
    return [views, f"model images {width} x {height}"]


def _size_of_photo(scene: Scene, view: int) -> str:
    height, width = scene.transforms[view].original_hw
    return f"{width} x {height}"


def _columns(scene: Scene, shown: list[int], cloud: PointCloud | None) -> list[Column]:
    """Photos and whatever maps there are."""
    title = "photo" if scene.tracks is None else "photo, tracks"
    columns = [Column(title, [_photo_with_tracks(scene, view) for view in shown])]
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


def _photo_with_tracks(scene: Scene, view: int) -> Image.Image:
    """A photo with the tracks that are seen in it."""
    photo = crop_photo(scene, view)
    tracks, original = scene.predictions.tracks, scene.tracks
    if tracks is None or original is None:
        return photo
    zoom = max(1, round(960 / photo.width))  # for round dots
    photo = photo.resize((photo.width * zoom, photo.height * zoom), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(photo)
    radius = max(photo.size) / 60
    corner = torch.tensor(content_box(scene, view)[:2])
    seen = tracks.visibility[view] > 0.5
    if scene.query_points is not None:  # a query is where its user put it, whatever the model thinks of it
        seen = seen | (scene.query_points[:, 0] == view)
    seen = seen & lies_inside(original.coords_px[view], scene.transforms[view].original_hw)
    for index in seen.nonzero()[:, 0].tolist():
        x, y = ((tracks.coords_px[view, index] - corner + 0.5) * zoom).tolist()
        draw.circle((x, y), radius, fill=(255, 255, 255))
        draw.circle((x, y), 0.7 * radius, fill=view_color(index, len(seen)))
    return photo


def _panels(scene: Scene, cloud: PointCloud | None, shown: list[int]) -> list[tuple[str, DrawPanel]]:
    """The plan and the cloud, as far as there are cameras or points."""
    panels: list[tuple[str, DrawPanel]] = []
    if cloud is not None or scene.predictions.cameras is not None:
        panels.append(("seen from above", lambda wh: plan_panel(scene, cloud, wh, shown)))
    if cloud is not None:
        panels.append(("point cloud", lambda wh: cloud_panel(scene, cloud, wh)))
    return panels
