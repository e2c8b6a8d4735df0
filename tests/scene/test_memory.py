import re

import pytest
import torch

import geomtx
from geomtx.models.memory import LEAN_PLAN, PLANS, MemoryPlan, autocast_bytes, estimate_bytes
from geomtx.scene import inference
from geomtx.scene import memory as scene_memory
from geomtx.scene.memory import choose_plan, free_bytes

HEADS = ("camera", "depth", "points")
SCENE = (40, (336, 518))


@pytest.fixture(scope="module")
def large() -> geomtx.VGGT:
    """VGGT-1B without weights."""
    with torch.device("meta"):
        return geomtx.VGGT(geomtx.VGGTConfig(heads=HEADS)).to(torch.bfloat16)


def choose(model, memory):
    return choose_plan(model, *SCENE, HEADS, memory, 4)


def sizes(model):
    return [estimate_bytes(model.config, plan, *SCENE, heads=HEADS) for plan in (None, *PLANS)]


def test_bytes_get_the_first_plan_that_fits(large):
    weights = sum(p.numel() * p.element_size() for p in large.parameters())
    for plan, size in zip((None, *PLANS), sizes(large), strict=True):
        assert choose(large, weights + size) == plan
    with pytest.raises(ValueError, match=r"^memory must be at least [\d,.]+ MiB for this scene, got [\d,.]+$"):
        choose(large, weights + sizes(large)[-1] - 1)


def test_auto_looks_at_what_is_free(large, monkeypatch):
    for free, plan in ((1e12, None), (sizes(large)[1] * 1.2, PLANS[0]), (0, LEAN_PLAN), (None, None)):
        monkeypatch.setattr(scene_memory, "free_bytes", lambda device, free=free: free)
        assert choose(large, "auto") == plan


def test_what_is_held_besides_takes_from_the_budget(large):
    weights = sum(p.numel() * p.element_size() for p in large.parameters())
    whole = weights + sizes(large)[0]
    assert choose_plan(large, *SCENE, HEADS, whole + 5, 4, 1, 5) is None
    assert choose_plan(large, *SCENE, HEADS, whole + 4, 4, 1, 5) == PLANS[0]


def test_autocast_s_copies_count(tiny_model):
    views = torch.rand(2, 3, 56, 84)
    least = {}
    for dtype in (None, torch.bfloat16):
        with pytest.raises(ValueError, match=r"^memory must be at least") as error:
            geomtx.reconstruct(tiny_model, views, memory=1, dtype=dtype)
        least[dtype] = float(re.search(r"least ([\d.]+) MiB", str(error.value))[1])
    assert least[torch.bfloat16] - least[None] == pytest.approx(autocast_bytes(tiny_model) / 2**20, abs=0.11)


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
    with pytest.raises(ValueError, match=r"^memory must be 'auto' for a model other than VGGT, got 'low'$"):
        choose(model, "low")


def test_memory_of_files_that_were_read_is_free(tmp_path, monkeypatch):
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:       24641724 kB\nMemFree:          123456 kB\nMemAvailable:   20000000 kB\n")
    monkeypatch.setattr(scene_memory, "_MEMINFO", path)
    assert free_bytes(torch.device("cpu")) == 20_000_000 * 1024
    monkeypatch.setattr(scene_memory, "_MEMINFO", tmp_path / "none")
    assert free_bytes(torch.device("cpu")) is None


def test_a_container_has_what_its_group_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(scene_memory, "_GROUP", tmp_path)
    (tmp_path / "memory.current").write_text("1500\n")
    (tmp_path / "memory.max").write_text("2500\n")
    assert free_bytes(torch.device("cpu")) == 1000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(torch.device("cpu")) != 1000


def test_what_waits_on_a_cpu_is_its_own_memory():
    """Where the model is on the host, nothing is saved by putting things there."""
    config = geomtx.VGGTConfig(heads=HEADS)
    for plan in PLANS:
        there, here = (estimate_bytes(config, plan, *SCENE, heads=HEADS, device=d) for d in (None, "cpu"))
        assert here > there or plan.tap_device is None  # elsewhere its peak is not where these are
    kept = MemoryPlan(4, 8192, output_device=None)
    assert estimate_bytes(config, kept, *SCENE) == estimate_bytes(config, PLANS[2], *SCENE, device="cpu")


@pytest.mark.parametrize(("asked", "plan_has"), [("auto", 4), (2, 2), (9, 4)])
def test_no_more_views_at_a_time_than_asked_for(tiny_model, monkeypatch, asked, plan_has):
    plans = []
    monkeypatch.setattr(inference, "choose_plan", lambda *_: PLANS[1])
    forward = tiny_model.forward
    monkeypatch.setattr(tiny_model, "forward", lambda *a, **k: plans.append(k["memory_plan"]) or forward(*a, **k))
    geomtx.reconstruct(tiny_model, torch.rand(3, 3, 56, 84), view_chunk=asked)
    assert plans == [PLANS[1]._replace(view_chunk=plan_has)]


@pytest.mark.cuda
def test_there_is_some_memory_on_the_gpu():
    free, total = free_bytes(torch.device("cuda")), torch.cuda.get_device_properties(0).total_memory
    assert 0 < free <= total


@pytest.mark.parametrize("memory", ["low", 50_000_000])
def test_a_reconstruction_is_the_same_in_pieces(tiny_model, memory):
    views = torch.rand(5, 3, 56, 84)
    whole = geomtx.reconstruct(tiny_model, views)
    pieces = geomtx.reconstruct(tiny_model, views, memory=memory, progress=True)
    for name in ("depth", "points"):
        ours, theirs = getattr(pieces.predictions, name), getattr(whole.predictions, name)
        torch.testing.assert_close(ours.value, theirs.value, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.confidence, theirs.confidence, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        pieces.predictions.cameras.cam_from_world, whole.predictions.cameras.cam_from_world, rtol=0, atol=1e-4
    )
