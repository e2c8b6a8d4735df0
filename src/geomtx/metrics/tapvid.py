"""TAP-Vid, a benchmark of point tracking (Doersch et al. 2022): reading its files without running code in pickles, and
evaluation.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from geomtx.checks import check_mask, check_option, check_positive, check_shape
from geomtx.files import user_path
from geomtx.metrics.tracking import RASTER, QueryMode, TrackScores, scale_to_raster, select_queries, track_scores
from geomtx.types import SceneBatch, show_shapes

__all__ = [
    "TapVidScores",
    "TapVidVideo",
    "TrackPoints",
    "evaluate_tapvid",
    "labels_to_tapvid",
    "load_tapvid",
]


@show_shapes
class TapVidVideo(NamedTuple):
    """A video with true tracks.

    Attributes:
        frames: RGB frames, (S, H, W, 3) uint8.
        points: Positions x and y, (N, S, 2), with 0 and 1 at the centres of the first and last pixel; positions of
            occluded points have no influence.
        occluded: Whether a point is occluded, (N, S) bool.
        name: Name of the video in the results. Defaults to its index.
    """

    frames: Tensor
    points: Tensor
    occluded: Tensor
    name: str = ""


@show_shapes
class TapVidScores(NamedTuple):
    """Output of `evaluate_tapvid`, in [0, 1]; papers state percentages.

    Attributes:
        mean: `TrackScores` of the data set: means over the videos in which a score is defined.
        videos: `TrackScores` of every video, (V,) and (V, 5).
        names: Names of the V videos.
    """

    mean: TrackScores
    videos: TrackScores
    names: tuple[str, ...]


@runtime_checkable
class TrackPoints(Protocol):
    """Interface of a tracker, which finds points of a video in all its frames."""

    def __call__(self, frames: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Track points.

        Args:
            frames: Frames in [0, 1], (S, 3, H, W).
            queries: Frame index, x and y of every query, (Q, 3), in pixels of `frames`, pixel centres at integers.

        Returns:
            Positions (S, Q, 2) in the same pixels, and whether the points are visible, (S, Q) bool.
        """
        ...


def evaluate_tapvid(
    track: TrackPoints,
    videos: Iterable[TapVidVideo],
    *,
    mode: QueryMode = "first",
    stride: int = 5,
    image_hw: tuple[int, int] = (RASTER, RASTER),
) -> TapVidScores:
    """Evaluate a tracker on videos, without gradients.

    Args:
        track: Tracker, see `TrackPoints`.
        videos: Videos, of which one at a time is held in memory (see `load_tapvid`).
        mode: "first" for one query in the first frame in which a track is visible, scored on the frames after it;
            "strided" for a query in every `stride`-th frame in which it is visible, scored on all other frames.
            Defaults to "first".
        stride: Number of frames between queries of "strided", positive. Defaults to 5.
        image_hw: Height and width to which frames are resized for the tracker, pixels. Defaults to 256×256, on which
            scores are always measured.

    Returns:
        Scores of the data set and of every video.

    Raises:
        ValueError: If there is no video, a video differs from the description of `TapVidVideo`, or the tracker returns
            other shapes.
    """
    check_option("mode", mode, ("first", "strided"))
    check_positive("stride", stride)
    names, scores = [], []
    for index, video in enumerate(videos):
        name = video.name or str(index)
        _check_video(video, name)
        names.append(name)
        scores.append(_score_video(track, video, mode, stride, image_hw))
    if not scores:
        raise ValueError("videos must hold at least one, got none")
    each = TrackScores(*(torch.stack(parts) for parts in zip(*scores, strict=True)))
    return TapVidScores(TrackScores(*(part.nanmean(0) for part in each)), each, tuple(names))


def labels_to_tapvid(videos: SceneBatch) -> list[TapVidVideo]:
    """Convert videos with known tracks, such as rendered ones, to TAP-Vid's format: 8-bit frames and valid tracks only.

    Args:
        videos: Batch of B videos with tracks.

    Returns:
        One `TapVidVideo` for each video.

    Raises:
        ValueError: If the tracks are not known.
    """
    if videos.tracks is None:
        raise ValueError("videos must have tracks, got none")
    height, width = videos.images.shape[-2:]
    size = videos.tracks.coords_px.new_tensor([max(width - 1, 1), max(height - 1, 1)])
    frames = (videos.images.clamp(0, 1) * 255).round().to(torch.uint8).movedim(2, -1)
    return [
        TapVidVideo(
            frames[index],
            (coords / size).transpose(0, 1)[valid],
            ~visible.transpose(0, 1)[valid],
            str(index),
        )
        for index, (coords, visible, valid) in enumerate(zip(*videos.tracks, strict=True))
    ]


def _check_video(video: TapVidVideo, name: str) -> None:
    """Check the shapes and dtypes of a video."""
    check_shape(f"frames of '{name}'", video.frames, ("S", "H", "W", 3))
    if video.frames.dtype != torch.uint8:
        raise ValueError(f"frames of '{name}' must be uint8, got {video.frames.dtype}")
    num_frames = len(video.frames)
    check_shape(f"points of '{name}'", video.points, ("N", num_frames, 2))
    check_mask(f"occluded of '{name}'", video.occluded, (len(video.points), num_frames))
    if not video.points[~video.occluded].isfinite().all():
        raise ValueError(f"points of '{name}' must be finite where they are visible, got others")


def _score_video(
    track: TrackPoints, video: TapVidVideo, mode: QueryMode, stride: int, image_hw: tuple[int, int]
) -> TrackScores:
    """Return the scores of a tracker on one video."""
    true_px = video.points.double().transpose(0, 1) * (RASTER - 1)
    visible = ~video.occluded.transpose(0, 1)
    tracks, query_frames = select_queries(visible, mode=mode, stride=stride)
    frames = _resize(video.frames, image_hw)
    size = video.points.new_tensor([image_hw[1] - 1, image_hw[0] - 1])
    # A visible point may be on the outer half of a border pixel, where many trackers reject queries.
    start = video.points[tracks, query_frames].clamp(0, 1) * size
    queries = torch.cat([query_frames[:, None].to(start), start], dim=-1).to(frames)
    shape = (len(frames), len(queries))
    coords, seen = frames.new_zeros(*shape, 2), visible[:, tracks]
    if len(queries):
        with torch.no_grad():
            result = track(frames, queries)
        coords, seen = _check_result(result)
    check_shape("tracked coordinates", coords, (*shape, 2))
    check_mask("tracked visibility", seen, shape)
    raster_px = scale_to_raster(coords.double().to(true_px.device), image_hw)
    seen = seen.to(true_px.device)
    return track_scores(raster_px, seen, true_px[:, tracks], visible[:, tracks], query_frames, mode=mode)


def _check_result(result: object) -> tuple[Tensor, Tensor]:
    """Check that a tracker returned two tensors, and return them."""
    if isinstance(result, tuple | list) and [isinstance(part, Tensor) for part in result] == [True, True]:
        return result[0], result[1]
    raise ValueError(f"track must return coordinates and visibility, two tensors, got {type(result).__name__}")


def _resize(frames: Tensor, image_hw: tuple[int, int]) -> Tensor:
    """Resize uint8 frames (S, H, W, 3) to (S, 3, *image_hw) in [0, 1], one by one to save memory."""
    resized = [
        torch.nn.functional.interpolate(
            frame.movedim(-1, 0)[None].float() / 255, image_hw, mode="bilinear", antialias=True, align_corners=False
        )
        for frame in frames
    ]
    return torch.cat(resized).clamp(0, 1)


def load_tapvid(path: str | os.PathLike[str]) -> Iterator[TapVidVideo]:
    """Load videos of TAP-Vid one after the other; each is decoded when the iterator reaches it.

    Args:
        path: Path of a published .pkl file, which holds a mapping from names to videos (DAVIS) or a list of videos
            (RGB-Stacking, parts of Kinetics), each a mapping with `video` (frames, or JPEG files of frames), `points`
            and `occluded`; or a folder of such files (Kinetics), read in the order of their names. The files are
            pickles; anything other than arrays, bytes and plain containers is rejected, so that no code in them runs.

    Returns:
        Iterator over the videos. It raises when it reaches a damaged file.

    Raises:
        ValueError: If there is no such file, or a file is damaged or of another format.
    """
    path = user_path(path)
    files = sorted(path.glob("*.pkl")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise ValueError(f"path must be a .pkl file of TAP-Vid or a folder of them, got '{path}'")
    return (video for file in files for video in _read_videos(file))


def _read_videos(file: Path) -> Iterator[TapVidVideo]:
    """Yield the videos of one file."""
    content = _unpickle(file)
    if isinstance(content, dict):
        items = list(content.items())
    elif isinstance(content, list | tuple):
        items = [(f"{file.stem}/{index}", item) for index, item in enumerate(content)]
    else:
        raise ValueError(f"'{file}' must hold a mapping or a list of videos, got {type(content).__name__}")
    for name, item in items:
        if not isinstance(item, dict) or not {"video", "points", "occluded"} <= item.keys():
            raise ValueError(f"'{name}' of '{file}' must have video, points and occluded, got another entry")
        try:
            frames = torch.from_numpy(_decode_frames(item["video"]))
            points = torch.from_numpy(np.ascontiguousarray(item["points"], dtype=np.float32))
            occluded = torch.from_numpy(np.ascontiguousarray(item["occluded"]).astype(np.bool_))
        except (ValueError, TypeError, OSError, SyntaxError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"'{name}' of '{file}' must be a whole video, got a broken one: {reason}") from error
        yield TapVidVideo(frames, points, occluded, str(name))


def _decode_frames(video: Any) -> np.ndarray:
    """Return the frames of an array or of JPEG files, (S, H, W, 3) uint8."""
    if len(video) and all(isinstance(frame, bytes) for frame in video):
        from PIL import Image

        video = np.stack([np.asarray(Image.open(io.BytesIO(frame)).convert("RGB")) for frame in video])
    frames = np.ascontiguousarray(video)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"video must be (S, H, W, 3) of uint8, got {frames.shape} of {frames.dtype}")
    return frames


def _unpickle(file: Path) -> Any:
    """Return the content of a pickle of plain arrays and containers."""
    try:
        with file.open("rb") as stream:
            return _PlainUnpickler(stream).load()
    # A damaged pickle may raise any exception.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"'{file}' must be a whole pickle of plain arrays, got another file: {reason}") from error


class _EncodeLatin:
    """Decoder of the bytes of old protocols, which are latin1 text. A pickle can't set attributes of it."""

    __slots__ = ()

    def __call__(self, text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"bytes in {encoding} are refused")
        return text.encode("latin1")


class _BufferToArray:
    """Constructor of arrays of protocol 5. A pickle can't set attributes of it."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> np.ndarray:
        return _FROM_BUFFER(*arguments)


# Taken from numpy objects, since the modules that define them differ between versions.
_RECONSTRUCT = np.zeros(1).__reduce__()[0]
_FROM_BUFFER: Any = np.zeros(1).__reduce_ex__(5)[0]
_SCALAR: Any = np.float64(0).__reduce__()[0]

_ADMITTED = {
    ("_codecs", "encode"): _EncodeLatin(),
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.multiarray", "scalar"): _SCALAR,
    ("numpy.numeric", "_frombuffer"): _BufferToArray(),
    ("builtins", "bytearray"): bytearray,
}


class _PlainUnpickler(pickle.Unpickler):
    """Unpickler that admits numpy arrays and numbers and rejects every other named object."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the object of a name in a pickle; raise UnpicklingError if it isn't admitted."""
        key = (module.replace("numpy._core.", "numpy.").replace("numpy.core.", "numpy."), name)
        if key not in _ADMITTED:
            raise pickle.UnpicklingError(f"'{module}.{name}' is refused")
        return _ADMITTED[key]
