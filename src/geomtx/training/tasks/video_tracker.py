"""Training of `VideoTracker`."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from geomtx.checks import check_at_least, check_count, check_option, check_range
from geomtx.losses.multitask import LossReport, MultitaskLoss
from geomtx.losses.reduce import count_scope, select
from geomtx.losses.terms import CountSource
from geomtx.losses.track import confident_window_loss, window_loss
from geomtx.metrics.tracking import scale_to_raster, track_scores
from geomtx.models.published import open_weights
from geomtx.models.saved_model import kind_of
from geomtx.models.vggt.config import check_numbers
from geomtx.models.video_tracker import VideoTracker, VideoTrackerConfig
from geomtx.training.config import LossSection, ModelSection
from geomtx.training.prepare import build_loss
from geomtx.training.tasks.rehearsal import Practice, Rehearsal
from geomtx.training.tasks.vggt import leave_out_heads, load_vggt, queries_for
from geomtx.types import SceneBatch, TrackLabels, Tracks, VideoTracks, show_shapes

__all__ = ["VideoLoss", "VideoOutputs", "VideoTask", "draw_queries", "is_seen"]

LossName = Literal["cotracker2", "cotracker3"]

_MARGIN = 0.5  # of the image's sides: how far outside the image positions are learned


@show_shapes
class VideoOutputs(NamedTuple):
    """What `VideoTask.predict` gives: tracks, and what a rehearsal gave if there is one."""

    video: VideoTracks
    practice: Practice | None = None


@dataclasses.dataclass(frozen=True)
class VideoTask:
    """Tracks through videos, forwards from their queries. See `geomtx.training.tasks.task.Task`.

    Attributes:
        tracker: Numbers of `VideoTrackerConfig` in place of the preset's, without `vggt`.
        query_first: Share of the queries that are where a point is first seen; the others are where it is seen at all.
        loss: "cotracker2" (`window_loss`) or "cotracker3" (`confident_window_loss`).
        loss_width: Errors are measured as if images were so many pixels wide, which the losses' numbers are made for.
        weight: Of the loss of tracks.
        rehearsal: Goes on training what the VGGT inside could do before; None = nothing does: then, with several
            processes, the heads of the VGGT inside have to be frozen.
    """

    tracker: dict[str, Any] = dataclasses.field(default_factory=dict)
    query_first: float = 0.75
    loss: LossName = "cotracker2"
    loss_width: int = 512
    weight: float = 1.0
    rehearsal: Rehearsal | None = None

    def __post_init__(self) -> None:
        check_range("query_first", self.query_first, 0, 1)
        check_option("loss", self.loss, ("cotracker2", "cotracker3"))
        check_count("loss_width", self.loss_width)
        check_at_least("weight", self.weight, 0)
        if "vggt" in self.tracker:
            raise ValueError("tracker must leave 'vggt' to the model's preset, numbers or weights, got it too")
        check_numbers("tracker", self.tracker, VideoTrackerConfig, without="vggt")

    def build_model(self, section: ModelSection) -> VideoTracker:
        """Random, from weights of a `VideoTracker`, or a random tracker on the weights of a VGGT; in float32."""
        if section.weights is None:
            return VideoTracker(VideoTrackerConfig.from_dict(self._numbers(section, section.model_config().to_dict())))
        checkpoint = open_weights(section.weights)
        if kind_of(checkpoint) != "VGGT":
            if self.tracker:
                raise ValueError(f"task.tracker must be empty for weights of a VideoTracker, got {self.tracker}")
            without = leave_out_heads(checkpoint)
            return VideoTracker.from_pretrained(section.weights, dtype=torch.float32, extra_heads=without)
        vggt = load_vggt(section)
        config = VideoTrackerConfig.from_dict(self._numbers(section, vggt.config.to_dict()))
        if config.features != "vggt":
            raise ValueError(f"model.weights must be none for features of {config.features}, got '{section.weights}'")
        names = (field.name for field in dataclasses.fields(config) if field.name != "vggt")
        return VideoTracker.from_vggt(vggt, **{name: getattr(config, name) for name in names})

    def _numbers(self, section: ModelSection, vggt: dict[str, Any]) -> dict[str, Any]:
        presets = {"tiny": VideoTrackerConfig.tiny, "nano": VideoTrackerConfig.nano}
        preset = presets.get(section.preset, VideoTrackerConfig)()
        return {**preset.to_dict(), **self.tracker, "vggt": vggt}

    def rebuild_model(self, numbers: dict[str, Any]) -> VideoTracker:
        """The model of `VideoTrackerConfig.to_dict`."""
        return VideoTracker(VideoTrackerConfig.from_dict(numbers))

    def build_loss(self, section: LossSection) -> VideoLoss:
        """Of tracks, and with a rehearsal that of the section."""
        return VideoLoss(self, None if self.rehearsal is None else build_loss(section))

    def prepare(self, batch: SceneBatch, *, training: bool = True) -> SceneBatch:
        """With the views of the queries, drawn from torch's global generator.

        Raises:
            ValueError: For a batch without tracks, and of one view.
        """
        if batch.images.shape[1] < 2:
            raise ValueError(f"data.views must be at least 2 to track through, got {batch.images.shape[1]}")
        if batch.tracks is None:
            raise ValueError("batch must have tracks to train a tracker, got none; is data.num_tracks positive?")
        views, valid = draw_queries(batch.tracks, self.query_first)
        return batch._replace(tracks=batch.tracks._replace(valid=valid), query_views=views)

    def predict(self, model: nn.Module, batch: SceneBatch) -> VideoOutputs:
        """Track; in training, rehearse too."""
        queries = query_points(*_labels_of(batch))
        if self.rehearsal is None or not model.training:
            return VideoOutputs(model(batch.images, queries, backward=False))
        rooms = self.rehearsal.draw_rooms(batch.images)
        # In one call of the model: sharded parameters are whole only within it.
        video, scenes = model(
            batch.images, queries, backward=False, scene_images=rooms.images, scene_queries=queries_for(model, rooms)
        )
        return VideoOutputs(video, Practice(scenes, rooms))

    def score(self, outputs: VideoOutputs, batch: SceneBatch) -> dict[str, Tensor]:
        """TAP-Vid's scores after the queries: "aj", "delta" and "oa", in 0 … 1."""
        labels, views = _labels_of(batch)
        height, width = batch.images.shape[-2:]
        tracks = outputs.video.tracks
        predicted, true = (scale_to_raster(xy, (height, width)) for xy in (tracks.coords_px, labels.coords_px))
        seen = is_seen(tracks, self.loss)
        scores = track_scores(predicted, seen, true, labels.visible, views, valid=labels.valid)
        return {"aj": scores.average_jaccard, "delta": scores.average_delta, "oa": scores.occlusion_accuracy}


class VideoLoss:
    """(outputs of `VideoTask.predict`, batch of its `prepare`) → `LossReport`.

    Args:
        task: Says which loss of tracks.
        original: Of the rehearsal.
    """

    def __init__(self, task: VideoTask, original: MultitaskLoss | None = None) -> None:
        self.task = task
        self.original = original

    counts_from: ClassVar[CountSource] = "predictions"

    def __call__(self, outputs: VideoOutputs, batch: SceneBatch) -> LossReport:
        """Compare."""
        labels, views = _labels_of(batch)
        scale = self.task.loss_width / batch.images.shape[-1]
        windows = outputs.video.windows
        windows = windows._replace(coords_px=scale * windows.coords_px)
        known = is_near(labels, (batch.images.shape[-2], batch.images.shape[-1]))
        labels = labels._replace(coords_px=scale * labels.coords_px)
        compare = window_loss if self.task.loss == "cotracker2" else confident_window_loss
        with count_scope("video"):
            loss = compare(windows, labels, views, known=known)
        tasks = {"video": self.task.weight * loss.total}
        terms = {f"loss_video_{name}": value for name, value in loss._asdict().items()}
        if outputs.practice is not None and self.original is not None and self.task.rehearsal is not None:
            with count_scope("rehearsal"):
                report = self.original(*outputs.practice)
            weight = self.task.rehearsal.weight
            tasks |= {f"rehearsal_{name}": weight * value for name, value in report.tasks.items()}
            terms |= {f"rehearsal_{name}": value for name, value in report.terms.items()}
        return LossReport(torch.stack(list(tasks.values())).sum(), tasks, terms)


def draw_queries(labels: TrackLabels, query_first: float) -> tuple[Tensor, Tensor]:
    """A view for the query of each track, in which it is seen.

    Args:
        labels: (B, S, N) tracks.
        query_first: Probability of the first such view; else any of them, equally likely.

    Returns:
        Views (B, N), and which tracks are valid and seen at all, (B, N).
    """
    visible = labels.visible & labels.valid[:, None]
    first = visible.int().argmax(dim=1)
    # The largest of random numbers in the views that see the point.
    anywhere = torch.where(visible, torch.rand(visible.shape, device=visible.device), -1.0).argmax(dim=1)
    takes_first = torch.rand(first.shape, device=first.device) < query_first
    return torch.where(takes_first, first, anywhere), visible.any(dim=1)


def query_points(labels: TrackLabels, views: Tensor) -> Tensor:
    """(B, N, 3) as (view, x, y), zeros for tracks that aren't valid."""
    index = views[:, None, :, None].expand(-1, 1, -1, 2)
    coords = labels.coords_px.gather(1, index)[:, 0]
    return select(torch.cat([views[..., None].to(coords), coords], dim=-1), labels.valid[..., None])


def is_near(labels: TrackLabels, image_hw: tuple[int, int]) -> Tensor:
    """Where true positions are finite and not far outside the image, (B, S, N)."""
    height, width = image_hw
    size = labels.coords_px.new_tensor([width, height])
    near = (labels.coords_px > -_MARGIN * size) & (labels.coords_px < (1 + _MARGIN) * size)
    return near.all(-1)


def is_seen(tracks: Tracks, loss: LossName) -> Tensor:
    """Visible as the trackers that the losses are of decide it, (B, S, N).

    CoTracker2: visibility above 0.9. CoTracker3: visibility times confidence above 0.6.
    """
    return tracks.visibility > 0.9 if loss == "cotracker2" else tracks.visibility * tracks.confidence > 0.6


def _labels_of(batch: SceneBatch) -> tuple[TrackLabels, Tensor]:
    """The tracks, and the views of their queries, of what `VideoTask.prepare` made."""
    assert batch.tracks is not None
    assert batch.query_views is not None
    return batch.tracks, batch.query_views
