from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("viser")

import geomtx
from geomtx.cli import main
from scene.known_scene import known_scene


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("viewed")
    scene: geomtx.Scene = known_scene(folder / "photos", 2)
    scene.save(folder / "out", formats=(), report=False)
    return folder / "out"


@pytest.mark.skipif(os.name == "nt", reason="signals can't be sent there")
def test_a_cluster_that_stops_the_command_sees_it_in_the_exit_code(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("geomtx.cli.view.time.sleep", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["view", str(folder)]) == 143


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C can't be sent there")
def test_the_page_is_served_until_ctrl_c(folder: Path):
    process = subprocess.Popen(
        [sys.executable, "-m", "geomtx", "view", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs tests in the background has Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        line = process.stdout.readline()
        found = re.fullmatch(
            rf"showing {re.escape(str(folder))} at http://127\.0\.0\.1:(\d+)/ - Ctrl-C ends it\n", line
        )
        assert found, line + process.stderr.read()
        socket.create_connection(("127.0.0.1", int(found[1])), timeout=10).close()
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, out, error) == (0, "stopped\n", "")


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["view", *arguments]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    return error


def test_what_can_not_be_shown_is_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert "a scene must be a folder with scene.safetensors" in error_of(capsys, str(tmp_path / "missing"))
    assert "a scene must be a folder with scene.safetensors" in error_of(capsys, str(folder), str(tmp_path))
    (tmp_path / "scene.safetensors").write_bytes(b"no scene")
    assert "scene.safetensors" in error_of(capsys, str(tmp_path))
    assert "--port must be in 0 … 65535, got -1" in error_of(capsys, str(folder), "--port", "-1")
    assert "address that is free here, got 203.0.113.1:0" in error_of(capsys, str(folder), "--host", "203.0.113.1")
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = str(busy.getsockname()[1])
        assert f"address that is free here, got 127.0.0.1:{port}: " in error_of(capsys, str(folder), "--port", port)
