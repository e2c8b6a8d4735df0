from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import geomtx
from geomtx import (
    VGGT,
    DenseHead,
    DepthAnything3,
    DepthAnything3Config,
    DPTDecoder,
    NVSConfig,
    Pi3,
    Pi3Config,
    VGGTConfig,
    VGGTForNVS,
    VGGTOmega,
    VGGTOmegaConfig,
    VideoTracker,
    VideoTrackerConfig,
    list_models,
    load_model,
)
from geomtx.models.published import EMBEDDED, find_weights
from geomtx.models.registry import FAMILIES, empty_model, find_family
from lean import lean_config

FEW = lean_config(heads=("camera",))
MODELS = {
    "VGGT": lambda: VGGT(FEW),
    "VGGTForNVS": lambda: VGGTForNVS(NVSConfig.tiny(vggt=FEW)),
    "DepthAnything3": lambda: DepthAnything3(DepthAnything3Config.tiny()),
    "VGGTOmega": lambda: VGGTOmega(VGGTOmegaConfig.tiny(depth=1, register_layers=(), taps=(0, 0, 0, 0))),
    "VideoTracker": lambda: VideoTracker(VideoTrackerConfig.tiny(vggt=FEW)),
}


@pytest.mark.parametrize("kind", MODELS)
def test_the_class_comes_from_the_configuration_or_the_names(kind, tmp_path: Path):
    model = MODELS[kind]()
    folder = model.save_pretrained(tmp_path)
    for source in (folder, str(folder / "model.safetensors")):
        loaded = load_model(source, dtype=torch.float64)
        assert type(loaded) is type(model)
        assert not loaded.training
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float64}
    # A file of others has names only.
    tensors = load_file(folder / "model.safetensors")
    for prefix in ("", "module."):
        save_file({prefix + name: tensor for name, tensor in tensors.items()}, tmp_path / "bare.safetensors")
        assert find_family(tmp_path / "bare.safetensors").model is type(model)
    if kind in ("VGGTForNVS", "VideoTracker"):
        with pytest.raises(
            ValueError, match=f"^weights must have a configuration, got .* tensors of a {kind} alone; the"
        ):
            load_model(tmp_path / "bare.safetensors")


def test_published_names_are_a_vggts(tmp_path: Path):
    MODELS["VGGT"]().save_pretrained(tmp_path, names="published")
    assert type(load_model(tmp_path)) is VGGT


def test_some_heads(tmp_path: Path):
    assert load_model("nano", heads=("depth",)).heads == ("depth",)
    MODELS["VideoTracker"]().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^heads must be None for weights of a VideoTracker, got \('depth',\)$"):
        load_model(tmp_path, heads=("depth",))


def test_weights_of_no_family(tmp_path: Path):
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    families = ", ".join(family.model.__name__ for family in FAMILIES)
    wanted = rf"^weights must be of one of {families}, got .* with tensors of o"
    with pytest.raises(ValueError, match=wanted):
        load_model(tmp_path / "w.safetensors")


@pytest.mark.parametrize("names", ["geomtx", "published"])
def test_a_configuration_of_another_class_beside_the_weights(names, tmp_path: Path):
    folder = MODELS["DepthAnything3"]().save_pretrained(tmp_path / "weights", names=names)
    other = MODELS["VGGT"]().save_pretrained(tmp_path / "other")
    (other / "config.json").replace(folder / "config.json")
    wanted = "^config.json must be of the weights beside it, got that of a VGGT beside tensors of a DepthAnything3 in"
    for load in (load_model, find_family, VGGT.from_pretrained, DepthAnything3.from_pretrained):
        with pytest.raises(ValueError, match=wanted):
            load(folder)
    # Also where the file itself doesn't say what it is
    file = folder / "model.safetensors"
    save_file(load_file(file), file)
    with pytest.raises(ValueError, match=wanted):
        load_model(folder)


def test_an_added_head_may_have_the_name_of_another_class_s_part(tmp_path: Path):
    model = MODELS["VGGT"]()
    decoder = DPTDecoder(2 * FEW.dim, 16, channels=(16, 16, 32, 32), taps=FEW.taps)
    model.add_head("dense_head", DenseHead(decoder, 3))  # as in a DepthAnything3
    again = load_model(model.save_pretrained(tmp_path))
    assert type(again) is VGGT
    assert set(again.extra_heads) == {"dense_head"}


def test_known_weights():
    names = [weights.name for weights in list_models()]
    assert names[:3] == ["nano", "facebook/VGGT-1B", "facebook/VGGT-1B-Commercial"]
    assert names[3:5] == ["depth-anything/DA3-SMALL", "depth-anything/DA3-BASE"]
    assert [weights.name for weights in list_models("*vggt*commercial")] == names[2:3]
    assert [weights.name for weights in list_models("vggt*")] == [
        *names[1:3],
        *(name for name in names if "Omega" in name),
    ]
    assert [weights.name for weights in list_models("da3*")] == names[3:15]
    assert [weights.name for weights in list_models("pi3*")] == ["yyfz233/Pi3", "yyfz233/Pi3X"]
    for weights, preset in zip(list_models("pi3*"), ("pi3", "pi3x"), strict=True):
        with torch.device("meta"):
            pi3 = Pi3(getattr(Pi3Config, preset)())
        assert weights.num_parameters == sum(p.numel() for p in pi3.parameters())
    for weights, preset in zip(list_models("da3-*e"), ("base", "large"), strict=True):
        with torch.device("meta"):
            model = DepthAnything3(getattr(DepthAnything3Config, preset)())
        assert weights.num_parameters == sum(p.numel() for p in model.parameters())
    assert list_models("nothing") == []
    assert {weights.kind for weights in list_models()} <= {family.model.__name__ for family in FAMILIES}
    with torch.device("meta"):
        large = VGGT(VGGTConfig())
    assert [w.num_parameters for w in list_models("*VGGT-1B*")] == 2 * [sum(p.numel() for p in large.parameters())]
    for name in EMBEDDED:
        (weights,) = list_models(name)
        assert weights.size == (Path(find_weights(name)) / "model.safetensors").stat().st_size
        assert weights.num_parameters == sum(p.numel() for p in geomtx.load_model(name).parameters())


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("nanoo", r"^weights must be a file, a folder or a hub id .*, got 'nanoo'; did you mean 'nano'\?$"),
        ("da3-small", r", got 'da3-small'; did you mean 'depth-anything/DA3-SMALL'\?$"),
        ("Pi3X", r", got 'Pi3X'; did you mean 'yyfz233/Pi3X'\?$"),
        ("some/w.safetensors", r"^weights must be a file, a folder or a hub id .*, got 'some/w.safetensors'$"),
        ("some/w.pt", r"^weights must be a file, a folder or a hub id .*, got 'some/w.pt'$"),
        ("a/b/c", r"^weights must be a file, a folder or a hub id .*, got 'a/b/c'$"),
        (
            "facebook/VGGT-1b",
            r"; without a network, download .* their folder; did you mean 'facebook/VGGT-1B' or",
        ),
    ],
)
def test_names_that_are_not_there(source, wanted, monkeypatch, tmp_path: Path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=wanted):
        load_model(source)


@pytest.mark.parametrize("kind", ["DUSt3R", "MASt3R"])
def test_models_of_pairs_are_there_without_values(tmp_path, kind):
    model = getattr(geomtx, kind)(getattr(geomtx, f"{kind}Config").tiny())
    model.save_pretrained(tmp_path)
    empty = empty_model(tmp_path)
    assert type(empty) is type(model)
    assert empty.config == model.config
    assert next(empty.parameters()).is_meta
