"""Rehearsal: a model goes on practising what it has learned before, while it learns something else."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from geomtx.checks import check_at_least, check_count, check_range
from geomtx.data.synthetic.render import MOST_TRACKS, MOST_VIEWS, render_scenes
from geomtx.data.synthetic.rooms import RoomStyle
from geomtx.geometry.scene_frame import normalize_scene
from geomtx.losses.multitask import LossReport, MultitaskLoss
from geomtx.losses.reduce import count_scope
from geomtx.parsing import parse_dataclass
from geomtx.training.data import split_batch
from geomtx.types import Predictions, SceneBatch, show_shapes

__all__ = ["PreparedBatch", "Rehearsal", "add_rehearsal"]


@show_shapes
class PreparedBatch(NamedTuple):
    """What a task around a VGGT prepares.

    Attributes:
        scenes: Scenes of the step, for the task's own model and loss.
        rehearsal: Scenes that the VGGT inside rehearses on, normalised; None without rehearsal.
    """

    scenes: SceneBatch
    rehearsal: SceneBatch | None = None

    @property
    def images(self) -> Tensor:
        """Images of the step's scenes, (B, S, 3, H, W)."""
        return self.scenes.images

    def split(self, num_chunks: int) -> list[PreparedBatch]:
        """Split the scenes into nearly equal chunks, and those of the rehearsal likewise.

        A chunk without any scene left to rehearse has the first one without labels, so that the same parts of the model
        run in every chunk.
        """
        chunks = split_batch(self.scenes, num_chunks)
        if self.rehearsal is None:
            return [PreparedBatch(chunk) for chunk in chunks]
        parts: list[SceneBatch] = split_batch(self.rehearsal, len(chunks))
        parts += [_hide_labels(parts[0])] * (len(chunks) - len(parts))
        return list(map(PreparedBatch, chunks, parts))


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """Scenes on which a VGGT inside another model goes on learning its own tasks, with the loss of section `loss`.

    Attributes:
        weight: Weight of this loss relative to the task's own.
        share: Share of the batch's scenes that are rehearsed in training, at least one scene, 0 … 1. In validation, all
            are.
        scenes: Number of rendered rooms a step that take the place of the batch's scenes; defaults to none. Videos, in
            which things move, need them.
        views: Numbers of views of the rooms, one of which is drawn for a step.
        num_tracks: Number of tracks a room; 0 for none.
        style: Fields of `geomtx.data.synthetic.RoomStyle`.
    """

    weight: float = 1.0
    share: float = 1.0
    scenes: int | None = None
    views: tuple[int, ...] = (2, 3, 4)
    num_tracks: int = 8
    style: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_at_least("weight", self.weight, 0)
        check_range("share", self.share, 0, 1)
        if self.scenes is not None:
            check_count("scenes", self.scenes)
        for views in self.views:
            check_count("views", views)
        if not self.views or max(self.views) > MOST_VIEWS:
            raise ValueError(f"views must be numbers up to {MOST_VIEWS}, got {self.views}")
        if not 0 <= self.num_tracks <= MOST_TRACKS:
            raise ValueError(f"num_tracks must be in 0 … {MOST_TRACKS}, got {self.num_tracks}")
        self.room_style()

    def room_style(self) -> RoomStyle:
        """Return how the rooms are drawn."""
        return parse_dataclass(RoomStyle, self.style, "style")

    def choose(self, scenes: SceneBatch, *, training: bool) -> SceneBatch:
        """Return the scenes to rehearse on in a step.

        Args:
            scenes: Scenes of the step, normalised.
            training: Whether the step is one of training; in validation all scenes are rehearsed.
        """
        if self.scenes is not None:
            return self.draw_rooms(scenes.images)
        count = len(scenes.images)
        count = max(1, math.ceil(self.share * count)) if training else count
        return tree_map(lambda tensor: None if tensor is None else tensor[:count], scenes)

    def draw_rooms(self, images: Tensor) -> SceneBatch:
        """Render rooms for a step, normalised, with images of the size of `images` (…, H, W) and on their device.

        Seeds are drawn from torch's global generator, out of those for training.
        """
        seeds = torch.randint(2**31, (self.scenes or 1,)).tolist()
        num_views = self.views[int(torch.randint(len(self.views), ()))]
        rooms = render_scenes(
            seeds,
            num_views,
            (images.shape[-2], images.shape[-1]),
            num_tracks=self.num_tracks,
            style=self.room_style(),
            device=images.device,
        )
        return normalize_scene(rooms)[0]


def add_rehearsal(
    report: LossReport,
    predictions: Predictions | None,
    scenes: SceneBatch | None,
    *,
    loss: MultitaskLoss | None,
    weight: float,
) -> LossReport:
    """Add the loss of a rehearsal to that of a task, with "rehearsal_" before the names of its tasks and terms.

    Args:
        report: Loss of the task.
        predictions: Predictions of the VGGT inside; None without rehearsal.
        scenes: Scenes that they are of.
        loss: Loss of the rehearsal; None without rehearsal.
        weight: Weight of the rehearsal.
    """
    if predictions is None or scenes is None or loss is None:
        return report
    with count_scope("rehearsal"):
        rehearsed = loss(predictions, scenes)
    tasks = {f"rehearsal_{name}": weight * value for name, value in rehearsed.tasks.items()}
    terms = {f"rehearsal_{name}": value for name, value in rehearsed.terms.items()}
    return LossReport(report.total + weight * rehearsed.total, report.tasks | tasks, report.terms | terms)


def _hide_labels(scenes: SceneBatch) -> SceneBatch:
    """Return the first scene with all its labels masked."""
    scene: SceneBatch = tree_map(lambda tensor: None if tensor is None else tensor[:1], scenes)
    no_views = torch.zeros(scene.images.shape[:2], dtype=torch.bool, device=scene.images.device)
    no_pixels = torch.zeros_like(scene.images[:, :, 0], dtype=torch.bool)
    tracks = scene.tracks
    if tracks is not None:
        tracks = tracks._replace(valid=torch.zeros_like(tracks.valid))
    return scene._replace(camera_mask=no_views, mask=no_pixels, tracks=tracks)
