import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "compile_components.py"
COMPILED = (
    "decode_pose",
    "encoder",
    "camera_head",
    "gradients of camera_head",
    "depth_head",
    "point_head",
    "track_head",
    "model with a mask and chunks",
)
SIZES = ("56 x 84", "98 x 70")


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    """Component → largest difference from eager, measured without the hook that checks shapes."""
    environment = {name: value for name, value in os.environ.items() if name != "GEOMTX_CHECK_SHAPES"}
    run = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("component", COMPILED)
def test_compiles_without_a_break_and_computes_the_same(errors, component):
    assert errors[component] < 1e-9


@pytest.mark.parametrize("num_views", [1, 2, 5, 8])
@pytest.mark.parametrize("size", SIZES)
def test_one_exported_program_serves_all_views_and_sizes(errors, num_views, size):
    assert errors[f"exported, {num_views} views of {size}"] < 1e-9


def test_nothing_else_was_measured(errors):
    assert len(errors) == len(COMPILED) + 4 * len(SIZES)
