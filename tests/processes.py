"""Several processes on this machine, as torchrun would start them."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent


def start(command: list[str], num_processes: int, **environment: object) -> list[subprocess.Popen]:
    """`python COMMAND` so many times; `environment` is beside torchrun's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    shared = {
        "WORLD_SIZE": num_processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1,
        "PYTHONPATH": path, "PYTHONFAULTHANDLER": 1, **environment,
    }  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **{k: str(v) for k, v in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(num_processes)
    ]


def wait_for(running: list[subprocess.Popen], *, timeout: float = 240) -> list[str]:
    """What each said on stdout; all of them are shown if one fails."""
    try:
        texts = [process.communicate(timeout=timeout) for process in running]
    finally:
        for process in running:
            process.kill()
    # All of them: what one complains about is often that another is gone.
    codes = [process.returncode for process in running]
    assert not any(codes), "\n".join(f"exit code {code}:\n{err}" for code, (_, err) in zip(codes, texts, strict=True))
    return [out for out, _ in texts]


def run_forks(target: Callable[..., None], num_processes: int, *arguments: Any) -> None:
    """`target(rank, *arguments)` in so many forks of this process, in which everything is imported once."""
    context = multiprocessing.get_context("fork")
    forks = [context.Process(target=target, args=(rank, *arguments)) for rank in range(num_processes)]
    for fork in forks:
        fork.start()
    running = {fork.sentinel: fork for fork in forks}
    while running:
        for ended in wait(list(running)):
            fork = running.pop(ended)
            fork.join()
            if fork.exitcode:  # the others would wait for it
                for other in running.values():
                    other.kill()
                sys.exit(f"{fork.name} of {num_processes} ended with exit code {fork.exitcode}")
