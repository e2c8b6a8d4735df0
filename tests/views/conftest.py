from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SavePhoto = Callable[..., Path]


@pytest.fixture
def save_photo(tmp_path: Path) -> SavePhoto:
    """`save_photo(name, width, height, orientation=None)` writes a smooth photo and returns its path."""

    def save(name: str, width: int, height: int, orientation: int | None = None) -> Path:
        x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
        pixels = np.stack([x, y, (x + y) / 2], axis=-1) * 255
        exif = Image.Exif()
        if orientation is not None:
            exif[0x0112] = orientation
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path, exif=exif)
        return path

    return save
