"""The pictures of report.html: photos and maps as data URIs, tracks as SVG over them, the cloud in perspective."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from geomtx.report.cells import read_photo, seen_part
from geomtx.report.layout import choose_rows, drawing_style, to_picture, view_color
from geomtx.report.panels import draw_cloud, sample_points
from geomtx.report.web_scene import hex_color
from geomtx.scene.content import SceneContent
from geomtx.scene.points import PointCloud
from geomtx.types import Float
from geomtx.views import ViewTransform
from geomtx.views.transform import lies_inside

__all__ = [
    "color_gradient",
    "map_picture",
    "photo_picture",
    "picture_side",
    "render_cloud",
    "to_data_uri",
    "track_marks",
]

_LARGEST_SIDE, _LEAST_SIDE, _FULL_SIZE_VIEWS = 640, 128, 16
_MOST_TRACKS = 60
_UNKNOWN = 0xEC  # light grey, which no colour map contains
_QUALITY = 82  # of JPEG
_CLOUD_WH = 960, 600


def picture_side(num_views: int) -> int:
    """Return the longer side of each photo and map in pixels.

    It is 640 for up to 16 views; for more, all photos together have about as many pixels as 16 of 640, but none has a
    longer side below 128.
    """
    return round(max(_LEAST_SIDE, _LARGEST_SIDE * min(1.0, _FULL_SIZE_VIEWS / num_views) ** 0.5))


def to_data_uri(picture: Image.Image) -> str:
    """Return a picture (RGB) as a data URI of a JPEG."""
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def photo_picture(scene: SceneContent, view: int, side: int) -> Image.Image:
    """Return the part of a photo that the model saw.

    The model's image serves where it has enough pixels, or where there is no file: photos take long to decode.
    """
    transform = scene.transforms[view]
    own = Image.fromarray(scene.images[view].movedim(0, -1).contiguous().numpy())
    cut = _cut(own, transform)
    if max(cut.size) < side:
        picture, extent = read_photo(scene, view, side)
        left, top, right, bottom = seen_part(transform)
        if extent == (left, right, bottom, top):  # of the file
            return picture
    return _shrink(cut, side)


def map_picture(
    values: Float[Tensor, "h w"],
    scene: SceneContent,
    view: int,
    *,
    colormap: str,
    limits: tuple[float, float],
    side: int,
) -> Image.Image:
    """Return a map of the model's image in colours, where the photo is; grey where masked or not finite.

    Args:
        values: One value a pixel.
        scene: Scene whose mask and transform the map has.
        view: Index of its view.
        colormap: matplotlib's name of the colours.
        limits: Values at the ends of the colours.
        side: Longest side of the picture.
    """
    import matplotlib

    low, high = limits
    shown = (scene.masks[view] & values.isfinite()).numpy()
    share = (np.where(shown, values.float().numpy(), low) - low) / max(high - low, 1e-12)
    # A table of 256 colours and the grey of what is unknown: matplotlib takes ten times as long for each pixel.
    table = (matplotlib.colormaps[colormap](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
    table = np.concatenate([table, np.full((1, 3), _UNKNOWN, np.uint8)])
    colors = table[np.where(shown, (share.clip(0, 1) * 255).round().astype(np.int64), 256)]
    cut = _cut(Image.fromarray(colors), scene.transforms[view])
    # A small map is enlarged here, with sharp pixels, so that the photo beside it isn't larger in the page.
    factor = side // max(cut.size)
    if factor > 1:
        cut = cut.resize((cut.width * factor, cut.height * factor), Image.Resampling.NEAREST)
    return _shrink(cut, side)


def color_gradient(colormap: str) -> str:
    """Return the colours of a map from left to right as CSS."""
    import matplotlib

    stops = [hex_color(color[:3]) for color in matplotlib.colormaps[colormap](np.linspace(0, 1, 17)).tolist()]
    return f"linear-gradient(to right, {', '.join(stops)})"


def track_marks(scene: SceneContent, view: int) -> str:
    """Return the tracks in a photo as SVG: discs, and rings where a track is not seen; "" without tracks."""
    tracks = scene.tracks
    if tracks is None:
        return ""
    left, top, right, bottom = seen_part(scene.transforms[view])
    places = tracks.coords_px[view]
    inside = lies_inside(places, scene.transforms[view].original_hw)
    total = len(places)
    chosen = choose_rows(total, _MOST_TRACKS)
    # The drawing is 400 units wide, in which a disc is of a size that can be read on the page.
    unit = 400 / (right - left)
    marks = []
    for number in (each for each in chosen if inside[each]):
        # Positions count from the centre of the first pixel, the drawing from its corner.
        x, y = ((places[number].double() + 0.5).numpy() - (left, top)) * unit
        color, seen = hex_color(view_color(number, total)), bool(tracks.visibility[view, number] > 0.5)
        paint = f'fill="{color}" stroke="white"' if seen else f'fill="#0006" stroke="{color}"'
        marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="8" {paint} stroke-width="1.5"/>')
        if total <= _MOST_TRACKS:
            marks.append(f'<text x="{x:.1f}" y="{y:.1f}">{number}</text>')
    height = (bottom - top) * unit
    return f'<svg viewBox="0 0 400 {height:.1f}" preserveAspectRatio="none">{"".join(marks)}</svg>'


def render_cloud(scene: SceneContent, cloud: PointCloud) -> Image.Image:
    """Return a picture of the points and cameras, for browsers that can't turn them."""
    from matplotlib.figure import Figure

    with drawing_style():
        figure = Figure((_CLOUD_WH[0] / 100, _CLOUD_WH[1] / 100), dpi=100)
        axes = figure.add_axes((0, 0, 1, 1), frameon=False)
        axes.set(xticks=(), yticks=())
        draw_cloud(axes, scene, sample_points(scene, cloud))
        return to_picture(figure)


def _cut(picture: Image.Image, transform: ViewTransform) -> Image.Image:
    """Return the part of a picture of the model's image that shows the photo."""
    box: Sequence[float] = transform.content_box
    limits = np.array(picture.size * 2)
    left, top, right, bottom = np.clip(np.rint(box), 0, limits).astype(int).tolist()
    return picture.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


def _shrink(picture: Image.Image, side: int) -> Image.Image:
    scale = side / max(picture.size)
    if scale >= 1:
        return picture
    wh = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(wh, Image.Resampling.BOX)
