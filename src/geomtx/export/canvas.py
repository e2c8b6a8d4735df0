"""Text, colour bars and colours of pictures that explain themselves."""

from __future__ import annotations

import functools
import math
import unicodedata

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from geomtx.export.colormap import ColormapName, color_table

__all__ = [
    "INK",
    "MUTED",
    "PANEL",
    "RULE",
    "WARNING",
    "Color",
    "count",
    "draw_color_bar",
    "draw_text",
    "format_value",
    "round_length",
    "view_color",
]

Color = tuple[int, int, int]
INK: Color = (27, 31, 36)
MUTED: Color = (101, 109, 118)
RULE: Color = (216, 222, 228)
PANEL: Color = (246, 248, 250)
WARNING: Color = (190, 32, 32)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _drawable(text: str) -> str:
    """What Pillow's own font can show of a text: accents are dropped, other letters become "?"."""
    decomposed = (c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return "".join(c if (c.isascii() and c.isprintable()) or c in "·…" else "?" for c in decomposed)


def draw_text(
    draw: ImageDraw.ImageDraw,
    xy: tuple[float, float],
    text: str,
    *,
    size: int = 16,
    color: Color = INK,
    anchor: str = "ls",
    bold: bool = False,
    max_width: float = math.inf,
    halo: Color | None = None,
) -> None:
    """Write one line; a text that is too wide loses its middle.

    Args:
        draw: On what.
        xy: Where the anchor goes.
        text: One line.
        size: Pixels.
        color: Of the letters.
        anchor: Pillow's two letters, "ls" = left end of the base line.
        bold: Heavier letters.
        max_width: Pixels.
        halo: Colour of an outline that keeps the text legible on pictures.
    """
    font = _font(size)
    text = _drawable(text)
    kept = len(text)
    shown = text
    while kept > 4 and draw.textlength(shown, font=font) > max_width:
        kept -= 1
        shown = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
    weight = 0.35 * size / 16 if bold else 0
    if halo is not None:
        draw.text(xy, shown, font=font, fill=color, anchor=anchor, stroke_width=max(1, size / 7), stroke_fill=halo)
    draw.text(xy, shown, font=font, fill=color, anchor=anchor, stroke_width=weight, stroke_fill=color)


def draw_color_bar(
    image: Image.Image,
    box: tuple[int, int, int, int],
    colormap: ColormapName,
    value_range: tuple[float, float],
    *,
    mark: float | None = None,
) -> None:
    """A horizontal colour bar with the values of its ends below.

    Args:
        image: On what.
        box: (left, top, right, bottom) of the bar without its labels.
        colormap: Whose colours.
        value_range: Values of the left and the right end.
        mark: The value from which pixels are kept, ignored outside the range.
    """
    left, top, right, bottom = box
    draw = ImageDraw.Draw(image)
    bar = Image.fromarray(np.broadcast_to(color_table(colormap), (bottom - top, 256, 3)).copy())
    image.paste(bar.resize((right - left, bottom - top), Image.Resampling.BILINEAR), (left, top))
    low, high = value_range
    label_y = bottom + 4
    draw_text(draw, (left, label_y), format_value(low), size=13, color=MUTED, anchor="la")
    draw_text(draw, (right, label_y), format_value(high), size=13, color=MUTED, anchor="ra")
    if mark is not None and low < mark < high:
        x = left + (mark - low) / (high - low) * (right - left)
        draw.line([(x, top - 4), (x, bottom + 3)], fill=INK, width=2)
        draw_text(draw, ((left + right) / 2, label_y), f"kept from {format_value(mark)}", size=13, anchor="ma")


def format_value(value: float) -> str:
    """Three significant digits, without an exponent where that stays short."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if value else "0"
    return f"{value:.2e}"


def count(number: int, noun: str) -> str:
    """A number with its noun: "1 view", "10 000 points"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}".replace(",", " ")


def round_length(length: float) -> float:
    """The largest 1, 2 or 5 times a power of ten that is at most `length`."""
    power = 10.0 ** math.floor(math.log10(length))
    return max(step for step in (1, 2, 5) if step * power <= length * (1 + 1e-9)) * power


def view_color(index: int, num_views: int) -> Color:
    """The colour of a view, the same in all panels."""
    position = 30 + round(index / max(1, num_views - 1) * 205)
    r, g, b = (color_table("turbo")[position] * 0.88).astype(int)
    return int(r), int(g), int(b)
