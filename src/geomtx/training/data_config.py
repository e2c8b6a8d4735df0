"""Numbers of a training run that concern its scenes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from geomtx.checks import check_at_least, check_positive
from geomtx.data.motion import MOST_FRAMES
from geomtx.data.synthetic import MOST_TRACKS, MOST_VIEWS

__all__ = ["MOST_RENDERED", "DataSection", "DatasetSection", "ValidationSection"]

MOST_RENDERED = {"synthetic": MOST_VIEWS, "synthetic_video": MOST_FRAMES}
"""Views of a scene, by the kind of scenes that are rendered."""


@dataclasses.dataclass(frozen=True)
class DatasetSection:
    """Scenes in files.

    Attributes:
        kind: "co3d", "virtual_kitti" or "unified".
        root: Folder.
        annotations: Folder of Co3Dv2's annotations; None = `root`.
        validation_root: Folder of the scenes to validate on; None = `root`, which Co3Dv2 has a split for.
        length: How often scenes are drawn from it, relative to the others'; None = its number of scenes.
        options: Other keyword arguments of the dataset.
    """

    kind: Literal["co3d", "virtual_kitti", "unified"]
    root: str | None = None
    annotations: str | None = None
    validation_root: str | None = None
    length: int | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class DataSection:
    """Where scenes come from.

    Attributes:
        kind: "synthetic" renders scenes that never repeat, "synthetic_video" renders them as videos in which things
            move, "dataset" reads `datasets`.
        datasets: By a name of your choice.
        image_hw: Height and width of the images, multiples of the model's patch.
        aspect: Range of height over width to draw from for every step, in place of the height; None = always
            `image_hw`.
        images: Budget of images a step and process; with n views a batch has max(1, images // n) scenes.
        views: Number of views → weight with which a step has it.
        num_tracks: Tracks a scene; 0 = none.
        supersample: See `geomtx.data.synthetic.render_scenes`.
        style: Numbers of `geomtx.data.synthetic.RoomStyle`.
        motion: Numbers of `geomtx.data.MotionStyle`, for videos.
        augment: Change colours, see `geomtx.data.augmentation.ColorAugmentation`, and of videos frames and tracks, too,
            see `geomtx.data.VideoAugmentation`.
        color: Numbers of the first.
        video: Numbers of the second.
        transform: Numbers of `geomtx.data.FrameTransform`, for training on `datasets`.
        choice: Numbers of `geomtx.data.FrameChoice`, in place of what is usual for each of `datasets`.
        workers: Processes that prepare batches beside the training; 0 = none, rendering on the training device.
    """

    kind: Literal["synthetic", "synthetic_video", "dataset"] = "synthetic"
    datasets: dict[str, DatasetSection] = dataclasses.field(default_factory=dict)
    image_hw: tuple[int, int] = (518, 518)
    aspect: tuple[float, float] | None = None
    images: int = 48
    views: dict[int, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(range(2, 25), 1.0))
    num_tracks: int = 0
    supersample: int = 1
    style: dict[str, Any] = dataclasses.field(default_factory=dict)
    motion: dict[str, Any] = dataclasses.field(default_factory=dict)
    augment: bool = False
    color: dict[str, Any] = dataclasses.field(default_factory=dict)
    video: dict[str, Any] = dataclasses.field(default_factory=dict)
    transform: dict[str, Any] = dataclasses.field(default_factory=dict)
    choice: dict[str, Any] = dataclasses.field(default_factory=dict)
    workers: int = 0

    def __post_init__(self) -> None:
        check_positive("data.images", self.images)
        check_positive("data.supersample", self.supersample)
        check_at_least("data.num_tracks", self.num_tracks, 0)
        check_at_least("data.workers", self.workers, 0)
        for side in self.image_hw:
            check_positive("data.image_hw", side)
        if self.aspect is not None and not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"data.aspect must be a range above 0, got {self.aspect}")
        weights = self.views.values()
        if not (all(views >= 1 for views in self.views) and all(weight >= 0 for weight in weights)) or not (
            0 < sum(weights) < math.inf
        ):
            raise ValueError(f"data.views must give weights to numbers of views, got {self.views}")
        if self.kind != "dataset":
            self._check_rendered(MOST_RENDERED[self.kind])
        for name in ("motion", "video"):
            value = getattr(self, name)
            if value and self.kind != "synthetic_video":
                raise ValueError(f"data.{name} must go with kind 'synthetic_video', got {value} for {self.kind!r}")
        if (self.kind == "dataset") != bool(self.datasets):
            raise ValueError(f"data.datasets must go with kind 'dataset', got {len(self.datasets)} for {self.kind!r}")

    def _check_rendered(self, most_views: int) -> None:
        if max(self.views) > most_views:
            raise ValueError(f"data.views must be up to {most_views} of rendered scenes, got {max(self.views)}")
        if self.num_tracks > MOST_TRACKS:
            raise ValueError(f"data.num_tracks must be up to {MOST_TRACKS} of rendered scenes, got {self.num_tracks}")
        for name in ("transform", "choice"):
            if getattr(self, name):
                raise ValueError(
                    f"data.{name} must go with kind 'dataset', got {getattr(self, name)} for {self.kind!r}"
                )


@dataclasses.dataclass(frozen=True)
class ValidationSection:
    """Scenes that are never trained on.

    Attributes:
        every: Steps between validations; 0 = never.
        scenes: For every number of views.
        views: Numbers of views.
    """

    every: int = 0
    scenes: int = 16
    views: tuple[int, ...] = (2, 4)

    def __post_init__(self) -> None:
        check_at_least("validation.every", self.every, 0)
        check_positive("validation.scenes", self.scenes)
        check_at_least("validation.views", min(self.views, default=0), 1)
