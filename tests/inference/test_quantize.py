import copy
import importlib.util
import subprocess
import sys

import pytest
import torch
from torch import nn

import geomtx
from geomtx.inference import GlobalApproximation, MemoryPlan, predict, quantize
from geomtx.inference.plan import weight_bytes
from geomtx.inference.quantize import is_quantized, quantize_model
from geomtx.layers.precision import Float32Linear
from lean import lean_config
from reference import named_tensors, randomize, relative_error

needs_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="needs torchao, which the extra quant brings"
)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 3, 28, 42)


def model_of(**changes) -> geomtx.VGGT:
    return randomize(geomtx.VGGT(lean_config(**changes))).eval()


def rounded(weight: torch.Tensor) -> torch.Tensor:
    """Per-channel int8, in float64: the nearest multiple of the scale, whose 127 or 127.5 are the row's largest."""
    weight = weight.double()
    scale = weight.abs().amax(dim=1, keepdim=True) / 127.5
    return (weight / scale).round().clamp(-128, 127) * scale


def quantised_layers(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if hasattr(p, "__tensor_flatten__")}


@needs_torchao
def test_which_layers():
    model = quantize_model(model_of(), "int8")
    blocks = {
        f"{name}.{layer}.weight"
        for name, module in model.named_modules()
        if isinstance(module, geomtx.TransformerBlock)
        for layer in ("attention.qkv", "attention.out", "mlp.expand", "mlp.contract")
    }
    assert len(blocks) == 4 * (1 + 2 + 2 + model.config.camera_depth)
    assert quantised_layers(model) == blocks
    assert is_quantized(model)
    assert not is_quantized(model_of())
    assert not any(isinstance(m, Float32Linear) and is_quantized(m) for m in model.modules())


@needs_torchao
def test_what_is_kept():
    model = quantize_model(model_of(), "int8", keep=("camera_head.*", "*.attention.out"))
    names = quantised_layers(model)
    assert names
    assert not [name for name in names if name.startswith("camera_head") or name.endswith("out.weight")]


@needs_torchao
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_a_layer_multiplies_by_the_rounded_weight(dtype, tolerance):
    block = randomize(geomtx.TransformerBlock(48, 4)).to(dtype)
    weights = {name: p.detach().clone() for name, p in block.named_parameters() if p.ndim == 2}
    quantize_model(block, "int8")
    for name, layer in (("attention.qkv", block.attention.qkv), ("mlp.contract", block.mlp.contract)):
        x = torch.randn(2, 5, layer.in_features, dtype=dtype)
        held, weight = layer.weight.dequantize().double(), weights[f"{name}.weight"].double()
        # No number is farther from its own than half a step of its row.
        step = weight.abs().amax(dim=1, keepdim=True) / 127
        assert ((held - weight).abs() <= (0.51 * step if dtype == torch.float32 else 1.1 * step)).all()
        assert relative_error(held, weight) < 1.2 * relative_error(rounded(weight), weight) + (
            0 if dtype == torch.float32 else 2e-3
        )
        expected = x.double() @ held.T + layer.bias.double()
        assert relative_error(layer(x), expected) < tolerance


@needs_torchao
def test_attention_reads_parts_of_the_packed_weight():
    block = quantize_model(randomize(geomtx.TransformerBlock(48, 4, qk_norm=True)), "int8")
    x = torch.randn(2, 7, 48)
    with torch.no_grad():
        pieces = block.attend_to(x[:, 2:5], *block.project_keys(x))
        torch.testing.assert_close(pieces, block(x)[:, 2:5], rtol=1e-5, atol=1e-5)


@needs_torchao
@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 0.25), (torch.bfloat16, 0.5)])
def test_bytes(dtype, share):
    model = model_of(dim=96).to(dtype)
    linear = sum(p.numel() * p.element_size() for n, p in model.named_parameters() if _is_of_block(model, n))
    before = weight_bytes(model)
    assert before == sum(p.numel() * p.element_size() for p in model.parameters())
    saved = before - weight_bytes(quantize_model(model, "int8"))
    # A scale of 4 bytes and a zero of one a row, beside its numbers.
    assert (1 - share) * linear * 0.9 < saved < (1 - share) * linear


def _is_of_block(model: nn.Module, name: str) -> bool:
    blocks = [n for n, m in model.named_modules() if isinstance(m, geomtx.TransformerBlock)]
    return any(name.startswith(block + ".") for block in blocks) and model.get_parameter(name).ndim == 2


@needs_torchao
def test_the_whole_model_stays_near(images):
    model = model_of()
    other = quantize_model(copy.deepcopy(model), "int8")
    assert not is_quantized(model)
    queries = torch.rand(2, 4, 2) * 27
    with torch.no_grad():
        expected, got = named_tensors(model(images, queries)), named_tensors(other(images, queries))
        pieces = named_tensors(predict(other, images, queries, plan=MemoryPlan(2, 7)))
        copied = named_tensors(copy.deepcopy(other)(images, queries))
    with torch.inference_mode():
        assert torch.equal(other(images, queries).depth.value, got["depth.value"])
    for name in ("pose_encodings", "depth.value", "depth.confidence"):
        assert 0 < relative_error(got[name], expected[name]) < 0.05, name
        torch.testing.assert_close(pieces[name], got[name], rtol=1e-3, atol=1e-4)
        assert torch.equal(copied[name], got[name])


@needs_torchao
@pytest.mark.parametrize(
    "options",
    [{"plan": MemoryPlan(2, 7)}, {"approximation": GlobalApproximation(2)}],
    ids=["pieces", "fewer keys"],
)
def test_parts_of_weights_are_read_in_inference_mode_too(images, options):
    model = quantize_model(model_of(heads=("camera", "depth")), "int8")
    with torch.no_grad():
        expected = named_tensors(predict(model, images, **options))
    with torch.inference_mode():
        got = named_tensors(predict(model, images, **options))
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert torch.equal(got[name], value), name


@needs_torchao
def test_quantising_says_nothing():
    """In a process of its own: torchao speaks when it is imported first."""
    program = "import geomtx; geomtx.quantize_model(geomtx.TransformerBlock(16, 2), 'int8')"
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@needs_torchao
def test_weights_are_loaded_and_quantised_and_never_saved(tmp_path, images):
    model = model_of(heads=("camera",))
    model.save_pretrained(tmp_path / "whole")
    loaded = geomtx.VGGT.from_pretrained(tmp_path / "whole", dtype=torch.bfloat16, quantize="int8")
    assert is_quantized(loaded)
    assert not loaded.training
    assert loaded(images).pose_encodings.isfinite().all()
    with pytest.raises(ValueError, match=r"^model must not be quantised to be saved, got quantised weights"):
        loaded.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@needs_torchao
def test_twice_is_once_too_often():
    model = quantize_model(model_of(heads=("camera",)), "int8")
    with pytest.raises(ValueError, match=r"^model must not be quantised already, got VGGT"):
        quantize_model(model, "int8")


@needs_torchao
def test_reconstruct_counts_the_bytes_that_are_held(lean_model):
    views = torch.rand(2, 3, 28, 42)
    whole = weight_bytes(lean_model)
    with pytest.raises(ValueError, match="memory must be at least"):
        geomtx.reconstruct(lean_model, views, memory=whole)
    quantize_model(lean_model, "int8")
    assert weight_bytes(lean_model) < whole
    scene = geomtx.reconstruct(lean_model, views, memory="low")
    assert scene.provenance["quantize"] == "int8"
    assert scene.predictions.depth is not None
    assert scene.predictions.depth.value.isfinite().all()


@pytest.mark.usefixtures("unchecked")
def test_wrong_kinds_and_patterns(lean_model):
    with pytest.raises(ValueError, match=r"^quantize must be one of 'int8', 'fp8', got 'int4'$"):
        quantize_model(lean_model, "int4")
    with pytest.raises(
        ValueError, match=r"^keep must match linear layers of the model's blocks, got 'depth_head\.\*'$"
    ):
        quantize_model(lean_model, "int8", keep=("depth_head.*",))
    message = "^model must have linear layers in transformer blocks that are not kept, got "
    with pytest.raises(ValueError, match=message + "VGGT$"):
        quantize_model(lean_model, "int8", keep=("*",))
    with pytest.raises(ValueError, match=message + "Linear$"):
        quantize_model(nn.Linear(2, 2), "int8")


def test_without_torchao(lean_model, monkeypatch):
    monkeypatch.setattr(quantize.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r'^torchao is not installed; `pip install "geomtx\[quant\]"` brings it$'):
        quantize_model(lean_model, "int8")


class Capability:
    """Stands for a kind of device."""

    def __init__(self, *capability: int) -> None:
        self.capability = capability

    def get_device_capability(self, _: torch.device) -> tuple[int, ...]:
        return self.capability


def test_fp8_needs_a_gpu_that_has_it(lean_model, monkeypatch):
    message = "^quantize must not be 'fp8' without a GPU of compute capability 8.9 or more, got "
    with pytest.raises(ValueError, match=message + "cpu$"):
        quantize_model(lean_model, "fp8")
    monkeypatch.setattr(torch, "get_device_module", lambda _: Capability(8, 6))
    with pytest.raises(ValueError, match=message + r"8\.6$"):
        quantize_model(lean_model, "fp8")
    monkeypatch.setattr(torch, "get_device_module", lambda _: Capability(8, 9))
    with pytest.raises(ValueError, match=r"qkv must be torch\.bfloat16 for 'fp8', got torch\.float32$"):
        quantize_model(lean_model, "fp8")
    block = geomtx.TransformerBlock(24, 2).bfloat16()
    with pytest.raises(ValueError, match=r"^sides of attention\.qkv for 'fp8' must be a multiple of 16, got 72$"):
        quantize_model(block, "fp8")


@needs_torchao
@pytest.mark.cuda
def test_fp8_stays_near():
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs compute capability 8.9")
    model = model_of(heads=("camera", "depth")).to("cuda", torch.bfloat16)
    images = torch.rand(1, 3, 3, 56, 84, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        expected = model(images)
        got = quantize_model(model, "fp8")(images)
        pieces = predict(model, images, plan=MemoryPlan(2, 7))
    assert 0 < relative_error(got.depth.value, expected.depth.value) < 0.1
    assert relative_error(pieces.depth.value.cuda(), got.depth.value) < 0.05
