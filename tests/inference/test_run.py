"""What `geomtx.reconstruct` makes of its options; nothing in the model changes."""

import copy
import re

import pytest
import torch
from torch import nn

import geomtx
from geomtx.inference import PLANS, GlobalApproximation, MemoryPlan, run
from geomtx.inference.plan import autocast_bytes
from inference.model_state import state_of
from reference import named_tensors

VIEWS = torch.rand(5, 3, 28, 42, generator=torch.Generator().manual_seed(0))


def test_autocast_s_copies_count(lean_model):
    views = torch.rand(2, 3, 28, 42)
    least = {}
    for dtype in (None, torch.bfloat16):
        with pytest.raises(ValueError, match=r"^memory must be at least") as error:
            geomtx.reconstruct(lean_model, views, memory=1, dtype=dtype)
        least[dtype] = float(re.search(r"least ([\d.]+) MiB", str(error.value))[1])
    assert least[torch.bfloat16] - least[None] == pytest.approx(autocast_bytes(lean_model) / 2**20, abs=0.11)


def note_plans(monkeypatch: pytest.MonkeyPatch, chosen: MemoryPlan | None) -> list[MemoryPlan]:
    """Return the list to which the plan of every pass is added; `chosen` is what fits."""
    plans, execute = [], run.execute

    def note(model, inputs, execution):
        plans.append(execution.plan)
        return execute(model, inputs, execution)

    monkeypatch.setattr(run, "choose_plan", lambda *_, held: chosen)
    monkeypatch.setattr(run, "execute", note)
    return plans


@pytest.mark.parametrize(("asked", "plan_has"), [("auto", 4), (2, 2), (9, 4)])
def test_no_more_views_at_a_time_than_asked_for(lean_model, monkeypatch, asked, plan_has):
    plans = note_plans(monkeypatch, PLANS[1])
    geomtx.reconstruct(lean_model, VIEWS[:3], view_chunk=asked)
    assert plans == [PLANS[1]._replace(view_chunk=plan_has)]


@pytest.mark.parametrize(("asked", "chunk"), [("auto", 5), (2, 2), (9, 9)])
def test_views_at_a_time_without_a_plan(lean_model, monkeypatch, asked, chunk):
    plans = note_plans(monkeypatch, None)
    geomtx.reconstruct(lean_model, VIEWS, view_chunk=asked)
    assert plans == [MemoryPlan(chunk, output_device=None)]


@pytest.mark.parametrize("memory", ["low", 2_300_000])
@pytest.mark.parametrize("approximation", [None, GlobalApproximation(2, 2, 1)])
def test_a_reconstruction_is_the_same_with_little_memory(lean_model, memory, approximation):
    whole, parts = (
        geomtx.reconstruct(lean_model, VIEWS, memory=each, approximation=approximation, progress=each == memory)
        for each in ("auto", memory)
    )
    for name in ("depth", "points"):
        ours, theirs = getattr(parts.predictions, name), getattr(whole.predictions, name)
        torch.testing.assert_close(ours.value, theirs.value, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.confidence, theirs.confidence, rtol=1e-4, atol=1e-4)
    poses = (each.predictions.cameras.cam_from_world for each in (parts, whole))
    torch.testing.assert_close(*poses, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [{"memory": "low"}, {"approximation": GlobalApproximation(2)}, {"dtype": torch.bfloat16}, {"compile": True}],
    ids=lambda options: next(iter(options)),
)
def test_a_reconstruction_changes_nothing_in_the_model(lean_model, monkeypatch, options):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    for training in (False, True):
        lean_model.train(training)
        before = state_of(lean_model)
        geomtx.reconstruct(lean_model, VIEWS, progress=True, **options)
        assert state_of(lean_model) == before


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm2d(3)])
def test_layers_that_differ_in_training_must_be_in_evaluation_mode(lean_model, layer):
    lean_model.depth_head.extra = layer.train()
    message = r"^model must be in evaluation mode, got depth_head.extra in training mode; call model.eval\(\)$"
    with pytest.raises(ValueError, match=message):
        geomtx.reconstruct(lean_model, VIEWS[:2])
    geomtx.reconstruct(lean_model.eval(), VIEWS[:2])


@pytest.mark.parametrize(
    "options", [{}, {"memory": "low"}, {"compile": True}, {"approximation": GlobalApproximation(2)}], ids=str
)
def test_progress_goes_from_nothing_to_all(lean_model, monkeypatch, options):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    steps = []
    given = {"images": VIEWS[None], "query_points": None, "patch_mask": None}
    run.run_views(lean_model, given, ("camera", "depth"), run.RunOptions(**options, progress=steps.append))
    assert min(steps) > 0
    assert len(steps) >= 1 + 2 + 2 + 2  # a step for each block and head, or more
    assert 0.7 < sum(steps) <= 1 + 1e-6


def test_who_records_gradients_gets_none_and_inference_mode_leaves_no_trace(lean_model):
    scene = geomtx.reconstruct(lean_model, VIEWS[:2])
    with torch.inference_mode():
        other = geomtx.reconstruct(copy.deepcopy(lean_model), VIEWS[:2])
    expected = named_tensors(scene.predictions)
    for name, tensor in named_tensors(other.predictions).items():
        assert not tensor.requires_grad
        assert not tensor.is_inference()
        assert torch.equal(tensor, expected[name])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compile": "fast"}, r"^compile must be one of False, True, 'graphs', got 'fast'$"),
        ({"compile": 1}, r"^compile must be one of False, True, 'graphs', got 1$"),
        ({"approximation": 3}, r"^approximation must be a GlobalApproximation, got 3$"),
        ({"view_chunk": 0}, r"^view_chunk must be 'auto' or at least 1, got 0$"),
        ({"compile": True, "parallel": True}, r"^compile must be left out in parallel, got True$"),
        ({"dtype": torch.float64}, r"^dtype must be the model's own torch.float32, or half of a float32 model, got "),
    ],
)
def test_options_that_are_none(lean_model, options, message):
    with pytest.raises(ValueError, match=message):
        geomtx.reconstruct(lean_model, VIEWS[:2], **options)


def test_an_option_that_does_not_exist(lean_model):
    with pytest.raises(TypeError, match=r"^reconstruct takes no option 'aproximation'.*approximation"):
        geomtx.reconstruct(lean_model, VIEWS[:2], aproximation=GlobalApproximation(2))


def test_another_model_has_one_way_to_run(lean_model):
    other = nn.Linear(2, 2)
    other.heads, other.config = ("camera",), lean_model.config
    with pytest.raises(
        ValueError, match=r"^parallel must be left out for a model without `run_heads`, got True for a Linear$"
    ):
        geomtx.reconstruct(other, VIEWS[:2], parallel=True)
