import itertools
import math

import pytest
import torch
from torch import nn

import geomtx
from geomtx.training.config import OptimiserSection, ScheduleSection
from geomtx.training.config_file import parse_config
from geomtx.training.optim import (
    WeightAverage,
    build_clip_groups,
    build_parameter_groups,
    clip_gradients,
    freeze,
    learning_rate,
    set_learning_rates,
)


def section(**values: object) -> OptimiserSection:
    return parse_config({"optimiser": values}).optimiser


def names_of(model: geomtx.VGGT, parameters: list[torch.nn.Parameter]) -> set[str]:
    wanted = {id(parameter) for parameter in parameters}
    return {name for name, parameter in model.named_parameters() if id(parameter) in wanted}


def test_each_trained_parameter_is_in_one_group(tiny_model: geomtx.VGGT):
    freeze(tiny_model, ["encoder.backbone.patch_embedding"])
    groups = build_parameter_groups(tiny_model, section(groups={"encoder.backbone.*": {"lr": 0.1}}))
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert len(grouped) == len({id(parameter) for parameter in grouped})
    assert names_of(tiny_model, grouped) == {name for name, p in tiny_model.named_parameters() if p.requires_grad}


def test_factors_and_decay(tiny_model: geomtx.VGGT):
    groups = build_parameter_groups(
        tiny_model,
        section(
            lr=1e-3, weight_decay=0.05,
            groups={"encoder.backbone.*": {"lr": 0.1}, "*.frame_blocks.0.*": {"weight_decay": 0.3}, "encoder.*": {}},
        ),
    )  # fmt: skip
    found = {name: group for group in groups for name in names_of(tiny_model, group["params"])}
    for name, parameter in tiny_model.named_parameters():
        if not parameter.requires_grad:
            continue
        group = found[name]
        assert group["lr_factor"] == (0.1 if name.startswith("encoder.backbone.") else 1.0)
        assert group["lr"] == pytest.approx(1e-3 * group["lr_factor"])
        assert group["weight_decay"] == (0.0 if parameter.ndim < 2 else 0.3 if ".frame_blocks.0." in name else 0.05), (
            name
        )
    assert {g["weight_decay"] for g in build_parameter_groups(tiny_model, section(decay="all"))} == {0.05}


def test_groups_that_cannot_be(tiny_model: geomtx.VGGT):
    with pytest.raises(ValueError, match=r"^optimiser\.groups must match a name of the model, got 'x\*'$"):
        build_parameter_groups(tiny_model, section(groups={"x*": {}}))
    tiny_model.requires_grad_(False)
    with pytest.raises(ValueError, match=r"^model must have trained parameters, got none; does freeze match them all"):
        build_parameter_groups(tiny_model, section())


def test_pretrained_parts_are_slower_and_vectors_do_not_decay(tiny_model: geomtx.VGGT):
    """In any optimiser, frozen parameters left out; of two patterns, the first counts."""
    freeze(tiny_model, ["encoder.backbone.patch_embedding"])
    factors = {"encoder.backbone.*": 0.01, "encoder.*": 0.1}
    groups = geomtx.parameter_groups(
        tiny_model, lr=2e-3, factors=factors, weight_decay=0.2, decays={"camera_head.*": 0.0}
    )
    optimiser = torch.optim.SGD(groups, lr=1.0)
    found = {name: group for group in optimiser.param_groups for name in names_of(tiny_model, group["params"])}
    assert found.keys() == {name for name, p in tiny_model.named_parameters() if p.requires_grad}
    for name, parameter in tiny_model.named_parameters():
        if parameter.requires_grad:
            factor = 0.01 if name.startswith("encoder.backbone.") else 0.1 if name.startswith("encoder.") else 1.0
            decay = 0.0 if parameter.ndim < 2 or name.startswith("camera_head.") else 0.2
            assert (found[name]["lr"], found[name]["lr_factor"]) == (pytest.approx(2e-3 * factor), factor)
            assert found[name]["weight_decay"] == decay
    (group,) = geomtx.parameter_groups(torch.nn.Linear(2, 2), lr=1.0, decay_vectors=True)
    assert (group["weight_decay"], len(group["params"])) == (0.05, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.0}, r"lr must be positive, got 0\.0"),
        ({"weight_decay": -1.0}, r"weight_decay must be at least 0, got -1\.0"),
        (
            {"factors": {"weigth": 0.1}},
            r"factors must match a name of the model, got 'weigth'; did you mean 'weight'\?",
        ),
        ({"factors": {"weight": -0.1}}, r"factors\.weight must be at least 0, got -0\.1"),
        ({"decays": {"bias": float("nan")}}, r"decays\.bias must be at least 0, got nan"),
    ],
)
def test_numbers_of_groups_that_cannot_be(changes: dict, message: str):
    with pytest.raises(ValueError, match=f"^{message}$"):
        geomtx.parameter_groups(torch.nn.Linear(2, 2), **{"lr": 1e-3, **changes})


def test_norms_are_those_of_each_group_and_end_at_most_at_theirs():
    model = torch.nn.ModuleDict({name: torch.nn.Linear(3, 3).double() for name in "abc"})
    for scale, module in zip((1e-3, 1.0, 50.0), model.values(), strict=True):
        for parameter in module.parameters():
            parameter.grad = scale * torch.randn_like(parameter)
    before = {name: torch.cat([p.grad.flatten() for p in model[name].parameters()]) for name in "abc"}
    groups = build_clip_groups(model, {"a.*": 1.0, "b.*": 0.5, "c.*": 2.0})
    norms = clip_gradients(groups)
    for name, limit in (("a", 1.0), ("b", 0.5), ("c", 2.0)):
        after = torch.cat([p.grad.flatten() for p in model[name].parameters()])
        torch.testing.assert_close(norms[f"{name}.*"], before[name].norm())
        torch.testing.assert_close(
            after, before[name] * min(1.0, limit / before[name].norm().item()), rtol=1e-5, atol=0
        )


def test_the_norm_of_no_gradient_is_where_the_parameters_are():
    model = torch.nn.Linear(2, 2, device="meta")
    (norm,) = clip_gradients(build_clip_groups(model, {"*": 1.0})).values()
    assert (norm.device.type, norm.shape) == ("meta", ())
    model = torch.nn.Linear(2, 2)
    assert clip_gradients(build_clip_groups(model, {"*": 1.0})) == {"*": 0}


def test_clip_groups_cover_everything_once(tiny_model: geomtx.VGGT):
    heads = {f"{head}_head.*": 1.0 for head in ("camera", "depth", "point", "track")}
    with pytest.raises(ValueError, match=r"^optimiser\.clip must have .* in one pattern, got none for encoder\."):
        build_clip_groups(tiny_model, heads)
    with pytest.raises(ValueError, match=r"got '\*' and 'camera_head\.\*' for camera_head\."):
        build_clip_groups(tiny_model, {"*": 1.0, "camera_head.*": 1.0})
    with pytest.raises(ValueError, match=r"^optimiser\.clip must match a name of the model, got 'aggregator\.\*'"):
        build_clip_groups(tiny_model, {"aggregator.*": 1.0, **heads})
    freeze(tiny_model, ["encoder"])
    groups = build_clip_groups(tiny_model, {"encoder.*": 1.0, **heads})
    assert [group.pattern for group in groups] == list(heads)


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
    with pytest.raises(ValueError, match=r"^shape must be one of 'cosine', 'linear', got 'step'$"):
        ScheduleSection(shape="step")


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
