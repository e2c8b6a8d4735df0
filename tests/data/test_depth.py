from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from data.plane_scenes import save_png16
from geomtx.data import SceneError, clean_depth, read_depth, read_half_png, read_integer_png


def test_what_is_no_depth_is_unknown() -> None:
    depth = np.array([[1.0, 0, -2, np.nan], [np.inf, -np.inf, 3, 4]])
    np.testing.assert_array_equal(clean_depth(depth), [[1, 0, 0, 0], [0, 0, 3, 4]])
    np.testing.assert_array_equal(clean_depth(depth, max_depth=3), [[1, 0, 0, 0], [0, 0, 3, 0]])
    assert clean_depth(depth).dtype == np.float32


def test_percentiles_are_those_of_what_is_known() -> None:
    rng = np.random.default_rng(0)
    known = rng.permutation(np.arange(1, 101))
    for num_unknown in (0, 900):
        depth = np.concatenate([known, np.zeros(num_unknown)]).reshape(10, -1)
        kept = clean_depth(depth, max_percentile=98)
        assert sorted(kept[kept > 0]) == list(range(1, 99))
        kept = clean_depth(depth, min_percentile=10, max_depth=50)
        assert sorted(kept[kept > 0]) == list(range(6, 51))


def test_an_empty_map_stays_empty() -> None:
    empty = np.full((3, 4), np.nan)
    assert not clean_depth(empty, min_percentile=5, max_percentile=98).any()


@pytest.mark.parametrize("name", ["min_percentile", "max_percentile"])
def test_percentiles_out_of_range(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be in 0 … 100, got 101$"):
        clean_depth(np.ones((2, 2)), **{name: 101})


def test_half_floats_in_a_png(tmp_path: Path) -> None:
    depth = np.random.default_rng(0).uniform(0, 100, (5, 7)).astype(np.float16)
    depth[0, 0] = np.inf
    save_png16(tmp_path / "depth.png", depth.view(np.uint16))
    np.testing.assert_array_equal(read_half_png(tmp_path / "depth.png"), depth.astype(np.float32))


def test_centimetres_in_a_png(tmp_path: Path) -> None:
    save_png16(tmp_path / "depth.png", np.array([[0, 123, 65535]]))
    read = read_integer_png(tmp_path / "depth.png", unit=0.01)
    np.testing.assert_allclose(read, [[0, 1.23, 655.35]], rtol=1e-6)
    assert read.dtype == np.float32


def test_png_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "depth.png"
    with pytest.raises(SceneError, match=r"^depth '.*depth.png' must be an existing file, got none$"):
        read_half_png(path)
    Image.new("L", (3, 3)).save(path)
    with pytest.raises(SceneError, match=r"^depth '.*depth.png' must have 16 bits a pixel, got mode L$"):
        read_half_png(path)
    save_png16(path, np.arange(10000).reshape(100, 100))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(SceneError, match=r"^depth '.*depth.png' must be a whole image, got a damaged one: [^\n]+$"):
        read_integer_png(path, unit=0.01)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npy(dtype: type, tmp_path: Path) -> None:
    depth = np.random.default_rng(0).uniform(0, 9, (4, 5)).astype(dtype)
    np.save(tmp_path / "depth.npy", depth)
    read = read_depth(tmp_path / "depth.npy")
    np.testing.assert_array_equal(read, depth.astype(np.float32))
    assert read.dtype == np.float32


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (np.full((2, 2), np.nan), "must be finite, got 4 values that are not"),
        (np.array([[1.0, np.inf]]), "must be finite, got 1 values that are not"),
        (np.ones((2, 2, 1)), r"must hold \(H, W\) floats, got \(2, 2, 1\) of float64"),
        (np.ones((2, 2), int), r"must hold \(H, W\) floats, got \(2, 2\) of int64"),
    ],
)
def test_npy_of_something_else(depth: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "depth.npy", depth)
    with pytest.raises(SceneError, match=rf"^depth '.*depth.npy' {message}$"):
        read_depth(tmp_path / "depth.npy")


def test_depth_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SceneError, match=r"^depth '.*none.npy' must be an existing file, got none$"):
        read_depth(tmp_path / "none.npy")
    (tmp_path / "depth.tif").write_bytes(b"II*")
    with pytest.raises(SceneError, match=r"^depth '.*depth.tif' must be .npy or .exr, got '.tif'$"):
        read_depth(tmp_path / "depth.tif")
    np.save(tmp_path / "cut.npy", np.ones((30, 30)))
    whole = (tmp_path / "cut.npy").read_bytes()
    for content in (whole[:300], whole[:20], b"", b"not an array"):
        (tmp_path / "cut.npy").write_bytes(content)
        with pytest.raises(SceneError, match=r"^depth '.*cut.npy' must be a whole file, got a damaged one: [^\n]+$"):
            read_depth(tmp_path / "cut.npy")


class _Channel:
    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels


def fake_openexr(channels: dict[str, np.ndarray]) -> ModuleType:
    """OpenEXR's interface, as far as it is used: File(path, separate_channels=True) in a with-block, .channels()."""

    class File:
        def __init__(self, path: str, *, separate_channels: bool) -> None:
            assert separate_channels
            if Path(path).read_bytes() != b"exr":
                raise RuntimeError("Failed to read\nfile")

        def __enter__(self) -> File:
            return self

        def __exit__(self, *_: object) -> None: ...

        def channels(self) -> dict[str, _Channel]:
            return {name: _Channel(pixels) for name, pixels in channels.items()}

    module = ModuleType("OpenEXR")
    module.__spec__ = object()  # find_spec asks for it
    module.File = File
    return module


@pytest.mark.parametrize("names", ["Y", "Z", "RGB", "BGR", "V"])
def test_exr(names: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    depth = np.ones((2, 3), np.float32) * 5
    wanted = "R" if "R" in names else names
    channels = {name: depth if name == wanted else depth * 0 for name in names}
    monkeypatch.setitem(sys.modules, "OpenEXR", fake_openexr(channels))
    (tmp_path / "depth.exr").write_bytes(b"exr")
    np.testing.assert_array_equal(read_depth(tmp_path / "depth.exr"), depth)
    (tmp_path / "depth.exr").write_bytes(b"no exr")
    with pytest.raises(SceneError, match=r"^depth '.*depth.exr' must be a whole file, got .*: Failed to read file$"):
        read_depth(tmp_path / "depth.exr")


@pytest.mark.parametrize("num_channels", [None, 3])
def test_exr_by_imageio(num_channels: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    depth = np.arange(6, dtype=np.float32).reshape(2, 3)
    pixels = depth if num_channels is None else np.stack([depth, depth * 0, depth * 0], axis=-1)
    package, module = ModuleType("imageio"), ModuleType("imageio.v3")
    package.__spec__, module.imread = object(), lambda path: pixels
    monkeypatch.setattr("importlib.util.find_spec", lambda name: package.__spec__ if name == "imageio" else None)
    monkeypatch.setitem(sys.modules, "imageio", package)
    monkeypatch.setitem(sys.modules, "imageio.v3", module)
    (tmp_path / "depth.exr").write_bytes(b"exr")
    np.testing.assert_array_equal(read_depth(tmp_path / "depth.exr"), depth)


def test_exr_without_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "depth.exr").write_bytes(b"exr")
    with pytest.raises(ImportError, match=r"^reading '.*depth.exr' needs the package OpenEXR or imageio: pip install"):
        read_depth(tmp_path / "depth.exr")
