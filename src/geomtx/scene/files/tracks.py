"""The tracks of a scene as a JSON file and as arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geomtx.scene.content import SceneContent
from geomtx.scene.files.cameras import TIME_CONVENTION
from geomtx.scene.files.json_file import to_plain, write_json
from geomtx.types import Bool, Float, Tracks
from geomtx.views.transform import lies_inside

__all__ = ["TRACK_CONVENTIONS", "seen_tracks", "write_track_arrays", "write_tracks"]

TRACK_CONVENTIONS = {
    "x, y": "pixels of the original photo, upright (after its EXIF orientation)",
    "pixel_centers": "at integers: the centre of the upper left pixel is (0, 0)",
    "visibility": "probability that the point is seen in the view",
    "confidence": "probability that the position is right",
    "inside": "whether the position lies on the photo",
}

_ARRAY_CONVENTIONS = (
    "query_points (N, 3): frame number, y, x, in this order, as in TAP-Vid. tracks (N, T, 2): x, y. occluded (N, T): "
    "hidden (visibility up to 0.5) or outside of the frame. visibility, confidence (N, T): probabilities. times (T,): "
    "seconds from the first frame of the video, NaN for photos. names (T,): of the frames. frames_hw (T, 2): height, "
    "width. Pixels are those of the original frames, upright, with the centre of the upper left pixel at (0, 0); "
    "TAP-Vid rescales to 256 x 256."
)

_VISIBLE = 0.5  # probability above which a point counts as seen


def write_tracks(path: str | Path, scene: SceneContent) -> None:
    """Write the position of each query point in every view, in original pixels.

    Args:
        path: Path of the file, which is overwritten if it exists.
        scene: Scene with tracks and query points.

    Raises:
        ValueError: If the scene has no tracks.
    """
    tracks, queries = _tracks_of(scene)
    x, y = (to_plain(part) for part in tracks.coords_px.unbind(-1))
    visibility, confidence = to_plain(tracks.visibility), to_plain(tracks.confidence)
    inside = _inside(scene, tracks).tolist()

    def entry(view: int, track: int) -> dict[str, Any]:
        return {
            "name": scene.names[view],
            **({"time": round(scene.times[view], 9)} if scene.times else {}),
            "x": x[view][track],
            "y": y[view][track],
            "visibility": visibility[view][track],
            "confidence": confidence[view][track],
            "inside": inside[view][track],
        }

    content = {
        "format": "geomtx.tracks",
        "version": 1,
        **({"notice": scene.notice} if scene.notice else {}),
        "conventions": {**TRACK_CONVENTIONS, **({"time": TIME_CONVENTION} if scene.times else {})},
        "tracks": [
            {
                "query": {"view": int(query[0]), "name": scene.names[int(query[0])], "x": query[1], "y": query[2]},
                "views": [entry(view, index) for view in range(len(scene))],
            }
            for index, query in enumerate(to_plain(queries))
        ],
    }
    write_json(path, content)


def write_track_arrays(path: str | Path, scene: SceneContent) -> None:
    """Write the tracks as arrays of NumPy (.npz), laid out as in TAP-Vid; the entry `conventions` describes them.

    The arrays are query_points (N, 3) float32 as (frame, y, x), tracks (N, T, 2) float32 as (x, y), occluded (N, T)
    bool, visibility and confidence (N, T) float32, times (T,) float64, names (T,), frames_hw (T, 2) int64.

    Args:
        path: Path of the file, which is overwritten if it exists.
        scene: Scene with tracks and query points.

    Raises:
        ValueError: If the scene has no tracks.
    """
    tracks, queries = _tracks_of(scene)
    arrays: dict[str, Any] = {
        "query_points": queries[:, [0, 2, 1]].float().numpy(),
        "tracks": tracks.coords_px.transpose(0, 1).float().numpy(),
        "occluded": ~seen_tracks(scene).T.numpy(),
        "visibility": tracks.visibility.T.float().numpy(),
        "confidence": tracks.confidence.T.float().numpy(),
        "times": np.array(scene.times or [np.nan] * len(scene), dtype=np.float64),
        "names": np.array(scene.names),
        "frames_hw": np.array([transform.original_hw for transform in scene.transforms]),
        "conventions": np.array(_ARRAY_CONVENTIONS),
    }
    np.savez_compressed(path, **arrays)


def seen_tracks(scene: SceneContent) -> Bool[Tensor, "s n"]:
    """Return where points are seen, (S, N) bool: visible with a probability above 0.5, and on the photo.

    Raises:
        ValueError: If the scene has no tracks.
    """
    tracks, _ = _tracks_of(scene)
    return (tracks.visibility > _VISIBLE) & _inside(scene, tracks)


def _tracks_of(scene: SceneContent) -> tuple[Tracks, Float[Tensor, "n 3"]]:
    """Return the tracks in original pixels and their queries."""
    tracks, queries = scene.tracks, scene.query_points
    if tracks is None or queries is None:
        raise ValueError("scene must have tracks, but the model ran without query points")
    return tracks, queries


def _inside(scene: SceneContent, tracks: Tracks) -> Bool[Tensor, "s n"]:
    places = zip(tracks.coords_px, scene.transforms, strict=True)
    return torch.stack([lies_inside(coords, transform.original_hw) for coords, transform in places])
