"""A page of pictures: a heading, rows of cells with colour bars above them, panels beside the rows, a strip below."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from geomtx.report.text import format_value, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BACKGROUND",
    "INK",
    "MUTED",
    "WARNING",
    "Caption",
    "Column",
    "Heading",
    "Panel",
    "Strip",
    "choose_rows",
    "draw_page",
    "drawing_style",
    "to_picture",
    "view_color",
]

INK, MUTED, RULE, BACKGROUND = "#1b1f24", "#656d76", "#d8dee4", "#f6f8fa"
WARNING = (190, 32, 32)
_MARGIN, _GAP, _CAPTION, _HEADER, _PANEL_TITLE = 40, 14, 32, 78, 32
_LEAST_WIDTH, _LEAST_PANEL = 900, 320
_UNITS_PER_INCH = 100  # all lengths here are in these units; the picture has more pixels
_DPI = 130
_SIDES = {1: 480, 2: 380, 3: 320, 4: 290, 5: 260, 6: 240}  # longer side of a cell by the number of rows
_MOST_SIDE = 220

DrawCell = Callable[["Axes"], None]
"""Draws into axes that fill their place."""


class Heading(NamedTuple):
    """What stands above the rows.

    Attributes:
        title: First line.
        facts: Short texts for the lines below it.
        notice: A warning in a box, or "".
    """

    title: str
    facts: Sequence[str]
    notice: str = ""


class Column(NamedTuple):
    """A cell each row, and what the colours mean.

    Attributes:
        title: Text above the column.
        cells: One a row, from top to bottom.
        colormap: matplotlib's name of the colours; None for photos.
        limits: Values at the ends of the colours.
        mark: Value that is marked in the colour bar as the least that is kept.
    """

    title: str
    cells: Sequence[DrawCell]
    colormap: str | None = None
    limits: tuple[float, float] = (0.0, 1.0)
    mark: float | None = None


class Caption(NamedTuple):
    """What stands above a row.

    Attributes:
        number: Number of the view.
        color: Colour behind the number, see `view_color`.
        name: Name of the view.
        note: Text at the right end.
    """

    number: int
    color: tuple[float, float, float]
    name: str
    note: str


class Panel(NamedTuple):
    """A picture beside the rows.

    Attributes:
        title: Text above it.
        draw: Draws it into axes without ticks.
    """

    title: str
    draw: DrawCell


class Strip(NamedTuple):
    """Cells below the rows and panels, as wide as the page.

    Attributes:
        title: Text above it.
        cells: A caption and what draws the cell.
        aspect: Width of a cell over its height.
        explain: Draws the legend into axes that are as wide as the page.
    """

    title: str
    cells: Sequence[tuple[Caption, DrawCell]]
    aspect: float
    explain: DrawCell


def choose_rows(num_views: int, max_rows: int) -> list[int]:
    """Return the views to show: all, or `max_rows` of them, evenly spaced."""
    return np.unique(np.linspace(0, num_views - 1, min(max_rows, num_views)).round().astype(int)).tolist()


def view_color(index: int, num_views: int) -> tuple[float, float, float]:
    """Return the colour (red, green, blue in 0 … 1) of a view or track, the same in all parts of a page."""
    import matplotlib

    red, green, blue, _ = matplotlib.colormaps["turbo"]((30 + round(index / max(1, num_views - 1) * 205)) / 255)
    return 0.88 * red, 0.88 * green, 0.88 * blue


@contextmanager
def drawing_style() -> Iterator[None]:
    """Draw with matplotlib's own defaults inside, whatever the user's are, which are the same again afterwards."""
    from matplotlib import style

    with style.context("default"):
        yield


def draw_page(
    heading: Heading,
    columns: Sequence[Column],
    captions: Sequence[Caption],
    panels: Sequence[Panel],
    *,
    aspect: float,
    strip: Strip | None = None,
) -> Image.Image:
    """Draw the page: a caption and a cell of each column a row, the panels beside the rows or below a single one.

    Args:
        heading: Text above the rows.
        columns: Columns of the page, at least one, all with as many cells as there are captions.
        captions: Texts above the rows, one a row.
        panels: Pictures beside the rows.
        aspect: Width of a cell over its height.
        strip: Cells below all of that; None for none.

    Returns:
        An RGB picture, the same pixels every time.
    """
    from matplotlib.figure import Figure

    with drawing_style():
        cell = _cell_size(len(captions), aspect)
        table_w = len(columns) * (cell[0] + _GAP) - _GAP
        table_h = _HEADER + len(captions) * (cell[1] + _CAPTION + _GAP) - _GAP
        places = _place_panels(len(panels), len(captions), (table_w, table_h))
        width = max([_LEAST_WIDTH, table_w, *(left + w for left, _, w, _ in places)]) + 2 * _MARGIN
        lines = _Lines(heading, width - 2 * _MARGIN)
        top = lines.height
        body = max([table_h, *(upper + h for _, upper, _, h in places)])
        strip_top = top + body + 2 * _GAP
        rows, strip_cell = (0, (0.0, 0.0)) if strip is None else _strip_grid(strip, width - 2 * _MARGIN)
        strip_h = 0 if strip is None else 64 + rows * (strip_cell[1] + _CAPTION + _GAP) + _GAP
        page = _Page(Figure, width, top + body + strip_h + _MARGIN)
        lines.draw(page)
        for index, column in enumerate(columns):
            _draw_column(page, column, (_MARGIN + index * (cell[0] + _GAP), top), cell)
        for row, caption in enumerate(captions):
            upper = top + _HEADER + row * (cell[1] + _CAPTION + _GAP)
            _draw_caption(page, caption, (_MARGIN, upper), table_w)
        for panel, (left, upper, w, h) in zip(panels, places, strict=True):
            page.text(_MARGIN + left, top + upper + 16, panel.title, weight="bold")
            panel.draw(page.axes(_MARGIN + left, top + upper + _PANEL_TITLE, w, h - _PANEL_TITLE))
        if strip is not None:
            _draw_strip(page, strip, strip_top, strip_cell)
        return to_picture(page.figure)


def to_picture(figure: Figure) -> Image.Image:
    """Return a figure's pixels, drawn without pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


class _Page:
    """A figure measured from its upper left corner."""

    def __init__(self, make: type[Figure], width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = make(figsize=(width / _UNITS_PER_INCH, height / _UNITS_PER_INCH), dpi=_DPI, facecolor="white")

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Add axes without ticks and frame."""
        bottom = self.height - top - height
        axes = self.figure.add_axes(
            (left / self.width, bottom / self.height, width / self.width, height / self.height), facecolor=BACKGROUND
        )
        axes.set(xticks=(), yticks=())
        axes.spines[:].set_visible(False)
        return axes

    def text(self, x: float, y: float, text: str, *, size: float = 12, **options: Any) -> None:
        """Write one line whose left end (or another, by `ha`) is at x, and whose middle is at y."""
        options = {"color": INK, "va": "center_baseline", **options}
        self.figure.text(x / self.width, 1 - y / self.height, _drawable(text), size=size, parse_math=False, **options)

    def line(self, x: Sequence[float], y: Sequence[float], color: str) -> None:
        """Draw a thin line."""
        from matplotlib.lines import Line2D

        xs, ys = [each / self.width for each in x], [1 - each / self.height for each in y]
        self.figure.add_artist(Line2D(xs, ys, color=color, linewidth=0.8))

    def box(self, left: float, top: float, width: float, height: float, color: Any) -> None:
        """Fill a rectangle with rounded corners."""
        from matplotlib.patches import FancyBboxPatch

        left, bottom, width, height = (
            each / _UNITS_PER_INCH for each in (left, self.height - top - height, width, height)
        )
        style = f"round,pad=0,rounding_size={min(0.06, height / 4)}"
        inches = self.figure.dpi_scale_trans
        self.figure.add_artist(
            FancyBboxPatch((left, bottom), width, height, style, transform=inches, facecolor=color, linewidth=0)
        )


class _Lines:
    """The heading, broken into lines; `height` is where the rows begin."""

    def __init__(self, heading: Heading, width: float) -> None:
        self.title = shorten(heading.title, int(width / 19))
        self.facts = _wrap(list(heading.facts), "  ·  ", int(width / 8.4))
        self.notice = _wrap(heading.notice.split(), " ", int(width / 13)) if heading.notice else []
        self.notice_top = 72 + 24 * len(self.facts) + 6
        self.height = self.notice_top + (26 * len(self.notice) + 34 if self.notice else 6)

    def draw(self, page: _Page) -> None:
        page.text(_MARGIN, 50, self.title, size=21, weight="bold")
        for index, line in enumerate(self.facts):
            page.text(_MARGIN, 84 + 24 * index, line, size=11.5, color=MUTED)
        if self.notice:
            page.box(_MARGIN, self.notice_top, page.width - 2 * _MARGIN, 26 * len(self.notice) + 18, _warning_color())
            for index, line in enumerate(self.notice):
                y = self.notice_top + 22 + 26 * index
                page.text(_MARGIN + 16, y, line, size=13.5, color="white", weight="bold")


def _warning_color() -> tuple[float, ...]:
    return tuple(channel / 255 for channel in WARNING)


def _wrap(words: Sequence[str], between: str, length: int) -> list[str]:
    """Return lines of at most `length` characters, each of as many words as fit; a longer word loses its middle."""
    lines: list[str] = []
    for word in words:
        word = shorten(word, length)
        if lines and len(lines[-1]) + len(between) + len(word) <= length:
            lines[-1] += between + word
        else:
            lines.append(word)
    return lines


def _drawable(text: str) -> str:
    """Return a text with "?" in place of what the font lacks, and of line breaks and the like."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known = get_font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap()
    return "".join(letter if letter.isprintable() and ord(letter) in known else "?" for letter in text)


def _cell_size(num_rows: int, aspect: float) -> tuple[float, float]:
    """Return width and height of a cell that suit the number of rows and the shape of the photos."""
    side, aspect = _SIDES.get(num_rows, _MOST_SIDE), min(max(aspect, 0.5), 2.5)
    return (side, side / aspect) if aspect >= 1 else (max(side * aspect, 180), side)


def _place_panels(count: int, num_rows: int, table_wh: tuple[float, float]) -> list[tuple[float, float, float, float]]:
    """Return (left, top, width, height) of panels: one below the other beside the rows, side by side below one row."""
    if num_rows == 1:
        width = (max(table_wh[0], _LEAST_WIDTH) - _GAP * (count - 1)) / max(count, 1)
        return [(n * (width + _GAP), table_wh[1] + 2 * _GAP, width, min(width, 520)) for n in range(count)]
    room = max(max(count, 2) * _LEAST_PANEL, table_wh[1])
    width, height = min(max(0.62 * room, 500), 780), (room - _GAP * (count - 1)) / max(count, 1)
    return [(table_wh[0] + _MARGIN, n * (height + _GAP), width, height) for n in range(count)]


def _draw_column(page: _Page, column: Column, corner: tuple[float, float], cell: tuple[float, float]) -> None:
    left, top = corner
    page.text(left, top + 16, shorten(column.title, int(cell[0] / 9)), weight="bold")
    if column.colormap is not None:
        _draw_color_bar(page, column, (left, top + 32, cell[0], 12))
    for row, draw in enumerate(column.cells):
        draw(page.axes(left, top + _HEADER + row * (cell[1] + _CAPTION + _GAP) + _CAPTION, *cell))


def _draw_color_bar(page: _Page, column: Column, box: tuple[float, float, float, float]) -> None:
    """Draw a colour bar with the values of its ends below, and the mark if it is between them."""
    left, top, width, height = box
    (low, high), mark = column.limits, column.mark
    axes = page.axes(*box)
    axes.imshow(np.linspace(0, 1, 256)[None], cmap=column.colormap, aspect="auto", extent=(0, 1, 0, 1))
    below = top + height + 12
    page.text(left, below, format_value(low), size=9.5, color=MUTED)
    page.text(left + width, below, format_value(high), size=9.5, color=MUTED, ha="right")
    if mark is not None and low < mark < high:
        x = (mark - low) / (high - low)
        axes.plot([x, x], [-0.35, 1.35], color=INK, linewidth=1.5, clip_on=False)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        page.text(left + width / 2, below, f"kept from {format_value(mark)}", size=9.5, ha="center")


def _draw_caption(page: _Page, caption: Caption, corner: tuple[float, float], width: float) -> None:
    """Draw a view's number in its colour, its name and a note, above its cells."""
    x, y = corner
    page.line([x, x + width], [y - 3, y - 3], RULE)
    digits = len(str(caption.number))
    badge = 22 + 9 * digits
    page.box(x, y + 5, badge, 20, caption.color)
    page.text(x + badge / 2, y + 15, str(caption.number), size=10, color="white", ha="center", weight="bold")
    page.text(x + width, y + 15, caption.note, size=10, color=MUTED, ha="right")
    room = width - badge - 30 - 8.5 * len(caption.note)
    page.text(x + badge + 10, y + 15, shorten(caption.name, max(3, int(room / 9))), size=10.5)


def _strip_grid(strip: Strip, width: float) -> tuple[int, tuple[float, float]]:
    """Return the number of rows, and the size of a cell: at most four side by side, none larger than 480 units."""
    columns = min(len(strip.cells), 4 if strip.aspect >= 1 else 6)
    cell_w = min((width + _GAP) / columns - _GAP, 480)
    return -(-len(strip.cells) // columns), (cell_w, cell_w / min(max(strip.aspect, 0.5), 2.5))


def _draw_strip(page: _Page, strip: Strip, top: float, cell: tuple[float, float]) -> None:
    page.text(_MARGIN, top + 16, strip.title, weight="bold")
    strip.explain(page.axes(_MARGIN, top + 30, page.width - 2 * _MARGIN, 26))
    per_row = max(1, int((page.width - 2 * _MARGIN + _GAP + 1) / (cell[0] + _GAP)))
    for index, (caption, draw) in enumerate(strip.cells):
        row, column = divmod(index, per_row)
        left, upper = _MARGIN + column * (cell[0] + _GAP), top + 64 + row * (cell[1] + _CAPTION + _GAP)
        _draw_caption(page, caption, (left, upper), cell[0])
        draw(page.axes(left, upper + _CAPTION, *cell))
