"""A folder that trainers of Gaussian splats read: gsplat's examples and the reference of 3D Gaussian Splatting.

Source: Kerbl et al. 2023 (3D Gaussian Splatting), whose reference reads `sparse/0`, `images` and points with normals.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geomtx.scene.files.colmap import write_colmap_model
from geomtx.scene.files.export import Export, ExportOptions, plan_photo_files
from geomtx.scene.files.ply import write_coloured_points
from geomtx.scene.files.sparse_model import SparseModel

__all__ = ["plan_splat", "write_splat"]

logger = logging.getLogger(__name__)

_MODEL = "sparse/0"
_POINTS = f"{_MODEL}/points3D.ply"
_MOST_OFFSET = 1.0  # pixels from the centre of a photo to its principal point, from which there is a warning


def plan_splat(names: Sequence[str], options: ExportOptions) -> tuple[str, ...]:
    """Return the files that `write_splat` may write for photos of these names."""
    model = (f"{_MODEL}/{name}" for name in options.layout().names)
    return (*model, _POINTS, *plan_photo_files(names, options))


def write_splat(folder: Path, export: Export) -> None:
    """Write `sparse/0` (a binary model of COLMAP, and its points as a PLY file with normals), and copies of the photos.

    Args:
        folder: Folder, which exists.
        export: The scene.

    Raises:
        ValueError: If photos are not found or have one name, or there is no sparse model.
    """
    model, options = export.copied_model, export.options
    photos = export.photos_of(model)
    names = [photo.name for photo in photos]
    (folder / _MODEL).mkdir(parents=True)
    write_colmap_model(folder / _MODEL, model, names, options.layout())
    points = model.points
    write_coloured_points(folder / _POINTS, points.xyz.numpy(), points.rgb.numpy(), _normals(export, model))
    export.copy_photos(folder, photos)
    _warn_of_offsets(model, names)
    place = shlex.quote(str(export.home / "splat"))
    export.note(f"gsplat: python examples/simple_trainer.py default --data_dir {place} --data_factor 1")
    export.note(f"3D Gaussian Splatting: python train.py -s {place}")


def _normals(export: Export, model: SparseModel) -> NDArray[np.float32]:
    """Unit normal (M, 3) of each point: that of the surface of the first view that sees it, facing the view."""
    first = np.searchsorted(model.points.point.numpy(), np.arange(len(model.points.xyz)))
    views = np.array(model.views)[model.points.view.numpy()[first]]
    normals = np.empty((len(views), 3), np.float32)
    for view in np.unique(views).tolist():
        normals[views == view] = export.surfaces.normals(view, model.points.xyz.numpy()[views == view])
    return normals


def _warn_of_offsets(model: SparseModel, names: Sequence[str]) -> None:
    """Warn of principal points beside the centres of the photos, which the reference of 3DGS takes for them."""
    sizes = np.array([size[::-1] for size in model.sizes], dtype=np.float64)
    offsets = np.linalg.norm(model.intrinsics[:, :2, 2].numpy() + 0.5 - sizes / 2, axis=1)
    far = int((offsets > _MOST_OFFSET).sum())
    if far:
        worst = int(offsets.argmax())
        logger.warning(
            "the principal point is more than a pixel beside the centre of %d of %d photos: 3D Gaussian Splatting, "
            "which ignores it, will be off by up to %.1f pixels ('%s'); gsplat and nerfstudio use it; crop the photos "
            "to it with --crop (crop=True)",
            far,
            len(names),
            offsets[worst],
            names[worst],
        )
