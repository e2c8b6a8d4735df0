"""`predict`: ways of running combine, give what the plain pass gives, and change nothing in the model."""

import itertools

import pytest
import torch

import geomtx
from geomtx.inference import GlobalApproximation, MemoryPlan, predict
from geomtx.inference.engine import RecomputedBlock
from inference.model_state import state_of
from reference import named_tensors

PLANS = {"whole": None, "view chunks": MemoryPlan(1, output_device=None), "token chunks": MemoryPlan(2, 7, "cpu")}
APPROXIMATIONS = {
    "all keys": None,
    "key views": GlobalApproximation(2),
    "stride": GlobalApproximation(None, 2),
    "local layers": GlobalApproximation(num_local_layers=2),
    "all three": GlobalApproximation(2, 2, 1),
}


@pytest.fixture
def model(tiny_model: geomtx.VGGT) -> geomtx.VGGT:
    return tiny_model.double()


def assert_same(got: geomtx.Predictions, expected: geomtx.Predictions) -> None:
    got, expected = named_tensors(got), named_tensors(expected)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        limits = {"rtol": 1e-9, "atol": 1e-6 if "track" in name else 1e-12}  # the tracker enlarges rounding
        torch.testing.assert_close(got[name], value, **limits, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    ("plan", "approximation", "recompute"), list(itertools.product(PLANS, APPROXIMATIONS, (False, True)))
)
def test_ways_combine_and_change_nothing_in_the_model(model, images, plan, approximation, recompute):
    """Each plan with each approximation is that approximation; gradients need no chunks of tokens."""
    mask = torch.rand(2, 3, 4, 6) < 0.8
    mask[:, 0, 0, 0], mask[1, 2] = True, False
    options = {"heads": ("camera", "depth"), "approximation": APPROXIMATIONS[approximation]}
    model.train()
    before, with_gradients = state_of(model), plan != "token chunks"
    with torch.set_grad_enabled(with_gradients):
        expected = predict(model, images.double(), None, mask, **options)
        got = predict(model, images.double(), None, mask, plan=PLANS[plan], recompute=recompute, **options)
    assert state_of(model) == before
    assert_same(got, expected)
    if with_gradients:
        parts = ("encoder", "depth", "camera")
        parameters = [p for name, p in model.named_parameters() if name.startswith(parts) and p.requires_grad]
        gradients = [
            torch.autograd.grad(each.depth.value.mean() + each.pose_encodings.sum(), parameters, allow_unused=True)
            for each in (got, expected)
        ]
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_without_options_it_is_the_models_own_pass(model, images):
    queries = 50 * torch.rand(2, 4, 2, dtype=torch.float64)
    for name, value in named_tensors(model(images.double(), queries)).items():
        assert torch.equal(named_tensors(predict(model, images.double(), queries))[name], value), name


def test_recomputation_keeps_less(model, images):
    kept = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[-1] += tensor.numel()
        return tensor

    for recompute in (False, True):
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            predict(model, images.double(), heads=("camera",), recompute=recompute)
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
        predict(model, images.double(), plan=PLANS["token chunks"])


class ShiftedCamera(geomtx.CameraHead):
    """A head whose `forward` is not that of its class."""

    def forward(self, tokens):
        prediction = super().forward(tokens)
        return prediction._replace(pose_encodings=prediction.pose_encodings + 7)


@pytest.mark.parametrize("plan", [None, MemoryPlan(1, 5)])
def test_heads_with_a_forward_of_their_own_are_called(plan):
    model = geomtx.VGGT(geomtx.VGGTConfig.tiny(heads=("camera",))).eval()
    images = torch.rand(1, 2, 3, 28, 28)
    model.camera_head.__class__ = ShiftedCamera
    with torch.no_grad():
        torch.testing.assert_close(predict(model, images, plan=plan).pose_encodings, model(images).pose_encodings)
