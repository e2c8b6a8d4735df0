import itertools
import math

import pytest
import torch

from geomtx.training.config import ScheduleSection
from geomtx.training.schedule import learning_rate, set_learning_rates

SECTION = ScheduleSection(steps=100, warmup=0.05, initial_lr=1e-8, final_lr=1e-7)


def test_ends_and_peak():
    assert learning_rate(0.0, 5e-5, SECTION) == 1e-8
    assert learning_rate(0.05, 5e-5, SECTION) == pytest.approx(5e-5)
    assert learning_rate(1.0, 5e-5, SECTION) == pytest.approx(1e-7)


def test_linear_then_cosine():
    assert learning_rate(0.025, 5e-5, SECTION) == pytest.approx((1e-8 + 5e-5) / 2)
    for phase in (0.25, 0.5, 0.9):
        want = 1e-7 + (5e-5 - 1e-7) * (1 + math.cos(math.pi * phase)) / 2
        assert learning_rate(0.05 + 0.95 * phase, 5e-5, SECTION) == pytest.approx(want)


def test_it_rises_once_and_falls_once():
    rates = [learning_rate(i / 200, 5e-5, SECTION) for i in range(201)]
    top = rates.index(max(rates))
    assert top == 10
    assert all(a < b for a, b in itertools.pairwise(rates[: top + 1]))
    assert all(a > b for a, b in itertools.pairwise(rates[top:]))


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_without_one_of_the_parts(warmup: float):
    section = ScheduleSection(warmup=warmup, initial_lr=0.0, final_lr=0.0)
    assert learning_rate(0.0, 1.0, section) == 1 - warmup
    assert learning_rate(0.5, 1.0, section) == pytest.approx(0.5)


def test_groups_keep_their_factors():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [p], "lr_factor": factor} for p, factor in zip(parameters, (1.0, 0.1), strict=True)]
    optimiser = torch.optim.AdamW(groups)
    set_learning_rates(optimiser, 0.5)
    assert [group["lr"] for group in optimiser.param_groups] == [0.5, 0.05]


def test_a_line_down():
    section = ScheduleSection(steps=100, warmup=0.2, initial_lr=0.1, final_lr=0.2, shape="linear")
    rates = [learning_rate(step / 100, 1.0, section) for step in (0, 10, 20, 60, 100)]
    assert rates == pytest.approx([0.1, 0.55, 1.0, 0.6, 0.2])


@pytest.mark.usefixtures("unchecked")
def test_another_shape():
    with pytest.raises(ValueError, match=r"^schedule.shape must be one of 'cosine', 'linear', got 'step'$"):
        ScheduleSection(shape="step")
