"""Every ```python block of README.md and docs/ runs, each page as one program; those titled "needs weights" don't."""

from __future__ import annotations

import importlib
import pydoc
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from geomtx.views import write_video

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def python_blocks(page: Path) -> Iterator[tuple[str, int]]:
    """Code, and how many lines of the page come before it."""
    text = page.read_text(encoding="utf-8")
    for block in FENCE.finditer(text):
        if block["info"].strip() == "python":
            yield block["code"], text.count("\n", 0, block.start("code"))


def draw_photos(folder: Path) -> None:
    """Three small photos, two landscape and one portrait."""
    folder.mkdir()
    for index, (width, height) in enumerate(((160, 120), (160, 120), (120, 160))):
        photo = Image.new("RGB", (width, height), (90, 120 + 20 * index, 160))
        draw = ImageDraw.Draw(photo)
        draw.ellipse((20 + 10 * index, 30, 80 + 10 * index, 90), fill=(210, 80, 60))
        draw.rectangle((0, height - 30, width, height), fill=(120, 100, 70))
        photo.save(folder / f"img_{index + 1}.jpg")


def draw_clip(path: Path) -> None:
    """A video of two seconds in which a disc moves."""
    pictures = [Image.new("RGB", (160, 120), (90, 120, 160)) for _ in range(20)]
    for index, picture in enumerate(pictures):
        ImageDraw.Draw(picture).ellipse((5 * index, 30, 60 + 5 * index, 90), fill=(210, 80, 60))
    write_video(path, pictures, fps=10)


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """Tensors this small are faster without threads, on a busy machine tenfold."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_one_thread", "small_pictures", "unchecked")
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES if any(python_blocks(page))],
)
def test_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_photos(tmp_path / "photos")
    if "clip.mp4" in page.read_text(encoding="utf-8"):
        pytest.importorskip("av", reason="PyAV is not installed")
        draw_clip(tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__page__"}
    for code, lines_before in python_blocks(page):
        # The empty lines make a traceback point to the line of the page.
        exec(compile("\n" * lines_before + code, page, "exec", dont_inherit=True), namespace)


def test_fences_are_known() -> None:
    """A misspelt info string would leave a block out without a word."""
    infos = {block["info"].strip() for page in PAGES for block in FENCE.finditer(page.read_text(encoding="utf-8"))}
    assert infos <= {"python", 'python title="needs weights"', "bash", ""}


def test_figures_are_those_of_the_json_files(monkeypatch: pytest.MonkeyPatch) -> None:
    benchmarks = ROOT / "benchmarks"
    monkeypatch.syspath_prepend(benchmarks)
    monkeypatch.setattr(sys, "argv", ["report.py", "--check"])
    runpy.run_path(str(benchmarks / "report.py"), run_name="__main__")


def test_tables_of_options_are_those_of_the_commands() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        cli_options = importlib.import_module("cli_options")
    finally:
        sys.path.remove(str(ROOT / "docs"))
    page = cli_options.on_page_markdown((ROOT / "docs" / "api" / "cli.md").read_text(encoding="utf-8"))
    assert "<!--" not in page
    assert re.search(r"^\| `--scene N` \| [^|]+ \| `7` \|$", page, re.MULTILINE)
    for name, parser in cli_options.command_parsers().items():
        section = page.partition(f"## geomtx {name}\n")[2].partition("\n## ")[0]
        options = [option for action in parser._actions for option in action.option_strings]
        assert [option for option in options if f"`{option}" not in section] == ["-h", "--help"]
        assert all(len(line) <= 88 for line in section.partition("```\n")[2].partition("```")[0].splitlines())
    assert "`video_tracker_nano`" in page


def test_the_table_of_blocks_is_made_of_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    hook = importlib.import_module("blocks_table")
    page = hook.on_page_markdown((ROOT / "docs" / "models" / "index.md").read_text(encoding="utf-8"))
    assert "<!--" not in page
    assert "| `layers.Attention` | yes | yes | yes | yes |" in page
    assert "| `encoder.AlternatingEncoder` | yes | yes | yes | yes |" in page
    assert "| `tracking.Tracker` | yes |  |  |  |" in page


def test_the_architecture_names_what_is_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    source = ROOT / "src" / "geomtx"
    named = set(re.findall(r"`((?:[a-z_]+/)+(?:[a-z_]+\.py)?)`", page))
    missing = [name for name in named if not (source / name).exists() and not (ROOT / name).exists()]
    assert missing == []
    assert len(named) > 20
    folders = {path.parent.name for path in source.glob("*/*") if path.is_file() and path.suffix != ".pyc"}
    assert [name for name in sorted(folders) if f"── {name}/ " not in page] == []


def test_code_fits_the_page() -> None:
    """Longer lines are cut off on the site and scroll on a phone."""
    wide = [
        f"{page.relative_to(ROOT)}: {line}"
        for page in PAGES
        for block in FENCE.finditer(page.read_text(encoding="utf-8"))
        for line in block["code"].splitlines()
        if len(line) > 88
    ]
    assert wide == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "api").glob("*.md")), ids=lambda page: page.stem)
def test_names_of_the_api_pages_exist(page: Path) -> None:
    for name in re.findall(r"^::: (\S+)", page.read_text(encoding="utf-8"), re.MULTILINE):
        assert pydoc.locate(name) is not None, name
