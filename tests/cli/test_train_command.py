from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch

import geomtx
from geomtx.cli import main
from geomtx.cli.failure import describe_error

SMALL = """
model: {preset: tiny, numbers: {heads: [camera], depth: 2, taps: [0, 0, 1, 1], camera_depth: 1, image_size: 28}}
data: {image_hw: [28, 28], images: 4, views: {2: 1}}
optimiser: {lr: 1e-3}
schedule: {steps: 2}
log: {tensorboard: false}
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return str(path)


@pytest.fixture(autouse=True)
def _handlers() -> object:
    """The command's signal handlers go with it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_train_and_resume(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["train", config, "-o", str(out), "--cpu"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("parameters on cpu, steps 0 to 2")
    assert said[1] == f"wrote {out}/weights after step 2 of 2"
    assert geomtx.VGGT.from_pretrained(out / "weights").heads == ("camera",)
    assert main(["train", config, "-o", str(out), "--cpu", "--resume", "--set", "schedule.steps=3"]) == 0
    assert "steps 2 to 3" in capsys.readouterr().out
    assert torch.load(out / "checkpoint.pt", weights_only=True)["step"] == 3
    assert main(["train", config, "-o", str(out), "--cpu"]) == 2
    assert "--resume goes on with it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.yaml"], "nvs, nvs_nano, video_tracker, video_tracker_nano, got 'nothing.yaml'"),
        (["nano", "--set", "optimizer.lr=1"], "got 'optimizer'; did you mean 'optimiser'?"),
        (["finetune"], "data.datasets.co3d.root must name a folder, got none"),
    ],
)
def test_errors_are_one_line(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["train", *arguments, "-o", str(tmp_path / "run"), "--cpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("geomtx: error: ")
    assert message in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["config.yaml", "log.jsonl", "weights/model.safetensors", "weights/config.json"])
def test_files_of_others_are_not_replaced(name: str, config: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    mine = tmp_path / "run" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert main(["train", config, "-o", str(tmp_path / "run"), "--cpu"]) == 2
    assert f"must not hold files of others under the names of results, got {name};" in capsys.readouterr().err
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_file()] == [mine]
    assert mine.read_text() == "mine"


def test_overwrite_begins_anew(config: str, tmp_path: Path):
    out = tmp_path / "run"
    assert main(["train", config, "-o", str(out), "--cpu", "--set", "checkpoint.keep_every=1"]) == 0
    (out / "weights" / "model.safetensors").write_text("mine")
    assert main(["train", config, "-o", str(out), "--cpu", "--overwrite", "--set", "schedule.steps=1"]) == 0
    assert torch.load(out / "checkpoint.pt", weights_only=True)["step"] == 1
    assert len((out / "log.jsonl").read_text().splitlines()) == 1
    assert geomtx.VGGT.from_pretrained(out / "weights").heads == ("camera",)
    assert [path.name for path in out.glob("*.pt")] == ["checkpoint.pt"], "kept checkpoints of the other run go too"
    (out / "checkpoint.pt").rename(out / "checkpoint-0000001.pt")
    assert main(["train", config, "-o", str(out), "--cpu"]) == 2, "a kept checkpoint is one of a run too"


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_what_is_read_is_not_written_over(
    overwrite: list[str], config: str, tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = tmp_path / "run"
    weights = geomtx.VGGT(geomtx.VGGTConfig.tiny()).save_pretrained(out / "weights")
    before = (weights / "model.safetensors").read_bytes()
    from_weights = ["--set", f"model={{weights: {weights}}}"]
    assert main(["train", config, "-o", str(out), "--cpu", *from_weights, *overwrite]) == 2
    assert "must not hold an input under the name of a result" in capsys.readouterr().err
    assert (weights / "model.safetensors").read_bytes() == before
    own = Path(config).rename(tmp_path / "config.yaml")
    assert main(["train", str(own), "-o", str(tmp_path), "--cpu", *overwrite]) == 2
    assert f"'config.yaml' in it is '{own}'" in capsys.readouterr().err
    assert own.read_text() == SMALL


@pytest.mark.parametrize("name", ["checkpoint.pt", "checkpoint-0000002.pt"])
def test_a_checkpoint_that_is_read_is_not_removed(
    name: str, config: str, tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = tmp_path / "run"
    out.mkdir()
    torch.save({}, out / name)
    before = (out / name).read_bytes()
    (tmp_path / "link.pt").symlink_to(out / name)
    for weights in (out / name, tmp_path / "link.pt", out):
        argv = ["train", config, "-o", str(out), "--cpu", "--overwrite", "--set", f"model={{weights: {weights}}}"]
        assert main(argv) == 2
        assert f"under the name of a result, but '{name}' in it is" in capsys.readouterr().err
        assert (out / name).read_bytes() == before


def test_a_run_goes_on_with_its_own_configuration(config: str, tmp_path: Path):
    out = tmp_path / "run"
    assert main(["train", config, "-o", str(out), "--cpu"]) == 0
    before = (out / "config.yaml").read_bytes()
    assert main(["train", str(out / "config.yaml"), "-o", str(out), "--cpu", "--resume"]) == 0
    assert (out / "config.yaml").read_bytes() == before


def test_weights_of_others_are_found_before_a_run_goes_on(config: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "run"
    assert main(["train", config, "-o", str(out), "--cpu", "--set", "schedule.steps=1"]) == 0
    described = json.loads((out / "weights" / "config.json").read_text())
    (out / "weights" / "config.json").write_text('{"model_type": "other"}')
    resume = ["train", config, "-o", str(out), "--cpu", "--resume"]
    capsys.readouterr()
    assert main(resume) == 2
    said = capsys.readouterr()
    assert "under the names of results, got config.json;" in said.err
    assert said.out == "", "before the first step"
    assert main([*resume, "--overwrite"]) == 0
    assert json.loads((out / "weights" / "config.json").read_text()) == described
    del described["format"]  # as version 0.1.0 wrote it
    (out / "weights" / "config.json").write_text(json.dumps(described))
    assert main([*resume, "--set", "schedule.steps=3"]) == 0


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_the_output_must_be_a_folder(resume: list[str], config: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    file = tmp_path / "run"
    file.write_text("mine")
    assert main(["train", config, "-o", str(file), "--cpu", *resume]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"geomtx: error: output must be a folder, got '{file}', which is a file"
    assert file.read_text() == "mine"
    file.unlink()
    file.symlink_to("nowhere")
    assert main(["train", config, "-o", str(file), "--cpu", *resume]) == 2
    assert "which is a link to nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "advice", "other"),
    [
        ("train", "--set gradient_checkpointing=true", "--size"),
        ("demo", "fewer --views or --device cpu", "--size"),
        ("reconstruct", "fewer photos, a smaller --size or --view-chunk 1", "--set"),
    ],
)
def test_advice_is_of_options_that_the_command_has(command: str, advice: str, other: str) -> None:
    said = describe_error(MemoryError("no. More"), command)
    assert advice in said
    assert other not in said
    assert said.endswith("(no)")


def test_a_command_without_memory_gets_its_own_advice(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("geomtx.training.config_file.load_config", fail)
    assert main(["train", config]) == 2
    assert "out of memory; use --set gradient_checkpointing=true" in capsys.readouterr().err


def test_sigterm_stops_with_a_checkpoint(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    arguments = ["train", config, "-o", str(out), "--cpu", "--set", "schedule.steps=100000", "--set", "data.workers=1"]

    over = threading.Event()

    def stop_after_a_step() -> None:
        while not (out / "log.jsonl").exists():
            if over.wait(0.05):
                return
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop_after_a_step)
    stopper.start()
    try:
        assert main(arguments) == 0
    finally:
        over.set()
        stopper.join()
    assert " of 100000" in capsys.readouterr().out
    assert 1 <= torch.load(out / "checkpoint.pt", weights_only=True)["step"] < 100_000


def test_without_the_extra(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    for package in ("yaml", "accelerate"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            assert main(["train", config, "-o", str(tmp_path / "run"), "--cpu"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line == f"geomtx: error: training needs {package}, which is not installed: pip install geomtx[train]"
