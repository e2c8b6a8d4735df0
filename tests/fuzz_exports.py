"""Write random scenes in all formats: `python tests/fuzz_exports.py [COUNT]`, or `make fuzz`.

Each export must give valid files, read by parsers that share nothing with the writers, or an error of one line that
leaves nothing behind. Prints how often each happened, and every scene for which neither did. Exits 1 if there is one.
"""

from __future__ import annotations

import collections
import json
import logging
import re
import sys
import tempfile
import traceback
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

import geomtx
from geomtx.scene.files.colmap_model import read_colmap_model
from geomtx.scene.files.export import ExportOptions
from geomtx.scene.files.save import FORMATS
from scene.files.glb_parser import parse_glb
from scene.files.ply_parser import parse_ply
from scene.files.random_scenes import random_scene

_COUNT = 10_000


def try_exports(seed: int, folder: Path) -> dict[str, str]:
    """Save a random scene in two formats, each by itself.

    Args:
        seed: Seed of the scene and of the options.
        folder: An empty folder.

    Returns:
        Format → "valid", or the error's message.

    Raises:
        AssertionError: If files are not valid, or an error left something or is not one line.
        Exception: Whatever an export raised that is no clear error.
    """
    scene = random_scene(seed, folder / "photos")
    rng = np.random.default_rng([seed, 1])
    options = ExportOptions(
        max_points=int(rng.choice([1, 50, 100_000])),
        colmap_files=int(rng.choice([3, 5])),
        shared_camera=bool(rng.random() < 0.2),
        image_factors=(2,) if rng.random() < 0.2 else (),
        crop=bool(rng.random() < 0.2),
    )
    percentile = rng.uniform(0, 100)
    results = {}
    for name in rng.choice(sorted(FORMATS), 2, replace=False):
        out = folder / str(name)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                paths = scene.save(out, formats=(str(name),), report=False, export=options, percentile=percentile)
        except (ValueError, FileNotFoundError) as error:
            check_error(error, out)
            results[str(name)] = re.sub(r"'[^']*'|\d[\d.]*", "…", str(error))
        else:
            assert all(path.exists() for path in paths)
            check_files(out, str(name))
            results[str(name)] = "valid"
    return results


def check_error(error: Exception, out: Path) -> None:
    """Require an error of one line that geomtx raised, and that nothing was left behind.

    Args:
        error: The error.
        out: Folder that the scene was to be saved to.
    """
    message = str(error)
    assert message, type(error)
    assert len(message.splitlines()) == 1, message
    assert list(out.rglob("*")) == [], message
    # Not what Python itself says of a value that was not foreseen.
    assert str(traceback.extract_tb(error.__traceback__)[-1].line).startswith("raise "), message


def check_files(out: Path, name: str) -> None:
    """Require valid files of a format.

    Args:
        out: Folder that the scene was saved to.
        name: Name of the format.
    """
    geomtx.Scene.load(out)
    if name == "ply":
        if (out / "points.ply").exists():
            _check_points(out / "points.ply")
    elif name == "glb":
        _, values = parse_glb(out / "scene.glb")
        assert all(np.isfinite(each).all() and len(each) for each in values)
    elif name in ("colmap", "colmap-text"):
        _check_colmap(out / name / "sparse" / "0")
    elif name == "nerfstudio":
        _check_nerfstudio(out / name)
    else:
        _check_colmap(out / name / "sparse" / "0")
        images = read_colmap_model(out / name / "sparse" / "0").images
        assert {image.name for image in images} == {path.name for path in (out / name / "images").iterdir()}


def _check_points(path: Path) -> None:
    _, values = parse_ply(path)
    assert len(values["x"]) > 0
    assert all(np.isfinite(values[axis]).all() for axis in "xyz")


def _check_colmap(folder: Path) -> None:
    ours = read_colmap_model(folder)
    assert len(ours.images) > 0
    assert all(len(image.points) >= 10 for image in ours.images)
    try:
        import pycolmap
    except ImportError:
        return
    model = pycolmap.Reconstruction(folder)
    assert (len(model.images), len(model.points3D)) == (len(ours.images), len(ours.points))
    seen = 0
    for image in model.images.values():
        assert np.isfinite(image.cam_from_world().matrix()).all()
        for index, point in enumerate(image.points2D):
            if point.has_point3D():
                elements = model.points3D[point.point3D_id].track.elements
                assert sum((each.image_id, each.point2D_idx) == (image.image_id, index) for each in elements) == 1
                seen += 1
    for point in model.points3D.values():
        assert np.isfinite(point.xyz).all()
        views = [each.image_id for each in point.track.elements]
        assert len(views) == len(set(views)) > 0
        seen -= len(views)
    assert seen == 0


def _check_nerfstudio(folder: Path) -> None:
    content = json.loads((folder / "transforms.json").read_text(encoding="utf-8"))
    assert content["frames"]
    for frame in content["frames"]:
        assert (folder / frame["file_path"]).is_file()
        pose = np.array(frame["transform_matrix"])
        np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-5)
        assert np.isfinite(pose).all()
    assert len(content["applied_transform"]) == 3
    _check_points(folder / content["ply_file_path"])


def _try_many(seeds: range) -> tuple[collections.Counter[tuple[str, str]], list[str]]:
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    failures = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            try:
                counts.update(try_exports(seed, Path(folder)).items())
            except Exception as error:  # the scenes after it count too
                failures.append(f"scene {seed}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
    return counts, failures


def main(arguments: list[str]) -> int:
    """Try so many scenes, in as many processes as there are cores."""
    count = int(arguments[0]) if arguments else _COUNT
    parts = [range(start, min(start + 100, count)) for start in range(0, count, 100)]
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    failures: list[str] = []
    with ProcessPoolExecutor() as pool:
        for found, failed in pool.map(_try_many, parts):
            counts += found
            failures += failed
    for (name, result), number in sorted(counts.items()):
        print(f"{number:6} {name:12} {result}")
    for line in failures:
        print(line)
    print(f"{count} scenes, {sum(counts.values())} exports, {len(failures)} neither valid nor a clear error")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
