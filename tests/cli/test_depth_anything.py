from pathlib import Path

import torch
from PIL import Image

from geomtx import DepthAnything3, DepthAnything3Config, Scene
from geomtx.cli import main
from lean import visible


def test_photos_with_published_names(tmp_path: Path, capsys):
    """As with a folder from the hub: names that begin with "model.", and a config.json with the model's name."""
    config = DepthAnything3Config.tiny(depth=6, taps=(3, 3, 5, 5))
    visible(DepthAnything3(config)).save_pretrained(tmp_path / "weights", names="published")
    for index in range(3):
        pixels = torch.randint(0, 255, (40, 60, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{index}.png")
    photos = [str(tmp_path / f"{index}.png") for index in range(3)]
    assert main(["reconstruct", *photos, "-o", str(tmp_path / "out"), "--weights", str(tmp_path / "weights")]) in (
        0,
        None,
    )
    scene = Scene.load(tmp_path / "out")
    assert scene.predictions.depth.value.shape[0] == 3
    torch.testing.assert_close(scene.cameras.cam_from_world[0], torch.eye(3, 4), atol=1e-5, rtol=0)
    assert "3 views" in capsys.readouterr().out
