"""Shared fixtures; shape annotations are checked in every test."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before the first import of geomtx: shape annotations become jaxtyping's, and a hook checks them at every call.
# Processes that a test starts have neither, as at a user's.
os.environ["GEOMTX_CHECK_SHAPES"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tests run in parallel, and tiny tensors gain nothing from threads; processes that a test starts have one, too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import shape_checker

shape_checker.install()

import jaxtyping  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

import geomtx.types  # noqa: E402

del os.environ["GEOMTX_CHECK_SHAPES"]

from browser import Browser, why_not  # noqa: E402
from lean import build_lean, visible  # noqa: E402
from processes import start, wait_for  # noqa: E402

torch.set_num_threads(1)

# What tests write need not survive a power cut, and a busy disk takes a tenth of a second for it.
os.fsync = lambda _: None


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test draws the same numbers, whatever ran before it."""
    # `torch.manual_seed` is for devices, too; where there are none, it takes longer than many a test.
    (torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed)(0)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Shape annotations are not checked, as at a user's: wrong shapes meet the library's own errors."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def tiny_model() -> geomtx.VGGT:
    """A tiny VGGT with random weights that are not all near their initial value, in evaluation mode."""
    return visible(geomtx.VGGT(geomtx.VGGTConfig.tiny())).eval()


@pytest.fixture
def lean_model() -> geomtx.VGGT:
    """As `tiny_model`, with fewer blocks and iterations."""
    return build_lean()


@pytest.fixture
def images() -> torch.Tensor:
    """Two scenes of three views, (2, 3, 3, 56, 84)."""
    return torch.rand(2, 3, 3, 56, 84)


@pytest.fixture
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports and comparisons have few pixels, where it isn't these that are tested."""
    monkeypatch.setattr("geomtx.report.layout._DPI", 20)
    monkeypatch.setattr("geomtx.report.web_pictures._CLOUD_WH", (120, 80))


@pytest.fixture(scope="session")
def parallel_results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """Number of processes → what each of them found, with a scene among them; see `inference/several_processes.py`."""
    folder = tmp_path_factory.mktemp("parallel")
    wait_for(start([str(Path(__file__).parent / "inference" / "several_processes.py"), str(folder)], 1))
    return {num: [torch.load(folder / f"{num}/{rank}.pt") for rank in range(num)] for num in (2, 3)}


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium, see `browser.py`; tests that need it are skipped where there is none."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    running = Browser()
    yield running
    running.close()


def pytest_collection_finish() -> None:
    """What is there before the first test stays to the end: garbage collection need not look at it again and again."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


# Files of minutes begin first, so that no process works on one alone at the end.
LONGEST = ("test_goldens.py", "test_distributed.py", "test_compile.py", "test_trainer.py", "test_docs.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine can't run, with the reason; begin with the longest files."""
    no_cuda = pytest.mark.skip(reason="needs an NVIDIA GPU")
    for item in items:
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(no_cuda)
    items.sort(key=lambda item: item.path.name not in LONGEST)
