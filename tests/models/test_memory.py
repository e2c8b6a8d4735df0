import sys
from pathlib import Path

import pytest
import torch

from geomtx import VGGT, VGGTConfig
from geomtx.models.memory import PLANS, MemoryPlan, autocast_bytes, estimate_bytes

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from memory import LiveBytes, measure

ALL = ("camera", "depth", "points")
ON_HOST = {"output_device": "meta"}  # which stands for the host where memory is counted


@pytest.mark.parametrize(
    ("heads", "views", "size", "plan"),
    [
        (ALL, 2, (336, 518), None),
        (("camera",), 6, (336, 518), None),
        (("camera",), 6, (336, 518), MemoryPlan(4, 2048, **ON_HOST)),
        (ALL, 4, (518, 518), MemoryPlan(2, 4096, **ON_HOST)),
        (("depth",), 3, (280, 392), MemoryPlan(1, 500, tap_device="meta", **ON_HOST)),
    ],
)
def test_estimates_are_above_what_is_counted_but_not_far(heads, views, size, plan):
    """Of VGGT-1B, which is as large as that here only in name."""
    counted = measure(VGGTConfig(heads=heads), views, list(size), plan)
    peak = counted["peak_gib"] - counted["weights_gib"]
    estimate = counted["estimated_gib"] - counted["weights_gib"]
    assert peak <= estimate <= 2 * peak


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_copies_of_weights(dtype, images):
    model = VGGT(VGGTConfig.tiny(heads=ALL)).eval()
    with torch.no_grad(), LiveBytes() as live, torch.autocast("cpu", dtype=dtype):
        for tensor in (images, *model.parameters(), *model.buffers()):
            live.watch(tensor)
        before = live.now["cpu"]
        model(images)
        counted = live.now["cpu"] - before
    assert 0 < counted <= autocast_bytes(model) <= 1.2 * counted
    assert autocast_bytes(model.requires_grad_(False)) == 0
    assert autocast_bytes(VGGT(VGGTConfig.tiny()).bfloat16()) == 0


def test_later_plans_take_less():
    sizes = [estimate_bytes(VGGTConfig(), plan, 200, (336, 518)) for plan in (None, *PLANS)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


def test_the_law_of_vggt_1b():
    """Bytes a view of 336 x 518 in bfloat16: what is published takes 23 MB a view at best."""

    def slope(plan):
        fewer, more = (estimate_bytes(VGGTConfig(), plan, views, (336, 518)) for views in (200, 400))
        return (more - fewer) / 200

    assert slope(PLANS[1]) < 18e6
    assert slope(PLANS[-1]) < 8e6


def test_processes_exchange_what_they_need_memory_for():
    scene = (VGGTConfig(), 20, (336, 518))
    for plan in (None, *PLANS):
        one, two, eight = (
            estimate_bytes(scene[0], plan, *scene[1:], heads=("camera",), num_processes=num) for num in (1, 2, 8)
        )
        assert one < two < eight
    keys = 2 * 20 * (24 * 37 + 5) * 1024 * 2  # of the other six, in every block
    assert eight - two > 6 * keys
