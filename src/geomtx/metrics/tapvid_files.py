"""Files of TAP-Vid, which are pickles: read without running what they may ask for."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geomtx.files import user_path
from geomtx.metrics.tapvid import TapVidVideo

__all__ = ["load_tapvid"]


def load_tapvid(path: str | os.PathLike[str]) -> Iterator[TapVidVideo]:
    """Videos of TAP-Vid, one after the other, decoded when they are asked for.

    Args:
        path: A published file: a mapping of names to videos (DAVIS) or a list of videos (RGB-Stacking, a part of
            Kinetics), each a mapping with `video`, frames or JPEG files of frames, `points` and `occluded`. Or a folder
            of such .pkl files (Kinetics), read in the order of their names. They are pickles; anything in one but
            arrays, bytes and plain containers is refused, so that reading one runs none of its code.

    Returns:
        An iterator; a broken file raises when it is reached.

    Raises:
        ValueError: If there is no such file, or one is broken or of another kind.
    """
    path = user_path(path)
    files = sorted(path.glob("*.pkl")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise ValueError(f"path must be a .pkl file of TAP-Vid or a folder of them, got '{path}'")
    return (video for file in files for video in _read_videos(file))


def _read_videos(file: Path) -> Iterator[TapVidVideo]:
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
    """(S, H, W, 3) uint8 of an array, or of JPEG files."""
    if len(video) and all(isinstance(frame, bytes) for frame in video):
        from PIL import Image

        video = np.stack([np.asarray(Image.open(io.BytesIO(frame)).convert("RGB")) for frame in video])
    frames = np.ascontiguousarray(video)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"video must be (S, H, W, 3) of uint8, got {frames.shape} of {frames.dtype}")
    return frames


def _unpickle(file: Path) -> Any:
    try:
        with file.open("rb") as stream:
            return _PlainUnpickler(stream).load()
    # What a damaged pickle raises is whatever its opcodes run into.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"'{file}' must be a whole pickle of plain arrays, got another file: {reason}") from error


class _EncodeLatin:
    """Bytes of old protocols, which are text in latin1. No attribute of it can be set by a pickle."""

    __slots__ = ()

    def __call__(self, text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"bytes in {encoding} are refused")
        return text.encode("latin1")


class _BufferToArray:
    """An array of protocol 5."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> np.ndarray:
        return _FROM_BUFFER(*arguments)


# numpy's own, by asking it: where they are defined differs between its versions.
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
    """Makes numpy's arrays and numbers, and nothing else that has a name."""

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle asks for by name. UnpicklingError if it isn't admitted."""
        key = (module.replace("numpy._core.", "numpy.").replace("numpy.core.", "numpy."), name)
        if key not in _ADMITTED:
            raise pickle.UnpicklingError(f"'{module}.{name}' is refused")
        return _ADMITTED[key]
