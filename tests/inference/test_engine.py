"""`predict`: ways of running combine, give what the plain pass gives, and change nothing in the model."""

import itertools
import weakref

import pytest
import torch

import geomtx
from geomtx.inference import GlobalApproximation, MemoryPlan, engine, predict
from geomtx.inference.attention import attention_table
from geomtx.inference.engine import RecomputedBlock
from geomtx.inference.plan import WHOLE
from inference.model_state import state_of
from lean import build_lean
from reference import named_tensors

PLANS = {"whole": None, "view chunks": MemoryPlan(1, output_device=None), "token chunks": MemoryPlan(2, 7, "cpu")}
APPROXIMATIONS = {
    "all keys": None,
    "key views": GlobalApproximation(2),
    "stride": GlobalApproximation(None, 2),
    "local layers": GlobalApproximation(num_local_layers=1),
    "all three": GlobalApproximation(2, 2, 1),
}


@pytest.fixture
def model() -> geomtx.VGGT:
    return build_lean(heads=("camera", "depth")).double()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 3, 28, 42, dtype=torch.float64)


def assert_same(got: geomtx.Predictions, expected: geomtx.Predictions) -> None:
    got, expected = named_tensors(got), named_tensors(expected)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        limits = {"rtol": 1e-9, "atol": 1e-6 if "track" in name else 1e-12}  # the tracker enlarges rounding
        torch.testing.assert_close(got[name], value, **limits, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("plan", "approximation"), list(itertools.product(PLANS, APPROXIMATIONS)))
def test_ways_combine_and_change_nothing_in_the_model(model, images, plan, approximation):
    """Each plan with each approximation is that approximation; gradients need no chunks of tokens."""
    mask = torch.rand(2, 3, 2, 3) < 0.8
    mask[:, 0, 0, 0], mask[1, 2] = True, False
    options = {"heads": ("camera", "depth"), "approximation": APPROXIMATIONS[approximation]}
    model.train()
    before, with_gradients = state_of(model), plan != "token chunks"
    with torch.set_grad_enabled(with_gradients):
        expected = predict(model, images, None, mask, **options)
        found = [
            predict(model, images, None, mask, plan=PLANS[plan], recompute=recompute, **options)
            for recompute in (False, True)
        ]
    assert state_of(model) == before
    for got in found:
        assert_same(got, expected)
    if with_gradients:
        parameters = [p for p in model.parameters() if p.requires_grad]
        theirs, *gradients = (
            torch.autograd.grad(each.depth.value.mean() + each.pose_encodings.sum(), parameters, allow_unused=True)
            for each in (expected, *found)
        )
        for ours in gradients:
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_without_options_it_is_the_models_own_pass(lean_model, images):
    model, queries = lean_model.double(), 27 * torch.rand(2, 4, 2, dtype=torch.float64)
    expected, got = named_tensors(model(images, queries)), named_tensors(predict(model, images, queries))
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert torch.equal(got[name], value), name


def test_recomputation_keeps_less(model, images):
    kept = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[-1] += tensor.numel()
        return tensor

    for recompute in (False, True):
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            predict(model, images, heads=("camera",), recompute=recompute)
    assert kept[1] < kept[0] / 2


def test_a_recomputed_block_is_the_block_in_all_its_steps():
    block, x = geomtx.TransformerBlock(16, 2).double(), torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True)
    again = RecomputedBlock(block)
    assert torch.equal(again(x), block(x))
    assert torch.equal(again.attend_to(x, *again.project_keys(x)), block.attend_to(x, *block.project_keys(x)))
    results = [torch.autograd.grad(each.attend_to(x, *each.project_keys(x)).sum(), x) for each in (again, block)]
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_chunks_of_tokens_have_no_gradients(model, images):
    with pytest.raises(RuntimeError, match=r"^chunks of tokens are overwritten, which gradients can't follow; use "):
        predict(model, images, plan=PLANS["token chunks"])


class ShiftedCamera(geomtx.CameraHead):
    """A head whose `forward` is not that of its class."""

    def forward(self, tokens):
        prediction = super().forward(tokens)
        return prediction._replace(pose_encodings=prediction.pose_encodings + 7)


@pytest.mark.parametrize("plan", [None, MemoryPlan(1, 5)])
def test_heads_with_a_forward_of_their_own_are_called(plan):
    model = build_lean(heads=("camera",))
    images = torch.rand(1, 2, 3, 28, 28)
    model.camera_head.__class__ = ShiftedCamera
    with torch.no_grad():
        torch.testing.assert_close(predict(model, images, plan=plan).pose_encodings, model(images).pose_encodings)


@pytest.mark.parametrize("plan", [WHOLE, MemoryPlan(1, 8)])
def test_the_rotary_table_of_a_scene_is_gone_when_the_heads_run(lean_model, images, plan, monkeypatch):
    tables, alive = [], []

    def table_of(*args):
        table = attention_table(*args)
        tables.append(weakref.ref(table["frame"]))
        return table

    monkeypatch.setattr(engine, "attention_table", table_of)
    lean_model.depth_head.register_forward_pre_hook(lambda *_: alive.append(tables[-1]()))
    with torch.no_grad():
        predict(lean_model, images, plan=plan, heads=("depth",))
    assert alive
    assert set(alive) == {None}
