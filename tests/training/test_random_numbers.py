from pathlib import Path

import pytest

from geomtx.training.trainer import Trainer
from training.small_run import is_equal, small_trainer, weights_of


def across_views(workers: int = 0) -> dict:
    """The losses draw random numbers, which matter: three others to choose two from."""
    return {
        "loss": {"terms": {"consistency": {"photometric": 1.0, "depth": 1.0, "geometry": "gt"}}},
        "schedule": {"steps": 2},
        "data": {"image_hw": [28, 28], "images": 4, "views": {4: 1}, "workers": workers},
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    trainer = small_trainer(tmp_path_factory.mktemp("random") / "whole", **across_views())
    trainer.train()
    return trainer


@pytest.mark.parametrize("workers", [0, 1])
def test_resumed_with_workers_and_losses_that_draw_numbers(workers: int, whole: Trainer, tmp_path: Path):
    small_trainer(tmp_path, **across_views(workers)).train(until=1)
    resumed = small_trainer(tmp_path, resume=True, **across_views(workers))
    resumed.train()
    assert is_equal(weights_of(whole), weights_of(resumed))


def test_validation_changes_nothing(whole: Trainer, tmp_path: Path):
    validated = small_trainer(tmp_path, **across_views(), validation={"every": 1, "scenes": 1, "views": [4]}, ema=0.9)
    validated.train()
    assert is_equal(weights_of(whole), weights_of(validated))
    assert validated.validate() == validated.validate(), "the same pairs every time"
