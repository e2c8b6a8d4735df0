import copy
import inspect

import pytest
import torch
from torch import nn

import geomtx
from geomtx.layers.block import TransformerBlock
from geomtx.models.nvs import NVSConfig, VGGTForNVS
from geomtx.models.vggt.config import HEAD_MODULES
from geomtx.models.video_tracker import VideoTracker, VideoTrackerConfig
from geomtx.training.optim import freeze
from geomtx.training.tasks.nvs import NvsTask
from geomtx.training.tasks.rehearsal import PreparedBatch, Rehearsal
from geomtx.training.tasks.running import RunOptions, TrainedModel, check_options, run_vggt
from geomtx.training.tasks.vggt import VggtTask
from geomtx.training.tasks.video_tracker import VideoTask
from training.small_run import NUMBERS, random_scenes

RECOMPUTE = RunOptions(recompute=True)
FLOAT32 = RunOptions(heads_in_float32=True)


@pytest.fixture
def images() -> torch.Tensor:
    """A scene of two views of four patches."""
    return torch.rand(1, 2, 3, 28, 28)


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


def add_normals(model: geomtx.VGGT) -> None:
    decoder = geomtx.DPTDecoder(64, 16, channels=(16, 16, 32, 32), taps=(0, 0, 1, 1))
    model.add_head("normals", geomtx.DenseHead(decoder, 3))


def changed_attributes(model: nn.Module) -> dict[str, set[str]]:
    return {name: set(vars(module)) for name, module in model.named_modules()}


@pytest.mark.parametrize("head", ["camera", "depth", "points", "tracks", "normals"])
def test_probes_leave_the_encoder_alone(head: str, lean_model: geomtx.VGGT, images: torch.Tensor):
    add_normals(lean_model)
    predictions = run_vggt(lean_model, images, torch.rand(1, 3, 2) * 25, RunOptions(detach=(head,)))
    outputs = {**predictions._asdict(), "camera": [predictions.pose_encodings], **predictions.extra}
    outputs[head][0].square().sum().backward()
    assert all(parameter.grad is None for parameter in lean_model.encoder.parameters())
    module = dict(lean_model.head_modules())[head]
    assert any((parameter.grad != 0).any() for parameter in module.parameters() if parameter.grad is not None)


def test_only_heads_that_are_there_can_be_probes():
    model = geomtx.VGGT(geomtx.VGGTConfig.tiny(heads=("camera",)))
    with pytest.raises(ValueError, match=r"^detach must be one of 'camera', got 'depth'$"):
        check_options(RunOptions(detach=("depth",)), model, VggtTask())


def test_a_task_without_options_of_its_own_is_refused_some(lean_model: geomtx.VGGT):
    class OwnTask(VggtTask):
        def predict(self, model, batch):
            return model(batch.images)

    message = r"^gradient_checkpointing must be off for a task whose predict\(model, batch\) takes no options, got OwnT"
    with pytest.raises(ValueError, match=message):
        check_options(RECOMPUTE, lean_model, OwnTask())
    check_options(FLOAT32, lean_model, OwnTask())
    assert TrainedModel(lean_model, OwnTask(), FLOAT32)(random_scenes(1, 2, (70, 70))).depth is not None


def test_under_autocast_heads_compute_in_float32(lean_model: geomtx.VGGT, images: torch.Tensor):
    """Those of the model and added ones."""
    add_normals(lean_model)
    seen: dict[str, set[torch.dtype]] = {"depth": set(), "normals": set()}
    for name, dtypes in seen.items():
        lean_model.head_modules()[name].hidden.register_forward_hook(lambda *args, to=dtypes: to.add(args[2].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        run_vggt(lean_model, images, None)
        assert seen == {"depth": {torch.bfloat16}, "normals": {torch.bfloat16}}
        for dtypes in seen.values():
            dtypes.clear()
        predictions = run_vggt(lean_model, images, None, FLOAT32)
    assert seen == {"depth": {torch.float32}, "normals": {torch.float32}}
    exact = lean_model(images).depth.value
    torch.testing.assert_close(predictions.depth.value, exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("attribute", HEAD_MODULES.values())
def test_heads_get_tokens_and_never_pixels(attribute: str, lean_model: geomtx.VGGT):
    """One encoder, heads beside each other: none has a stem of its own."""
    head = getattr(lean_model, attribute)
    assert next(iter(inspect.signature(head.forward).parameters)) == "tokens"
    assert not {"images", "predictions"} & inspect.signature(head.forward).parameters.keys()
    stems = [m for m in head.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3]
    assert stems == []


def model_and_batch(kind: str) -> tuple[nn.Module, object, object]:
    """A kind of model with its task and a prepared batch."""
    vggt = geomtx.VGGTConfig.tiny(**NUMBERS)
    scenes = random_scenes(2, 4)
    if kind == "vggt":
        return geomtx.VGGT(vggt), VggtTask(), VggtTask().prepare(scenes)
    if kind == "nvs":
        nvs = NvsTask(num_inputs=2, rehearsal=Rehearsal())
        return VGGTForNVS(NVSConfig(vggt=vggt, isolate_targets=True)), nvs, nvs.prepare(scenes)
    video = VideoTask(rehearsal=Rehearsal(scenes=1, views=(2,), style={"num_solids": [1, 1], "shadows": False}))
    return VideoTracker(VideoTrackerConfig.tiny(vggt=vggt, encoder_frames=2)), video, video.prepare(scenes)


def outputs_of(outputs: object) -> list[torch.Tensor]:
    leaves = torch.utils._pytree.tree_leaves(outputs)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.requires_grad]


@pytest.mark.parametrize("kind", ["vggt", "nvs", "video"])
def test_options_change_neither_outputs_and_gradients_nor_the_model(kind: str):
    model, task, batch = model_and_batch(kind)
    other = copy.deepcopy(model)
    before = changed_attributes(other)
    results = []
    for each, way in ((model, RunOptions()), (other, RunOptions(heads_in_float32=True, recompute=True))):
        outputs = outputs_of(TrainedModel(each, task, way)(batch))
        sum(output.square().mean() for output in outputs).backward()
        results.append([*(o.detach() for o in outputs), *(p.grad for p in each.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1])
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)
    assert changed_attributes(other) == before


@pytest.mark.parametrize("kind", ["vggt", "nvs", "video"])
def test_recomputation_keeps_less(kind: str):
    model, task, batch = model_and_batch(kind)
    if isinstance(batch, PreparedBatch):
        batch = batch._replace(rehearsal=None)
    kept = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[-1] += tensor.numel()
        return tensor

    encoder = next(module for module in model.modules() if isinstance(module, geomtx.AlternatingEncoder))
    for options in (RunOptions(), RECOMPUTE):
        kept.append(0)
        trained = TrainedModel(model, task, options)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            trained(batch)
    blocks = len(encoder.frame_blocks) + len(encoder.global_blocks)
    assert kept[1] < kept[0]
    assert kept[0] - kept[1] > blocks * 4 * 16 * 32


def test_blocks_run_twice_in_training_only(lean_model: geomtx.VGGT, images: torch.Tensor, calls: list[str]):
    freeze(lean_model, ["encoder.backbone.patch_embedding"])
    lean_model.eval()
    run_vggt(lean_model, images, None, RECOMPUTE).depth.value.sum().backward()
    once = len(calls)
    calls.clear()
    lean_model.train()
    run_vggt(lean_model, images, None, RECOMPUTE).depth.value.sum().backward()
    assert len(calls) == once + 5
    calls.clear()
    with torch.no_grad():
        run_vggt(lean_model, images, None, RECOMPUTE)
    assert len(calls) == once


def test_frozen_blocks_run_once(lean_model: geomtx.VGGT, images: torch.Tensor, calls: list[str]):
    trained = TrainedModel(lean_model, VggtTask(), frozen=freeze(lean_model, ["encoder.backbone", "camera_head"]))
    run_vggt(trained.model, images, None, RECOMPUTE).depth.value.sum().backward()
    blocks = [block for block in lean_model.modules() if isinstance(block, TransformerBlock)]
    assert len(calls) >= len(blocks)


def test_frozen_modules_stay_in_evaluation_mode(lean_model: geomtx.VGGT):
    trained = TrainedModel(lean_model, VggtTask(), frozen=freeze(lean_model, ["encoder.backbone"]))
    for mode in (True, False, True):
        trained.train(mode)
        assert not any(module.training for module in lean_model.encoder.backbone.modules())
        assert lean_model.encoder.frame_blocks[0].training is mode
        assert lean_model.depth_head.training is mode
