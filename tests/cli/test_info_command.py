from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import geomtx
from geomtx.cli import main
from geomtx.cli.checkpoint_summary import summarize_checkpoint


def test_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["geomtx"] == geomtx.__version__
    assert lines["torch"] == torch.__version__
    assert "cpu" in lines["devices"]
    assert "sdpa" in lines["attention"]


@pytest.mark.parametrize("names", ["geomtx", "published"])
def test_a_checkpoint(tmp_path: Path, names: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = geomtx.VGGT(geomtx.VGGTConfig.tiny(heads=("camera", "tracks")))
    model.save_pretrained(tmp_path, names=names)
    summary = summarize_checkpoint(str(tmp_path))
    assert summary.naming == names
    assert summary.heads == ("camera", "tracks")
    assert summary.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert summary.dtypes == {"float32": summary.num_tensors}
    assert main(["info", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"names       {names}" in out
    assert "licence     unknown" in out


def test_another_checkpoint(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(1).half()}, tmp_path / "x.safetensors")
    summary = summarize_checkpoint(str(tmp_path / "x.safetensors"))
    assert summary == (2, 7, {"float32": 1, "float16": 1}, "unknown", (), None)


@pytest.mark.parametrize("source", ["nobody/nothing", "nowhere"])
def test_nothing_there(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", source]) == 2
    err = capsys.readouterr().err
    assert err.startswith("geomtx: error: ")
    assert err.count("\n") == 1
