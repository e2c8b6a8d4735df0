"""JSON files that people can read: matrices row by row, floats with 9 digits, null for what isn't finite."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from geomtx.files import escape_name, user_path

__all__ = ["to_plain", "write_json"]

_SURROGATE = re.compile("[\ud800-\udfff]")
_FLAT_LIST = re.compile(r"\[\s*\n\s*((?:[-+.\deE]+|null)(?:,\s*(?:[-+.\deE]+|null))*)\s*\]")


def to_plain(values: Tensor) -> Any:
    """Return a tensor as nested lists of numbers with the 9 significant digits that float32 needs for a round trip."""
    return _round(values.tolist())


def write_json(path: str | Path, content: dict[str, Any]) -> None:
    """Write a UTF-8 file with keys in the given order and lists of numbers on one line."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    # Strings can't hold a line break, so the pattern meets lists only.
    text = _FLAT_LIST.sub(lambda match: "[" + re.sub(r",\s+", ", ", match.group(1)) + "]", text)
    # Half a surrogate pair, such as a byte of a file name that isn't UTF-8, is no JSON: its escape is, escaped again.
    text = _SURROGATE.sub(lambda match: "\\" + escape_name(match.group()), text)
    user_path(path).write_text(text + "\n", encoding="utf-8", newline="\n")


def _round(value: Any) -> Any:
    if isinstance(value, list):
        return [_round(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else None
    return value
