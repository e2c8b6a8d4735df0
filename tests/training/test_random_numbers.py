from pathlib import Path

import pytest

from training.small_run import is_equal, small_trainer, weights_of

ACROSS_VIEWS = {
    "loss": {"terms": {"consistency": {"photometric": 1.0, "depth": 1.0, "geometry": "gt"}}},
    "schedule": {"steps": 4},
}


def across_views(workers: int = 0) -> dict:
    """The losses draw random numbers, which matter: three others to choose two from."""
    return {**ACROSS_VIEWS, "data": {"image_hw": [28, 28], "images": 4, "views": {4: 1}, "workers": workers}}


@pytest.mark.parametrize("workers", [0, 1])
def test_resumed_with_workers_and_losses_that_draw_numbers(workers: int, tmp_path: Path):
    whole = small_trainer(tmp_path / "whole", **across_views())
    whole.train()
    small_trainer(tmp_path / "parts", **across_views(workers)).train(until=2)
    resumed = small_trainer(tmp_path / "parts", resume=True, **across_views(workers))
    resumed.train()
    assert is_equal(weights_of(whole), weights_of(resumed))


def test_validation_changes_nothing(tmp_path: Path):
    without = small_trainer(tmp_path / "a", **across_views())
    without.train()
    validated = small_trainer(
        tmp_path / "b", **across_views(), validation={"every": 1, "scenes": 1, "views": [4]}, ema=0.9
    )
    validated.train()
    assert is_equal(weights_of(without), weights_of(validated))
    assert validated.validate() == validated.validate(), "the same pairs every time"
