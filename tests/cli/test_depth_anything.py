import json
from pathlib import Path

import torch
from PIL import Image

from geomtx import DepthAnything3, DepthAnything3Config, Scene
from geomtx.cli import main
from lean import visible


def made(tmp_path: Path) -> tuple[str, list[str]]:
    """A folder of weights as from the hub, with names that begin with "model." and a config.json; and photos."""
    config = DepthAnything3Config.tiny(depth=6, taps=(3, 3, 5, 5))
    visible(DepthAnything3(config)).save_pretrained(tmp_path / "weights", names="published")
    for index in range(3):
        pixels = torch.randint(0, 255, (40, 60, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{index}.png")
    return str(tmp_path / "weights"), [str(tmp_path / f"{index}.png") for index in range(3)]


def test_photos_with_published_names(tmp_path: Path, capsys):
    weights, photos = made(tmp_path)
    assert main(["reconstruct", *photos, "-o", str(tmp_path / "out"), "--weights", weights]) == 0
    scene = Scene.load(tmp_path / "out")
    assert scene.predictions.depth.value.shape[0] == 3
    torch.testing.assert_close(scene.cameras.cam_from_world[0], torch.eye(3, 4), atol=1e-5, rtol=0)
    assert "3 views" in capsys.readouterr().out


def test_known_cameras_are_an_input(tmp_path: Path, capsys):
    """All of a run's own cameras, moved to a world of 3 m a unit; those of some photos only are refused."""
    weights, photos = made(tmp_path)
    assert main(["reconstruct", *photos, "-o", str(tmp_path / "first"), "--weights", weights]) == 0
    known = json.loads((tmp_path / "first" / "cameras.json").read_text())
    first = Scene.load(tmp_path / "first").rescale(3.0, units="metres")
    first.save(tmp_path / "known")
    command = ["reconstruct", *photos, "--weights", weights, "--cameras"]
    assert main([*command, str(tmp_path / "known" / "cameras.json"), "-o", str(tmp_path / "out")]) == 0
    assert "of 3 cameras agree" in capsys.readouterr().out
    scene = Scene.load(tmp_path / "out")
    torch.testing.assert_close(scene.cameras.cam_from_world, first.cameras.cam_from_world, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scene.cameras.intrinsics, first.cameras.intrinsics, rtol=1e-4, atol=1e-3)
    assert scene.units == "metres"
    known["views"] = known["views"][:2]
    (tmp_path / "some.json").write_text(json.dumps(known))
    assert main([*command, str(tmp_path / "some.json"), "-o", str(tmp_path / "none")]) == 2
    assert "known cameras must have a pose for all 3 photos, as this model takes" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
