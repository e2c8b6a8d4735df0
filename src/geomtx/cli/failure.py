"""Errors, warnings and Ctrl-C of commands, as one line on stderr and an exit code."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["describe_error", "run_command"]

_EXPECTED = (ValueError, OSError, MemoryError, ImportError)
_FEWER_PHOTOS = "fewer photos, a smaller --size or --view-chunk 1"
# By command: what it has an option for.
_LESS_MEMORY = {
    "demo": "fewer --views or --device cpu",
    "train": "--set gradient_checkpointing=true, a larger accumulation or a smaller data.images",
    "info": "a machine with more memory",
}


def run_command(command: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> int:
    """Run a command; see `geomtx.cli.main` for the exit codes."""
    try:
        with _warnings_on_stderr():
            command(arguments)
    except KeyboardInterrupt:
        print("geomtx: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get("GEOMTX_DEBUG"):
            raise
        expected = isinstance(error, _EXPECTED) or _is_out_of_memory(error)
        print(f"geomtx: error: {describe_error(error, getattr(arguments, 'command', None))}", file=sys.stderr)
        return 2 if expected else 1
    return 0


def describe_error(error: Exception, command: str | None = None) -> str:
    """One line; `command` is the name of the one that failed."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.strerror}: '{error.filename}'"
    if _is_out_of_memory(error):
        return f"out of memory; use {_LESS_MEMORY.get(command or '', _FEWER_PHOTOS)} ({text.split('. ')[0]})"
    if isinstance(error, _EXPECTED) and text:
        return text
    return f"unexpected {type(error).__name__}: {text} (GEOMTX_DEBUG=1 shows where)"


def _is_out_of_memory(error: Exception) -> bool:
    """Both torch's error for accelerators and what it raises on the CPU."""
    return type(error).__name__ in ("OutOfMemoryError", "MemoryError") or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


@contextmanager
def _warnings_on_stderr() -> Iterator[None]:
    """Warnings and the library's log as one line each."""
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
