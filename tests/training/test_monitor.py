import logging
import math

import pytest
import torch
from torch import nn

import geomtx
from geomtx.training.monitor import GradientMonitor, shared_parameters


def look(monitor: GradientMonitor, tasks: dict[str, torch.Tensor], step: int = 0) -> dict[str, torch.Tensor]:
    monitor.begin(step)
    monitor.add(tasks)
    return monitor.finish()


@pytest.mark.parametrize("degrees", [0, 60, 90, 180])
def test_angles_and_norms(degrees: int):
    weight = nn.Parameter(torch.randn(2, 3))
    direction, other = torch.linalg.qr(torch.randn(6, 6)).Q[:2]
    angle = math.radians(degrees)
    turned = 2 * (math.cos(angle) * direction + math.sin(angle) * other)
    tasks = {"a": weight.flatten() @ direction, "b": weight.flatten() @ turned}
    scalars = look(GradientMonitor([weight], every=1), tasks)
    torch.testing.assert_close(scalars["cosine/a-b"].item(), math.cos(angle), rtol=0, atol=1e-6)
    torch.testing.assert_close(scalars["norm_ratio/a-b"].item(), 0.5, rtol=0, atol=1e-6)


def test_chunks_add_up_and_parameters_without_a_part_count_as_zeros():
    one, two = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3))
    monitor = GradientMonitor([one, two], every=1)
    monitor.begin(0)
    monitor.add({"a": one.sum(), "b": two[0], "c": torch.ones(())})
    monitor.add({"a": two.sum(), "b": two[1] * 0})
    scalars = monitor.finish()
    # a is (1, 1, 1 | 1, 1, 1), b is (0, 0, 0 | 1, 0, 0), c has no gradient.
    assert scalars["cosine/a-b"].item() == pytest.approx(1 / math.sqrt(6), abs=1e-6)
    assert scalars["cosine/a-c"] == 0


def test_it_looks_at_times_and_remembers():
    weight = nn.Parameter(torch.ones(1))
    monitor = GradientMonitor([weight], every=10)
    mean = None
    for step, sign in ((0, 1), (3, 1), (10, -1), (20, 1), (30, -1)):
        scalars = look(monitor, {"a": weight.sum(), "b": sign * weight.sum()}, step)
        assert bool(scalars) == (step % 10 == 0)
        if scalars:
            mean = sign if mean is None else 0.9 * mean + 0.1 * sign
            assert scalars["cosine_mean/a-b"].item() == pytest.approx(mean)
    assert scalars["conflicts/a-b"] == 0.5
    other = GradientMonitor([weight], every=10)
    other.load_state_dict(monitor.state_dict())
    for each in (monitor, other):
        assert look(each, {"a": weight.sum(), "b": -weight.sum()}, 40)["conflicts/a-b"] == pytest.approx(0.6)


def test_a_lasting_conflict_is_said_once(caplog: pytest.LogCaptureFixture):
    weight = nn.Parameter(torch.ones(1))
    monitor = GradientMonitor([weight], every=1)
    with caplog.at_level(logging.WARNING, logger="geomtx"):
        for step in range(9):
            look(monitor, {"a": weight.sum(), "b": -weight.sum()}, step)
        assert caplog.messages == []
        for step in range(9, 30):
            look(monitor, {"a": weight.sum(), "b": -weight.sum()}, step)
    assert caplog.messages == ["The gradients of a-b have been in conflict for 10 comparisons."]


def test_nothing_changes_but_what_is_returned():
    weight = nn.Parameter(torch.randn(4))
    loss = weight.square().sum()
    state, value = torch.get_rng_state(), weight.detach().clone()
    look(GradientMonitor([weight], every=1), {"a": loss, "b": weight.sum()})
    assert weight.grad is None
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weight, value)
    loss.backward()  # the graph is still there
    torch.testing.assert_close(weight.grad, 2 * value)


def test_which_parameters_are_shared(tiny_model: geomtx.VGGT):
    def names(*patterns: str) -> set[str]:
        chosen = {id(p) for p in shared_parameters(tiny_model, tiny_model.encoder, patterns)}
        return {name for name, p in tiny_model.named_parameters() if id(p) in chosen}

    assert {name.rpartition("_blocks.")[2][0] for name in names()} == {"2", "3"}
    assert {name.split(".")[1] for name in names()} == {"frame_blocks", "global_blocks"}
    assert names("encoder.special.*") == {
        n for n, _ in tiny_model.named_parameters() if n.startswith("encoder.special.")
    }
    with pytest.raises(ValueError, match=r"^monitor\.parameters must match a name of the model, got 'x'$"):
        names("x")
    tiny_model.encoder.requires_grad_(False)
    with pytest.raises(ValueError, match=r"^parameters must hold a trained one, got none"):
        GradientMonitor(shared_parameters(tiny_model, tiny_model.encoder))
