"""Errors, warnings, Ctrl-C and SIGTERM of commands, as one line on stderr and an exit code."""

from __future__ import annotations

import argparse
import io
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["describe_error", "printable_output", "run_command"]

_EXPECTED = (ValueError, OSError, MemoryError, ImportError)
_FEWER_PHOTOS = "fewer photos, a smaller --size or --view-chunk 1"
# What helps against too little memory, by the name of the command that has such options.
_LESS_MEMORY = {
    "demo": "fewer --views or --device cpu",
    "train": "--set gradient_checkpointing=true, a larger accumulation or a smaller data.images",
    "info": "a machine with more memory",
}


def run_command(command: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> int:
    """Run a command; see `geomtx.cli.main` for the exit codes."""
    try:
        with _raise_on_signals(), _warnings_on_stderr():
            command(arguments)
    except KeyboardInterrupt as stop:
        print("geomtx: stopped", file=sys.stderr)
        return 128 + (stop.number if isinstance(stop, _Terminated) else signal.SIGINT)
    except Exception as error:
        if os.environ.get("GEOMTX_DEBUG"):
            raise
        expected = isinstance(error, _EXPECTED) or _is_out_of_memory(error)
        print(f"geomtx: error: {describe_error(error, getattr(arguments, 'command', None))}", file=sys.stderr)
        return 2 if expected else 1
    return 0


def describe_error(error: Exception, command: str | None = None) -> str:
    """Return the error as one line; `command` is the name of the command that failed."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.strerror}: '{error.filename}'"
    if _is_out_of_memory(error):
        return f"out of memory; use {_LESS_MEMORY.get(command or '', _FEWER_PHOTOS)} ({text.split('. ')[0]})"
    if isinstance(error, _EXPECTED) and text:
        return text
    return f"unexpected {type(error).__name__}: {text} (GEOMTX_DEBUG=1 shows where)"


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether memory ran out: torch has an error of its own for accelerators, and a RuntimeError on the CPU."""
    return type(error).__name__ in ("OutOfMemoryError", "MemoryError") or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


class _Terminated(KeyboardInterrupt):
    """A signal that asks the process to end. It is handled like Ctrl-C, so that the same code cleans up."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def _raise_on_signals() -> Iterator[None]:
    """SIGTERM (a cluster's time limit) and SIGHUP (a closed terminal) end the block as Ctrl-C does.

    They do so only where they would end the process otherwise, and in its main thread, which alone receives signals.
    """
    process = os.getpid()

    def stop(number: int, _: object) -> None:
        # Further signals are ignored, as one that arrives during the clean-up would break it off.
        signal.signal(number, signal.SIG_IGN)
        if os.getpid() == process:
            raise _Terminated(number)
        os._exit(128 + number)  # a forked worker has nothing to clean up

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    numbers = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def printable_output() -> Iterator[None]:
    """Let stdout and stderr replace characters that their encoding lacks, which would be an error otherwise."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    before = [stream.errors for stream in streams]
    for stream in streams:
        # stderr shows the bytes of an odd file name, as is its default; help reads better with a question mark.
        stream.reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            stream.reconfigure(errors=errors)


@contextmanager
def _warnings_on_stderr() -> Iterator[None]:
    """Print warnings and messages of the library's log as one line each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine())
    logger = logging.getLogger("geomtx")
    propagate = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False

    def show(message: Warning | str, *_: object, **__: object) -> None:
        print(f"geomtx: warning: {' '.join(str(message).split())}", file=sys.stderr)

    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"geomtx: {record.levelname.lower()}: {' '.join(record.getMessage().split())}"
