import json
import logging
from pathlib import Path

import pytest

from geomtx.data.sampling import SceneMixture, SceneRequest
from geomtx.data.scene_check import SceneError
from geomtx.data.synthetic.render import render_scenes
from geomtx.training.data import FileScenes
from geomtx.training.trainer import Trainer
from geomtx.types import SceneBatch
from training.small_run import small_trainer


class Broken:
    """Rendered scenes; of two in three the pictures are missing."""

    def __len__(self) -> int:
        return 9

    def __getitem__(self, request: SceneRequest) -> SceneBatch:
        if request.scene % 3:
            raise SceneError(f"pictures of scene {request.scene} must exist, got none")
        return render_scenes([request.scene], request.num_views, (28, 28))


def trainer_on_files(folder: Path, *, workers: int, resume: bool = False) -> Trainer:
    draw = FileScenes(SceneMixture([Broken()], max_skips=100))
    data = {"image_hw": [28, 28], "images": 4, "views": {2: 1}, "workers": workers}
    return small_trainer(folder, draw, data=data, schedule={"steps": 4}, resume=resume)


@pytest.mark.parametrize("workers", [0, 2])
def test_scenes_left_out_are_counted_in_the_log(workers: int, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    whole = trainer_on_files(tmp_path / "whole", workers=0)
    with caplog.at_level(logging.WARNING, logger="geomtx.data"):
        caplog.clear()
        whole.train()
    assert whole.num_left_out == len(caplog.messages) > 3
    trainer_on_files(tmp_path / "parts", workers=workers).train(until=3)
    resumed = trainer_on_files(tmp_path / "parts", workers=workers, resume=True)
    resumed.train()
    assert resumed.num_left_out == whole.num_left_out
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("whole", "parts")]
    counts = [[json.loads(line)["scenes_left_out"] for line in log.splitlines()] for log in logs]
    assert counts[0] == counts[1]
    assert 0 < counts[0][0] < counts[0][1] == whole.num_left_out
