"""Videos as cameras and editors write them: any presentation times, turned, with pixels that are not square."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# Matrices of the box tkhd in 1/65536, row by row (a b u, c d v, x y w), and what they make of the stored pixels.
TURNS = {
    "as stored": ((1, 0, 0, 1), lambda pixels: pixels),
    "90° clockwise": ((0, 1, -1, 0), lambda pixels: np.rot90(pixels, -1)),
    "180°": ((-1, 0, 0, -1), lambda pixels: np.rot90(pixels, 2)),
    "90° anticlockwise": ((0, -1, 1, 0), lambda pixels: np.rot90(pixels, 1)),
    "mirrored": ((-1, 0, 0, 1), lambda pixels: pixels[:, ::-1]),
    "upside down and mirrored": ((1, 0, 0, -1), lambda pixels: pixels[::-1]),
}


def write_clip(
    path: Path,
    pictures: Sequence[NDArray[np.uint8]],
    *,
    times: Sequence[float] | None = None,
    codec: str = "libx264",
    aspect: Fraction | None = None,
    turn: str = "as stored",
    start: int = 0,
) -> Path:
    """Write pictures (H, W, 3) shown at `times` seconds, 10 a second by default, with a key frame every 10 pictures."""
    import av

    times = [index / 10 for index in range(len(pictures))] if times is None else times
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options={"crf": "10", "g": "10"} if codec == "libx264" else {})
        stream.width, stream.height, stream.pix_fmt = pictures[0].shape[1], pictures[0].shape[0], "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, 1000)
        if codec != "libx264":
            stream.codec_context.qmin = stream.codec_context.qmax = 2
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for picture, time in zip(pictures, times, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = start + round(1000 * time), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    if turn != "as stored":
        (a, b, c, d), _ = TURNS[turn]
        content = bytearray(path.read_bytes())
        place = content.index(b"tkhd") + 4 + 4 + 20 + 16  # version 0: times and numbers, then layer and volume
        content[place : place + 36] = struct.pack(">9i", *(65536 * np.array([a, b, 0, c, d, 0, 0, 0])), 1 << 30)
        path.write_bytes(bytes(content))
    return path


def numbered_pictures(count: int, size: tuple[int, int] = (64, 48)) -> list[NDArray[np.uint8]]:
    """Pictures of width and height `size` with a left half of a brightness that says their number, see `read_number`.

    The right half is red above and blue below, so that turned pictures are recognised.
    """
    width, height = size
    pictures = np.zeros((count, height, width, 3), np.uint8)
    pictures[:, :, : width // 2] = (20 + 5 * np.arange(count))[:, None, None, None]
    pictures[:, : height // 2, width // 2 :] = (200, 40, 40)
    pictures[:, height // 2 :, width // 2 :] = (40, 40, 200)
    return list(pictures)


def read_number(picture: object) -> int:
    """Return which of the `numbered_pictures` a picture is."""
    pixels = np.asarray(picture)
    height, width = pixels.shape[:2]
    return round((float(pixels[4 : height - 4, 4 : width // 2 - 4].mean()) - 20) / 5)
