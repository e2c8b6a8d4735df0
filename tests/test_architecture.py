import ast
import collections
import functools
import graphlib
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import geomtx

SRC = Path(geomtx.__file__).parent
MODULES = sorted(SRC.rglob("*.py"))

# Rings from the innermost to the outermost: no part imports from a ring farther out.
RINGS = (
    {"types", "checks", "files", "parsing"},
    {"layers"},
    {"geometry"},
    {"encoder", "heads", "tracking", "losses"},
    {"checkpoint", "inference"},
    {"models"},
    {"views", "scene", "report", "metrics", "data", "training"},
    {"cli"},
)
# All that an inner part may import of geomtx.
FOUNDATION = {"types", "checks"}
BLOCKS = FOUNDATION | {"layers", "geometry"}
INNER = {
    "types": set(),
    "checks": set(),
    "files": set(),
    "parsing": {"checks"},
    "layers": FOUNDATION,
    "geometry": FOUNDATION | {"layers"},
    "encoder": BLOCKS,
    "tracking": BLOCKS,
    "heads": BLOCKS | {"tracking"},
    "losses": BLOCKS,
    "checkpoint": FOUNDATION | {"files", "layers"},
    "inference": BLOCKS | {"encoder", "tracking", "heads"},
    "models": BLOCKS | {"files", "parsing", "encoder", "tracking", "heads", "losses", "checkpoint", "inference"},
}
# Other packages that the inner parts may import, and where.
OTHERS = {
    "torch": INNER.keys(),
    "einops": INNER.keys(),
    "kornia": {"losses"},
    "roma": {"geometry"},
    "jaxtyping": {"types"},
    "safetensors": {"checkpoint"},
    "huggingface_hub": {"checkpoint"},
    "xformers": {"layers"},
    "flash_attn_interface": {"layers"},
    "torchao": {"inference"},
    "PIL": {"files"},
    "numpy": {"checkpoint"},
}
# Packages of extras that one file alone imports.
ONE_FILE = {
    "layers/backends.py": {"xformers", "flash_attn", "flash_attn_interface"},
    "inference/quantize.py": {"torchao"},
    "metrics/pointcloud.py": {"scipy"},
    "scene/pycolmap_bridge.py": {"pycolmap"},
    "views/pictures.py": {"pillow_heif"},
    "report/viewer/server.py": {"viser"},
    "views/video.py": {"av"},
}
OUTER_ONLY = (
    "huggingface_hub", "PIL", "tqdm", "kornia", "numpy", "roma", "xformers", "torchao", "jaxtyping", "torch._dynamo",
)  # fmt: skip


def part_of(path: Path) -> str:
    """The folder, or the file, right under the package."""
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def name_of(path: Path) -> str:
    """Dotted name of a module."""
    return ".".join(("geomtx", *path.relative_to(SRC).with_suffix("").parts)).removesuffix(".__init__")


def id_of(path: Path) -> str:
    return path.relative_to(SRC).as_posix()


TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}
NAMES = {name_of(path) for path in MODULES}


@functools.cache
def imports_of(path: Path, *, types_too: bool = True) -> set[str]:
    """Dotted names of all modules that a file imports, anywhere in it, within functions included."""
    found, left = set(), [TREES.get(path) or ast.parse(path.read_text(encoding="utf-8"))]
    while left:
        node = left.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not types_too:
            continue
        left += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            inner = {f"{node.module}.{name.name}" for name in node.names} & NAMES
            found |= inner | ({node.module} if len(inner) < len(node.names) else set())
    return found


def geomtx_imports(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports_of(path) if name.startswith("geomtx.")}


def inner_modules() -> list[Path]:
    return [path for path in MODULES if part_of(path) in INNER]


def test_the_walk_finds_imports():
    assert {"torch", "geomtx.types"} <= imports_of(SRC / "layers" / "attention.py")
    assert "xformers.ops" in imports_of(SRC / "layers" / "backends.py")
    assert geomtx_imports(SRC / "heads" / "track.py") == {"checks", "heads", "tracking", "types"}
    assert INNER.keys() <= {part_of(path) for path in MODULES}


def test_imports_go_inwards():
    ring_of = {part: ring for ring, parts in enumerate(RINGS) for part in parts}
    parts = {part_of(path) for path in MODULES} - {"__init__", "__main__"}
    assert parts <= ring_of.keys()
    outwards = {
        (id_of(path), part)
        for path in MODULES
        for part in geomtx_imports(path)
        if part_of(path) in ring_of and ring_of[part] > ring_of[part_of(path)]
    }
    assert outwards == set()
    others = {
        (id_of(path), part)
        for path in inner_modules()
        for part in geomtx_imports(path) - {part_of(path)} - INNER[part_of(path)]
    }
    assert others == set()


def test_no_circles_of_imports():
    """Neither of modules nor of folders, also not through imports within functions; imports for types don't count."""
    modules = {name_of(path): imports_of(path, types_too=False) & NAMES for path in MODULES}
    folders = {}
    for path in MODULES:
        used = {name.split(".")[1] for name in imports_of(path, types_too=False) if name.startswith("geomtx.")}
        folders.setdefault(part_of(path), set()).update(used - {part_of(path)})
    for graph in (modules, folders):
        try:
            tuple(graphlib.TopologicalSorter(graph).static_order())
        except graphlib.CycleError as error:
            pytest.fail(" → ".join(error.args[1]))


def test_imports_of_other_packages():
    found = {
        (id_of(path), name)
        for path in inner_modules()
        for name in {name.partition(".")[0] for name in imports_of(path)} - {"geomtx"} - set(sys.stdlib_module_names)
        if part_of(path) not in OTHERS.get(name, ())
    }
    assert found == set()
    for file, optional in ONE_FILE.items():
        assert {id_of(p) for p in MODULES if {name.partition(".")[0] for name in imports_of(p)} & optional} == {file}


def test_the_package_itself_imports_nothing_when_it_is_imported():
    at_once = {
        n.names[0].name if isinstance(n, ast.Import) else n.module
        for n in TREES[SRC / "__init__.py"].body
        if "Import" in type(n).__name__
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


def test_what_the_benchmarks_import_is_there():
    """They run by hand and rarely: a name that has moved would be missed only then."""
    root = SRC.parents[1]
    files = sorted((root / "benchmarks").rglob("*.py"))
    if not files:
        pytest.skip("the benchmarks are not here")
    beside = {path.stem: path for folder in ("tests", "benchmarks") for path in (root / folder).glob("*.py")}
    missing = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or node.module is None:
                continue
            if node.module in beside:
                tree = ast.parse(beside[node.module].read_text(encoding="utf-8"))
                there = {
                    *(n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)),
                    *(n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)),
                }
            elif node.module.partition(".")[0] == "geomtx":
                module = importlib.import_module(node.module)
                there = {*dir(module), *(p.stem for p in Path(module.__file__).parent.glob("*.py"))}
            else:
                continue
            missing += [f"{file.name}: {node.module}.{n.name}" for n in node.names if n.name not in there]
    assert missing == []


def test_files_have_names_that_say_what_they_hold():
    names = {path.stem for path in MODULES} | {path.name for path in SRC.rglob("*") if path.is_dir()}
    assert not names & {"utils", "util", "common", "misc", "base", "helpers", "tools", "core"}


def test_files_and_folders_can_be_surveyed():
    long = {id_of(path) for path in MODULES if len(path.read_text(encoding="utf-8").splitlines()) > 450}
    assert long == set()
    sizes = collections.Counter(id_of(path.parent) for path in MODULES if path.name != "__init__.py")
    assert {folder for folder, size in sizes.items() if size > 15} == set()


def test_nothing_but_the_command_line_prints():
    calls = {(id_of(p), n.func) for p in MODULES for n in ast.walk(TREES[p]) if isinstance(n, ast.Call)}
    printing = {path for path, call in calls if isinstance(call, ast.Name) and call.id == "print"}
    assert {path for path in printing if not path.startswith("cli/")} == set()


def test_no_device_is_named():
    named = {
        id_of(p) for p in MODULES if re.search(r"\b(cuda|mps|xpu)\b", p.read_text(encoding="utf-8"), re.IGNORECASE)
    }
    assert {path for path in named if not path.startswith("cli/")} == set()


def test_training_needs_no_float64_on_the_device():
    """Apple's accelerator has none."""
    texts = {id_of(p): p.read_text(encoding="utf-8") for p in MODULES if part_of(p) == "training"}
    assert texts
    on_device = re.compile(r"(?<!\.cpu\(\))\.(double\(|(to|type)\([^)]*float64)")
    assert {path for path, text in texts.items() if on_device.search(text)} == set()


def test_nothing_waits_for_an_accelerator():
    """No `.item()`, `.tolist()`, `.cpu()` or `.numpy()` on a tensor of a forward pass."""
    waiting = [
        id_of(path)
        for path in inner_modules()
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if node.func.attr in ("item", "tolist", "cpu", "numpy", "nonzero")
    ]
    # Numbers of keys and counts of a batch go to other processes; the error about query points shows them.
    assert waiting == ["inference/keys.py", "losses/reduce.py", "tracking/queries.py"]


# What `import geomtx` costs


INNER_NAMES = ("VGGT", "AlternatingEncoder", "CameraHead", "TrackHead", "unproject", "decode_pose", "Predictions")
OF_TRAINING = {"accelerate", "tensorboard", "yaml", "geomtx.training"}

# One process that does more and more with geomtx, and notes which modules are there after each step.
AT_A_USERS = f"""
import json, socket, sys, time
import torch

def refuse(*_, **__):
    raise AssertionError("the network was used")

socket.socket.connect = socket.getaddrinfo = refuse
before, start, brought = set(sys.modules), time.process_time(), {{}}
import geomtx
times = [time.process_time() - start]
for name in {INNER_NAMES}:
    getattr(geomtx, name)
times.append(time.process_time() - start)
brought["inner names"] = sorted(set(sys.modules) - before)
import geomtx.cli, geomtx.report, geomtx.scene, geomtx.views
brought["inference"] = sorted(sys.modules)
geomtx.VGGT.from_pretrained("nano")(torch.rand(2, 3, 32, 32), torch.tensor([[8.0, 8.0]]))
with torch.device("meta"), geomtx.checkpoint.files.SkippedInitialisation():
    for kind in ("VGGT", "DepthAnything3", "Pi3", "VGGTOmega"):
        getattr(geomtx, kind)(getattr(geomtx, f"{{kind}}Config").tiny())
brought["a model"] = sorted(sys.modules)
shape = geomtx.decode_pose(torch.zeros(2, 9), (4, 4)).intrinsics.shape
from geomtx.types import Float
plain = Float[torch.Tensor, "a b"] is torch.Tensor
for name in geomtx.__all__:
    getattr(geomtx, name)
brought["all names"] = sorted(set(sys.modules) - before)
print(json.dumps([times, brought, shape, plain]))
"""


def run_at_a_users() -> list:
    command = [sys.executable, "-c", AT_A_USERS]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def at_a_users() -> list:
    return run_at_a_users()


def test_import_is_quick_and_brings_nothing_that_is_not_needed(at_a_users: list):
    times, brought, *_ = at_a_users
    if times[0] >= 0.1 or times[1] >= 0.5:  # the first time that the code runs, it is compiled
        times, *_ = run_at_a_users()
    assert times[0] < 0.1
    assert times[1] < 0.5
    names = brought["inner names"]
    assert [name for name in OUTER_ONLY if name in names] == []
    assert "geomtx.models.vggt" in names
    assert "geomtx.losses" not in names
    assert not {name for name in names if name.startswith("geomtx.") and name.split(".")[1] not in INNER}


def test_inference_needs_nothing_of_training_and_matplotlib_only_to_draw(at_a_users: list):
    names = at_a_users[1]["inference"]
    assert "geomtx.report.page" in names
    assert not (OF_TRAINING | {"matplotlib"}) & set(names)


def test_a_model_and_its_first_pass_do_not_import_the_compiler(at_a_users: list):
    assert "torch._dynamo" not in at_a_users[1]["a model"]


def test_annotations_are_plain_tensors_at_a_users(at_a_users: list):
    """And jaxtyping isn't needed."""
    *_, shape, plain = at_a_users
    assert shape == [2, 3, 3]
    assert plain


def test_all_names_come_without_jaxtyping_and_without_the_network(at_a_users: list):
    names = at_a_users[1]["all names"]
    assert "geomtx.training" in names
    assert "jaxtyping" not in names
