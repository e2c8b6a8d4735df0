from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import geomtx
from geomtx.cli import main
from geomtx.cli.checkpoint_summary import summarize_checkpoint
from geomtx.cli.info import _describe_attention
from geomtx.layers import BackendTime


def test_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["geomtx"] == geomtx.__version__
    assert lines["torch"] == torch.__version__
    assert "cpu" in lines["devices"]
    assert "sdpa" in lines["attention"]


def test_times_of_attention_backends(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert " sdpa_cudnn is not usable here: q, k and v must suit PyTorch's kernel CUDNN_ATTENTION" in out
    lines = [line.split() for line in out.splitlines()]
    start = lines.index(["ms", "on", "cpu", "1", "x", "128", "tokens", "1", "x", "512", "tokens"])
    rows = {name: cells for name, *cells in lines[start + 1 :]}
    assert all(0 < float(cell) < 1e5 for name in ("sdpa", "sdpa_flash") for cell in rows[name][:2])
    assert ["sdpa_efficient", "-", "-"] in lines


def test_the_fastest_backend_of_an_accelerator_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def made_up(device: torch.device, *_: object, num_tokens: int, **__: object) -> dict[str, BackendTime]:
        times = {name: BackendTime(float(num_tokens), None) for name in ("sdpa", "sdpa_flash", "sdpa_cudnn")}
        times["sdpa_efficient"] = BackendTime(None, "too old")
        times["sdpa_flash"] = BackendTime(1.0 if num_tokens > 2000 else 2000.0, None)
        return times

    monkeypatch.setattr("geomtx.layers.backends.measure_backends", made_up)
    facts = _describe_attention(torch.device("meta", 1), ["math", "sdpa", "sdpa_flash", "sdpa_cudnn", "sdpa_efficient"])
    lines = [value.split() for _, value in facts]
    assert lines[0] == ["ms", "on", "meta:1", "8", "x", "1024", "tokens", "1", "x", "8192", "tokens"]
    assert ["sdpa_flash", "2000.000", "1.000"] in lines
    assert ["fastest", "sdpa", "sdpa_flash"] in lines
    assert [value for _, value in facts][-2:] == [
        "(bfloat16, 16 heads of 64 channels)",
        "sdpa_efficient is not usable here: too old",
    ]


def test_a_device_that_fails_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("busy\nmore")

    monkeypatch.setattr("geomtx.layers.backends.measure_backends", fail)
    assert _describe_attention(torch.device("cpu"), ["sdpa"]) == [("", "not measured on cpu: busy")]


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
    assert summary == (2, 7, {"float32": 1, "float16": 1}, "unknown", (), None, "")


@pytest.mark.parametrize("source", ["nobody/nothing", "nowhere"])
def test_nothing_there(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", source]) == 2
    err = capsys.readouterr().err
    assert err.startswith("geomtx: error: ")
    assert err.count("\n") == 1
