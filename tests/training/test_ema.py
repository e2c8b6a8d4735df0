import pytest
import torch
from torch import nn

from geomtx.training.ema import WeightAverage


def moved(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


def test_it_is_the_recursion_with_a_quick_start():
    model = nn.Linear(3, 2).double()
    average = WeightAverage(model, 0.5)
    want = model.weight.detach().clone()
    for step in range(12):
        moved(model)
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        want = decay * want + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(average.averages["weight"], want, rtol=0, atol=1e-14)


def test_weights_are_swapped_within_the_block_only():
    model = nn.Linear(3, 2)
    average = WeightAverage(model, 0.9)
    moved(model)
    average.update()
    before = model.weight.detach().clone()
    with average.applied():
        torch.testing.assert_close(model.weight.detach(), average.averages["weight"], rtol=0, atol=0)
        assert not torch.equal(model.weight, before)
    assert torch.equal(model.weight, before)
    with pytest.raises(ValueError, match="input"), average.applied():
        raise ValueError("input")
    assert torch.equal(model.weight, before)


def test_half_weights_are_averaged_in_float32_and_frozen_ones_not_at_all():
    model = nn.Linear(3, 2).bfloat16()
    model.bias.requires_grad_(False)
    average = WeightAverage(model, 0.999)
    assert {name: value.dtype for name, value in average.averages.items()} == {"weight": torch.float32}


def test_state_goes_on_exactly():
    model = nn.Linear(3, 2)
    average = WeightAverage(model, 0.9)
    moved(model)
    average.update()
    other = WeightAverage(nn.Linear(3, 2), 0.9)
    other.load_state_dict(average.state_dict())
    assert other.num_steps == 1
    assert torch.equal(other.averages["weight"], average.averages["weight"])
    with pytest.raises(ValueError, match=r"^averages must be of the trained parameters, got a difference in bias$"):
        WeightAverage(nn.Linear(3, 2, bias=False), 0.9).load_state_dict(average.state_dict())
