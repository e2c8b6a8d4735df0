import copy

import pytest
import torch

import geomtx
from geomtx.layers.block import TransformerBlock
from geomtx.models.nvs import NVSConfig, VGGTForNVS
from geomtx.training.optim import freeze
from geomtx.training.prepare import recompute_blocks


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry each time any block runs."""
    calls: list[str] = []
    forward = TransformerBlock.forward

    def count(self: TransformerBlock, *args: object, **kwargs: object) -> torch.Tensor:
        calls.append("block")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(TransformerBlock, "forward", count)
    return calls


def test_outputs_and_gradients_are_the_same(tiny_model: geomtx.VGGT, images: torch.Tensor):
    model = tiny_model.double().train()
    other = copy.deepcopy(model)
    assert recompute_blocks(other.encoder) == 2 + 4 + 4
    queries = torch.rand(2, 5, 2) * 50
    results = []
    for each in (model, other):
        predictions = each(images.double(), queries.double())
        outputs = [predictions.pose_encodings, *predictions.depth, *predictions.points, predictions.tracks.coords_px]
        sum(output.sum() for output in outputs).backward()
        gradients = [p.grad for p in each.parameters() if p.requires_grad]
        results.append([*(output.detach() for output in outputs), *gradients])
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_blocks_run_twice_in_training_only(tiny_model: geomtx.VGGT, images: torch.Tensor, calls: list[str]):
    freeze(tiny_model, ["encoder.backbone.patch_embedding"])
    recompute_blocks(tiny_model.encoder)
    tiny_model.eval()
    tiny_model.encoder(images).layers[3].sum().backward()
    assert len(calls) == 10
    calls.clear()
    tiny_model.train()
    tiny_model.encoder(images).layers[3].sum().backward()
    assert len(calls) == 20
    calls.clear()
    with torch.no_grad():
        tiny_model.encoder(images)
    assert len(calls) == 10


def test_frozen_blocks_run_once(tiny_model: geomtx.VGGT, images: torch.Tensor, calls: list[str]):
    freeze(tiny_model, ["encoder.backbone"])
    recompute_blocks(tiny_model.encoder)
    tiny_model.train()
    tiny_model.encoder(images).layers[3].sum().backward()
    assert len(calls) == 2 + 2 * 8


def test_a_copy_has_its_own_blocks(tiny_model: geomtx.VGGT, images: torch.Tensor):
    recompute_blocks(tiny_model.encoder)
    other = copy.deepcopy(tiny_model).train()
    before = tiny_model.encoder(images).layers[3].detach()
    with torch.no_grad():
        for block in other.encoder.global_blocks:
            block.mlp.expand.weight.mul_(3)
    after = other.encoder(images).layers[3]
    assert not torch.allclose(before, after)
    after.sum().backward()
    assert all(parameter.grad is None for parameter in tiny_model.parameters())
    assert all(parameter.grad is not None for parameter in other.encoder.global_blocks.parameters())


def test_asking_twice_is_asking_once(tiny_model: geomtx.VGGT, images: torch.Tensor, calls: list[str]):
    freeze(tiny_model, ["encoder.backbone.patch_embedding"])
    recompute_blocks(tiny_model.encoder)
    recompute_blocks(tiny_model.encoder)
    tiny_model.train()
    tiny_model.encoder(images).layers[3].sum().backward()
    assert len(calls) == 20


def test_isolated_views_are_recomputed_too(images: torch.Tensor):
    model = VGGTForNVS(NVSConfig.tiny(isolate_targets=True)).double().train()
    other = copy.deepcopy(model)
    recompute_blocks(other.encoder)
    targets = geomtx.Cameras(
        torch.eye(3, 4, dtype=torch.float64).expand(2, 4, 3, 4), 50 * torch.eye(3).double().expand(2, 4, 3, 3)
    )
    kept, results = [], []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[-1] += tensor.numel()
        return tensor

    for each in (model, other):
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            tokens = each.encoder.collect(*each.embed(images.double(), targets)).layers[3]
        tokens.square().sum().backward()
        results.append([tokens.detach(), *(p.grad for p in each.parameters() if p.grad is not None)])
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert kept[1] < kept[0] / 3  # without the isolated blocks, 4 of 10 would keep their activations
