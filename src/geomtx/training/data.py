"""Batches of a training run, from rendered scenes or files. Each is a function of seed, step and rank."""

from __future__ import annotations

import dataclasses
import random
import signal
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol, get_type_hints, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from geomtx.checks import check_divisible
from geomtx.data.augmentation import ColorAugmentation, VideoAugmentation
from geomtx.data.collate import collate_scenes, split_scenes
from geomtx.data.datasets.co3d import Co3dDataset
from geomtx.data.datasets.colmap import ColmapDataset
from geomtx.data.datasets.unified import UnifiedDataset
from geomtx.data.datasets.virtual_kitti import VirtualKittiDataset
from geomtx.data.frame_geometry import FrameTransform
from geomtx.data.sampling import FrameChoice, SceneMixture, SceneRequest
from geomtx.data.scene_check import check_values
from geomtx.data.scene_dataset import SampleOptions, SceneDataset
from geomtx.data.synthetic.motion import MotionStyle
from geomtx.data.synthetic.render import VideoStyle, held_out_seed, render_scenes, render_videos, training_seed
from geomtx.data.synthetic.rooms import RoomStyle
from geomtx.geometry.scene_frame import known_pixels
from geomtx.parsing import UnknownKeyError, parse_dataclass, parse_value, replace_fields
from geomtx.training.config import DataSection, DatasetSection, ValidationSection
from geomtx.types import SceneBatch

__all__ = [
    "DrawScenes",
    "FileScenes",
    "RenderedScenes",
    "RenderedVideos",
    "SceneStream",
    "build_source",
    "check_datasets",
    "describe_problem",
    "load_batches",
    "move_batch",
    "split_batch",
    "validation_batches",
]

_DATASETS = {
    "co3d": Co3dDataset,
    "virtual_kitti": VirtualKittiDataset,
    "unified": UnifiedDataset,
    "colmap": ColmapDataset,
}
# What other keys say: an option in place of the split would validate on what is trained on.
_NO_OPTIONS = {"root", "annotations", "options", "split", "return"}


@runtime_checkable
class DrawScenes(Protocol):
    """Function from seeds to scenes, the same scene for the same seed."""

    def __call__(
        self, seeds: Sequence[int], num_views: int, image_hw: tuple[int, int], *, device: torch.device | None = None
    ) -> SceneBatch:
        """Return one scene a seed; rendered ones are made on `device`, by default the CPU."""
        ...


def build_source(section: DataSection, *, patch_size: int, held_out: bool = False) -> DrawScenes:
    """Return the scenes of a configuration.

    Args:
        section: Section of the configuration.
        patch_size: Patch size of the model in pixels.
        held_out: Whether they are for validation: of files, the scenes that are held out, without augmentation.

    Raises:
        ValueError: For an unknown option, or a folder that isn't named.
    """
    check_datasets(section, validation=False)
    color = None if held_out or not section.augment else parse_dataclass(ColorAugmentation, section.color, "data.color")
    if section.kind == "synthetic":
        style = parse_dataclass(RoomStyle, section.style, "data.style")
        return RenderedScenes(style, section.num_tracks, supersample=section.supersample, color=color)
    if section.kind == "synthetic_video":
        return _render_videos(section, held_out)
    transform = parse_dataclass(FrameTransform, section.transform, "data.transform")
    options = SampleOptions(
        size=section.image_hw[1],
        patch_size=patch_size,
        transform=FrameTransform.plain() if held_out else transform,
        color=color,
        num_tracks=section.num_tracks,
    )
    datasets = [_open_dataset(dataset, options, section.choice, held_out) for dataset in section.datasets.values()]
    pairs = zip(section.datasets.values(), datasets, strict=True)
    lengths = [len(files) if dataset.length is None else dataset.length for dataset, files in pairs]
    return FileScenes(SceneMixture(datasets, lengths))


def _render_videos(section: DataSection, held_out: bool) -> RenderedVideos:
    video = parse_dataclass(VideoAugmentation, section.video, "data.video")
    color = replace_fields(ColorAugmentation.video(), section.color, "data.color")
    changes = section.augment and not held_out
    return RenderedVideos(
        parse_dataclass(RoomStyle, section.style, "data.style"),
        parse_dataclass(MotionStyle, section.motion, "data.motion"),
        section.num_tracks,
        supersample=section.supersample,
        color=color if changes else None,
        augmentation=video if changes else None,
    )


def check_datasets(section: DataSection, *, validation: bool) -> None:
    """Require that datasets name their folders and know their options; called before weights are loaded.

    Args:
        section: Section of the configuration.
        validation: Whether folders of held-out scenes are needed, too.

    Raises:
        ValueError: With the key.
    """
    for name, dataset in section.datasets.items():
        keys = ("root", "validation_root") if validation and dataset.kind != "co3d" else ("root",)
        for key in keys:
            if getattr(dataset, key) is None:
                path = f"data.datasets.{name}.{key}"
                raise ValueError(f"{path} must name a folder, got none; --set {path}=FOLDER gives one")
        _parse_options(dataset, f"data.datasets.{name}.options")
    parse_dataclass(FrameTransform, section.transform, "data.transform")
    parse_dataclass(FrameChoice, section.choice, "data.choice")


def _parse_options(section: DatasetSection, path: str) -> dict[str, Any]:
    """Return the keyword arguments of the dataset, each of its annotated type."""
    kind: Any = _DATASETS[section.kind]
    hints = get_type_hints(kind.__init__)
    for option in section.options:
        if option not in hints.keys() - _NO_OPTIONS:
            raise UnknownKeyError(f"{path}.{option}", option, sorted(hints.keys() - _NO_OPTIONS))
    return {option: parse_value(hints[option], value, f"{path}.{option}") for option, value in section.options.items()}


def _choose_frames(usual: FrameChoice, numbers: dict[str, Any]) -> FrameChoice:
    """Return the dataset's usual choice with other fields; one radius of the window takes the other's place."""
    if numbers.get("expand_range") is not None:
        usual = dataclasses.replace(usual, expand_ratio=None)
    return replace_fields(usual, numbers, "data.choice")


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
    """Rendered rooms (`geomtx.data.render_scenes`); see `DrawScenes`.

    Args:
        style: Distribution that the rooms are drawn from.
        num_tracks: Number of tracks a scene.
        supersample: Number of rays a pixel along each axis.
        color: Augmentation of colours, drawn from the seed of each scene; defaults to none.
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
    """Rendered videos (`geomtx.data.render_videos`), whose views are frames in order; see `DrawScenes`.

    Args:
        style: Distribution that the rooms are drawn from.
        motion: Distribution of the motion of objects and cameras.
        num_tracks: Number of tracks a video.
        supersample: Number of rays a pixel along each axis.
        color: Augmentation of colours, drawn from the seed of each video; defaults to none.
        augmentation: Augmentation of frames and tracks, drawn likewise; defaults to none.
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
            style=VideoStyle(self.style, self.motion),
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
    """Augment the colours of each scene by its seed."""
    if color is None:
        return scenes
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    pairs = zip(scenes.images.split(1), generators, strict=True)
    return scenes._replace(images=torch.cat([color(image, generator=generator) for image, generator in pairs]))


class FileScenes:
    """Scenes of datasets; see `DrawScenes`. The seed decides which scene, and all that is drawn for it.

    Args:
        mixture: The datasets; it counts the scenes that it leaves out.
    """

    def __init__(self, mixture: SceneMixture) -> None:
        self.mixture = mixture

    def __call__(
        self, seeds: Sequence[int], num_views: int, image_hw: tuple[int, int], *, device: torch.device | None = None
    ) -> SceneBatch:
        """Read and decode scenes, on the CPU."""
        aspect = image_hw[0] / image_hw[1]
        scenes = [int(np.random.default_rng(seed).integers(len(self.mixture))) for seed in seeds]
        requests = [SceneRequest(scene, num_views, aspect, seed) for scene, seed in zip(scenes, seeds, strict=True)]
        return collate_scenes([self.mixture[request] for request in requests])


class SceneStream(Dataset[SceneBatch]):
    """The batches of one process, by step.

    Every process draws the number of views and the shape of the images by itself. Its scenes are those of the step
    whose index modulo `num_processes` is `rank`: no two processes share one, and together they have the scenes that one
    process with the whole budget has.

    Args:
        section: Number of images a step, weights of the numbers of views, and sizes.
        draw: Function from seeds to scenes.
        patch_size: Patch size of the model in pixels, of which the images' sides are multiples.
        seed: Seed of the run.
        rank: Index of the process.
        num_processes: Number of processes.
        device: Device on which scenes are made; defaults to the CPU.

    Attributes:
        num_left_out: Number of scenes of files that could not be used, and that others were drawn for, in the batches
            so far; those that workers prepare count when `load_batches` yields them.
    """

    def __init__(
        self,
        section: DataSection,
        draw: DrawScenes,
        *,
        patch_size: int,
        seed: int,
        rank: int = 0,
        num_processes: int = 1,
        device: torch.device | None = None,
    ) -> None:
        for side in section.image_hw:
            check_divisible("data.image_hw", side, patch_size)
        self.section = section
        self.draw = draw
        self.patch_size = patch_size
        self.seed = seed
        self.rank = rank
        self.num_processes = num_processes
        self.device = device
        self.num_left_out = 0

    def num_views(self, step: int) -> int:
        """Return the number of views of the scenes of a step."""
        counts = sorted(self.section.views)
        weights = [self.section.views[count] for count in counts]
        return random.Random(f"views {self.seed} {step} {self.rank}").choices(counts, weights)[0]

    def image_hw(self, step: int) -> tuple[int, int]:
        """Return height and width of the images of a step."""
        height, width = self.section.image_hw
        if self.section.aspect is None:
            return height, width
        aspect = round(random.Random(f"aspect {self.seed} {step} {self.rank}").uniform(*self.section.aspect), 2)
        return max(1, int(width * aspect / self.patch_size + 1e-6)) * self.patch_size, width

    def seeds(self, step: int) -> list[int]:
        """Return the seeds of the scenes of a step."""
        num_scenes = max(1, self.section.images // self.num_views(step))
        return [training_seed(self.seed, step, self.rank + self.num_processes * i) for i in range(num_scenes)]

    def __getitem__(self, step: int) -> SceneBatch:
        """Return the batch of a step."""
        before = self._num_skipped()
        batch = self.draw(self.seeds(step), self.num_views(step), self.image_hw(step), device=self.device)
        self.num_left_out += self._num_skipped() - before
        return batch

    def _num_skipped(self) -> int:
        """Return the number of scenes left out since the start of this process."""
        return self.draw.mixture.num_skipped if isinstance(self.draw, FileScenes) else 0


def load_batches(stream: SceneStream, steps: range, *, workers: int = 0) -> Iterator[SceneBatch]:
    """Return the batches of `steps`, in order; with workers, they are prepared ahead of time."""
    if workers == 0:
        return (stream[step] for step in steps)
    loader = DataLoader(
        _WorkerStream(stream),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_signals,
        # Of its own: a loader draws from its generator, and one more of them would change what training draws.
        generator=torch.Generator(),
    )
    return (_receive(stream, *item) for item in iter(loader))


class _WorkerStream(Dataset[Any]):
    """Pairs of a batch and the number of scenes left out for it; expected errors are returned, not raised as text."""

    def __init__(self, stream: SceneStream) -> None:
        self.stream = stream

    def __getitem__(self, step: int) -> tuple[SceneBatch | Exception, int]:
        before = self.stream.num_left_out
        try:
            return self.stream[step], self.stream.num_left_out - before
        except (ValueError, OSError, ImportError) as error:
            return error, 0


def _receive(stream: SceneStream, batch: SceneBatch | Exception, num_left_out: int) -> SceneBatch:
    if isinstance(batch, Exception):
        raise batch
    stream.num_left_out += num_left_out
    return batch


def _leave_signals(worker: int) -> None:
    """Ignore Ctrl-C, which reaches every process of a terminal: the training process acts on it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _as_it_is(batch: Any) -> Any:
    return batch


def validation_batches(
    section: ValidationSection, data: DataSection, draw: DrawScenes, device: torch.device
) -> Iterator[tuple[int, SceneBatch]]:
    """Yield pairs of a number of views and held-out scenes, in batches of about the size of those of training."""
    for num_views in section.views:
        size = max(1, data.images // num_views)
        seeds = [held_out_seed(index) for index in range(section.scenes)]
        for start in range(0, len(seeds), size):
            yield num_views, draw(seeds[start : start + size], num_views, data.image_hw, device=device)


def describe_problem(batch: SceneBatch) -> str | None:
    """Return why `check_values` rejects a batch, or None if it is valid. Scenes without known pixels are allowed."""
    try:
        check_values(batch._replace(depth=None, points=None, mask=None))
        known = known_pixels(batch).flatten(1).any(-1)
        check_values(_map(batch, lambda tensor: tensor[known]))
    except ValueError as error:
        return str(error)
    return None


def move_batch(batch: SceneBatch, device: torch.device) -> SceneBatch:
    """Return the batch with all tensors on `device`."""
    return _map(batch, lambda tensor: tensor.to(device, non_blocking=True))


def split_batch(batch: Any, num_chunks: int) -> list[Any]:
    """Split a batch into at most `num_chunks` batches of nearly equally many scenes, none of them empty.

    A batch with a method `split(num_chunks)` is split by it.
    """
    if hasattr(batch, "split"):
        return batch.split(num_chunks)
    num_chunks = min(num_chunks, batch.images.shape[0])
    return [_map(batch, lambda tensor, i=i: tensor.tensor_split(num_chunks)[i]) for i in range(num_chunks)]


def _map(value: Any, function: Any) -> Any:
    """Apply a function to the tensors of nested named tuples."""
    if isinstance(value, Tensor):
        return function(value)
    return value if value is None else type(value)(*(_map(item, function) for item in value))
