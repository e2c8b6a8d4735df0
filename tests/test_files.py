from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

from geomtx import files
from geomtx.files import (
    LISTING,
    check_writable,
    escape_name,
    file_digest,
    is_own,
    is_own_picture,
    list_inputs,
    save_picture,
    staged_folder,
    unique_names,
    user_path,
)

OLD = '{"format": "geomtx.test", "old": true}'


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def write_staged(
    folder: Path,
    names: tuple[str, ...],
    error: Exception | None = None,
    owned: tuple[str, ...] | None = None,
    overwrite: bool = False,
) -> None:
    with staged_folder(folder, names if owned is None else owned, overwrite=overwrite) as stage:
        for name in names:
            (stage / name).parent.mkdir(exist_ok=True)
            (stage / name).write_text("new")
        if error is not None:
            raise error


def test_a_new_folder_appears_with_its_parents(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "a" / "b") as stage:
        (stage / "sub").mkdir()
        (stage / "sub" / "one.txt").write_text("1")
        assert not (tmp_path / "a").exists()
    assert tree(tmp_path) == {"a/b/sub/one.txt": "1"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_only_written_and_owned_files_change(tmp_path: Path) -> None:
    for name in ("mine.txt", "one.txt", "stale.txt"):
        (tmp_path / name).write_text(OLD)
    with staged_folder(tmp_path, ("one.txt", "stale.txt", "never.txt")) as stage:
        (stage / "one.txt").write_text("new")
    assert tree(tmp_path) == {"mine.txt": OLD, "one.txt": "new"}


def test_an_error_leaves_everything_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text(OLD)
    for folder in (tmp_path, tmp_path / "new" / "folder"):
        with pytest.raises(KeyError):
            write_staged(folder, ("one.txt",), error=KeyError())
    assert tree(tmp_path) == {"one.txt": OLD}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failure_while_moving_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text(OLD)
    replace = Path.replace

    def refuse(self: Path, target: Path) -> Path:
        if target == tmp_path / "z.txt":
            raise PermissionError(13, "Permission denied", str(self))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PermissionError) as caught:
        write_staged(tmp_path, ("a.txt", "new/b.txt", "z.txt"), owned=("a.txt",))
    assert caught.value.filename == str(tmp_path / "z.txt")
    assert ".partial" not in str(caught.value)
    assert tree(tmp_path) == {"a.txt": OLD}
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_check_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path)
    check_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"output folder '.*' must be a folder, but '.*file' is a file"):
        check_writable(tmp_path / "file" / "out")

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(PermissionError, match=r"output folder '.*out' must be writable, got: Permission denied"):
        check_writable(tmp_path / "out")


def test_a_folder_in_the_way_of_a_file_is_found_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "report.png").mkdir()
    message = r"output folder '.*' must have room for files, but 'report.png' in it is a folder"
    with pytest.raises(IsADirectoryError, match=message):
        check_writable(tmp_path, ("a.txt", "report.png"))
    with pytest.raises(IsADirectoryError, match=message):
        write_staged(tmp_path, ("report.png",))
    check_writable(tmp_path, ("a.txt",))
    assert [path.name for path in tmp_path.iterdir()] == ["report.png"]


def test_a_link_to_nothing_is_no_output_folder(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "gone")
    for folder in (tmp_path / "out", tmp_path / "out" / "sub"):
        with pytest.raises(NotADirectoryError, match=r"must be a folder, but '.*out' is a link to nothing"):
            check_writable(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_is_replaced_and_comes_back_after_a_failure(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone")
    (tmp_path / "z.txt").mkdir()
    with pytest.raises(IsADirectoryError):
        write_staged(tmp_path, ("a.txt", "z.txt"), owned=(), overwrite=True)
    assert (tmp_path / "a.txt").is_symlink()
    with pytest.raises(FileExistsError):
        write_staged(tmp_path, ("a.txt",))
    write_staged(tmp_path, ("a.txt",), overwrite=True)
    assert not (tmp_path / "a.txt").is_symlink()
    assert tree(tmp_path) == {"a.txt": "new"}


def test_folders_made_before_a_failure_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir = Path.mkdir

    def refuse_last(self: Path, *arguments: Any, **options: Any) -> None:
        if self == tmp_path / "a" / "b" / "c":
            raise PermissionError(13, "Permission denied", str(self))
        mkdir(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", refuse_last)
    with pytest.raises(PermissionError):
        write_staged(tmp_path / "a" / "b" / "c", ("one.txt",))
    assert not list(tmp_path.iterdir())


def test_errors_of_the_block_name_the_users_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, staged_folder(tmp_path / "out") as stage:
        (stage / "sub" / "one.txt").write_text("")
    assert caught.value.filename == str(tmp_path / "out" / "sub" / "one.txt")
    assert ".partial" not in str(caught.value)


# Whose a file is


def test_files_of_others_stay_unless_they_may_be_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    message = (
        r"must not hold files of others under the names of results, got mine.txt; .* --overwrite \(overwrite=True\)"
    )
    with pytest.raises(FileExistsError, match=message):
        check_writable(tmp_path, ("mine.txt",))
    with pytest.raises(FileExistsError):
        write_staged(tmp_path, ("mine.txt",))
    with pytest.raises(FileExistsError):
        write_staged(tmp_path, ("mine.txt",), owned=())
    with pytest.raises(FileExistsError), staged_folder(tmp_path, ("mine.txt",)):
        pytest.fail("nothing is written, but it would be deleted")
    assert tree(tmp_path) == {"mine.txt": "mine"}
    check_writable(tmp_path, ("mine.txt",), overwrite=True)
    write_staged(tmp_path, ("mine.txt",), overwrite=True)
    assert tree(tmp_path) == {"mine.txt": "new"}


def test_a_file_that_comes_during_the_work_stays(tmp_path: Path) -> None:
    def work() -> None:
        with staged_folder(tmp_path, ("a.txt",)) as stage:
            (stage / "a.txt").write_text("new")
            (tmp_path / "a.txt").write_text("mine")

    with pytest.raises(FileExistsError):
        work()
    assert tree(tmp_path) == {"a.txt": "mine"}


@pytest.mark.parametrize("how", ["itself", "link", "hard link", "link to the folder", "link in the input"])
def test_inputs_are_never_written_over(tmp_path: Path, how: str) -> None:
    """Not even if geomtx wrote them, and `overwrite` is given."""
    out, photo = tmp_path / "out", tmp_path / "photo.png"
    out.mkdir()
    save_picture(Image.new("RGB", (4, 4)), photo, "report")
    if how == "itself":
        photo = photo.rename(out / "report.png")
    elif how == "hard link":
        os.link(photo, out / "report.png")
    elif how == "link":
        (out / "report.png").symlink_to(photo)
    else:
        photo = photo.rename(out / "report.png")
        link = tmp_path / "elsewhere"
        link.symlink_to(out if how == "link to the folder" else photo)
        out, photo = (link, photo) if how == "link to the folder" else (out, link)
    with pytest.raises(FileExistsError, match=r"must not hold an input .* 'report.png' in it is '.*'; choose another"):
        check_writable(out, ("a.txt", "report.png"), overwrite=True, inputs=[photo])
    check_writable(out, ("a.txt",), inputs=[photo])


def test_inputs_are_files_of_folders_too(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    (tmp_path / "b").mkdir()
    assert list_inputs(tmp_path, tmp_path / "a", None, "facebook/VGGT-1B") == [tmp_path / "a"] * 2


def test_own_files_are_known_by_what_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (
        b'{"format": "geomtx.cameras"}', b'{\n  "format": "geomtx.tracks", "a": [1',
        b"# geomtx train: every value of the run\na: 1\n",
        b"ply\nformat ascii 1.0\ncomment geomtx point cloud\nend_header\n",
        b'{"step": 0, "kind": "validation", "auc@30": 0.1, "objective": 2.5}\n{"st',
        b'{"step": 3, "kind": "train", "objective": 2.5, "lr": 0.1}\n{"st',
        b'{"step": 3, "kind": "train", "lr": 0.1, "skipped": 3.0}',
    ):  # fmt: skip
        path.write_bytes(content)
        assert is_own(path), content
    for content in (
        b"", b"geomtx", b'{"format": "other"}', b'{"a": "format", "b": "geomtx."}', b"# geo\n", b"\xff\xfe" * 900,
        b"ply\nformat ascii 1.0\nend_header\ncomment geomtx point cloud\n", b'{"step": 3}', b"# geomtx notes of mine\n",
        b'{"step": 1, "kind": "train", "loss": 0.5}\n{"objective": 1}', b'{"step": 1, "kind": "note", "objective": 1}',
        b"\x89PNG\r\n\x1a\n",
        (1 << 40).to_bytes(8, "little") + b"{", (2).to_bytes(8, "little") + b"{}", (9).to_bytes(8, "little") + b"{",
    ):  # fmt: skip
        path.write_bytes(content)
        assert not is_own(path), content
    assert not is_own(tmp_path)
    assert not is_own(tmp_path / "missing")
    save_picture(Image.new("RGB", (4, 4)), tmp_path / "own.png", "report")
    (tmp_path / "link.png").symlink_to(tmp_path / "own.png")
    assert not is_own(tmp_path / "link.png"), "a user's link"


@pytest.mark.parametrize(
    ("metadata", "own"),
    [(None, False), ({"format": "pt"}, False), ({"format": "geomtx.scene"}, True), ({"geomtx_lora": "{}"}, True)],
)
def test_own_tensor_files(tmp_path: Path, metadata: dict[str, str] | None, own: bool) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors", metadata=metadata)
    assert is_own(tmp_path / "a.safetensors") is own


@pytest.mark.parametrize(
    ("key", "config", "own"),
    [("geomtx_config", '{\n  "a": 1\n}', True), ("geomtx_config", '{"a": 2}', False), ("config", '{"a": 1}', False)],
)
def test_a_configuration_beside_own_weights_is_own_if_they_hold_it_too(
    key: str, config: str, own: bool, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(config)
    assert not is_own(tmp_path / "config.json")
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors", metadata={key: '{"a": 1}', "geomtx": "weights"})
    assert is_own(tmp_path / "config.json") is own


def test_own_pictures(tmp_path: Path) -> None:
    picture = Image.new("RGB", (30, 20))
    other = PngInfo()
    other.add_text("Software", "geomtx")
    picture.save(tmp_path / "plain.png")
    picture.save(tmp_path / "other.png", pnginfo=other)
    picture.save(tmp_path / "photo.jpg")
    for kind in ("report", "photo"):
        save_picture(picture, tmp_path / f"{kind}.png", kind)
    (tmp_path / "half.png").write_bytes((tmp_path / "report.png").read_bytes()[:20])
    paths = sorted(tmp_path.iterdir())
    assert [path.name for path in paths if is_own(path)] == ["photo.png", "report.png"]
    assert [path.name for path in paths if is_own_picture(path)] == ["report.png"]
    assert not is_own_picture(tmp_path / "missing.png")
    with Image.open(tmp_path / "report.png") as read:
        assert read.size == (30, 20)


def test_listed_files_are_own_of_any_kind_while_they_are_as_listed(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2)).save(tmp_path / "photo.png")
    (tmp_path / "cloud.ply").write_bytes(b"ply\nformat ascii 1.0\nend_header\n")
    names = ("photo.png", "cloud.ply")
    assert not any(is_own(tmp_path / name) for name in names)
    listed = {name: file_digest(tmp_path / name) for name in names}
    (tmp_path / LISTING).write_text(json.dumps({"format": "geomtx.splat", "files": listed}))
    assert all(is_own(tmp_path / name) for name in names)
    Image.new("RGB", (3, 2), "red").save(tmp_path / "photo.png")
    assert [is_own(tmp_path / name) for name in names] == [False, True]


# Names and paths


def test_names_that_are_not_unicode_are_escaped_and_stay_different() -> None:
    assert escape_name("café\udce9.png") == r"café\xe9.png"
    assert escape_name("\ud800") == r"\ud800"
    names = unique_names(["a\udce9.png", r"a\xe9.png", "a\udcea.png", "x/a.png", "x/a.png", "x/a_2.png"])
    assert names == (r"a\xe9.png", r"a\xe9_2.png", r"a\xea.png", "x/a.png", "x/a_2.png", "x/a_2_2.png")


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert user_path("~/a") == user_path(Path("~") / "a") == tmp_path / "home" / "a"
    assert user_path("a/~") == Path("a/~")
    assert user_path("~nobody-of-this-name/a") == Path("~nobody-of-this-name/a")
    write_staged(Path("~/out"), ("a.txt",))
    assert tree(tmp_path) == {"home/out/a.txt": "new"}


# What a killed process leaves


def test_the_next_run_removes_what_a_dead_process_left(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = "import os, sys; from geomtx.files import staged_folder\n"
    code += "with staged_folder(sys.argv[1]) as stage: (stage / 'large').touch(); os._exit(1)"
    subprocess.run([sys.executable, "-c", code, str(out)], check=False, timeout=60)
    (left,) = tmp_path.glob(".geomtx-*.partial")
    other = tmp_path / f".geomtx-00000000-{left.name.split('-')[2]}-1.partial"  # of another machine
    own = tmp_path / f".geomtx-{files._machine()}-{os.getpid()}-1.partial"  # still running
    other.mkdir()
    own.mkdir()
    write_staged(out, ("a.txt",))
    assert {path.name for path in tmp_path.iterdir()} == {"out", other.name, own.name}
