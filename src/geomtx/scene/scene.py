"""`Scene`: what a reconstruction gives, with its files on disk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from geomtx.files import user_path
from geomtx.scene.content import SceneContent
from geomtx.scene.files.archive import load_fields
from geomtx.scene.files.export import ExportOptions, SaveOptions
from geomtx.scene.files.save import DEFAULT_FORMATS, check_formats, save_scene
from geomtx.scene.filters import PixelFilter
from geomtx.types import Float

__all__ = ["Scene"]


class Scene(SceneContent):
    r"""S photos of one scene and what a model predicts of them, on the CPU.

    Lengths are up to scale unless `rescale` says otherwise, and points are in the first camera's frame, OpenCV axes.
    `predictions` are in pixels of the model's images. The properties `cameras`, `depth` and `tracks` are in pixels of
    the original photos, with pixel centres at integers. Predictions of heads that the model lacks are None.

    Attributes:
        names: S different names of the views; bytes of file names that are not UTF-8 are escaped as `\xe9`.
        transforms: S transforms from original pixels to pixels of the model's images.
        images: (S, 3, H, W) uint8, the images that the model saw.
        masks: (S, H, W) bool, True = a pixel of the photo. False = padding, masked out by the user or by a filter, or
            in a patch that the model left out because most of it is padded or masked.
        predictions: Predictions without the batch axis and without `track_iterations`.
        query_points: (N, 3) as (view, x, y) in original pixels; None where nothing was tracked.
        units: Unit of all lengths, "up to scale" where it is unknown.
        notice: A warning that every exported file repeats, or "".
        paths: The S files of the photos, None for a view without a file; () where they aren't known. `load` has the
            files that scene.safetensors names, from where it lies. The report shows the photos of files that are still
            there, and the model's images in place of others.
        provenance: Record of how the scene was made, such as {"weights": "nano"}. The report and
            scene.safetensors repeat it.
        refined: Whether the cameras are the result of bundle adjustment, see `geomtx.refine`.
        first_cameras: The cameras that the model predicted, in the world and the unit of the scene, and in pixels of
            the model's images; None where they have not been refined.
        times: S times in seconds from the first frame of the video that the views are frames of; () for photos.
        matched: Pixels of the photos that a model matched, see `geomtx.scene.MatchedPixels`, from which sparse models
            and refinement begin; None where it matched none.
        moving: Mask of the pixels that move by themselves in a video, (S, H, W) bool. Their depth is that of their own
            frame; clouds, files for other tools and refinement leave them out. None where nobody looked for them.
    """

    def rescale(self, factor: float, *, units: str | None = None) -> Scene:
        """Return the scene with depth, points and camera translations scaled; projections stay where they are.

        Args:
            factor: New units for one old unit, such as a known distance over the same distance in the scene.
            units: Name of the new units, such as "metres"; defaults to the name so far.

        Raises:
            ValueError: If the factor is not finite and positive.
        """
        if not (math.isfinite(factor) and factor > 0):
            raise ValueError(f"factor must be finite and positive, got {factor}")
        cameras, encodings, depth, points, *_ = self.predictions
        cameras, first_cameras = (
            None if each is None else each._replace(cam_from_world=_scale_translation(each.cam_from_world, factor))
            for each in (cameras, self.first_cameras)
        )
        if encodings is not None:
            encodings = torch.cat([encodings[..., :3] * factor, encodings[..., 3:]], dim=-1)
        if depth is not None:
            depth = depth._replace(value=depth.value * factor)
        if points is not None:
            points = points._replace(value=points.value * factor)
        predictions = self.predictions._replace(cameras=cameras, pose_encodings=encodings, depth=depth, points=points)
        units = self.units if units is None else units
        return replace(self, predictions=predictions, units=units, first_cameras=first_cameras)

    def save(
        self,
        folder: str | Path,
        *,
        formats: Sequence[str] = DEFAULT_FORMATS,
        percentile: float = 20.0,
        max_points: int | None = None,
        maps: Literal["original", "network"] = "network",
        report: bool = True,
        overwrite: bool = False,
        export: ExportOptions | None = None,
        which: PixelFilter | None = None,
    ) -> tuple[Path, ...]:
        """Write the scene's files, all or none, and leave other files in the folder alone.

        The files are `scene.safetensors`, which has everything and which `Scene.load` reads, `cameras.json`,
        `report.html`, which opens in a browser without a network, `report.png`, and `tracks.json` if there are tracks;
        and those of `formats`:

        | format | written | for |
        |---|---|---|
        | "ply" | `points.ply` | viewers |
        | "glb" | `scene.glb`: points and cameras | browsers, Blender |
        | "colmap" | `colmap/sparse/0`, binary | COLMAP, and what reads its models |
        | "colmap-text" | `colmap-text/sparse/0`, text | people and scripts |
        | "nerfstudio" | `nerfstudio`: transforms.json, points, photos | nerfstudio |
        | "splat" | `splat`: `sparse/0`, points with normals, photos | gsplat, 3D Gaussian Splatting |

        Files that need predictions which the scene lacks are left out, with a warning in the log if there are no finite
        points for points.ply; other formats raise. The same scene gives the same bytes.

        Args:
            folder: Folder to write; it is made if it doesn't exist.
            formats: Formats to write, see the table; defaults to "ply". What an earlier `save` wrote in others is
                removed, as it shows another scene.
            percentile: Percentile of confidence from which pixels are points, see `points`.
            max_points: Largest number of points in points.ply and scene.glb, see `points`; defaults to no limit, and a
                million in scene.glb.
            maps: "network" keeps maps in the pixels of the model's images, which `depth` and `extra` bring to original
                pixels when they are read. "original" adds depth in original pixels to scene.safetensors, for readers
                other than geomtx, and much to its size.
            report: Whether to write report.html and report.png.
            overwrite: Whether files of these names that geomtx did not write may be replaced. Those of an earlier
                `save`, recognised by what they hold, always are.
            export: Options of the formats for other tools; defaults to `ExportOptions()`.
            which: Further tests of a pixel to be a point in any of the files, see `points`; defaults to
                `PixelFilter()`, which leaves out edges of depth.

        Returns:
            The paths of the files that were written, and of the folders of formats.

        Raises:
            FileExistsError: If there are files of these names that geomtx did not write, and `overwrite` is False.
            OSError: If the folder can't be written.
            ValueError: For an unknown format, a scene without what a format needs, photos that aren't found, or names
                that a format can't hold.
        """
        what = SaveOptions(
            check_formats(formats), percentile, max_points, which, maps, report, export or ExportOptions()
        )
        home = user_path(folder)
        saved = save_scene(self, home, what, overwrite=overwrite)
        return tuple(home / name for name in saved.names)

    @classmethod
    def load(cls, folder: str | Path) -> Scene:
        """Read a scene from a folder that `save` wrote, or from its scene.safetensors.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged, isn't a scene, or has a newer format.
        """
        return cls(**load_fields(folder))


def _scale_translation(cam_from_world: Float[Tensor, "*batch 3 4"], factor: float) -> Tensor:
    return torch.cat([cam_from_world[..., :3], cam_from_world[..., 3:] * factor], dim=-1)
