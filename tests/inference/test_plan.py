import sys
from pathlib import Path

import pytest
import torch

import geomtx
from geomtx import (
    VGGT,
    DepthAnything3,
    DepthAnything3Config,
    Pi3,
    Pi3Config,
    VGGTConfig,
    VGGTOmega,
    VGGTOmegaConfig,
)
from geomtx.inference import plan as plan_module
from geomtx.inference.plan import (
    LEAN_PLAN,
    PLANS,
    MemoryPlan,
    PassSize,
    autocast_bytes,
    choose_plan,
    estimate_bytes,
    free_bytes,
)
from lean import lean_config

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from memory import LiveBytes, measure

ALL = ("camera", "depth", "points")
SCENE = PassSize(40, (336, 518), ALL)
ON_HOST = {"output_device": "meta"}  # which stands for the host where memory is counted


@pytest.fixture(scope="module")
def large() -> geomtx.VGGT:
    """VGGT-1B without weights."""
    with torch.device("meta"):
        return geomtx.VGGT(geomtx.VGGTConfig(heads=ALL)).to(torch.bfloat16)


@pytest.mark.parametrize(
    ("heads", "depth", "views", "size", "plan"),
    [
        (ALL, 4, 2, (336, 518), None),
        (("camera",), 8, 6, (336, 518), None),
        (("camera",), 4, 6, (336, 518), MemoryPlan(4, 2048, **ON_HOST)),
        (ALL, 4, 4, (518, 518), MemoryPlan(2, 4096, **ON_HOST)),
        (("depth",), 8, 2, (280, 392), MemoryPlan(1, 500, tap_device="meta", **ON_HOST)),
    ],
)
def test_estimates_are_above_what_is_counted_but_not_far(heads, depth, views, size, plan):
    """Of VGGT-1B with few layers, on which the peak does not depend; it is as large as that here only in name."""
    taps = tuple(range(depth // 4 - 1, depth, depth // 4))
    config = VGGTConfig(heads=heads, depth=depth, taps=taps, vit_depth=1, camera_depth=1, camera_iterations=1)
    counted = measure(lambda: VGGT(config), views, size, plan, heads)
    peak = counted["peak_gib"] - counted["weights_gib"]
    estimate = counted["estimated_gib"] - counted["weights_gib"]
    assert peak <= estimate <= 2 * peak


@pytest.mark.parametrize(
    ("heads", "views", "plan"),
    [
        (("camera", "depth"), 4, None),
        (("camera",), 6, None),
        (("text",), 6, MemoryPlan(4, 2048, **ON_HOST)),
        (("camera", "depth"), 6, MemoryPlan(2, 4096, **ON_HOST)),
        (("depth",), 4, MemoryPlan(1, 500, tap_device="meta", **ON_HOST)),
    ],
)
def test_estimates_of_vggt_omega(heads, views, plan):
    """Of the published width with few layers, one of them among special tokens."""
    numbers = {"depth": 4, "taps": (0, 1, 2, 3), "register_layers": (1,), "vit_depth": 1, "trunk_depth": 1}
    config = VGGTOmegaConfig(heads=("camera", "depth", "text"), **numbers)
    counted = measure(lambda: VGGTOmega(config), views, (336, 512), plan, heads)
    peak = counted["peak_gib"] - counted["weights_gib"]
    estimate = counted["estimated_gib"] - counted["weights_gib"]
    assert peak <= estimate <= 2 * peak


DA3_LAYERS = {"depth": 10, "first_global": 2, "taps": (3, 5, 7, 9)}


@pytest.mark.parametrize(
    ("preset", "changes", "heads", "views", "plan"),
    [
        ("small", DA3_LAYERS, ("camera", "depth", "rays"), 6, None),
        ("small", DA3_LAYERS, ("camera", "depth"), 8, MemoryPlan(2, 4096, **ON_HOST)),
        ("giant", DA3_LAYERS, ("camera", "depth"), 6, MemoryPlan(4, 4096, tap_device="meta", **ON_HOST)),
        ("giant", DA3_LAYERS, ("camera",), 6, None),
        ("mono", {"depth": 4, "taps": (0, 1, 2, 3)}, ("depth", "sky"), 4, None),
        ("mono", {"depth": 4, "taps": (0, 1, 2, 3)}, ("depth", "sky"), 6, MemoryPlan(1, 500, "meta", **ON_HOST)),
    ],
)
def test_estimates_of_depth_anything(preset, changes, heads, views, plan):
    config = getattr(DepthAnything3Config, preset)(**changes)
    counted = measure(lambda: DepthAnything3(config), views, (336, 518), plan, heads)
    peak = counted["peak_gib"] - counted["weights_gib"]
    assert peak <= counted["estimated_gib"] - counted["weights_gib"] <= 2 * peak


class Mean(torch.nn.Module):
    """A head that geomtx doesn't know, for which whole layers wait."""

    def forward(self, tokens: geomtx.Tokens) -> torch.Tensor:
        return tokens.layer(max(tokens.layers))[..., 0].mean(-1)


@pytest.mark.parametrize("plan", [None, MemoryPlan(2, 4096, **ON_HOST)])
def test_estimates_count_whole_layers(plan):
    def build() -> DepthAnything3:
        model = DepthAnything3(DepthAnything3Config.small(**DA3_LAYERS))
        model.add_head("mean", Mean())
        return model

    counted = measure(build, 24, (336, 518), plan, ("mean",))
    peak = counted["peak_gib"] - counted["weights_gib"]
    assert peak <= counted["estimated_gib"] - counted["weights_gib"] <= 2 * peak


@pytest.mark.parametrize(
    ("preset", "views", "plan"),
    [
        ("pi3", 2, None),
        ("pi3", 8, None),
        ("pi3", 6, MemoryPlan(2, 2048, **ON_HOST)),
        ("pi3x", 2, None),
        ("pi3x", 8, MemoryPlan(4, 4096, tap_device="meta", **ON_HOST)),
        ("pi3x", 4, MemoryPlan(1, 1000, tap_device="meta", part_device="meta", **ON_HOST)),
    ],
)
def test_estimates_of_pi3(preset, views, plan):
    fewer = {"depth": 1, "pose_layers": (), "vit_depth": 1, "head_depth": 1, "metric_depth": 1}
    config = getattr(Pi3Config, preset)(**fewer)
    counted = measure(lambda: Pi3(config), views, (336, 518), plan, config.heads)
    peak = counted["peak_gib"] - counted["weights_gib"]
    assert peak <= counted["estimated_gib"] - counted["weights_gib"] <= 2 * peak


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_copies_of_weights(dtype, images):
    model = VGGT(lean_config(heads=ALL)).eval()
    with torch.no_grad(), LiveBytes() as live, torch.autocast("cpu", dtype=dtype):
        for tensor in (images, *model.parameters(), *model.buffers()):
            live.watch(tensor)
        before = live.now["cpu"]
        model(images)
        counted = live.now["cpu"] - before
    assert 0 < counted <= autocast_bytes(model) <= 1.2 * counted
    assert autocast_bytes(model.requires_grad_(False)) == 0
    assert autocast_bytes(VGGT(lean_config(heads=())).bfloat16()) == 0


def test_later_plans_take_less(large):
    sizes = [estimate_bytes(large, plan, PassSize(200, (336, 518))) for plan in (None, *PLANS)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


def test_the_law_of_vggt_1b(large):
    """Bytes a view of 336 x 518 in bfloat16: what is published takes 23 MB a view at best."""

    def slope(plan):
        fewer, more = (estimate_bytes(large, plan, PassSize(views, (336, 518))) for views in (200, 400))
        return (more - fewer) / 200

    assert slope(PLANS[1]) < 18e6
    assert slope(PLANS[-1]) < 8e6


def test_processes_exchange_what_they_need_memory_for(large):
    for plan in (None, *PLANS):
        one, two, eight = (
            estimate_bytes(large, plan, PassSize(20, (336, 518), ("camera",), num_processes=num)) for num in (1, 2, 8)
        )
        assert one < two < eight
    keys = 2 * 20 * (24 * 37 + 5) * 1024 * 2  # of the other six, in every block
    assert eight - two > 6 * keys


# Which plan is chosen


def choose(model, memory):
    return choose_plan(model, SCENE, memory)


def sizes(model):
    return [estimate_bytes(model, plan, SCENE) for plan in (None, *PLANS)]


def test_bytes_get_the_first_plan_that_fits(large):
    weights = sum(p.numel() * p.element_size() for p in large.parameters())
    for plan, size in zip((None, *PLANS), sizes(large), strict=True):
        assert choose(large, weights + size) == plan
    with pytest.raises(ValueError, match=r"^memory must be at least [\d,.]+ MiB for this scene, got [\d,.]+$"):
        choose(large, weights + sizes(large)[-1] - 1)


def test_auto_looks_at_what_is_free(large, monkeypatch):
    for free, plan in ((1e12, None), (sizes(large)[1] * 1.2, PLANS[0]), (0, LEAN_PLAN), (None, None)):
        monkeypatch.setattr(plan_module, "free_bytes", lambda device, free=free: free)
        assert choose(large, "auto") == plan


def test_what_is_held_besides_takes_from_the_budget(large):
    weights = sum(p.numel() * p.element_size() for p in large.parameters())
    whole = weights + sizes(large)[0]
    assert choose_plan(large, SCENE, whole + 5, held=5) is None
    assert choose_plan(large, SCENE, whole + 4, held=5) == PLANS[0]


def test_low_is_the_leanest(large):
    assert choose(large, "low") == LEAN_PLAN


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("memory", ["much", 0, -5, 2.5, True, None])
def test_what_memory_can_not_be(large, memory):
    with pytest.raises(ValueError, match=r"^memory must be 'auto', 'low' or a whole number of bytes, got "):
        choose(large, memory)


def test_other_models_are_left_alone():
    model = torch.nn.Linear(2, 2)
    assert choose(model, "auto") is None
    with pytest.raises(ValueError, match=r"^memory must be 'auto' for a model whose memory isn't known, got 'low'$"):
        choose(model, "low")


def test_memory_of_files_that_were_read_is_free(tmp_path, monkeypatch):
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:       24641724 kB\nMemFree:          123456 kB\nMemAvailable:   20000000 kB\n")
    monkeypatch.setattr(plan_module, "_MEMINFO", path)
    assert free_bytes(torch.device("cpu")) == 20_000_000 * 1024
    monkeypatch.setattr(plan_module, "_MEMINFO", tmp_path / "none")
    assert free_bytes(torch.device("cpu")) is None


def test_a_container_has_what_its_group_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(plan_module, "_GROUP", tmp_path)
    (tmp_path / "memory.current").write_text("1500\n")
    (tmp_path / "memory.max").write_text("2500\n")
    assert free_bytes(torch.device("cpu")) == 1000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(torch.device("cpu")) != 1000


def test_what_waits_on_a_cpu_is_its_own_memory(large):
    """Where the model is on the host, nothing is saved by putting things there."""
    for plan in PLANS:
        there, here = (estimate_bytes(large, plan, SCENE._replace(device=d)) for d in (None, "cpu"))
        assert here > there or plan.tap_device is None  # elsewhere its peak is not where these are
    kept = MemoryPlan(4, 8192, output_device=None)
    assert estimate_bytes(large, kept, SCENE) == estimate_bytes(large, PLANS[2], SCENE._replace(device="cpu"))


@pytest.mark.cuda
def test_there_is_some_memory_on_the_gpu():
    free, total = free_bytes(torch.device("cuda")), torch.cuda.get_device_properties(0).total_memory
    assert 0 < free <= total
