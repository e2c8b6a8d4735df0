import json
import logging
from pathlib import Path

import pytest

from geomtx.data.sampling import SceneMixture, SceneRequest
from geomtx.data.scene_check import SceneError
from geomtx.training.data import FileScenes
from geomtx.training.trainer import Trainer
from geomtx.types import SceneBatch
from training.small_run import CAMERA_ONLY, random_scenes, small_trainer


class Broken:
    """Scenes; of two in three the pictures are missing."""

    def __len__(self) -> int:
        return 9

    def __getitem__(self, request: SceneRequest) -> SceneBatch:
        if request.scene % 3:
            raise SceneError(f"pictures of scene {request.scene} must exist, got none")
        return random_scenes(1, request.num_views)


def trainer_on_files(folder: Path, *, workers: int, resume: bool = False) -> Trainer:
    draw = FileScenes(SceneMixture([Broken()], max_skips=100))
    data = {"image_hw": [28, 28], "images": 4, "views": {2: 1}, "workers": workers}
    return small_trainer(folder, draw, model=CAMERA_ONLY, data=data, schedule={"steps": 4}, resume=resume)


def test_scenes_left_out_are_counted_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Stopped and resumed, with workers or without."""
    whole = trainer_on_files(tmp_path / "whole", workers=0)
    with caplog.at_level(logging.WARNING, logger="geomtx.data"):
        caplog.clear()
        whole.train()
    assert whole.num_left_out == len(caplog.messages) > 3
    for workers in (0, 2):
        parts = tmp_path / f"parts_{workers}"
        trainer_on_files(parts, workers=workers).train(until=3)
        resumed = trainer_on_files(parts, workers=workers, resume=True)
        resumed.train()
        assert resumed.num_left_out == whole.num_left_out
        logs = [(folder / "log.jsonl").read_text() for folder in (tmp_path / "whole", parts)]
        counts = [[json.loads(line)["scenes_left_out"] for line in log.splitlines()] for log in logs]
        assert counts[0] == counts[1]
        assert 0 < counts[0][0] < counts[0][1] == whole.num_left_out
