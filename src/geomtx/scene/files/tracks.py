"""The tracks of a scene as a JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from geomtx.scene.content import SceneContent
from geomtx.scene.files.cameras import TIME_CONVENTION
from geomtx.scene.files.json_file import to_plain, write_json
from geomtx.views.transform import lies_inside

__all__ = ["TRACK_CONVENTIONS", "write_tracks"]

TRACK_CONVENTIONS = {
    "x, y": "pixels of the original photo, upright (after its EXIF orientation)",
    "pixel_centers": "at integers: the centre of the upper left pixel is (0, 0)",
    "visibility": "probability that the point is seen in the view",
    "confidence": "probability that the position is right",
    "inside": "whether the position lies on the photo",
}


def write_tracks(path: str | Path, scene: SceneContent) -> None:
    """Write the position of each query point in every view, in original pixels.

    Args:
        path: Path of the file, which is overwritten if it exists.
        scene: Scene with tracks and query points.

    Raises:
        ValueError: If the scene has no tracks.
    """
    tracks, queries = scene.tracks, scene.query_points
    if tracks is None or queries is None:
        raise ValueError("scene must have tracks, but the model ran without query points")
    x, y = (to_plain(part) for part in tracks.coords_px.unbind(-1))
    visibility, confidence = to_plain(tracks.visibility), to_plain(tracks.confidence)
    inside = torch.stack(
        [
            lies_inside(coords, transform.original_hw)
            for coords, transform in zip(tracks.coords_px, scene.transforms, strict=True)
        ]
    ).tolist()

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
