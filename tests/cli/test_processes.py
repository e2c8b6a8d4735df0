from pathlib import Path

import pytest
import torch

import geomtx
from geomtx.cli import main
from geomtx.cli.device import device_of_process, is_first_process, joined_processes, num_processes
from processes import start, wait_for
from reference import named_tensors


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The second of two processes."""
    variables = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_one_process(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert (num_processes(), is_first_process()) == (1, True)
    assert device_of_process(torch.device("cuda", 1)) == torch.device("cuda", 1)
    with joined_processes(torch.device("cpu")):
        assert not torch.distributed.is_initialized()


def test_what_a_cluster_sets_is_no_torchrun(environment: pytest.MonkeyPatch):
    environment.delenv("MASTER_PORT")
    assert (num_processes(), is_first_process()) == (1, True)
    environment.setenv("MASTER_PORT", "1")
    environment.setenv("WORLD_SIZE", "two")
    with pytest.raises(ValueError, match=r"^WORLD_SIZE must be a whole number, got 'two'$"):
        num_processes()


def test_of_two_processes_one_writes(environment: pytest.MonkeyPatch):
    assert (num_processes(), is_first_process()) == (2, False)
    environment.setenv("RANK", "0")
    assert is_first_process()


def test_each_process_has_a_gpu_of_its_own(environment: pytest.MonkeyPatch):
    chosen = []
    environment.setattr(torch.cuda, "device_count", lambda: 2)
    environment.setattr(torch.cuda, "set_device", chosen.append)
    assert device_of_process(torch.device("cuda")) == torch.device("cuda", 1)
    assert chosen == [1]
    assert device_of_process(torch.device("cpu")) == torch.device("cpu")
    for name in ("cuda:0", "mps"):
        message = f"^--device must be cpu or cuda, without a number, for several processes, got '{name}'$"
        with pytest.raises(ValueError, match=message):
            device_of_process(torch.device(name))
    environment.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"^processes of a machine must be at most as many as its GPUs, 1, got 2$"):
        device_of_process(torch.device("cuda"))


SMALL_PICTURES = """
import sys
from geomtx.cli import main
from geomtx.report import layout

layout._DPI = 20
sys.exit(main())
"""


def test_two_processes_reconstruct_what_one_does(photos: Path, tmp_path: Path):
    options = ["--preset", "tiny", "--size", "28", "--device", "cpu", "--heads", "camera,depth"]
    command = ["reconstruct", str(photos), *options, "-o"]
    first, second = wait_for(start(["-c", SMALL_PICTURES, *command, str(tmp_path / "two")], 2))
    assert main([*command, str(tmp_path / "one")]) == 0
    assert first.startswith(f"wrote {tmp_path / 'two'}: scene.safetensors")
    assert second == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "photos", "two"]
    one, two = (named_tensors(geomtx.Scene.load(tmp_path / name).predictions) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-5, msg=name)
