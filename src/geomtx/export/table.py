"""A page of pictures in rows and columns, with panels beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from geomtx.export.canvas import INK, MUTED, PANEL, RULE, WARNING, Color, draw_color_bar, draw_text
from geomtx.export.colormap import ColormapName

__all__ = ["Caption", "Column", "DrawPanel", "Heading", "choose_rows", "draw_page"]

_MARGIN, _GAP, _CAPTION, _HEADER = 40, 14, 30, 74
_MIN_PANEL, _PANEL_TITLE = 320, 28

DrawPanel = Callable[[tuple[int, int]], Image.Image]
"""Width and height → a picture of that size."""


class Heading(NamedTuple):
    """What stands above the table.

    Attributes:
        title: First line.
        facts: Second line.
        notice: A warning in a box, or "".
    """

    title: str
    facts: Sequence[str]
    notice: str = ""


class Column(NamedTuple):
    """A picture each row, and what the colours mean.

    Attributes:
        title: Above the column.
        pictures: From top to bottom, of any size.
        colormap: Whose colours they have; None for photos.
        value_range: Values of the colour map's ends.
        mark: Value to mark in the colour bar.
    """

    title: str
    pictures: list[Image.Image]
    colormap: ColormapName | None = None
    value_range: tuple[float, float] = (0.0, 1.0)
    mark: float | None = None


class Caption(NamedTuple):
    """What stands above a row.

    Attributes:
        number: Of the view.
        color: Behind the number.
        name: To the left.
        note: To the right.
    """

    number: int
    color: Color
    name: str
    note: str


class _Panel(NamedTuple):
    """A picture with its place from the table's upper left corner, its title above it."""

    title: str
    picture: Image.Image
    left: int
    top: int

    @property
    def right(self) -> int:
        return self.left + self.picture.width

    @property
    def bottom(self) -> int:
        return self.top + _PANEL_TITLE + self.picture.height


def choose_rows(num_views: int, max_rows: int) -> list[int]:
    """Views to show: all, or `max_rows` of them, evenly spaced."""
    return np.unique(np.linspace(0, num_views - 1, min(max_rows, num_views)).round().astype(int)).tolist()


def draw_page(
    heading: Heading, columns: Sequence[Column], captions: Sequence[Caption], panels: Sequence[tuple[str, DrawPanel]]
) -> Image.Image:
    """Draw the page: a caption and a picture of each column a row, the panels beside the rows or below a single one.

    Args:
        heading: Above the table.
        columns: At least one, all with as many pictures as there are captions.
        captions: One a row.
        panels: Titles, and what draws them.
    """
    cell = _cell_size(columns[0].pictures)
    table_wh = (len(columns) * (cell[0] + _GAP) - _GAP, _HEADER + len(captions) * (cell[1] + _CAPTION + _GAP))
    placed = _place_panels(panels, len(captions), table_wh)
    top = 104 + (58 if heading.notice else 0)
    width = max([760, _MARGIN + table_wh[0], *(panel.right + _MARGIN for panel in placed)]) + _MARGIN
    height = top + max([table_wh[1], *(panel.bottom for panel in placed)]) + _MARGIN
    page = Image.new("RGB", (width, height), (255, 255, 255))
    _draw_heading(page, heading)
    for index, column in enumerate(columns):
        _draw_column(page, column, (_MARGIN + index * (cell[0] + _GAP), top), cell)
    for row, caption in enumerate(captions):
        y = top + _HEADER + row * (cell[1] + _CAPTION + _GAP)
        _draw_caption(page, caption, (_MARGIN, y), table_wh[0])
    for panel in placed:
        left, upper = _MARGIN + panel.left, top + panel.top
        draw_text(
            ImageDraw.Draw(page), (left, upper + 18), panel.title, size=17, bold=True, max_width=panel.picture.width
        )
        page.paste(panel.picture, (left, upper + _PANEL_TITLE))
    return page


def _cell_size(pictures: Sequence[Image.Image]) -> tuple[int, int]:
    """Width and height that suit the number of rows and the typical shape of a picture."""
    side = {1: 480, 2: 380, 3: 320, 4: 290, 5: 260, 6: 240}.get(len(pictures), 220)
    aspect = float(np.clip(np.median([picture.width / picture.height for picture in pictures]), 0.5, 2.5))
    return (side, round(side / aspect)) if aspect >= 1 else (round(max(side * aspect, 150)), side)


def _place_panels(panels: Sequence[tuple[str, DrawPanel]], num_rows: int, table_wh: tuple[int, int]) -> list[_Panel]:
    """Draw them below one another beside the rows, or beside one another below a single row."""
    if not panels:
        return []
    count = len(panels)
    if num_rows == 1:
        room = max(table_wh[0], 760)
        wh = ((room - _GAP * (count - 1)) // count, 420)
        first, step = (0, table_wh[1] + _GAP), (wh[0] + _GAP, 0)
    else:
        room = max(max(count, 2) * _MIN_PANEL, table_wh[1])
        wh = (int(np.clip(0.62 * room, 500, 760)), (room - _GAP * (count - 1)) // count - _PANEL_TITLE)
        first, step = (table_wh[0] + _MARGIN, 0), (0, wh[1] + _PANEL_TITLE + _GAP)
    return [
        _Panel(title, draw(wh), first[0] + index * step[0], first[1] + index * step[1])
        for index, (title, draw) in enumerate(panels)
    ]


def _draw_heading(page: Image.Image, heading: Heading) -> None:
    draw = ImageDraw.Draw(page)
    room = page.width - 2 * _MARGIN
    draw_text(draw, (_MARGIN, 56), heading.title, size=30, bold=True, max_width=room)
    draw_text(draw, (_MARGIN, 84), "   ·   ".join(heading.facts), size=16, color=MUTED, max_width=room)
    if heading.notice:
        draw.rounded_rectangle((_MARGIN, 102, page.width - _MARGIN, 146), radius=6, fill=WARNING)
        white = (255, 255, 255)
        place = (_MARGIN + 16, 124)
        draw_text(draw, place, heading.notice, size=19, color=white, anchor="lm", bold=True, max_width=room - 32)


def _draw_column(page: Image.Image, column: Column, corner: tuple[int, int], cell: tuple[int, int]) -> None:
    left, top = corner
    draw_text(ImageDraw.Draw(page), (left, top + 18), column.title, size=17, bold=True, max_width=cell[0])
    if column.colormap is not None:
        bar = (left, top + 30, left + cell[0], top + 42)
        draw_color_bar(page, bar, column.colormap, column.value_range, mark=column.mark)
    for row, picture in enumerate(column.pictures):
        y = top + _HEADER + row * (cell[1] + _CAPTION + _GAP) + _CAPTION
        ImageDraw.Draw(page).rectangle((left, y, left + cell[0] - 1, y + cell[1] - 1), fill=PANEL)
        scale = min(cell[0] / picture.width, cell[1] / picture.height)
        wh = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        resampling = Image.Resampling.LANCZOS if column.colormap is None else Image.Resampling.BOX
        offset = (left + (cell[0] - wh[0]) // 2, y + (cell[1] - wh[1]) // 2)
        page.paste(picture.resize(wh, resampling), offset)


def _draw_caption(page: Image.Image, caption: Caption, corner: tuple[int, int], width: int) -> None:
    """The view's number in its colour, its name and a note, above a row."""
    draw = ImageDraw.Draw(page)
    x, y = corner
    draw.line([(x, y - 2), (x + width, y - 2)], fill=RULE)
    draw.rounded_rectangle((x, y + 5, x + 30, y + 24), radius=5, fill=caption.color)
    draw_text(draw, (x + 15, y + 15), str(caption.number), size=14, color=(255, 255, 255), anchor="mm", bold=True)
    draw_text(draw, (x + width, y + 20), caption.note, size=14, color=MUTED, anchor="rs")
    room = width - 60 - 9 * len(caption.note)
    draw_text(draw, (x + 40, y + 20), caption.name, size=15, color=INK, max_width=room)
