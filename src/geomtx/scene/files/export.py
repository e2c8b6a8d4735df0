"""A scene on its way to other tools: what is asked for, and what several formats need, computed once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from geomtx.checks import check_count, check_finite_positive, check_option, suggest_keywords
from geomtx.scene.content import SceneContent
from geomtx.scene.files.colmap import ColmapLayout
from geomtx.scene.files.photos import Photo, copy_names, file_names, find_photos, plan_copies, write_copies
from geomtx.scene.files.sparse_model import (
    Box,
    SparseModel,
    build_sparse_model,
    centred_boxes,
    share_intrinsics,
)
from geomtx.scene.filters import PixelFilter
from geomtx.scene.observations import ObservedPoints, describe_observations, observe_points
from geomtx.scene.points import PointCloud, check_percentile
from geomtx.scene.surfaces import Surfaces, find_surfaces

__all__ = ["Export", "ExportOptions", "SaveOptions", "plan_photo_files"]

logger = logging.getLogger(__name__)


@suggest_keywords
@dataclass(frozen=True)
class ExportOptions:
    """How a scene is written for other tools; all of it has to do with COLMAP's models and copies of photos.

    Attributes:
        photos: Folder of the photos, for formats that copy them; defaults to where they were when the scene was made.
        max_points: Largest number of points of a sparse model, at least 1, see `geomtx.scene.observe_points`.
        tolerance: Largest distance between points of two views that are merged, as a share of their depth.
        colmap_files: Number of files of a model: 5, with rigs and frames as of COLMAP 4, or 3 as of COLMAP 3.
        shared_camera: Whether all photos share one camera, the mean of their intrinsics, and not one each.
        image_factors: Whole numbers N from 2 for which `images_N` has the photos with sides divided by N.
        crop: Whether photos are cropped so that the principal point is their centre, for trainers that ignore it.
        observations: Points of a sparse model with their observations, such as from matches; defaults to what the
            dense maps and tracks of the scene give, `geomtx.scene.observe_points`.
    """

    photos: str | Path | None = None
    max_points: int = 100_000
    tolerance: float = 0.02
    colmap_files: Literal[3, 5] = 5
    shared_camera: bool = False
    image_factors: tuple[int, ...] = ()
    crop: bool = False
    observations: ObservedPoints | None = None

    def __post_init__(self) -> None:
        check_count("max_points", self.max_points)
        check_finite_positive("tolerance", self.tolerance)
        check_option("colmap_files", self.colmap_files, (3, 5))
        object.__setattr__(self, "image_factors", tuple(dict.fromkeys(self.image_factors)))
        for factor in self.image_factors:
            check_count("image_factors", factor, 2)

    def layout(self, *, text: bool = False) -> ColmapLayout:
        """Return the files of a model of COLMAP."""
        return ColmapLayout(text, self.colmap_files, self.shared_camera)


@dataclass(frozen=True)
class SaveOptions:
    """What is written of a scene: the arguments of `Scene.save` that don't say where.

    Attributes:
        formats: Names of formats, each once.
        percentile: Percentile of confidence from which pixels are points, 0 to 100.
        max_points: Largest number of points in points.ply and scene.glb; None for no limit.
        which: Further tests that a pixel must pass to be a point; None for `PixelFilter()`.
        maps: Resolution of the maps in scene.safetensors, see `write_archive`.
        report: Whether to write report.html and report.png.
        export: Options of the formats for other tools.
    """

    formats: tuple[str, ...] = ("ply",)
    percentile: float = 20.0
    max_points: int | None = None
    which: PixelFilter | None = None
    maps: Literal["original", "network"] = "network"
    report: bool = True
    export: ExportOptions = ExportOptions()

    def __post_init__(self) -> None:
        check_percentile(self.percentile)


class Export:
    """A scene, its points, and what formats make of it.

    Args:
        scene: The scene.
        cloud: Its point cloud; None where there are no points.
        what: Formats and options of what is written.
        home: Folder that the results are for, which commands that are printed name.
    """

    def __init__(self, scene: SceneContent, cloud: PointCloud | None, what: SaveOptions, home: Path) -> None:
        self.scene, self.cloud, self.home = scene, cloud, home
        self.what, self.options = what, what.export
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Keep a line for whoever runs the export, once."""
        if text not in self.notes:
            self.notes.append(text)
            logger.info("%s", text)

    @cached_property
    def with_shared_camera(self) -> SceneContent:
        """The scene, with one camera for all photos if that is asked for."""
        return share_intrinsics(self.scene) if self.options.shared_camera else self.scene

    @cached_property
    def observed(self) -> ObservedPoints:
        """Points of the scene with their observations."""
        options = self.options
        observed = options.observations
        if observed is None:
            observed = observe_points(
                self.with_shared_camera,
                max_points=options.max_points,
                percentile=self.what.percentile,
                tolerance=options.tolerance,
                which=self.what.which,
            )
        self.note(describe_observations(observed))
        return observed

    @cached_property
    def surfaces(self) -> Surfaces:
        """The surfaces that the views see."""
        return find_surfaces(self.with_shared_camera)

    @cached_property
    def boxes(self) -> tuple[Box, ...] | None:
        """Part of each photo that copies keep; None for whole photos."""
        return centred_boxes(self.with_shared_camera) if self.options.crop else None

    @cached_property
    def model(self) -> SparseModel:
        """Sparse model in pixels of the upright photos."""
        return build_sparse_model(self.with_shared_camera, self.observed)

    @cached_property
    def copied_model(self) -> SparseModel:
        """Sparse model in pixels of the copies of the photos."""
        if self.boxes is None:
            return self.model
        return build_sparse_model(self.with_shared_camera, self.observed, self.boxes)

    @cached_property
    def whole_model(self) -> SparseModel:
        """As `copied_model`, with all views that have a camera, however few points they see."""
        return build_sparse_model(self.with_shared_camera, self.observed, self.boxes, least=0)

    def photos_of(self, model: SparseModel) -> tuple[Photo, ...]:
        """Return what is copied for the views of a model.

        Raises:
            ValueError: If photos are not found, or two have one name.
        """
        folder = None if self.options.photos is None else Path(self.options.photos)
        sources, names = find_photos(self.scene, folder), copy_names(file_names(self.scene))
        boxes = self.boxes or (None,) * len(names)
        transforms = self.scene.transforms
        return tuple(Photo(names[i], sources[i], transforms[i].original_hw, boxes[i]) for i in model.views)

    def copy_photos(self, folder: Path, photos: Sequence[Photo]) -> None:
        """Write copies of photos into a folder, upright and in full size, and smaller ones where they are asked for."""
        write_copies(folder, photos, self.options.image_factors)


def plan_photo_files(names: Sequence[str], options: ExportOptions) -> tuple[str, ...]:
    """Return the files that `Export.copy_photos` may write for views of these names."""
    return plan_copies(copy_names(names), options.image_factors)
