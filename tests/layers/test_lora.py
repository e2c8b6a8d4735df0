import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from geomtx import VGGT, Attention, TransformerBlock
from geomtx.inference import LEAN_PLAN, predict
from geomtx.inference.attention import KeysFirst
from geomtx.inference.quantize import quantize_model
from geomtx.layers.attention import MaskedBiasLinear
from geomtx.layers.lora import (
    LowRank,
    adapted_layers,
    add_lora,
    load_lora_state,
    lora_state,
    merge_lora,
    merged_state,
    remove_lora,
)
from geomtx.layers.precision import Float32Linear
from geomtx.training.optim import freeze
from reference import named_tensors


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 20)
        self.second = Float32Linear(20, 8, bias=False)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.second(self.first(x).relu()))


def train_a_little(model: nn.Module) -> None:
    """Values of trained adapters."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("parametrizations.weight.0.up"):
                tensor.normal_(std=0.1)


def adapted(model: nn.Module, *patterns: str, **numbers: float) -> nn.Module:
    add_lora(model, patterns, **numbers)
    train_a_little(model)
    return model


def assert_same(ours, reference, tolerance: float = 0.0) -> None:
    ours, reference = named_tensors(ours), named_tensors(reference)
    assert ours.keys() == reference.keys()
    for name, tensor in reference.items():
        torch.testing.assert_close(ours[name], tensor, rtol=tolerance, atol=tolerance)


def test_the_formula():
    model, x = Pair().double(), torch.randn(5, 12, dtype=torch.float64)
    weight = model.first.weight.detach().clone()
    adapted(model, "first", rank=3, alpha=6)
    adapter = adapted_layers(model)["first"][1]
    assert (adapter.down.shape, adapter.up.shape) == ((3, 12), (20, 3))
    expected = x @ weight.T + 2.0 * (x @ adapter.down.T) @ adapter.up.T + model.first.bias
    torch.testing.assert_close(model.first(x), expected, rtol=1e-12, atol=1e-12)


def test_the_start_is_the_model_itself(lean_model: VGGT, images: Tensor):
    before = lean_model(images)
    names = add_lora(lean_model, ["encoder.*", "camera_head.pose_mlp.*"], rank=2)
    assert "encoder.global_blocks.1.attention.qkv" in names
    assert "camera_head.pose_mlp.contract" in names  # a subclass, which computes in float32
    assert_same(lean_model(images), before)
    downs = [adapter.down for _, adapter in adapted_layers(lean_model).values()]
    assert len(downs) == len(names)
    for down in downs:
        assert 0.5 < down.std() * down.shape[1] ** 0.5 < 1.5
    assert not torch.equal(downs[0], downs[4])


def test_alpha_is_the_rank_unless_said():
    model = Pair()
    add_lora(model, ["first"], rank=4)
    add_lora(model, ["second"], rank=4, alpha=1)
    assert {n: (a.rank, a.alpha) for n, (_, a) in adapted_layers(model).items()} == {"first": (4, 4), "second": (4, 1)}


def test_only_adapters_learn_and_what_was_trained_beside_them():
    model = adapted(Pair(), "first", "second")
    model(torch.randn(5, 12)).square().sum().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    factors = {f"{layer}.parametrizations.weight.0.{f}" for layer in ("first", "second") for f in ("up", "down")}
    assert trained == factors | {"first.bias", "norm.weight", "norm.bias"}


def test_in_a_frozen_model_only_adapters_learn(lean_model: VGGT, images: Tensor):
    freeze(lean_model, ["encoder", "*_head"])
    adapted(lean_model, "encoder.global_blocks.*.qkv")
    lean_model.train()(images, heads=("depth",)).depth.value.sum().backward()
    learning = [name for name, p in lean_model.named_parameters() if p.requires_grad]
    assert len(learning) == 4
    assert all(".qkv.parametrizations.weight.0." in name for name in learning)
    assert all(p.grad.any() for p in lean_model.parameters() if p.requires_grad)


def test_scenes_of_a_batch_do_not_meet(lean_model: VGGT, images: Tensor):
    adapted(lean_model.double(), "*")
    both, images = lean_model(images.double()), images.double()
    for scene in range(2):
        alone = lean_model(images[scene : scene + 1])
        torch.testing.assert_close(both.depth.value[scene], alone.depth.value[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_merging_changes_no_result(lean_model: VGGT, images: Tensor, dtype: torch.dtype):
    lean_model, images = lean_model.to(dtype), images.to(dtype)
    before, names = lean_model(images), {name: p.requires_grad for name, p in lean_model.named_parameters()}
    layers = add_lora(lean_model, ["encoder.*"], rank=4)
    train_a_little(lean_model)
    weights = merged_state(lean_model)
    with_adapters = lean_model(images)
    assert not torch.equal(with_adapters.depth.value, before.depth.value)
    assert merge_lora(lean_model) == layers
    assert_same(lean_model(images), with_adapters)
    assert {name: p.requires_grad for name, p in lean_model.named_parameters()} == names
    assert weights.keys() == names.keys()
    for name, tensor in lean_model.state_dict().items():
        assert torch.equal(weights[name], tensor)
    assert merge_lora(lean_model) == []


def test_removing_gives_the_model_back(lean_model: VGGT, images: Tensor):
    freeze(lean_model, ["encoder.backbone"])
    before = {name: (tensor.clone(), tensor.requires_grad) for name, tensor in lean_model.named_parameters()}
    identities = {name: id(tensor) for name, tensor in lean_model.named_parameters()}
    adapted(lean_model, "*")
    remove_lora(lean_model)
    after = dict(lean_model.named_parameters())
    assert {name: id(tensor) for name, tensor in after.items()} == identities  # an optimiser knows them still
    for name, (tensor, trained) in before.items():
        assert torch.equal(after[name], tensor)
        assert after[name].requires_grad is trained
    assert type(lean_model.encoder.global_blocks[0].attention.qkv) is nn.Linear


def test_copies_are_independent():
    model, x = adapted(Pair(), "first", "second"), torch.randn(5, 12)
    before, copied = model(x), copy.deepcopy(model)
    assert torch.equal(copied(x), before)
    merge_lora(copied)
    assert torch.equal(model(x), before)
    assert torch.equal(copied(x), before)
    remove_lora(model)
    assert torch.equal(copied(x), before)
    assert not torch.equal(model(x), before)


def test_the_state_alone():
    model, other, x = adapted(Pair(), "*", rank=2), Pair(), torch.randn(5, 12)
    other.load_state_dict(merged_state(model))
    expected = other(x)
    state = {name: tensor.clone() for name, tensor in lora_state(model).items()}
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        "first.down": (2, 12),
        "first.up": (20, 2),
        "second.down": (2, 20),
        "second.up": (8, 2),
    }
    remove_lora(model)
    add_lora(model, ["*"], rank=2)
    assert not torch.equal(model(x), expected)
    load_lora_state(model, state)
    assert torch.equal(model(x), expected)


def test_low_precision_weights_and_autocast():
    model, x = adapted(Pair().bfloat16(), "first"), torch.randn(5, 12).bfloat16()
    adapter = adapted_layers(model)["first"][1]
    assert adapter.up.dtype == adapter.down.dtype == torch.float32
    assert model.first(x).dtype == torch.bfloat16
    exact = model.first.parametrizations.weight.original.float() + adapter.up @ adapter.down
    assert torch.equal(model.first.weight, exact.bfloat16())
    model = adapted(Pair(), "first")
    weight = model.first.weight
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.first.weight, weight)
        assert model.first(torch.randn(5, 12)).dtype == torch.bfloat16
    halved = copy.deepcopy(model).half()
    assert halved.first(torch.randn(5, 12).half()).dtype == torch.float16


def test_attention_in_pieces_hears_the_adapters():
    block = adapted(TransformerBlock(16, 2, qk_norm=True, layer_scale=0.5), "*").double()
    assert isinstance(block, TransformerBlock)
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    with torch.no_grad():
        whole = block(x)
        pieces = KeysFirst(None, None, token_chunk=4)(0, block, x[:, None].clone())
    torch.testing.assert_close(pieces[:, 0], whole, rtol=1e-12, atol=1e-12)


def test_pieces_compute_only_the_rows_that_they_need():
    """A layer that is still `nn.Linear` but for its weight may be cut."""
    attention = adapted(Attention(16, 2), "qkv")
    calls = []
    attention.qkv.register_forward_hook(lambda *_: calls.append(1))
    attention.project_keys(torch.randn(1, 5, 16))
    assert calls == []


def test_a_pass_in_pieces_hears_the_adapters(lean_model: VGGT, images: Tensor):
    adapted(lean_model.double(), "encoder.*")
    images = images.double()
    with torch.no_grad():
        assert_same(predict(lean_model, images, plan=LEAN_PLAN), lean_model(images), 1e-9)


def test_constructors_on_the_meta_device():
    with torch.device("meta"):
        model = Pair()
    add_lora(model, ["first"])
    assert {p.device.type for p in model.parameters()} == {"meta"}


# Errors


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["first", "frist"], r"^patterns must match a name of the model, got 'frist'; did you mean 'first'\?$"),
        (["norm"], r"^patterns must match linear layers, got 'norm', which matches only LayerNorm$"),
        ("first", r"^patterns must be a sequence of patterns, got 'first'$"),
        ([], r"^patterns must name linear layers, got none$"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_patterns_that_match_no_linear_layer(patterns, message):
    model = Pair()
    with pytest.raises(ValueError, match=message):
        add_lora(model, patterns)
    assert adapted_layers(model) == {}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"rank": 0}, r"^rank must be a whole number, at least 1, got 0$"),
        ({"rank": 2.0}, r"^rank must be a whole number, at least 1, got 2.0$"),
        ({"alpha": 0.0}, r"^alpha must be positive, got 0.0$"),
        ({"alpha": float("inf")}, r"^alpha must be finite, got inf$"),
    ],
)
def test_numbers(numbers, message):
    with pytest.raises(ValueError, match=message):
        add_lora(Pair(), ["first"], **numbers)


def test_layers_that_can_not_be_adapted():
    model = Pair()
    add_lora(model, ["second"])
    with pytest.raises(ValueError, match=r"^second must be a plain .* got one that has an adapter already$"):
        add_lora(model, ["*"])
    assert list(adapted_layers(model)) == ["second"]
    parametrize.register_parametrization(model.first, "weight", nn.Identity())
    with pytest.raises(ValueError, match=r"^first must be a plain .* got one that has a parametrisation already$"):
        add_lora(model, ["first"])


def test_adapters_and_quantised_weights_do_not_mix(lean_model: VGGT):
    pytest.importorskip("torchao")
    quantised = quantize_model(copy.deepcopy(lean_model), "int8")
    with pytest.raises(ValueError, match=r"qkv must have a floating point parameter .* got .*Tensor; quant"):
        add_lora(quantised, ["encoder.frame_blocks.*.qkv"])
    add_lora(lean_model, ["encoder.frame_blocks.0.attention.qkv"])
    message = r"^model must have its adapters merged .*, got one on encoder.frame_blocks.0.attention.qkv$"
    with pytest.raises(ValueError, match=message):
        quantize_model(lean_model, "int8")


def test_states_of_other_adapters():
    model = adapted(Pair(), "first", rank=2)
    state = lora_state(model)
    with pytest.raises(ValueError, match=r"^state must be of the model's adapters, got 'frist.up'; did you mean"):
        load_lora_state(model, {**state, "frist.up": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"^state must have all of the model's adapters, got none of 'first.down'$"):
        load_lora_state(model, {"first.up": state["first.up"]})
    with pytest.raises(ValueError, match=r"^first.up must have shape \(20, 2\), got \(20, 3\)$"):
        load_lora_state(model, {**state, "first.up": torch.zeros(20, 3)})


def test_what_an_adapter_says_of_itself():
    assert repr(LowRank(torch.zeros(3, 4), 2, 1.5)) == "LowRank(rank=2, alpha=1.5)"


@pytest.mark.parametrize("end", [merge_lora, remove_lora])
def test_the_mask_of_a_bias_stays(end):
    model = nn.Sequential(TransformerBlock(16, 2, masked_bias=True))
    model[0].attention.qkv.bias_mask.copy_(torch.arange(48) % 2)
    x = torch.randn(1, 4, 16)
    expected = model(x)
    add_lora(model, ["*.qkv"], rank=2)
    torch.testing.assert_close(model(x), expected)
    end(model)
    assert type(model[0].attention.qkv) is MaskedBiasLinear
    assert model[0].attention.qkv.bias_mask.tolist() == 24 * [0.0, 1.0]
    torch.testing.assert_close(model(x), expected)
