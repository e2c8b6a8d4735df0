import ast
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import geomtx

SRC = Path(geomtx.__file__).parent
MODULES = sorted(SRC.rglob("*.py"))

# What each part of the inner ring may import of geomtx. What is not listed is the outer ring.
FOUNDATION = {"types", "checks", "names"}
FILES = {"key_table", "files", "tensor_file"}
BLOCKS = FOUNDATION | {"layers", "geometry"}
INNER = {
    "types": set(),
    "checks": set(),
    "names": set(),
    "key_table": set(),
    "files": set(),
    "tensor_file": set(),
    "layers": FOUNDATION,
    "geometry": FOUNDATION | {"layers"},
    "encoder": BLOCKS,
    "tracking": BLOCKS,
    "heads": BLOCKS | {"tracking"},
    "losses": BLOCKS,
    "checkpoint": FOUNDATION | FILES | {"layers"},
    "lora_file": FOUNDATION | FILES | {"layers", "checkpoint"},
    "inference": BLOCKS | {"encoder", "heads", "tracking"},
    "models": BLOCKS | {"encoder", "heads", "tracking", "losses", "checkpoint", "inference", *FILES},
}
# What it may import of others, and where.
OTHERS = {
    "torch": INNER.keys(),
    "roma": {"geometry"},
    "jaxtyping": {"types"},
    "safetensors": {"tensor_file", "checkpoint", "lora_file"},
    "huggingface_hub": {"checkpoint"},
    "xformers": {"layers"},
    "flash_attn_interface": {"layers"},
    "torchao": {"inference"},
    "PIL": {"files"},
}
OUTER_ONLY = (
    "huggingface_hub", "PIL", "tqdm", "kornia", "numpy", "roma", "xformers", "torchao", "jaxtyping", "torch._dynamo",
)  # fmt: skip


def part_of(path: Path) -> str:
    """The folder, or the file, right under the package."""
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, anywhere in it, for types or within functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found.add(node.module)
            if node.module == "geomtx":
                found |= {f"geomtx.{name.name}" for name in node.names}
    return found


def geomtx_imports(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports_of(path) if name.startswith("geomtx.")}


def id_of(path: Path) -> str:
    return str(path.relative_to(SRC))


def test_the_walk_finds_imports():
    assert {"torch", "geomtx.types"} <= imports_of(SRC / "layers" / "attention.py")
    assert "xformers.ops" in imports_of(SRC / "layers" / "backends.py")
    assert geomtx_imports(SRC / "heads" / "track.py") == {"checks", "heads", "tracking", "types"}
    assert INNER.keys() <= {part_of(path) for path in MODULES}


@pytest.mark.parametrize("path", [p for p in MODULES if part_of(p) in INNER], ids=id_of)
def test_directions_of_imports(path):
    part = part_of(path)
    assert geomtx_imports(path) - {part} <= INNER[part]


@pytest.mark.parametrize("path", [p for p in MODULES if part_of(p) in INNER], ids=id_of)
def test_imports_of_other_packages(path):
    others = {name.partition(".")[0] for name in imports_of(path)} - {"geomtx"} - set(sys.stdlib_module_names)
    assert {name for name in others if part_of(path) not in OTHERS.get(name, ())} == set()


@pytest.mark.parametrize(
    ("optional", "file"),
    [
        ({"xformers", "flash_attn", "flash_attn_interface"}, "layers/backends.py"),
        ({"torchao"}, "inference/quantize.py"),
        ({"pillow_heif"}, "views/pictures.py"),
    ],
)
def test_one_file_knows_an_optional_package(optional, file):
    users = {id_of(p) for p in MODULES if {name.partition(".")[0] for name in imports_of(p)} & optional}
    assert users == {file}


def test_the_package_itself_imports_nothing_when_it_is_imported():
    tree = ast.parse((SRC / "__init__.py").read_text(encoding="utf-8"))
    at_once = {
        n.names[0].name if isinstance(n, ast.Import) else n.module for n in tree.body if "Import" in type(n).__name__
    }
    assert at_once <= set(sys.stdlib_module_names)


def test_no_benchmark_hides_a_package():
    """A script's folder comes first in the path: beside `vggt.py`, `import vggt` finds that and not the package."""
    files = sorted((SRC.parents[1] / "benchmarks").glob("*.py"))
    if not files:
        pytest.skip("the benchmarks are not here")
    wanted = {name.partition(".")[0] for file in files for name in imports_of(file) if "." in name}
    assert "vggt" in wanted
    assert not wanted & {file.stem for file in files}


def test_files_have_names_that_say_what_they_hold():
    names = {path.stem for path in MODULES} | {path.name for path in SRC.rglob("*") if path.is_dir()}
    assert not names & {"utils", "util", "common", "misc", "base", "helpers", "tools", "core"}


@pytest.mark.parametrize("path", [p for p in MODULES if part_of(p) != "cli"], ids=id_of)
def test_nothing_but_the_command_line_prints(path):
    calls = [n.func for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
    assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]


@pytest.mark.parametrize("path", [p for p in MODULES if part_of(p) != "cli"], ids=id_of)
def test_no_device_is_named(path):
    assert not re.search(r"\b(cuda|mps|xpu)\b", path.read_text(encoding="utf-8"), re.IGNORECASE)


@pytest.mark.parametrize("path", [p for p in MODULES if part_of(p) in INNER], ids=id_of)
def test_nothing_waits_for_an_accelerator(path):
    """No `.item()`, `.tolist()`, `.cpu()` or `.numpy()` on a tensor of a forward pass."""
    calls = [n.func for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
    waiting = [
        c for c in calls if isinstance(c, ast.Attribute) and c.attr in ("item", "tolist", "cpu", "numpy", "nonzero")
    ]
    # Query points that are refused are shown.
    allowed = 1 if id_of(path) == "tracking/queries.py" else 0
    assert len(waiting) == allowed


# What `import geomtx` costs


def run(code: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "GEOMTX_CHECK_SHAPES"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return result.stdout


INNER_NAMES = ("VGGT", "AlternatingEncoder", "CameraHead", "TrackHead", "unproject", "decode_pose", "Predictions")


def test_import_is_quick_and_brings_nothing_that_is_not_needed():
    code = f"""
import json, sys, time
import torch
before, start = set(sys.modules), time.perf_counter()
import geomtx
bare = time.perf_counter() - start
for name in {INNER_NAMES}:
    getattr(geomtx, name)
print(json.dumps([bare, time.perf_counter() - start, sorted(set(sys.modules) - before)]))
"""
    runs = [json.loads(run(code)) for _ in range(3)]
    assert statistics.median(bare for bare, *_ in runs) < 0.1
    assert statistics.median(inner for _, inner, _ in runs) < 0.5
    brought = {name for *_, names in runs for name in names}
    assert [name for name in OUTER_ONLY if name in brought] == []
    assert "geomtx.models.vggt" in brought
    assert "geomtx.losses" not in brought
    assert not {name for name in brought if name.startswith("geomtx.") and name.split(".")[1] not in INNER}


def test_the_network_is_not_asked_for_at_import():
    code = """
import socket
def refuse(*_, **__):
    raise AssertionError("the network was used")
socket.socket.connect = socket.getaddrinfo = refuse
import geomtx
for name in geomtx.__all__:
    getattr(geomtx, name)
print("quiet")
"""
    assert run(code).strip() == "quiet"
