"""Matches of two photos as a picture: the photos side by side, and a line between pixels that show the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from geomtx.report.layout import view_color

__all__ = ["draw_matches"]

_HEIGHT, _GAP, _CAPTION = 640, 8, 28
_SMOOTH = 2  # the picture is drawn this many times larger and reduced, for smooth lines
_BACKGROUND, _INK = (255, 255, 255), (60, 66, 74)


def draw_matches(
    photos: Sequence[Image.Image],
    image_hw: Sequence[tuple[int, int]],
    matches: Sequence[NDArray[np.float64]],
    *,
    caption: str = "",
    most: int = 100,
) -> Image.Image:
    """Draw two photos side by side with a line for each match, coloured from left to right of the first photo.

    Args:
        photos: The two photos, at any resolution.
        image_hw: Height and width of each photo in the pixels that matches are in.
        matches: Matched pixels (x, y) of each photo, (M, 2).
        caption: Text below the photos.
        most: Largest number of lines, which are taken evenly from the matches.
    """
    height = _HEIGHT * _SMOOTH
    pictures = [photo.resize((max(round(height * photo.width / photo.height), 1), height)) for photo in photos]
    left = (0, pictures[0].width + _GAP * _SMOOTH)
    canvas = Image.new("RGB", (left[1] + pictures[1].width, height), _BACKGROUND)
    ends = []
    for picture, x, hw, coords in zip(pictures, left, image_hw, matches, strict=True):
        canvas.paste(picture, (x, 0))
        # Pixel centres are at integers, the picture's corner at 0.
        ends.append((coords + 0.5) * (picture.width / hw[1], picture.height / hw[0]) + (x, 0))
    draw = ImageDraw.Draw(canvas)
    num = len(ends[0])
    shown = np.unique(np.linspace(0, num - 1, min(most, num)).round().astype(int)) if num else np.zeros(0, int)
    shown = shown[np.argsort(ends[0][shown, 0], kind="stable")]
    radius = 3 * _SMOOTH
    for rank, index in enumerate(shown):
        red, green, blue = (round(255 * part) for part in view_color(rank, len(shown)))
        one, two = ends[0][index], ends[1][index]
        draw.line([*one, *two], (red, green, blue), _SMOOTH)
        for x, y in (one, two):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), (red, green, blue), (255, 255, 255), _SMOOTH)
    small = canvas.resize((canvas.width // _SMOOTH, _HEIGHT), Image.Resampling.BOX)
    page = Image.new("RGB", (small.width, _HEIGHT + _CAPTION), _BACKGROUND)
    page.paste(small, (0, 0))
    ImageDraw.Draw(page).text((_GAP, _HEIGHT + 6), caption, _INK, ImageFont.load_default(15))
    return page
