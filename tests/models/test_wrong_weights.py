"""Weights of another class or variant than the one that is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import geomtx
from geomtx.models.registry import FAMILIES as CLASSES
from lean import build_lean

TINY = {
    "VGGT": lambda: build_lean(heads=("camera",)),
    "DepthAnything3": lambda: geomtx.DepthAnything3(geomtx.DepthAnything3Config.tiny()),
    "NestedDepthAnything3": lambda: geomtx.NestedDepthAnything3(geomtx.NestedDepthAnything3Config.tiny()),
    "VGGTOmega": lambda: geomtx.VGGTOmega(geomtx.VGGTOmegaConfig.tiny()),
    "Pi3": lambda: geomtx.Pi3(geomtx.Pi3Config.tiny()),
    "DUSt3R": lambda: geomtx.DUSt3R(geomtx.DUSt3RConfig.tiny()),
    "MASt3R": lambda: geomtx.MASt3R(geomtx.MASt3RConfig.tiny()),
}


@pytest.mark.parametrize("kind", TINY)
def test_other_classes_name_the_right_one(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geomtx.checkpoint.files, "_say_unwrapped", geomtx.checkpoint.files._say_unwrapped.__wrapped__)
    TINY[kind]().save_pretrained(tmp_path / "weights", names="published")
    # Tensors alone, as most are published.
    file = tmp_path / "tensors.safetensors"
    save_file(load_file(tmp_path / "weights" / "model.safetensors"), file)
    others = [family.model for family in CLASSES if family.model.__name__ in TINY and family.model.__name__ != kind]
    assert len(others) == len(TINY) - 1
    for other in others:
        with pytest.raises(
            ValueError, match=rf"^weights must be of a {other.__name__}, got '.*' of a {kind}; "
        ) as error:
            other.from_pretrained(file)
        assert f"{kind}.from_pretrained('{file}') takes them" in str(error.value)
    assert not caplog.messages


@pytest.mark.parametrize("known_geometry", [False, True])
def test_another_variant_is_named(tmp_path: Path, known_geometry: bool) -> None:
    geomtx.Pi3(geomtx.Pi3Config.tiny(known_geometry=known_geometry)).save_pretrained(tmp_path / "weights")
    other = geomtx.Pi3Config.tiny(known_geometry=not known_geometry)
    with pytest.raises(
        ValueError, match=f"variant that config is of, got others, with known_geometry={known_geometry}"
    ):
        geomtx.Pi3.from_pretrained(tmp_path / "weights", config=other)
    loaded = geomtx.Pi3.from_pretrained(tmp_path / "weights")
    assert loaded.config.known_geometry is known_geometry
    assert all(torch.isfinite(parameter).all() for parameter in loaded.parameters())
