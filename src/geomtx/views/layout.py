"""Sizes of the images that photos become."""

from __future__ import annotations

__all__ = ["CENTER_MODES", "fit_area", "lay_out"]

CENTER_MODES = ("center", "center_square")
"""Modes that cut photos about their centre, as DUSt3R's authors do; transparent pixels have their stored colour."""


def fit_area(photo_wh: tuple[int, int], num_pixels: int, patch_size: int) -> tuple[int, int]:
    """Return width and height in whole patches with at most a number of pixels, nearly in the shape of a photo.

    Args:
        photo_wh: Width and height of the photo.
        num_pixels: Largest number of pixels, at least those of a patch.
        patch_size: Side of a patch in pixels.
    """
    factor = (num_pixels / (photo_wh[0] * photo_wh[1])) ** 0.5 / patch_size
    columns, rows = (max(round(side * factor), 1) for side in photo_wh)
    while columns * rows * patch_size**2 > num_pixels and (columns, rows) != (1, 1):
        if rows == 1 or (columns > 1 and columns / rows > photo_wh[0] / photo_wh[1]):
            columns -= 1
        else:
            rows -= 1
    return columns * patch_size, rows * patch_size


def lay_out(
    photo_wh: tuple[int, int], mode: str, size: int, patch_size: int
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Return (width, height) to resize to, (width, height) of the image, and the photo's upper left corner in it.

    Args:
        photo_wh: Width and height of the photo.
        mode: "fit", "crop", "pad", "center" or "center_square", see `load_views`.
        size: Side of the image in pixels.
        patch_size: Side of a patch in pixels.
    """
    if mode in CENTER_MODES:
        return _lay_out_center(photo_wh, size, patch_size, square=mode == "center_square")
    width, height = photo_wh
    if mode != "crop" and height > width:
        resized = (_round_to_patch(width * size / height, patch_size), size)
    else:
        resized = (size, _round_to_patch(height * size / width, patch_size))
    if mode == "fit":
        return resized, resized, (0, 0)
    if mode == "crop":
        cut = max(resized[1] - size, 0)
        return resized, (size, resized[1] - cut), (0, -(cut // 2))
    return resized, (size, size), ((size - resized[0]) // 2, (size - resized[1]) // 2)


def _lay_out_center(
    photo_wh: tuple[int, int], size: int, patch_size: int, *, square: bool
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Return as `lay_out`: the longer side is resized to `size`, or the shorter one for a square, and the rest cut."""
    long, short = max(photo_wh), min(photo_wh)
    side = round(size * long / short) if square else size
    width, height = (max(round(length * side / long), 1) for length in photo_wh)
    if square:
        image = (size, size)
    else:
        columns, rows = width // patch_size, height // patch_size
        rows = 3 * columns // 4 if width == height else rows
        image = (max(columns, 1) * patch_size, max(rows, 1) * patch_size)
    return (width, height), image, (int((image[0] - width) / 2), int((image[1] - height) / 2))


def _round_to_patch(length: float, patch_size: int) -> int:
    return max(round(length / patch_size), 1) * patch_size
