"""Reading of depth maps from files, and removal of invalid depth."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geomtx.data.files import read_png
from geomtx.data.scene_check import SceneError

__all__ = ["clean_depth", "read_depth", "read_half_png", "read_integer_png"]


def clean_depth(
    depth: NDArray[np.floating],
    *,
    max_depth: float | None = None,
    min_percentile: float | None = None,
    max_percentile: float | None = None,
) -> NDArray[np.float32]:
    """Set invalid depth and outliers to 0, which means unknown.

    Percentiles are over the pixels that are still known, so that an object loses the same share of its pixels whatever
    its size in the picture.

    Args:
        depth: Depth map (H, W); values that are not finite or not positive are unknown.
        max_depth: Largest depth, above which values are unknown; defaults to no limit.
        min_percentile: Percentile in 0 … 100 below which values are unknown; defaults to none.
        max_percentile: Percentile in 0 … 100 above which values are unknown; defaults to none. Co3Dv2 needs 98.

    Raises:
        ValueError: If a percentile is not in 0 … 100.
    """
    for name, percentile in (("min_percentile", min_percentile), ("max_percentile", max_percentile)):
        if percentile is not None and not 0 <= percentile <= 100:
            raise ValueError(f"{name} must be in 0 … 100, got {percentile}")
    known = np.isfinite(depth) & (depth > 0)
    if max_depth is not None:
        known &= np.where(known, depth, 0) <= max_depth
    values = depth[known]
    if values.size:
        low = -np.inf if min_percentile is None else np.percentile(values, min_percentile)
        high = np.inf if max_percentile is None else np.percentile(values, max_percentile)
        known[known] = (values >= low) & (values <= high)
    return np.where(known, depth, 0).astype(np.float32)


def read_half_png(path: Path) -> NDArray[np.float32]:
    """Read depth (H, W) from a 16-bit PNG whose values are the bits of half floats, as in Co3Dv2.

    Raises:
        SceneError: If the file is missing, damaged, or not of 16 bits a pixel.
    """
    return _read_png(path).view(np.float16).astype(np.float32)


def read_integer_png(path: Path, *, unit: float) -> NDArray[np.float32]:
    """Read depth (H, W) from a 16-bit PNG of whole numbers times `unit`; Virtual KITTI 2 has centimetres, `unit=0.01`.

    Raises:
        SceneError: If the file is missing, damaged, or not of 16 bits a pixel.
    """
    return _read_png(path).astype(np.float32) * np.float32(unit)


def read_depth(path: Path) -> NDArray[np.float32]:
    """Read a depth map of floats (H, W) from a .npy or .exr file.

    An .exr file needs one of the packages OpenEXR and imageio; the channel "Y", "Z" or "R" is read, else the first one.

    Raises:
        SceneError: If the file is missing, damaged, of another type or shape, or holds NaN or infinity.
        ImportError: For .exr without a package to read it.
    """
    if not path.is_file():
        raise SceneError(f"depth '{path}' must be an existing file, got none")
    try:
        if path.suffix == ".npy":
            depth = np.load(path, allow_pickle=False)
        elif path.suffix == ".exr":
            depth = _read_exr(path)
        else:
            raise SceneError(f"depth '{path}' must be .npy or .exr, got '{path.suffix}'")
    except (OSError, EOFError, RuntimeError) as error:
        raise SceneError(f"depth '{path}' must be a whole file, got a damaged one: {_one_line(error)}") from error
    except SceneError:
        raise
    except ValueError as error:  # NumPy's, for a damaged header
        raise SceneError(f"depth '{path}' must be a whole file, got a damaged one: {_one_line(error)}") from error
    if depth.ndim != 2 or depth.dtype.kind != "f":
        raise SceneError(f"depth '{path}' must hold (H, W) floats, got {depth.shape} of {depth.dtype}")
    if not np.isfinite(depth).all():
        raise SceneError(f"depth '{path}' must be finite, got {(~np.isfinite(depth)).sum()} values that are not")
    return depth.astype(np.float32)


def _read_png(path: Path) -> NDArray[np.uint16]:
    mode, pixels = read_png(path, kind="depth")
    if mode not in ("I;16", "I;16B", "I"):
        raise SceneError(f"depth '{path}' must have 16 bits a pixel, got mode {mode}")
    if pixels.min() < 0 or pixels.max() > 65535:
        raise SceneError(f"depth '{path}' must have values of 16 bits, got {pixels.min()} to {pixels.max()}")
    return pixels.astype(np.uint16)


def _read_exr(path: Path) -> np.ndarray:
    if importlib.util.find_spec("OpenEXR") is not None:
        exr = importlib.import_module("OpenEXR")
        with exr.File(str(path), separate_channels=True) as file:
            channels = {name: channel.pixels for name, channel in file.channels().items()}
        name = next((name for name in ("Y", "Z", "R") if name in channels), next(iter(channels)))
        return np.array(channels[name])
    if importlib.util.find_spec("imageio") is not None:
        pixels = np.asarray(importlib.import_module("imageio.v3").imread(path))
        return pixels[..., 0] if pixels.ndim == 3 else pixels
    raise ImportError(f"reading '{path}' needs the package OpenEXR or imageio: pip install OpenEXR")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
