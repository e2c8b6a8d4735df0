from __future__ import annotations

from pathlib import Path

import pytest

import geomtx
from scene.known_scene import known_scene


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> geomtx.Scene:
    """Four views of a room with known geometry, two tracks. Don't change it."""
    folder: Path = tmp_path_factory.mktemp("room")
    return known_scene(folder, query_points=[(0, 30, 40), (1, 60.0, 50.0)])
