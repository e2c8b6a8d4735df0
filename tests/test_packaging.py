"""What is installed, and what the package needs of it."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

# Finds nothing of the packages that a clean environment would not have, as if they were not installed.
DEMO_WITHOUT = """
import sys
from importlib.machinery import PathFinder

hidden = set(sys.argv.pop(1).split(","))

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
from geomtx.cli import demo, main
from geomtx.report import layout

# Small photos and pictures, and few scenes for the guess that nano is compared with.
demo._PHOTO_HW, demo._SUPERSAMPLE, demo._NUM_GUESS_SCENES, layout._DPI = (48, 64), 1, 2, 20
code = main(["demo", "-o", "out", "--views", "2"])
assert not hidden & {name.partition(".")[0] for name in sys.modules}
sys.exit(code)
"""


def core_dependencies() -> list[str]:
    block = re.search(r"^dependencies = \[(.*?)^\]", PROJECT, re.MULTILINE | re.DOTALL)
    assert block
    return re.findall(r'"([\w.-]+)', block[1])


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed_by(names: list[str]) -> set[str]:
    """Distributions that come along with these, extras left out."""
    found: set[str] = set()
    while names:
        name = normalized(names.pop())
        if name in found:
            continue
        found.add(name)
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # for another platform
            continue
        names += [re.match(r"[\w.-]+", line)[0] for line in required if "extra ==" not in line]
    return found


def test_the_demo_runs_with_core_dependencies_only(tmp_path: Path) -> None:
    core = needed_by(core_dependencies())
    homes = importlib.metadata.packages_distributions()
    hidden = {name for name, owners in homes.items() if not core & {normalized(owner) for owner in owners}}
    hidden -= {"geomtx", "_distutils_hack"}
    assert hidden >= {"pytest", "jaxtyping", "beartype"}
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", DEMO_WITHOUT, ",".join(hidden)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "out" / "truth.png").is_file()


def test_the_source_distribution_has_what_its_tests_read() -> None:
    """The build includes every file that git knows, but for what is excluded by name."""
    section = re.search(r"^\[tool\.hatch\.build\.targets\.sdist\]\n(.*?)^\[", PROJECT, re.MULTILINE | re.DOTALL)
    assert section
    assert re.findall(r"^(\w+) = (\[[^\]]*\])", section[1], re.MULTILINE) == [("exclude", '["/.ci"]')]
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    needed = ("src/geomtx/py.typed", "benchmarks/results", "benchmarks/report.py", "docs", "tests/goldens", "README.md")
    for name in needed:
        assert (ROOT / name).exists(), name
        assert not {part for part in Path(name).parts if part in ignored or f"{part}/" in ignored}


def test_links_of_the_project() -> None:
    section = re.search(r"^\[project\.urls\]\n(.*?)^\[", PROJECT, re.MULTILINE | re.DOTALL)
    assert section
    urls = dict(re.findall(r'^(\w+) = "(https://[^"]+)"$', section[1], re.MULTILINE))
    assert urls.keys() == {"Homepage", "Documentation", "Repository", "Changelog"}
    assert urls["Repository"] in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
