from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import geomtx
from geomtx.scene.files import write_archive
from geomtx.types import DenseMap
from geomtx.views import ViewTransform


def test_the_safetensors_package_reads_every_map(scene: geomtx.Scene, tmp_path: Path) -> None:
    transforms = (ViewTransform((50, 60), (84, 112), (2.0, 1.7)), *scene.transforms[1:])
    scene = dataclasses.replace(scene, transforms=transforms)
    write_archive(tmp_path / "a.safetensors", scene, maps="original")
    tensors = load_file(tmp_path / "a.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items() if "original" not in name} == {
        "images": (4, 3, 84, 112),
        "mask": (4, 84, 112),
        "transforms": (4, 3, 3),
        "cam_from_world": (4, 3, 4),
        "intrinsics": (4, 3, 3),
        "intrinsics_model": (4, 3, 3),
        "pose_encodings": (2, 4, 9),
        "depth": (4, 84, 112),
        "depth_confidence": (4, 84, 112),
        "points": (4, 84, 112, 3),
        "points_confidence": (4, 84, 112),
        "query_points": (2, 3),
        "track_coords_px": (4, 2, 2),
        "track_coords_px_model": (4, 2, 2),
        "track_visibility": (4, 2),
        "track_confidence": (4, 2),
    }
    assert scene.depth is not None
    for name, depth in zip(scene.names, scene.depth, strict=True):
        assert torch.equal(tensors[f"original/{name}/depth"], depth.value)
        assert torch.equal(tensors[f"original/{name}/depth_confidence"], depth.confidence)
    assert tensors["original/view_0.png/depth"].shape == (50, 60)
    torch.testing.assert_close(tensors["transforms"][0], transforms[0].matrix)


def test_metadata_says_what_is_in_the_file(scene: geomtx.Scene, tmp_path: Path) -> None:
    write_archive(tmp_path / "a.safetensors", scene)
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        metadata = file.metadata()
        assert not any(name.startswith("original/") for name in file.keys())  # noqa: SIM118
    assert (metadata["format"], metadata["version"], metadata["units"]) == ("geomtx.scene", "1", "up to scale")
    views = json.loads(metadata["views"])
    assert [view["name"] for view in views] == list(scene.names)
    assert views[0]["original_hw"] == [84, 112]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_written_as_float32(scene: geomtx.Scene, tmp_path: Path, dtype: torch.dtype) -> None:
    assert scene.predictions.depth is not None
    half = DenseMap(*(each.to(dtype) for each in scene.predictions.depth))
    write_archive(
        tmp_path / "a.safetensors",
        dataclasses.replace(scene, predictions=scene.predictions._replace(depth=half)),
        maps="original",
    )
    loaded = geomtx.Scene.load(tmp_path / "a.safetensors").predictions.depth
    assert loaded is not None
    assert torch.equal(loaded.value, half.value.float())


def test_wrong_maps(scene: geomtx.Scene, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="maps must be one of 'original', 'network', got 'all'"):
        write_archive(tmp_path / "a.safetensors", scene, maps="all")


def test_what_is_no_scene(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a scene must be a folder with scene\.safetensors or such a file"):
        geomtx.Scene.load(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "scene.safetensors")
    with pytest.raises(ValueError, match=r"must hold a scene of format geomtx\.scene 1, got None None"):
        geomtx.Scene.load(tmp_path)
    (tmp_path / "scene.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="truncated or no safetensors file"):
        geomtx.Scene.load(tmp_path)


@pytest.mark.parametrize(
    ("without", "metadata", "message"),
    [
        ("mask", {}, "no 'mask'"),
        ("depth_confidence", {}, "no 'depth_confidence'"),
        ("", {"views": "[{"}, "Expecting"),
        ("", {"views": "[]"}, r"images must have shape \(0, 3, H, W\)"),
        ("", {"views": '[{"name": "a"}]'}, "images must have shape"),
        ("", {"views": "[{}, {}, {}, {}]"}, "no 'name'"),
        ("", {"views": "[1, 2, 3, 4]"}, "'int'"),
    ],
)
def test_a_damaged_scene_is_named(
    scene: geomtx.Scene, tmp_path: Path, without: str, metadata: dict[str, str], message: str
) -> None:
    path = tmp_path / "scene.safetensors"
    write_archive(path, scene)
    with safe_open(path, framework="pt") as file:
        found = file.metadata()
    tensors = load_file(path)
    tensors.pop(without, None)
    save_file(tensors, path, metadata={**found, **metadata})
    with pytest.raises(
        ValueError, match=rf"scene\.safetensors must hold a whole scene, got a damaged one: .*{message}"
    ):
        geomtx.Scene.load(path)
