"""Frames of a video that become photos: which ones, by time and by how sharp and different they are, and their files.

This module imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from geomtx.checks import check_count, check_finite_positive, suggest_keywords
from geomtx.files import LISTING, escape_name, file_digest, listed_files, staged_folder, user_path
from geomtx.views.listing import PathLike
from geomtx.views.video import Timeline, read_frames, read_thumbnails, read_timeline

__all__ = [
    "Frame",
    "FrameChoice",
    "FramePlan",
    "choose_frames",
    "extract_frames",
    "frame_times",
    "listed_frames",
    "plan_frames",
    "write_frames",
]

_FORMAT = "geomtx.frames"
_RATE, _FEWEST, _MOST = 2.0, 8, 32  # frames a second, and least and most of them, where nobody says
_SHARP_SIDE = 480  # longer side in pixels at which sharpness is measured: blur that is seen in a model's image
_BLURRED = 0.4  # a frame is blurred below this share of its neighbours' sharpness
_NEIGHBOURS = 1.0  # seconds to each side
_LEAST_NEIGHBOURS = 4  # frames to each side, where frames are far apart
_SAME_SIDE = 64  # longer side in pixels at which frames are compared
_SAME = 0.1  # frames are near-duplicates below this difference over the contrast
_JPEG_QUALITY = 95


@suggest_keywords
@dataclass(frozen=True)
class FrameChoice:
    """Which frames of a video become views.

    Frames are chosen by the times at which they are shown, so that videos whose rate varies, as those of phones, are
    covered evenly. Without `fps` and `max_views` there are two a second, at least 8 and at most 32 in all, which show a
    room or a house and with which VGGT-1B needs less than 4 GiB of a GPU.

    Attributes:
        fps: Number of frames a second, above 0; defaults to the rule above.
        max_views: Number of frames, evenly spread from the first to the last; not with `fps`.
        skip_blurred: Whether blurred frames are replaced by the nearest one that is sharp, up to half the way to the
            next time, or left out. A frame is blurred if the variance of its Laplacian over that of its pixels is
            below 0.4 of the upper quartile of the frames up to a second before and after it. All frames are decoded
            for that.
        skip_duplicates: Whether a frame is left out that looks like the one before, as while the camera rests: if the
            root mean square of their difference is below a tenth of the picture's contrast.
    """

    fps: float | None = None
    max_views: int | None = None
    skip_blurred: bool = False
    skip_duplicates: bool = False

    def __post_init__(self) -> None:
        if self.fps is not None:
            check_finite_positive("fps", self.fps)
        if self.max_views is not None:
            check_count("max_views", self.max_views)
        if self.fps is not None and self.max_views is not None:
            raise ValueError(f"fps and max_views must not be given together, got {self.fps} and {self.max_views}")


class Frame(NamedTuple):
    """A frame of a video as a view.

    Attributes:
        name: Name of the frame: the video's, with the number of the frame in the order in which they are shown.
        time: Seconds from the first frame of the video.
        picture: Upright picture with square pixels, 8-bit RGB.
    """

    name: str
    time: float
    picture: Image.Image


class FramePlan(NamedTuple):
    """The frames of a video that will be decoded.

    Attributes:
        path: Video file.
        timeline: Times at which its frames are shown.
        indices: Numbers of the chosen frames, increasing.
        skip_duplicates: Whether near-duplicates among them are left out.
    """

    path: Path
    timeline: Timeline
    indices: tuple[int, ...]
    skip_duplicates: bool


def plan_frames(source: PathLike, choice: FrameChoice) -> FramePlan:
    """Choose frames of a video; decodes it only to find blurred frames.

    Args:
        source: Video file.
        choice: Choice of frames.

    Raises:
        PhotoError: If the file is missing, no video, damaged, or has no frame.
        ImportError: If PyAV is not installed.
    """
    path = user_path(source)
    timeline = read_timeline(path)
    times = timeline.times
    instants = _choose_instants(times, choice)
    if not choice.skip_blurred:
        chosen = _find_nearest(times, instants)
    else:
        sharp = _find_sharp(path, timeline)
        nearest = _find_nearest(times[sharp], instants)
        reach = (instants[1] - instants[0]) / 2 if len(instants) > 1 else np.inf
        chosen = sharp[nearest[np.abs(times[sharp][nearest] - instants) <= reach + 1e-6]]
    return FramePlan(path, timeline, tuple(np.unique(chosen).tolist()), choice.skip_duplicates)


def _choose_instants(times: NDArray[np.float64], choice: FrameChoice) -> NDArray[np.float64]:
    """Return the times in seconds for which frames are wanted, from that of the first frame on."""
    last = float(times[-1])
    if choice.fps is not None:
        fps = min(choice.fps, 1 / np.diff(times).min()) if len(times) > 1 else choice.fps  # more would find no others
        return np.arange(int(last * fps + 0.1) + 1) / fps  # times are rounded in files, that of the last frame too
    number = choice.max_views
    if number is None:
        number = min(max(round(last * _RATE) + 1, _FEWEST), _MOST)
    return np.linspace(0, last, min(number, len(times)))


def _find_nearest(places: NDArray[np.float64], instants: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return for each instant the index of the nearest of some increasing places; of two as near, that of the first."""
    after = np.searchsorted(places, instants).clip(0, len(places) - 1)
    before = (after - 1).clip(0)
    return np.where(instants - places[before] <= places[after] - instants, before, after)


def _find_sharp(path: Path, timeline: Timeline) -> NDArray[np.int64]:
    """Return the numbers of the frames that are not blurred, in comparison with their neighbours in time."""
    times = timeline.times
    sharpness = np.zeros(len(times))  # also of frames that can't be decoded
    for number, picture in read_thumbnails(path, timeline, side=_SHARP_SIDE):
        sharpness[number] = _sharpness(picture)
    index = np.arange(len(times))
    first = np.minimum(np.searchsorted(times, times - _NEIGHBOURS), index - _LEAST_NEIGHBOURS)
    last = np.maximum(np.searchsorted(times, times + _NEIGHBOURS), index + 1 + _LEAST_NEIGHBOURS)
    usual = [np.quantile(sharpness[max(low, 0) : high], 0.75) for low, high in zip(first, last, strict=True)]
    return index[sharpness >= _BLURRED * np.array(usual)]


def _sharpness(picture: NDArray[np.uint8]) -> float:
    """Return the variance of the Laplacian of grey values (H, W) over their own, at least 1; 0 for tiny pictures."""
    if min(picture.shape) < 3:
        return 0.0
    values = picture.astype(np.float32)
    laplacian = values[1:-1, :-2] + values[1:-1, 2:] + values[:-2, 1:-1] + values[2:, 1:-1] - 4 * values[1:-1, 1:-1]
    return float(laplacian.var() / max(values.var(), 1.0))


def choose_frames(plan: FramePlan) -> Iterator[Frame]:
    """Decode the frames of a plan, one at a time.

    Yields:
        The frames, at least one.

    Raises:
        PhotoError: If the video is damaged.
    """
    before: NDArray[np.float32] | None = None
    for index, picture in read_frames(plan.path, plan.timeline, plan.indices):
        if plan.skip_duplicates:
            small = _reduce(picture)
            if before is not None and _difference(before, small) < _SAME:
                continue
            before = small
        yield Frame(f"{plan.path.stem}_{index:06}.jpg", float(plan.timeline.times[index]), picture)


def _reduce(picture: Image.Image) -> NDArray[np.float32]:
    factor = _SAME_SIDE / max(picture.size)
    size = (max(round(picture.width * factor), 1), max(round(picture.height * factor), 1))
    return np.asarray(picture.convert("L").resize(size, Image.Resampling.BOX), dtype=np.float32)


def _difference(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Return the root mean square of the difference over the contrast, at least 1 of 255, of the first picture."""
    if first.shape != second.shape:
        return np.inf
    return float(np.sqrt(np.square(first - second).mean()) / max(float(first.std()), 1.0))


def extract_frames(
    source: PathLike,
    folder: PathLike,
    *,
    fps: float | None = None,
    max_views: int | None = None,
    skip_blurred: bool = False,
    skip_duplicates: bool = False,
    overwrite: bool = False,
) -> list[Path]:
    """Write frames of a video as photos, all or none: JPEG files named by the video and the number of the frame.

    `load_views(folder)` then knows their times. Frames that an earlier call wrote into the folder are removed.

    Args:
        source: Video file.
        folder: Folder of the photos, which is made if it does not exist.
        fps: Number of frames a second, see `FrameChoice` for this and the following.
        max_views: Number of frames, evenly spread.
        skip_blurred: Whether blurred frames are replaced or left out.
        skip_duplicates: Whether near-duplicates are left out.
        overwrite: Whether files of these names that geomtx did not write may be replaced; defaults to False.

    Returns:
        The paths of the photos, in the order of time.

    Raises:
        PhotoError: If the file is missing, no video, damaged, or has no frame.
        ValueError: For an option out of range, and for `fps` with `max_views`.
        FileExistsError: If there are files of these names that geomtx did not write, and `overwrite` is False.
        OSError: If the folder cannot be written.
        ImportError: If PyAV is not installed.
    """
    plan = plan_frames(source, FrameChoice(fps, max_views, skip_blurred, skip_duplicates))
    folder = user_path(folder)
    with staged_folder(folder, listed_frames(folder), overwrite=overwrite) as stage:
        paths = write_frames(plan, stage)
    return [folder / path.name for path in paths]


def write_frames(plan: FramePlan, folder: Path) -> list[Path]:
    """Write the frames of a plan as JPEG files into an existing folder, and a listing with their times."""
    times: dict[str, float] = {}
    for frame in choose_frames(plan):
        frame.picture.save(folder / frame.name, format="JPEG", quality=_JPEG_QUALITY, subsampling=0)
        times[frame.name] = frame.time
    content = {
        "format": _FORMAT,
        "version": 1,
        "video": escape_name(plan.path.name),
        "conventions": {"times": "seconds from the first frame of the video"},
        "times": times,
        "files": {name: file_digest(folder / name) for name in times},
    }
    (folder / LISTING).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8", newline="\n")
    return [folder / name for name in times]


def listed_frames(folder: Path) -> tuple[str, ...]:
    """Return the names of the files that `write_frames` wrote into a folder; none where it did not."""
    try:
        content = json.loads((folder / LISTING).read_bytes())
        return listed_files(folder) if content["format"] == _FORMAT else ()
    except (OSError, ValueError, TypeError, LookupError):
        return ()


def frame_times(paths: Sequence[Path]) -> tuple[float, ...]:
    """Return the times of photos that are frames of one video, in seconds from its first frame; () for other photos."""
    folders = {path.parent for path in paths}
    if len(folders) != 1:
        return ()
    try:
        content = json.loads((folders.pop() / LISTING).read_bytes())
        return tuple(float(content["times"][path.name]) for path in paths) if content["format"] == _FORMAT else ()
    except (OSError, ValueError, TypeError, LookupError):
        return ()
