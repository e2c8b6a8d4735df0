"""JSON that people can read: matrices row by row, floats as short as float32 allows, null for what isn't finite."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from torch import Tensor

__all__ = ["to_plain", "write_json"]

_FLAT_LIST = re.compile(r"\[\s*\n\s*((?:[-+.\deE]+|null)(?:,\s*(?:[-+.\deE]+|null))*)\s*\]")


def to_plain(values: Tensor) -> Any:
    """A tensor as (nested lists of) numbers with 9 significant digits: as many as float32 needs for a round trip."""
    return _round(values.tolist())


def write_json(path: str | Path, content: dict[str, Any]) -> None:
    """Write a file with sorted-as-given keys, UTF-8, lists of numbers on one line."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    # Strings can't hold a line break, so the pattern meets lists only.
    text = _FLAT_LIST.sub(lambda match: "[" + re.sub(r",\s+", ", ", match.group(1)) + "]", text)
    # A file name that isn't Unicode becomes a JSON escape.
    Path(path).write_bytes((text + "\n").encode("utf-8", errors="backslashreplace"))


def _round(value: Any) -> Any:
    if isinstance(value, list):
        return [_round(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else None
    return value
