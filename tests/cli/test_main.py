from __future__ import annotations

import argparse
import io
import logging
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import geomtx
from geomtx.cli import main
from geomtx.cli.failure import run_command
from geomtx.files import staged_folder


@pytest.mark.parametrize(
    "argv", [["--help"], ["reconstruct", "--help"], ["demo", "--help"], ["info", "--help"], ["--version"]]
)
def test_help(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    assert "geomtx" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [[], ["draw"], ["reconstruct"], ["demo", "--fast"]])
def test_wrong_usage_is_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("geomtx: error: ")
    assert err.count("\n") == 1


def test_the_module_runs_and_starts_without_torch() -> None:
    code = "import sys, geomtx.cli; geomtx.cli.main(['--version']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    run = subprocess.run([sys.executable, "-m", "geomtx", "--version"], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (0, f"geomtx {geomtx.__version__}\n")


def run_with(error: BaseException) -> int:
    def command(_: argparse.Namespace) -> None:
        raise error

    return run_command(command, argparse.Namespace())


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("size must\nbe 3"), 2, "geomtx: error: size must be 3"),
        (PermissionError(13, "Permission denied", "/a/b"), 2, "geomtx: error: Permission denied: '/a/b'"),
        (FileNotFoundError("no such weights"), 2, "geomtx: error: no such weights"),
        (ImportError("install x"), 2, "geomtx: error: install x"),
        (MemoryError(), 2, "geomtx: error: out of memory; use fewer photos"),
        (OutOfMemoryError("CUDA out of memory. Tried …"), 2, "geomtx: error: out of memory; use fewer photos"),
        (KeyError("x"), 1, "geomtx: error: unexpected KeyError: 'x' (GEOMTX_DEBUG=1 shows where)"),
        (KeyboardInterrupt(), 130, "geomtx: stopped"),
    ],
)
def test_errors_are_one_line(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GEOMTX_DEBUG", raising=False)
    assert run_with(error) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_debug_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOMTX_DEBUG", "1")
    with pytest.raises(ValueError, match="size"):
        run_with(ValueError("size"))


def test_warnings_and_the_log_are_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    def command(_: argparse.Namespace) -> None:
        logging.getLogger("geomtx.views").warning("images are\n%s", "odd")
        warnings.warn("slow\nkernel", stacklevel=1)

    before = warnings.showwarning, list(logging.getLogger("geomtx").handlers)
    assert run_command(command, argparse.Namespace()) == 0
    assert capsys.readouterr().err == "geomtx: warning: images are odd\ngeomtx: warning: slow kernel\n"
    assert before == (warnings.showwarning, logging.getLogger("geomtx").handlers)


# Encodings of the output


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "utf-8"])
def test_everything_prints_in_every_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = {
        name: io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict") for name in ("stdout", "stderr")
    }
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    for command in ("reconstruct", "demo", "train", "info"):
        assert main([command, "--help"]) == 0
    assert main(["reconstruct", "caf\udce9 – 東.png", "-o", "…", "--preset", "tiny"]) == 2
    out, err = streams["stdout"], streams["stderr"]
    out.flush()
    err.flush()
    assert out.buffer.getvalue().decode(encoding).count("usage: geomtx ") == 4
    assert err.buffer.getvalue().decode(encoding).count("\n") == 1
    assert (out.errors, err.errors) == ("strict", "strict")


# Signals


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signals_end_a_command_as_ctrl_c_does(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    number = getattr(signal, name, None)
    if number is None or sys.platform == "win32":
        pytest.skip(f"no {name} here")
    before = signal.getsignal(number)

    def command(_: argparse.Namespace) -> None:
        with staged_folder(tmp_path / "out") as stage:
            (stage / "large").write_text("half")
            signal.raise_signal(number)
            pytest.fail("it goes on")

    assert run_command(command, argparse.Namespace()) == 128 + number
    assert capsys.readouterr().err == "geomtx: stopped\n"
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(number) is before


def test_signals_that_someone_else_handles_stay_theirs() -> None:
    got = []
    before = signal.signal(signal.SIGTERM, lambda number, _: got.append(number))
    try:
        assert run_command(lambda _: signal.raise_signal(signal.SIGTERM), argparse.Namespace()) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert got == [signal.SIGTERM]
