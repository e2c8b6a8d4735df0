import logging
import math

import pytest
import torch

from geomtx.training.skipping import SkippedSteps, SkipReason, explain_skip


def scalars(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("values", "problem", "what", "details"),
    [
        ({"objective": 1.0, "norm": 7.0}, "images must be …", "its batch is no scene", "images must be …"),
        ({"objective": math.nan, "norm": 7.0}, None, "these are not finite", "objective"),
        ({"objective": 1.0, "norm": math.inf}, None, "these are not finite", "norm"),
        ({"objective": 1.0, "norm": 7.0}, None, "these norms are too large", "norm 7"),
        ({"objective": 1.0, "norm": 5.0}, None, "these are not finite", "another process's"),
    ],
)
def test_reasons(values: dict[str, float], problem: str | None, what: str, details: str):
    reason = explain_skip(scalars(**values), problem, {"norm": 5.0})
    assert (reason.what, reason.details) == (what, details)


def test_steps_are_counted_said_and_end_the_run_if_too_many_follow_each_other(caplog: pytest.LogCaptureFixture):
    skipped = SkippedSteps(2)
    reason = SkipReason("its batch is no scene", "batches must be scenes", "x is y")
    with caplog.at_level(logging.WARNING, logger="geomtx"):
        skipped.add(3, reason)
        skipped.add(4, reason)
    assert caplog.messages == [f"Step {step} was skipped, as its batch is no scene: x is y." for step in (3, 4)]
    skipped.in_a_row = 0
    skipped.add(6, reason)
    skipped.add(7, reason)
    message = (
        r"^batches must be scenes, got 3 steps in a row that are not, up to step 8 \(x is y\); the last checkpoint"
    )
    with pytest.raises(ValueError, match=message):
        skipped.add(8, reason)
    assert (skipped.total, skipped.in_a_row) == (5, 3)
