import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import geomtx
from geomtx import VGGT, NVSConfig, VGGTForNVS, VideoTracker, VideoTrackerConfig
from geomtx.checkpoint.files import Checkpoint
from geomtx.models.saved_model import kind_of
from lean import lean_config


def tiny_models() -> dict[str, nn.Module]:
    vggt = lean_config(heads=("camera",))
    tracker = VideoTracker(VideoTrackerConfig.tiny(features="images", vggt=vggt))
    return {"VGGT": VGGT(vggt), "VGGTForNVS": VGGTForNVS(NVSConfig.tiny(vggt=vggt)), "VideoTracker": tracker}


def test_files_say_the_kind_and_older_ones_need_not(tmp_path: Path):
    models = tiny_models()
    for kind, saved in models.items():
        folder = saved.save_pretrained(tmp_path / kind)
        config = json.loads((folder / "config.json").read_text())
        assert config.pop("format") == "geomtx.model"
        assert config.pop("kind") == kind
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            assert json.loads(file.metadata()["geomtx_config"]) == {"kind": kind, **config}
        tensors = saved.state_dict()
        for older in (False, True):
            if older:
                (folder / "config.json").write_text(json.dumps(config))
                stored, metadata = load_file(folder / "model.safetensors"), {"geomtx_config": json.dumps(config)}
                save_file(stored, folder / "model.safetensors", metadata=metadata)
            for source in (folder, folder / "model.safetensors"):
                loaded = type(saved).from_pretrained(source)
                assert loaded.config == saved.config
                assert all(torch.equal(t, tensors[n]) for n, t in loaded.state_dict().items())
                for wanted in models.keys() - {kind, "VGGTForNVS" if kind == "VGGT" else kind}:
                    with pytest.raises(ValueError, match=rf"^weights must be of a {wanted}, got '\S+' of a {kind}; "):
                        type(models[wanted]).from_pretrained(source)


@pytest.mark.parametrize("embedded", [False, True])
def test_the_kind_that_is_written_counts(embedded):
    for numbers in ({"frames": 8, "vggt": {}}, {"window": 8, "vggt": {}}, {"dim": 3}):
        configs = [None, numbers] if embedded else [numbers, None]
        sniffed = kind_of(Checkpoint("file", (), *configs))
        assert sniffed == ("VGGT" if "dim" in numbers else "VideoTracker" if "window" in numbers else "VGGTForNVS")
        for kind in ("VGGT", "VGGTForNVS", "VideoTracker"):
            said = [None if each is None else {**each, "kind": kind} for each in configs]
            assert kind_of(Checkpoint("file", (), *said)) == kind
    assert kind_of(Checkpoint("file", (), None, None)) == "VGGT"


def test_published_files_say_the_kind_within(tmp_path: Path):
    VGGT(lean_config(heads=("camera",))).save_pretrained(tmp_path, names="published")
    assert "kind" not in json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(
        ValueError, match=r"^weights must be of a VideoTracker, got '\S+' of a VGGT; VideoTracker.from_v"
    ):
        VideoTracker.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ["Splats", 3])
def test_a_kind_that_nobody_knows(kind, tmp_path: Path):
    for wanted, saved in tiny_models().items():
        saved.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "kind": kind}))
        message = rf"^weights must be of a {wanted}, got '\S+' of a {kind}; kinds are VGGT, VGGTForNVS, Video"
        with pytest.raises(ValueError, match=message):
            type(saved).from_pretrained(tmp_path)


def test_a_configuration_beside_tensors_of_nobody(tmp_path: Path):
    """It is not taken for a VGGT's, which has numbers of the same names."""
    (tmp_path / "config.json").write_text(json.dumps({"dim": 32, "taps": [0, 1, 2, 3]}))
    save_file({"stem.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"^weights must be of one of .*, got '\S+' with tensors of other names, such as s"
    ):
        geomtx.load_model(tmp_path)


def test_the_call_that_takes_weights_of_another_kind(tmp_path: Path):
    vggt = tmp_path / "vggt"
    VGGT(lean_config(heads=("camera",))).save_pretrained(vggt)
    for wanted in (geomtx.Pi3, geomtx.DepthAnything3):
        with pytest.raises(
            ValueError, match=rf"^weights must be of a {wanted.__name__}, got '\S+' of a VGGT; VGGT.from_p"
        ):
            wanted.from_pretrained(vggt)
    geomtx.Pi3(geomtx.Pi3Config.tiny()).save_pretrained(tmp_path / "pi3")
    with pytest.raises(ValueError, match=r"^weights must be of a VGGT, got '\S+' of a Pi3; Pi3.from_pretrained\("):
        VGGT.from_pretrained(tmp_path / "pi3")
