import logging
from pathlib import Path

import pytest
import torch

import geomtx
from geomtx.data.synthetic.render import training_seed
from geomtx.types import SceneBatch
from training.small_run import CAMERA_ONLY, random_scenes, small_trainer


def _spoil(scenes: SceneBatch, what: str) -> SceneBatch:
    assert scenes.cameras is not None
    cam_from_world, intrinsics = (part.clone() for part in scenes.cameras)
    if what == "images":
        return scenes._replace(images=255 * scenes.images)
    if what == "rotation":
        cam_from_world[0, 1, :, :3] *= 1.5
    else:
        intrinsics[0, 1, 0, 0] *= -1
    return scenes._replace(cameras=geomtx.Cameras(cam_from_world, intrinsics))


@pytest.mark.parametrize(
    ("what", "message", "workers"),
    [
        ("images", r"images must be in \[0, 1\]", 0),
        ("rotation", "cam_from_world must have rotations", 1),
        ("focal", "intrinsics must have positive focal lengths", 0),
    ],
)
def test_scenes_of_ones_own_that_are_finite_but_wrong(
    what: str, message: str, workers: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    bad = {training_seed(42, step, index) for step in (1, 3, 4) for index in range(2)}

    def draw(
        seeds: list[int], num_views: int, image_hw: tuple[int, int], *, device: torch.device | None = None
    ) -> SceneBatch:
        scenes = random_scenes(len(seeds), num_views, image_hw)
        return _spoil(scenes, what) if bad & set(seeds) else scenes

    data = {"image_hw": [28, 28], "images": 4, "views": {2: 1}, "workers": workers}
    trainer = small_trainer(tmp_path, draw, model=CAMERA_ONLY, max_skipped=1, data=data, schedule={"steps": 6})
    with (
        caplog.at_level(logging.WARNING, logger="geomtx"),
        pytest.raises(ValueError, match=rf"^batches must be scenes, got 2 steps .*, up to step 5 \({message}"),
    ):
        trainer.train()
    assert any(m.startswith("Step 2 was skipped, as its batch is no scene: ") for m in caplog.messages)
    assert trainer.num_skipped == 3


def test_scenes_of_ones_own_may_know_little(tmp_path: Path):
    """No depth in one of the scenes, or cameras alone."""

    def draw(
        seeds: list[int], num_views: int, image_hw: tuple[int, int], *, device: torch.device | None = None
    ) -> SceneBatch:
        scenes = random_scenes(len(seeds), num_views, image_hw)
        if seeds[0] % 2:
            return scenes._replace(depth=None, points=None, mask=None)
        scenes.mask[0] = False
        return scenes

    trainer = small_trainer(tmp_path, draw)
    trainer.train()
    assert trainer.num_skipped == 0
