"""What a model has learned before, practised while it learns something else."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_at_least, check_count
from geomtx.data.synthetic.render import MOST_TRACKS, MOST_VIEWS, render_scenes
from geomtx.data.synthetic.rooms import RoomStyle
from geomtx.geometry.scene_frame import normalize_scene
from geomtx.training.parsing import parse_fields
from geomtx.types import Predictions, SceneBatch, show_shapes

__all__ = ["Practice", "Rehearsal"]


@show_shapes
class Practice(NamedTuple):
    """What a VGGT predicted of rooms that stand still, and the rooms, normalised."""

    predictions: Predictions
    rooms: SceneBatch


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """Rendered rooms that a VGGT inside another model goes on learning on, with its own losses.

    Attributes:
        weight: Of these losses, relative to what else is learned.
        scenes: Rooms a step.
        views: Numbers of views, one of which is drawn for a step.
        num_tracks: Tracks a room; 0 = none.
        style: Numbers of `geomtx.data.RoomStyle`.
    """

    weight: float = 1.0
    scenes: int = 4
    views: tuple[int, ...] = (2, 3, 4)
    num_tracks: int = 8
    style: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_at_least("rehearsal.weight", self.weight, 0)
        check_count("rehearsal.scenes", self.scenes)
        for views in self.views:
            check_count("rehearsal.views", views)
        if not self.views or max(self.views) > MOST_VIEWS:
            raise ValueError(f"rehearsal.views must be numbers up to {MOST_VIEWS}, got {self.views}")
        if not 0 <= self.num_tracks <= MOST_TRACKS:
            raise ValueError(f"rehearsal.num_tracks must be in 0 … {MOST_TRACKS}, got {self.num_tracks}")
        self.room_style()

    def room_style(self) -> RoomStyle:
        """What the rooms are like."""
        return RoomStyle(**parse_fields(RoomStyle, self.style, "rehearsal.style"))

    def draw_rooms(self, images: Tensor) -> SceneBatch:
        """Rooms for a step, normalised, with images as large as `images` (…, H, W), and on their device.

        Seeds are drawn from torch's global generator, from those that are for training.
        """
        seeds = torch.randint(2**31, (self.scenes,)).tolist()
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
