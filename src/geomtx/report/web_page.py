"""report.html: a page of one file that opens from disk, with photos, maps, numbers and a view in space to turn."""

from __future__ import annotations

import base64
import functools
import importlib.resources
import json
import math
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from geomtx import __version__
from geomtx.checks import check_count
from geomtx.files import user_path
from geomtx.report.cells import value_range
from geomtx.report.layout import choose_rows, view_color
from geomtx.report.page import name_scene
from geomtx.report.text import count, describe_lengths, format_value
from geomtx.report.web_pictures import (
    color_gradient,
    map_picture,
    photo_picture,
    picture_side,
    render_cloud,
    to_data_uri,
    track_marks,
)
from geomtx.report.web_scene import WebCamera, describe_space, find_cameras, hex_color, pack_points
from geomtx.scene.content import SceneContent
from geomtx.scene.filters import PixelFilter
from geomtx.scene.points import PointCloud, check_percentile, confidence_threshold
from geomtx.types import DenseMap

__all__ = ["MOST_POINTS", "write_page"]

MOST_POINTS = 200_000
"""Number of points that a page has at most: 10 bytes each, which base64 makes 13."""

_SIDE_BY_SIDE = 12  # photos up to which all maps are shown at once
_SAMPLED_VIEWS = 24  # views whose maps decide the ends of the colours
_SCRIPTS = ("geometry.js", "draw.js", "scene.js", "input.js", "page.js")


class _Map(NamedTuple):
    """A kind of picture of every view beside the photos."""

    name: str
    title: str
    values: Tensor
    colormap: str
    limits: tuple[float, float]
    mark: float | None = None


def write_page(
    path: str | Path,
    scene: SceneContent,
    *,
    percentile: float = 20.0,
    max_points: int = MOST_POINTS,
    which: PixelFilter | None = None,
    title: str | None = None,
) -> None:
    """Write the report of a scene as a page of one file, which opens in a browser from disk and needs no network.

    The page has points and cameras in space, to turn, with the least confident points left out as one likes, and the
    distance between two points that are clicked; a card for each photo with depth, confidence and tracks; the cameras
    in numbers; and how the scene was made. Where a browser has no WebGL 2, a picture stands in for the view in space.
    It can be read at the width of a phone, and is light or dark as the browser asks for.

    Photos and maps have a longer side of 640 pixels, and of fewer for more than 16 views: all together have about as
    many pixels then as 16 of 640.

    Args:
        path: Path of the file, which is overwritten if it exists.
        scene: Scene to show. What its model didn't predict is left out, and so is what is not finite.
        percentile: Percentile of confidence from which points are shown when the page opens; the page has those below,
            too.
        max_points: Largest number of points, chosen at random but the same in every call; defaults to 200,000.
        which: Further tests that a pixel must pass to be a point, see `Scene.points`.
        title: First line; defaults to "geomtx reconstruction", with the photos' folder where `provenance` has it.

    Raises:
        ValueError: If `percentile` is outside [0, 100] or `max_points` below 1.
    """
    check_percentile(percentile)
    check_count("max_points", max_points)
    everything = _find_points(scene, max_points, which)
    points = pack_points(everything, len(scene))
    cameras = find_cameras(scene)
    space = describe_space(scene, points, cameras)
    maps = _find_maps(scene)
    num_maps = len(maps) + 1
    parts = {
        "version": __version__,
        "title": escape(title or name_scene(scene)),
        "css": _read("page.css"),
        "script": '(() => {\n"use strict";\n' + "\n".join(_read(name) for name in _SCRIPTS) + "})();",
        "facts": "".join(f"<li>{escape(fact)}</li>" for fact in _describe_briefly(scene, points.xyz)),
        "notice": f'<p class="notice" role="note">{escape(scene.notice)}</p>' if scene.notice else "",
        "space": "" if space is None else _space(scene, everything, percentile),
        "show": "all" if len(scene) <= _SIDE_BY_SIDE or not maps else "photo",
        "most": str(num_maps),
        "choices": _choices(maps, scene),
        "scales": "".join(['<div class="scales">', *map(_scale, maps), "</div>"]) if maps else "",
        "cards": "".join(_card(scene, view, maps, cameras[view]) for view in range(len(scene))),
        "numbers": _table(scene, cameras),
        "made": "".join(
            f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in _describe_run(scene, points)
        ),
        "data": "" if space is None else _data(space, points.data),
    }
    user_path(path).write_text(_fill(_read("page.html"), parts), encoding="utf-8", newline="\n")


@functools.cache
def _read(name: str) -> str:
    """Return a file of the page's own."""
    return (importlib.resources.files("geomtx.report") / "web" / name).read_text(encoding="utf-8")


def _fill(template: str, parts: dict[str, str]) -> str:
    """Replace {{name}} by its part, once: what looks like that in a part stays."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _find_points(scene: SceneContent, max_points: int, which: PixelFilter | None) -> PointCloud | None:
    """Return points of all confidences; None where there are none."""
    try:
        return scene.points(0, max_points=max_points, which=which)
    except ValueError:  # there are none, which is no error here
        return None


def _find_maps(scene: SceneContent) -> list[_Map]:
    """Return depth, or else the distance of points, and the confidence of either."""
    sampled = choose_rows(len(scene), _SAMPLED_VIEWS)
    depth, points = scene.predictions.depth, scene.predictions.points
    sure: DenseMap | None = depth or points
    if sure is None:
        return []
    title, values = "Depth", sure.value
    if depth is None:
        title, values = "Distance", sure.value.norm(dim=-1)
    return [
        _Map("depth", title, values, "turbo", value_range(values, scene, sampled)),
        _Map("confidence", "Confidence", sure.confidence, "viridis", value_range(sure.confidence, scene, sampled)),
    ]


def _space(scene: SceneContent, cloud: PointCloud | None, percentile: float) -> str:
    """Return the view in space, with a picture of its points at first."""
    picture = ""
    if cloud is not None:
        kept = cloud.confidence >= confidence_threshold(cloud.confidence, percentile)
        source = to_data_uri(render_cloud(scene, PointCloud(*(part[kept] for part in cloud))))
        picture = f'<img alt="Points and cameras" src="{source}">'
    return _fill(_read("space.html"), {"picture": picture, "percentile": f"{min(percentile, 99):.0f}"})


def _data(space: dict[str, Any], points: bytes) -> str:
    """Return the numbers of the view in space: text can't end the element that holds it."""
    text = json.dumps(space, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return (
        f'<script type="application/json" id="scene">{text}</script>\n'
        f'<script type="text/plain" id="points">{base64.b64encode(points).decode("ascii")}</script>'
    )


def _choices(maps: Sequence[_Map], scene: SceneContent) -> str:
    """Return the buttons that say what the cards show."""
    start = "all" if len(scene) <= _SIDE_BY_SIDE else "photo"
    names = [("all", "Side by side"), ("photo", "Photo"), *((each.name, each.title) for each in maps)]
    buttons = (
        f'<button type="button" data-show="{name}" aria-pressed="{str(name == start).lower()}">{title}</button>'
        for name, title in names
    )
    tracks = '<button type="button" class="toggle" aria-pressed="true">Tracks</button>'
    return (tracks if scene.predictions.tracks is not None else "") + (
        f'<div class="choices">{"".join(buttons)}</div>' if maps else ""
    )


def _scale(each: _Map) -> str:
    """Return the colours of a map with the values at their ends and in their middle."""
    low, high = each.limits
    values = "".join(f"<span>{format_value(value)}</span>" for value in (low, (low + high) / 2, high))
    return (
        f'<div class="scale {each.name}"><span>{each.title}</span>'
        f'<span class="colors" style="background: {color_gradient(each.colormap)}"></span>'
        f'<span class="values">{values}</span></div>'
    )


def _card(scene: SceneContent, view: int, maps: Sequence[_Map], camera: WebCamera | None) -> str:
    side, name = picture_side(len(scene)), escape(scene.names[view])
    color, (height, width) = hex_color(view_color(view, len(scene))), scene.transforms[view].original_hw
    photo = photo_picture(scene, view, side)
    pictures = [_picture("photo", name, photo, track_marks(scene, view))]
    for each in maps:
        picture = map_picture(each.values[view], scene, view, colormap=each.colormap, limits=each.limits, side=side)
        pictures.append(_picture(each.name, f"{each.title} of {name}", picture))
    look = "" if camera is None else f'<button type="button" data-camera="{view}" hidden>View from here</button>'
    return (
        f'<figure class="card" id="view-{view}"><figcaption><span class="number" style="--color: {color}">{view}</span>'
        f'<span class="name">{name}</span><span class="note">{width} × {height}</span>{look}</figcaption>'
        f'<div class="pictures" style="--ratio: {photo.width} / {photo.height}">{"".join(pictures)}</div></figure>'
    )


def _picture(kind: str, alt: str, picture: Any, over: str = "") -> str:
    width, height = picture.size
    source = to_data_uri(picture)
    return (
        f'<div class="{kind}"><img alt="{alt}" width="{width}" height="{height}" loading="lazy" decoding="async" '
        f'src="{source}">{over}</div>'
    )


def _describe_briefly(scene: SceneContent, points: np.ndarray) -> list[str]:
    """Return what stands below the title."""
    weights = scene.provenance.get("weights")
    return [
        *([f"weights {weights}"] if weights else []),
        count(len(scene), "photo"),
        *([count(len(points), "point")] if len(points) else []),
        describe_lengths(scene.units),
        *(["cameras refined by bundle adjustment"] if scene.refined else []),
    ]


def _describe_run(scene: SceneContent, points: Any) -> list[tuple[str, str]]:
    """Return how the scene was made, a name and a value each."""
    height, width = scene.masks.shape[1:]
    unseen = 1 - float(scene.masks.float().mean())
    out = f", {100 * unseen:.2g} % of them masked or padding" if unseen > 0 else ""
    known = any(name in scene.provenance for name in ("known_poses", "known_intrinsics"))
    far = f"; {count(points.num_far, 'point')} far away left out" if points.num_far else ""
    rows = [
        *((name.replace("_", " "), value) for name, value in scene.provenance.items()),
        ("photos" if "photos" not in scene.provenance else "number of photos", str(len(scene))),
        ("model's images", f"{width} × {height} pixels{out}"),
        ("lengths", "up to scale: the photos alone don't tell metres" if scene.units == "up to scale" else scene.units),
        ("frame", f"{scene.world}; x right, y down, z forward"),
        (
            "cameras",
            f"{'refined by bundle adjustment' if scene.refined else 'as the model predicts them'}"
            f"{', but for what was known of them' if known else ''}",
        ),
        ("points in this page", f"{len(points.xyz)}{far}"),
    ]
    return [*rows, *([("notice", scene.notice)] if scene.notice else [])]


def _table(scene: SceneContent, cameras: Sequence[WebCamera | None]) -> str:
    """Return a table with a row for each camera."""
    if all(camera is None for camera in cameras):
        return "<p>No camera is known.</p>"
    units = "" if scene.units == "up to scale" else f", {escape(scene.units)}"
    heads = ("focal length, px", "field of view", f"x{units}", f"y{units}", f"z{units}")
    head = "".join(f"<th>{each}</th>" for each in heads)
    rows = []
    intrinsics = scene.cameras
    assert intrinsics is not None
    for view, camera in enumerate(cameras):
        values = ["–"] * 5
        if camera is not None:
            values = _describe_camera(camera, scene.transforms[view].original_hw)
        cells = "".join(f"<td>{value}</td>" for value in values)
        color = hex_color(view_color(view, len(scene)))
        number = f'<span class="number" style="--color: {color}">{view}</span>'
        rows.append(f'<tr><td class="left">{number}</td><td class="left">{escape(scene.names[view])}</td>{cells}</tr>')
    return (
        f'<div class="table"><table><thead><tr><th class="left"></th><th class="left">photo</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _describe_camera(camera: WebCamera, photo_hw: tuple[int, int]) -> list[str]:
    """Return focal length, field of view of the whole photo, and position."""
    fx, fy = camera.intrinsics[0, 0], camera.intrinsics[1, 1]
    focal = f"{fx:.1f}" if abs(fx - fy) < 0.005 * fx else f"{fx:.1f} × {fy:.1f}"
    angles = (2 * math.degrees(math.atan(side / (2 * f))) for side, f in zip(photo_hw[::-1], (fx, fy), strict=True))
    return [focal, " × ".join(f"{angle:.1f}°" for angle in angles), *map(format_value, camera.center.tolist())]
