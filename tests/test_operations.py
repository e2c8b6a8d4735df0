"""Launches: below about ten views, a GPU spends its time between operations, not in them."""

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

import geomtx
from geomtx.inference import GlobalApproximation, predict
from operations import count_operations

BFLOAT16 = {"dtype": torch.bfloat16}


def test_the_encoder_of_vggt_1b_has_few_operations():
    counts = count_operations(
        lambda: geomtx.VGGT(geomtx.VGGTConfig(heads=())),
        lambda model: model.encoder(torch.empty(1, 2, 3, 336, 518, **BFLOAT16)),
    )
    assert counts["aten.addmm"] == 72 * 4
    assert sum(counts.values()) <= 1100, counts.most_common()


def test_a_dense_head_of_vggt_1b_has_few_operations():
    """Small ones on the way to the position signals of five maps can be more than all else."""
    config = geomtx.VGGTConfig()
    tokens = torch.empty(1, 2, 5 + 24 * 37, 2 * config.dim, **BFLOAT16)
    counts = count_operations(
        lambda: geomtx.VGGT(geomtx.VGGTConfig(depth=4, vit_depth=1, taps=(0, 1, 2, 3), heads=("depth",))).depth_head,
        lambda head: head(geomtx.Tokens(dict.fromkeys(range(4), tokens), 5, (336, 518), (24, 37), None)),
    )
    assert 0 < sum(counts.values()) <= 170, counts.most_common()


def test_nothing_in_a_forward_pass_waits_for_values():
    """Every kind of block is run; more blocks of a kind would be the same again."""
    counts = count_operations(
        lambda: geomtx.VGGT(geomtx.VGGTConfig(depth=2, vit_depth=1, taps=(0, 0, 1, 1), track_iterations=1)),
        lambda model: model(
            torch.empty(1, 3, 3, 336, 518, **BFLOAT16), torch.empty(1, 4, 2), torch.empty(1, 3, 24, 37) > 0
        ),
    )
    assert counts["aten.addmm"] > 5 * 4
    assert not {"aten._local_scalar_dense", "aten.nonzero", "aten.equal"} & counts.keys()


def test_the_counter_notices_a_wait():
    with pytest.raises(DataDependentOutputException):
        count_operations(lambda: torch.nn.Linear(2, 2), lambda model: model.weight.sum().item())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("approximation", [None, GlobalApproximation(2, 2, 1)])
def test_a_pass_on_a_gpu_waits_for_nothing(masked, approximation):
    model = geomtx.VGGT(geomtx.VGGTConfig.tiny(heads=("camera", "depth", "points"))).cuda().eval()
    images = torch.rand(1, 3, 3, 56, 84, device="cuda")
    mask = torch.rand(1, 3, 4, 6, device="cuda") > 0.3 if masked else None
    with torch.no_grad():
        predict(model, images, patch_mask=mask, approximation=approximation)  # libraries start up
        torch.cuda.set_sync_debug_mode("error")
        try:
            predict(model, images, patch_mask=mask, approximation=approximation)
        finally:
            torch.cuda.set_sync_debug_mode("default")
