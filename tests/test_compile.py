import json
import subprocess
import sys
from pathlib import Path

import pytest

from compile_components import OTHERS

SCRIPT = Path(__file__).parent / "compile_components.py"


@pytest.fixture(scope="module")
def errors() -> dict[str, dict[str, float]]:
    """Component → largest difference from eager, measured in a process without the hook that checks shapes."""
    run = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.timeout(600)
def test_compiles_without_a_break_and_computes_the_same(errors):
    errors = errors["compiled"]
    assert errors.keys() == {
        "adapted model with added heads and a mask",
        "model in chunks of views",
        "gradients of the camera head",
        *(f"adapted {family} with added heads and a mask" for family in OTHERS),
        "pairs",
        *(f"attention {name}" for name in ("auto", "math", "sdpa_flash", "flex")),
    }
    assert {component: error for component, error in errors.items() if not error < 1e-9} == {}


def test_one_exported_program_serves_all_views_and_sizes(errors):
    errors = errors["exported"]
    sizes = ("4 x 6 patches", "7 x 5 patches")
    assert errors.keys() == {
        *(f"{name}, {views} views of {size}" for name in ("vggt", *OTHERS) for views in (1, 2, 5, 8) for size in sizes),
        *(f"exported, attention {name}" for name in ("auto", "sdpa_flash")),
        *(f"{number} pairs" for number in (1, 5)),
    }
    assert {shape: error for shape, error in errors.items() if not error < 1e-9} == {}
