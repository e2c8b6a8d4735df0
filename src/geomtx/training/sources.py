"""Scenes by seed: rendered, or drawn from files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, Protocol, get_type_hints, runtime_checkable

import numpy as np
import torch

from geomtx.data.augmentation import ColorAugmentation
from geomtx.data.co3d import Co3dDataset
from geomtx.data.collate import collate_scenes, split_scenes
from geomtx.data.frame_choice import FrameChoice
from geomtx.data.frame_geometry import FrameTransform
from geomtx.data.mixture import SceneMixture
from geomtx.data.motion import MotionStyle
from geomtx.data.sampler import SceneRequest
from geomtx.data.scene_dataset import SampleOptions, SceneDataset
from geomtx.data.synthetic import RoomStyle, render_scenes
from geomtx.data.unified import UnifiedDataset
from geomtx.data.video_augmentation import VideoAugmentation
from geomtx.data.videos import render_videos
from geomtx.data.virtual_kitti import VirtualKittiDataset
from geomtx.training.data_config import DataSection, DatasetSection
from geomtx.training.plain_values import parse_fields, parse_value, unknown_key
from geomtx.types import SceneBatch

__all__ = ["DrawScenes", "FileScenes", "RenderedScenes", "RenderedVideos", "build_source", "check_datasets"]

_DATASETS = {"co3d": Co3dDataset, "virtual_kitti": VirtualKittiDataset, "unified": UnifiedDataset}
# What other keys say: an option in place of the split would validate on what is trained on.
_NO_OPTIONS = {"root", "annotations", "options", "split", "return"}


@runtime_checkable
class DrawScenes(Protocol):
    """Seeds to scenes, always the same for the same seed."""

    def __call__(
        self, seeds: Sequence[int], num_views: int, image_hw: tuple[int, int], *, device: torch.device | None = None
    ) -> SceneBatch:
        """One scene a seed; `device` is where to make them, if they are made. None = the CPU."""
        ...


def build_source(section: DataSection, *, patch_size: int, held_out: bool = False) -> DrawScenes:
    """What a configuration asks for.

    Args:
        section: Of the configuration.
        patch_size: Of the model.
        held_out: For validation: other scenes where the files have others, and as they are.

    Raises:
        ValueError: For an option that there isn't, or a folder that isn't named.
    """
    check_datasets(section, validation=False)
    color = None if held_out or not section.augment else _build("data.color", ColorAugmentation, section.color)
    if section.kind == "synthetic":
        style = _build("data.style", RoomStyle, section.style)
        return RenderedScenes(style, section.num_tracks, supersample=section.supersample, color=color)
    if section.kind == "synthetic_video":
        return _render_videos(section, held_out)
    options = SampleOptions(
        size=section.image_hw[1],
        patch_size=patch_size,
        transform=FrameTransform.plain() if held_out else _build("data.transform", FrameTransform, section.transform),
        color=color,
        num_tracks=section.num_tracks,
    )
    datasets = [_open_dataset(dataset, options, section.choice, held_out) for dataset in section.datasets.values()]
    pairs = zip(section.datasets.values(), datasets, strict=True)
    lengths = [len(files) if dataset.length is None else dataset.length for dataset, files in pairs]
    return FileScenes(SceneMixture(datasets, lengths))


def _render_videos(section: DataSection, held_out: bool) -> RenderedVideos:
    video = _build("data.video", VideoAugmentation, section.video)
    color = dataclasses.replace(
        ColorAugmentation.video(), **parse_fields(ColorAugmentation, section.color, "data.color")
    )
    changes = section.augment and not held_out
    return RenderedVideos(
        _build("data.style", RoomStyle, section.style),
        _build("data.motion", MotionStyle, section.motion),
        section.num_tracks,
        supersample=section.supersample,
        color=color if changes else None,
        augmentation=video if changes else None,
    )


def check_datasets(section: DataSection, *, validation: bool) -> None:
    """Require each dataset to have its folders, and no options that there aren't; before the weights are loaded.

    Args:
        section: Of the configuration.
        validation: Folders of held-out scenes, too.

    Raises:
        ValueError: Naming the key.
    """
    for name, dataset in section.datasets.items():
        keys = ("root", "validation_root") if validation and dataset.kind != "co3d" else ("root",)
        for key in keys:
            if getattr(dataset, key) is None:
                path = f"data.datasets.{name}.{key}"
                raise ValueError(f"{path} must name a folder, got none; --set {path}=FOLDER gives one")
        _parse_options(dataset, f"data.datasets.{name}.options")
    _build("data.transform", FrameTransform, section.transform)
    _build("data.choice", FrameChoice, section.choice)


def _build(name: str, kind: Any, numbers: dict[str, Any]) -> Any:
    return kind(**parse_fields(kind, numbers, name))


def _parse_options(section: DatasetSection, path: str) -> dict[str, Any]:
    """Keyword arguments of the dataset, each of the type that it is annotated with."""
    kind: Any = _DATASETS[section.kind]
    hints = get_type_hints(kind.__init__)
    for option in section.options:
        if option not in hints.keys() - _NO_OPTIONS:
            raise ValueError(unknown_key(f"{path}.{option}", option, sorted(hints.keys() - _NO_OPTIONS)))
    return {option: parse_value(hints[option], value, f"{path}.{option}") for option, value in section.options.items()}


def _choose_frames(usual: FrameChoice, numbers: dict[str, Any]) -> FrameChoice:
    """The dataset's usual choice with other numbers; one radius of the window takes the other's place."""
    if numbers.get("expand_range") is not None:
        usual = dataclasses.replace(usual, expand_ratio=None)
    return dataclasses.replace(usual, **parse_fields(FrameChoice, numbers, "data.choice"))


def _open_dataset(
    section: DatasetSection, options: SampleOptions, choice: dict[str, Any], held_out: bool
) -> SceneDataset:
    assert section.root is not None
    kind: Any = _DATASETS[section.kind]
    options = dataclasses.replace(options, choice=_choose_frames(kind.usual_choice, choice))
    more = _parse_options(section, "options")
    root = section.validation_root if held_out and section.validation_root is not None else section.root
    if section.kind == "co3d":
        split: Literal["train", "test"] = "test" if held_out else "train"
        return Co3dDataset(root, section.annotations or root, split=split, options=options, **more)
    return kind(root, options=options, **more)


class RenderedScenes:
    """Rooms of `render_scenes`; see `DrawScenes`.

    Args:
        style: What the rooms are like.
        num_tracks: Tracks a scene.
        supersample: Rays a pixel along each axis.
        color: Changes colours, of each scene by numbers drawn from its seed.
    """

    def __init__(
        self, style: RoomStyle, num_tracks: int, *, supersample: int = 1, color: ColorAugmentation | None = None
    ) -> None:
        self.style = style
        self.num_tracks = num_tracks
        self.supersample = supersample
        self.color = color

    def __call__(
        self, seeds: Sequence[int], num_views: int, image_hw: tuple[int, int], *, device: torch.device | None = None
    ) -> SceneBatch:
        """Render."""
        scenes = render_scenes(
            seeds,
            num_views,
            image_hw,
            num_tracks=self.num_tracks,
            supersample=self.supersample,
            style=self.style,
            device=device,
        )
        return _recolor(scenes, seeds, self.color)


class RenderedVideos:
    """Videos of `render_videos`, whose views are frames in order; see `DrawScenes`.

    Args:
        style: What the rooms are like.
        motion: How they move.
        num_tracks: Tracks a video.
        supersample: Rays a pixel along each axis.
        color: Changes colours, of each video by numbers drawn from its seed.
        augmentation: Changes frames and tracks, likewise.
    """

    def __init__(
        self,
        style: RoomStyle,
        motion: MotionStyle,
        num_tracks: int,
        *,
        supersample: int = 1,
        color: ColorAugmentation | None = None,
        augmentation: VideoAugmentation | None = None,
    ) -> None:
        self.style = style
        self.motion = motion
        self.num_tracks = num_tracks
        self.supersample = supersample
        self.color = color
        self.augmentation = augmentation

    def __call__(
        self, seeds: Sequence[int], num_views: int, image_hw: tuple[int, int], *, device: torch.device | None = None
    ) -> SceneBatch:
        """Render."""
        videos = render_videos(
            seeds,
            num_views,
            image_hw,
            num_tracks=self.num_tracks,
            supersample=self.supersample,
            style=self.style,
            motion=self.motion,
            device=device,
        )
        videos = _recolor(videos, seeds, self.color)
        if self.augmentation is None:
            return videos
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        changed = [
            self.augmentation(video, generator=generator)
            for video, generator in zip(split_scenes(videos), generators, strict=True)
        ]
        return collate_scenes(changed)


def _recolor(scenes: SceneBatch, seeds: Sequence[int], color: ColorAugmentation | None) -> SceneBatch:
    """Other colours, of each scene by its seed."""
    if color is None:
        return scenes
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    pairs = zip(scenes.images.split(1), generators, strict=True)
    return scenes._replace(images=torch.cat([color(image, generator=generator) for image, generator in pairs]))


class FileScenes:
    """Scenes of datasets; see `DrawScenes`. A seed says which scene, and all that is drawn for it.

    Args:
        mixture: Of the datasets; counts what it had to leave out.
    """

    def __init__(self, mixture: SceneMixture) -> None:
        self.mixture = mixture

    def __call__(
        self, seeds: Sequence[int], num_views: int, image_hw: tuple[int, int], *, device: torch.device | None = None
    ) -> SceneBatch:
        """Read and decode, on the CPU."""
        aspect = image_hw[0] / image_hw[1]
        scenes = [int(np.random.default_rng(seed).integers(len(self.mixture))) for seed in seeds]
        requests = [SceneRequest(scene, num_views, aspect, seed) for scene, seed in zip(scenes, seeds, strict=True)]
        return collate_scenes([self.mixture[request] for request in requests])
