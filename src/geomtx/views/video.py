"""Reading and writing of videos by PyAV: when each frame is shown, upright frames as pictures, and H.264 in MP4.

This module imports no torch; PyAV, of the extra `video`, is imported when a video is read or written.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from geomtx.checks import check_finite_positive
from geomtx.files import user_path
from geomtx.views.listing import PhotoError, check_file

__all__ = ["Timeline", "read_frames", "read_thumbnails", "read_timeline", "write_video"]

logger = logging.getLogger(__name__)

_HD_ROWS = 720  # frames this high without a colour space have that of HDTV, lower ones that of SDTV, as players assume
_UNKNOWN_SPACE = 2  # of ISO/IEC 23091-2
_BT709 = 1
_MOST_DAMAGE = 10_000  # packets that can't be decoded, from which the rest of a video is left out


class Timeline(NamedTuple):
    """Times at which the frames of a video are shown.

    Attributes:
        times: Seconds from the first frame to each, (F,) float64, increasing.
        stamps: Presentation times of the frames in units of the file, (F,) int64; None where the file has none for some
            frames, which are counted then.
        seekable: Stamps from which decoding can begin, increasing; empty where frames are counted.
    """

    times: NDArray[np.float64]
    stamps: NDArray[np.int64] | None
    seekable: NDArray[np.int64]


def import_av() -> Any:
    """Return the package PyAV.

    Raises:
        ImportError: If it is not installed; the message names the extra.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError('videos need PyAV, which is not installed: pip install "geomtx[video]"') from error
    return av


@contextmanager
def _open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open a video and yield the container and its stream of pictures. PyAV's errors are raised as `PhotoError`."""
    check_file(path, "video")
    av = import_av()
    try:
        with av.open(str(path)) as container:
            streams = [stream for stream in container.streams.video if not _is_cover(stream)]
            if not streams:
                found = "sound alone" if container.streams.audio else "none"
                raise PhotoError(f"video '{path}' must have pictures, got {found}")
            streams[0].thread_type = "AUTO"
            yield container, streams[0]
    except av.error.FFmpegError as error:
        if isinstance(error, PermissionError):
            raise PhotoError(f"video '{path}' must be readable, got no permission to read it") from error
        reason = error.strerror or type(error).__name__
        raise PhotoError(f"video '{path}' must be a whole video that FFmpeg can decode, got: {reason}") from error


def _is_cover(stream: Any) -> bool:
    """Whether a stream is a still picture beside music, which formats store as if it were a video."""
    return "attached_pic" in str(getattr(stream, "disposition", ""))


def read_timeline(path: str | os.PathLike[str]) -> Timeline:
    """Read when each frame of a video is shown; frames are decoded only if the file does not say it.

    Args:
        path: Video file.

    Raises:
        PhotoError: If the file is missing or no video, or has no frame.
        ImportError: If PyAV is not installed.
    """
    path = user_path(path)
    stamps: list[int] = []
    seekable: list[int] = []
    complete = True
    with _open_video(path) as (container, stream):
        for packet in container.demux(stream):
            if packet.size == 0 or packet.is_discard:
                continue
            complete &= packet.pts is not None
            if not complete:
                break
            stamps.append(packet.pts)
            if packet.is_keyframe:
                seekable.append(packet.pts)
        unit = stream.time_base
    if complete and stamps:
        shown = np.unique(np.array(stamps, dtype=np.int64))
        return Timeline((shown - shown[0]) * float(unit), shown, np.unique(np.array(seekable, dtype=np.int64)))
    return _count_frames(path)


def _count_frames(path: Path) -> Timeline:
    """Find the frames of a video without presentation times by decoding it; they are taken to come at an even rate."""
    with _open_video(path) as (container, stream):
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        number = sum(1 for _ in _decode(container, stream))
    if not number:
        raise PhotoError(f"video '{path}' must have a frame, got none")
    return Timeline(np.arange(number) / float(rate), None, np.empty(0, np.int64))


def read_frames(
    path: str | os.PathLike[str], timeline: Timeline, indices: Sequence[int]
) -> Iterator[tuple[int, Image.Image]]:
    """Decode frames of a video, one after another, upright and with square pixels.

    Between frames that are far apart, the video is skipped to the last place from which it can be decoded. Memory holds
    one frame in full size at a time, besides what the decoder keeps.

    Args:
        path: Video file.
        timeline: Times at which its frames are shown, as `read_timeline` returns them.
        indices: Numbers of the frames in the order in which they are shown, increasing.

    Yields:
        The number of the frame and its picture, 8-bit RGB. Rotations and mirroring that the file asks for are applied.
        Of pixels that are not square, rows or columns are stretched. In place of a frame that can't be decoded comes
        the next one; a warning in the log says how many are missing at the end.

    Raises:
        PhotoError: If the video is damaged, or none of the frames could be decoded.
    """
    path = user_path(path)
    found = 0
    with _open_video(path) as (container, stream):
        for index, frame in _number_frames(container, stream, timeline, indices):
            found += 1
            yield index, _to_picture(frame, stream, path)
    if len(indices) and not found:
        raise PhotoError(f"video '{path}' must be a whole video, got none of its frames decoded")
    if found < len(indices):
        logger.warning("%d of %d frames of '%s' could not be decoded", len(indices) - found, len(indices), path)


def read_thumbnails(
    path: str | os.PathLike[str], timeline: Timeline, *, side: int
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Decode all frames of a video in order, small and grey.

    Args:
        path: Video file.
        timeline: Times at which its frames are shown, as `read_timeline` returns them.
        side: Length of the longer side in pixels; smaller frames keep their size.

    Yields:
        The number of a frame, and its grey values (H, W) as they are stored, neither turned nor stretched. Frames that
        can't be decoded are left out.

    Raises:
        PhotoError: If the video is damaged.
    """
    path = user_path(path)
    with _open_video(path) as (container, stream):
        for place, frame in enumerate(_decode(container, stream)):
            index = place if timeline.stamps is None else int(np.searchsorted(timeline.stamps, frame.pts))
            if index >= len(timeline.times):
                break
            factor = min(side / max(frame.width, frame.height), 1.0)
            width, height = (max(round(length * factor), 1) for length in (frame.width, frame.height))
            yield index, frame.to_ndarray(format="gray", width=width, height=height, interpolation="AREA")


def _number_frames(
    container: Any, stream: Any, timeline: Timeline, indices: Sequence[int]
) -> Iterator[tuple[int, Any]]:
    """Decode the frames of these numbers."""
    if timeline.stamps is None:
        wanted = set(indices)
        yield from ((i, frame) for i, frame in enumerate(_decode(container, stream)) if i in wanted)
        return
    here = timeline.stamps[0] - 1  # stamp of the last frame that was decoded
    frames = _decode(container, stream)
    for index in indices:
        stamp = timeline.stamps[index]
        if stamp <= here:
            continue  # a frame that could not be decoded, and the next one was taken in its place
        start = timeline.seekable[timeline.seekable <= stamp]
        if len(start) and start[-1] > max(here, timeline.stamps[0]):
            container.seek(int(start[-1]), stream=stream)
            frames = _decode(container, stream)
        for frame in frames:
            if frame.pts is not None and frame.pts >= stamp:
                here = frame.pts
                yield int(np.searchsorted(timeline.stamps, frame.pts)), frame
                break


def _decode(container: Any, stream: Any) -> Iterator[Any]:
    """Decode all frames from where the container is, without those that are damaged."""
    av = import_av()
    frames = container.decode(stream)
    for _ in range(_MOST_DAMAGE):
        try:
            yield from frames
            return
        except av.error.InvalidDataError:
            frames = container.decode(stream)  # goes on behind the damage
        except av.error.EOFError:  # the damage was the end
            return


def _to_picture(frame: Any, stream: Any, path: Path) -> Image.Image:
    """Convert a frame to 8-bit RGB, upright, with square pixels."""
    hd = frame.colorspace == _UNKNOWN_SPACE and frame.height >= _HD_ROWS and not frame.format.is_rgb
    pixels = frame.to_ndarray(format="rgb24", **({"src_colorspace": "ITU709"} if hd else {}))
    picture = Image.fromarray(pixels)
    aspect = float(stream.sample_aspect_ratio or 1)  # width of a pixel over its height
    if aspect > 1:
        picture = picture.resize((round(picture.width * aspect), picture.height), Image.Resampling.BICUBIC)
    elif 0 < aspect < 1:
        picture = picture.resize((picture.width, round(picture.height / aspect)), Image.Resampling.BICUBIC)
    return _turn_upright(picture, _display_matrix(frame), path)


def _display_matrix(frame: Any) -> tuple[float, float, float, float] | None:
    """Return a, b, c, d of the matrix that takes stored (x, y) to shown (a·x + c·y, b·x + d·y); None without one."""
    for index in range(len(frame.side_data)):
        data = frame.side_data[index]
        if data.type.name == "DISPLAYMATRIX":
            values = np.frombuffer(bytes(data), np.int32)
            return tuple((values[[0, 1, 3, 4]] / 65536).tolist())
    return None


def _turn_upright(picture: Image.Image, matrix: tuple[float, float, float, float] | None, path: Path) -> Image.Image:
    if matrix is None:
        return picture
    a, b, c, d = matrix
    if abs(b) > abs(a):
        picture, x_sign, y_sign = picture.transpose(Image.Transpose.TRANSPOSE), c, b
    else:
        x_sign, y_sign = a, d
    if min(abs(a), abs(b)) > 1e-3 * max(abs(a), abs(b)):
        logger.warning("video '%s' is turned by no multiple of 90°, frames are turned by the nearest", path)
    if x_sign < 0:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if y_sign < 0 else picture


def write_video(
    path: str | os.PathLike[str], pictures: Iterable[Image.Image | NDArray[np.uint8]], *, fps: float
) -> None:
    """Write pictures as a video that browsers and players show: H.264 in an MP4 file, of the same bytes every time.

    Pictures are encoded one at a time, so an iterator of many needs no memory.

    Args:
        path: Path of the file, which is overwritten if it exists.
        pictures: Pictures in their order: Pillow's, or arrays (H, W, 3) uint8, RGB. All have one size, with even sides.
        fps: Number of pictures a second.

    Raises:
        ValueError: Without a picture, for odd or different sizes, or a rate that is not finite and positive.
        ImportError: If PyAV is not installed.
        OSError: If the file can't be written.
    """
    check_finite_positive("fps", fps)
    av = import_av()
    size: tuple[int, int] | None = None
    # Read from the start of the file, a page shows the video before all of it is there.
    with av.open(str(user_path(path)), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        for picture in pictures:
            pixels = np.ascontiguousarray(picture)
            if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
                raise ValueError(f"pictures must be (H, W, 3) uint8, got {pixels.shape} {pixels.dtype}")
            if size is None:
                size = (pixels.shape[1], pixels.shape[0])
                stream = _add_h264(container, size, fps)
            if pixels.shape[1::-1] != size:
                found = "x".join(map(str, pixels.shape[1::-1]))
                raise ValueError(f"pictures must have one size, got {size[0]}x{size[1]} and {found}")
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = frame.reformat(format="yuv420p", src_colorspace="ITU709", dst_colorspace="ITU709")
            container.mux(stream.encode(frame))
        if size is None:
            raise ValueError("pictures must hold at least one, got none")
        container.mux(stream.encode(None))


def _add_h264(container: Any, size: tuple[int, int], fps: float) -> Any:
    if size[0] % 2 or size[1] % 2:
        raise ValueError(f"pictures must have even sides for H.264, got {size[0]}x{size[1]}")
    stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(10_000), options={"crf": "18"})
    stream.width, stream.height = size
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.thread_count = 1  # another number of threads makes other bytes
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = 1  # 16 … 235, as players expect
    return stream
