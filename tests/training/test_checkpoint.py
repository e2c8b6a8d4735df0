import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from geomtx.training.checkpoint import capture_rng, load_into, read_state, restore_rng, training_state, write_state

CPU = torch.device("cpu")


def draws() -> list[float]:
    return [random.random(), float(np.random.standard_normal()), torch.randn(3).sum().item()]


def test_all_random_numbers_go_on_through_a_file(tmp_path: Path):
    draws()
    state = {"model": {}, "optimiser": {}, "step": 1, "model_config": {}, "rng": capture_rng(CPU)}
    write_state(state, tmp_path / "state.pt")
    want = [draws() for _ in range(3)]
    restore_rng(read_state(tmp_path / "state.pt")["rng"], CPU)
    assert [draws() for _ in range(3)] == want


def test_weights_and_moments_by_name(tmp_path: Path):
    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        model[0].bias.requires_grad_(False)
        groups = [
            {"params": [model[1].weight, model[0].weight], "lr_factor": 0.1},
            {"params": [model[1].bias], "weight_decay": 0.0, "lr_factor": 1.0},
        ]
        return model, torch.optim.AdamW(groups, lr=0.1, fused=True)

    def step(model: nn.Module, optimiser: torch.optim.Optimizer, x: torch.Tensor) -> None:
        optimiser.zero_grad()
        model(x).square().sum().backward()
        optimiser.step()

    (one, optimiser), (two, other) = build(), build()
    inputs = torch.randn(4, 5, 3)
    for x in inputs[:2]:
        step(one, optimiser, x)
    state = training_state(one, optimiser)
    assert set(state["optimiser"]["state"]) == {"0.weight", "1.weight", "1.bias"}
    torch.save(state, tmp_path / "state.pt")
    load_into(two, other, torch.load(tmp_path / "state.pt", weights_only=True))
    for x in inputs[2:]:
        step(one, optimiser, x)
        step(two, other, x)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    # The groups are as they were built, whatever the checkpoint's were.
    (three, changed), numbers = build(), {"lr_factor": 0.5, "weight_decay": 0.3, "betas": (0.5, 0.6)}
    changed.param_groups[0].update(numbers)
    load_into(three, changed, torch.load(tmp_path / "state.pt", weights_only=True))
    assert changed.param_groups[0].items() >= numbers.items()
    assert changed.param_groups[1]["betas"] == (0.9, 0.999)
    # What is trained only now begins without moments.
    three[0].bias.requires_grad_(True)
    more = torch.optim.AdamW([{"params": three.parameters(), "lr_factor": 1.0}], lr=0.1, fused=True)
    load_into(three, more, torch.load(tmp_path / "state.pt", weights_only=True))
    assert three[0].bias not in more.state
    assert more.state[three[1].bias]["step"] == 2
    step(three, more, inputs[2])
    assert more.state[three[0].bias]["step"] == 1


def test_a_write_that_fails_leaves_the_file_before(tmp_path: Path):
    path = tmp_path / "state.pt"
    good = {"model": {}, "optimiser": {}, "step": 1, "model_config": {}}
    write_state(good, path)
    with pytest.raises(Exception, match="pickle"):
        write_state({**good, "step": lambda: None}, path)
    assert read_state(path) == good
