"""Matches of two photos as a JSON file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from geomtx.scene.files.json_file import to_plain, write_json
from geomtx.scene.files.tracks import TRACK_CONVENTIONS

__all__ = ["write_matches"]


def write_matches(
    path: str | Path,
    names: Sequence[str],
    image_hw: Sequence[tuple[int, int]],
    matches: tuple[Tensor, Tensor, Tensor],
    made: Mapping[str, str],
) -> None:
    """Write pixels of two photos that show the same, in original pixels.

    Args:
        path: Path of the file, which is overwritten if it exists.
        names: Names of the two photos.
        image_hw: Height and width of each photo in pixels.
        matches: Pixels (x, y) of the first photo and of the second one, (M, 2) each, and confidences (M,).
        made: Record of how they were made.
    """
    first, second, confidence = (to_plain(each) for each in matches)
    rows = [[*one, *two, sure] for one, two, sure in zip(first, second, confidence, strict=True)]
    content: dict[str, Any] = {
        "format": "geomtx.matches",
        "version": 1,
        "conventions": {
            **{name: TRACK_CONVENTIONS[name] for name in ("x, y", "pixel_centers")},
            "matches": "x, y of the first photo, x, y of the second one, confidence, which ranks them",
        },
        "made": dict(made),
        "photos": [
            {"name": name, "height": height, "width": width}
            for name, (height, width) in zip(names, image_hw, strict=True)
        ],
        "matches": rows,
    }
    write_json(path, content)
