from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from geomtx.staging import check_writable, staged_folder


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def write_staged(
    folder: Path, names: tuple[str, ...], error: Exception | None = None, owned: tuple[str, ...] | None = None
) -> None:
    with staged_folder(folder, names if owned is None else owned) as stage:
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
        (tmp_path / name).write_text("old")
    with staged_folder(tmp_path, ("one.txt", "stale.txt", "never.txt")) as stage:
        (stage / "one.txt").write_text("new")
    assert tree(tmp_path) == {"mine.txt": "old", "one.txt": "new"}


def test_an_error_leaves_everything_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("old")
    for folder in (tmp_path, tmp_path / "new" / "folder"):
        with pytest.raises(KeyError):
            write_staged(folder, ("one.txt",), error=KeyError())
    assert tree(tmp_path) == {"one.txt": "old"}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failure_while_moving_is_undone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "z.txt").mkdir()  # in the way of a file
    with pytest.raises(IsADirectoryError) as caught:
        write_staged(tmp_path, ("a.txt", "new/b.txt", "z.txt"), owned=("a.txt",))
    assert caught.value.filename == str(tmp_path / "z.txt")
    assert ".partial" not in str(caught.value)
    assert tree(tmp_path) == {"a.txt": "old"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "z.txt"]


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
        write_staged(tmp_path, ("a.txt", "z.txt"), owned=())
    assert (tmp_path / "a.txt").is_symlink()
    write_staged(tmp_path, ("a.txt",))
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
