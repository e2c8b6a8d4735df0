import argparse
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import geomtx
from geomtx import CroCo, CroCoConfig, DUSt3R, DUSt3RConfig, MASt3R, MASt3RConfig
from geomtx.cli.checkpoint_summary import summarize_checkpoint
from geomtx.models.dust3r.croco import draw_hidden
from geomtx.models.dust3r.keys import DUST3R_KEYS
from reference import named_tensors, relative_error, without_gradient

MODELS = {
    "dpt": lambda: DUSt3R(DUSt3RConfig.tiny()),
    "linear": lambda: DUSt3R(DUSt3RConfig.tiny(head="linear", image_size=224)),
    "mast3r": lambda: MASt3R(MASt3RConfig.tiny()),
}


@pytest.fixture(params=MODELS)
def model(request) -> DUSt3R:
    return MODELS[request.param]().eval()


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(2, 3, 48, 32), torch.rand(2, 3, 32, 64)


def assert_same(got, expected, tolerance: float = 1e-9) -> None:
    got, expected = named_tensors(got), named_tensors(expected)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=tolerance, atol=tolerance, msg=lambda text, n=name: n + text)


@torch.no_grad()
def test_images_are_encoded_once_and_pairs_do_not_see_each_other(model, images):
    model, (first, second) = model.double(), [each.double() for each in images]
    both = model(first, second)
    assert both.first.points.value.shape == (2, 48, 32, 3)
    assert both.second.points.confidence.shape == (2, 32, 64)
    assert (both.second.points.confidence > 1).all()
    assert (both.first.descriptors is not None) == isinstance(model, MASt3R)
    a, b = model.encode(first), model.encode(second)
    assert_same(model.decode(a, b), both, 0)
    one = named_tensors(model(first[1:], second[1:]))
    for name, tensor in named_tensors(both).items():
        torch.testing.assert_close(one[name], tensor[1:], rtol=1e-9, atol=1e-9)
    other = model(first, second.flip(0))
    assert relative_error(other.first.points.value, both.first.points.value) > 1e-6  # each image sees the other


@torch.no_grad()
def test_transposed_images_are_seen_upright(model):
    model = model.double()
    first, second = (torch.rand(4, 3, 32, 48, dtype=torch.float64) for _ in range(2))
    turned = ([True, False, True, False], [False, False, True, True])
    found = named_tensors(model(first, second, turned))
    for row in range(4):
        images = [
            (each[row : row + 1].mT if mask[row] else each[row : row + 1])
            for each, mask in zip((first, second), turned, strict=True)
        ]
        for name, tensor in named_tensors(model(*images)).items():
            upright = tensor.transpose(1, 2) if turned[name.startswith("second")][row] else tensor
            torch.testing.assert_close(found[name][row : row + 1], upright, rtol=1e-9, atol=1e-9)


def test_all_parameters_but_the_unused_learn(model, images):
    prediction = named_tensors(model(*images))
    sum(tensor.square().mean() for tensor in prediction.values()).backward()
    unused = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert set(without_gradient(model)) == unused
    assert all("mask_token" in name or "fuse.3.skip_unit" in name for name in unused)


@pytest.mark.parametrize("kept", ["first", "second", "both"])
def test_either_name_of_a_tensor_is_taken(kept, tmp_path: Path):
    """Published files have `layer1_rn` and `layer_rn.0` for one tensor, or only one of them."""
    model = DUSt3R(DUSt3RConfig.tiny())
    tensors = load_file(model.save_pretrained(tmp_path, names="published") / "model.safetensors")
    other = {
        f"downstream_head{head}.dpt.scratch.layer{level + 1}_rn.weight": (
            f"downstream_head{head}.dpt.scratch.layer_rn.{level}.weight"
        )
        for head in (1, 2)
        for level in range(4)
    }
    assert other.keys() <= tensors.keys()
    second = {other[name]: tensor.clone() for name, tensor in tensors.items() if name in other}
    if kept == "second":
        tensors = {name: tensor for name, tensor in tensors.items() if name not in other}
    save_file(tensors | (second if kept != "first" else {}), tmp_path / "other.safetensors")
    loaded = DUSt3R.from_pretrained(tmp_path / "other.safetensors", config=model.config)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_published_pickle_and_what_is_wrong_with_a_file(tmp_path: Path):
    model = DUSt3R(DUSt3RConfig.tiny())
    state = {DUST3R_KEYS.to_published(name): tensor for name, tensor in model.state_dict().items()}
    arguments = argparse.Namespace(model="a call as text", lr=1e-4)
    torch.save({"args": arguments, "model": state}, tmp_path / "weights.pth")
    loaded = DUSt3R.from_pretrained(tmp_path / "weights.pth", config=model.config)
    assert torch.equal(loaded.decoder.embed.weight, model.decoder.embed.weight)
    with pytest.raises(ValueError, match=r"^weights must have tokens of 1024, 768, 512 channels, got .* with 24$"):
        DUSt3R.from_pretrained(tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"^weights must be of a MASt3R, got .*weights.pth' of a DUSt3R; "):
        MASt3R.from_pretrained(tmp_path / "weights.pth")
    del state["decoder_embed.bias"], state["mask_token"]
    torch.save(state | {"decoder_bed.bias": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"fit the model: decoder_bed.bias is unexpected, decoder.embed.bias is miss"):
        DUSt3R.from_pretrained(tmp_path / "weights.pth", config=model.config)


@pytest.mark.usefixtures("unchecked")
def test_wrong_inputs(model):
    with pytest.raises(ValueError, match=r"^images must have shape \(N, 3, H, W\), got \(3, 32, 32\)$"):
        model.encode(torch.rand(3, 32, 32))
    with pytest.raises(ValueError, match=r"^image width must be a multiple of 16, got 40$"):
        model.encode(torch.rand(1, 3, 32, 40))
    with pytest.raises(ValueError, match=r"^second must have 2 images, as first, got 3$"):
        model(torch.rand(2, 3, 32, 32), torch.rand(3, 3, 32, 32))
    for turned, message in (
        (([True], [False] * 2), "2 first images, got 1"),
        (([True] * 2, []), "2 second images, got 0"),
    ):
        with pytest.raises(ValueError, match=rf"^transposed must be of {message}$"):
            model(torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32), turned)
    with pytest.raises(ValueError, match=r"^config must be a (DUSt3R|MASt3R)Config, got CroCoConfig$"):
        type(model)(CroCoConfig.tiny())


# CroCo


@pytest.mark.parametrize("rope_base", [100.0, None])
def test_croco_completes_and_its_weights_come_back(rope_base, tmp_path: Path):
    model = CroCo(CroCoConfig.tiny(rope_base=rope_base)).eval()
    first, second, hidden = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64), draw_hidden(2, 16)
    assert hidden.sum(1).tolist() == [14, 14]
    out = model(first, second, hidden)
    geomtx.losses.completion_loss(out, 2 * first - 1, hidden).backward()
    fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert set(without_gradient(model)) == fixed
    assert len(fixed) == (0 if rope_base else 2)
    for names in ("geomtx", "published"):
        loaded = geomtx.load_model(model.save_pretrained(tmp_path, names=names))
        assert loaded.config == model.config
        assert torch.equal(loaded(first, second, hidden), out)
    assert summarize_checkpoint(str(tmp_path)).heads == ("completion",)


def test_dust3r_begins_with_the_weights_of_croco(tmp_path: Path, images):
    croco = CroCo(CroCoConfig.tiny())
    folder = croco.save_pretrained(tmp_path)
    model = DUSt3R.from_croco(folder, DUSt3RConfig.tiny())
    assert_same(model.encode(images[0]).layers[0], croco.encode(images[0]).layers[0], 0)
    for blocks in (model.decoder.first_blocks, model.decoder.second_blocks):
        assert torch.equal(blocks[3].mlp.expand.weight, croco.decoder.blocks[3].mlp.expand.weight)
    with pytest.raises(ValueError, match=r"^depth must be CroCo's 4, got 2$"):
        DUSt3R.from_croco(folder, DUSt3RConfig.tiny(depth=2))
    croco = CroCo(CroCoConfig.tiny(rope_base=None))
    with pytest.raises(ValueError, match=r"^rope_base must be CroCo's None, got 100.0$"):
        DUSt3R.from_croco(croco.save_pretrained(tmp_path, overwrite=True), DUSt3RConfig.tiny())
