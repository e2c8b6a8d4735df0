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
from geomtx.models.vggt.config import VGGTConfig
from geomtx.models.video_tracker.config import VideoTrackerConfig
from geomtx.models.video_tracker.model import VGGTFeatures, VideoTracker
from geomtx.parsing import parse_fields, replace_fields
from geomtx.training.config import LossSection, ModelSection
from geomtx.training.prepare import build_loss
from geomtx.training.tasks.rehearsal import PreparedBatch, Rehearsal, add_rehearsal
from geomtx.training.tasks.running import PLAIN, RunOptions, encode, run_vggt
from geomtx.training.tasks.task import starting_from
from geomtx.training.tasks.vggt import leave_out_heads, load_vggt, queries_for
from geomtx.types import Predictions, SceneBatch, TrackLabels, Tracks, VideoTracks, show_shapes

__all__ = ["VideoLoss", "VideoOutputs", "VideoTask", "draw_queries", "is_seen"]

LossName = Literal["cotracker2", "cotracker3"]

_MARGIN = 0.5  # how far outside the image positions are learned, as a share of its sides


@show_shapes
class VideoOutputs(NamedTuple):
    """What `VideoTask.predict` returns.

    Attributes:
        video: Tracks through the videos.
        scenes: Predictions of the VGGT inside for the scenes of a rehearsal; None without.
    """

    video: VideoTracks
    scenes: Predictions | None = None


@dataclasses.dataclass(frozen=True)
class VideoTask:
    """Tracks through videos, forwards in time from their queries. See `geomtx.training.tasks.task.Task`.

    Attributes:
        tracker: Fields of `VideoTrackerConfig` in place of the preset's, except `vggt`.
        query_first: Share of the queries in the first view that sees the point, 0 … 1; the others are in any view that
            sees it.
        loss: "cotracker2" (`window_loss`) or "cotracker3" (`confident_window_loss`).
        loss_width: Width in pixels that images are taken to have when errors are measured; the numbers of the losses
            are made for it.
        weight: Weight of the loss of tracks.
        rehearsal: Rehearsal of the VGGT inside on its own tasks, on rendered rooms; defaults to none. Without it,
            several processes need the heads of the VGGT inside to be frozen.
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
        parse_fields(VideoTrackerConfig, self.tracker, "tracker")
        if self.rehearsal is not None and self.rehearsal.scenes is None:
            raise ValueError("rehearsal.scenes must be given for videos, whose own scenes move, got none")

    def build_model(self, section: ModelSection) -> VideoTracker:
        """Build the model in float32: with random weights, those of a tracker, or a random tracker on a VGGT's."""
        if section.weights is None:
            return VideoTracker(self._config(section, section.model_config()))
        with starting_from(section):
            checkpoint = open_weights(section.weights)
            kind = kind_of(checkpoint)
        if kind != "VGGT":
            if self.tracker:
                raise ValueError(f"task.tracker must be empty for weights of a VideoTracker, got {self.tracker}")
            with starting_from(section):
                without = leave_out_heads(checkpoint)
                return VideoTracker.from_pretrained(section.weights, dtype=torch.float32, extra_heads=without)
        with starting_from(section):
            vggt = load_vggt(section)
        config = self._config(section, vggt.config)
        if config.features != "vggt":
            raise ValueError(f"model.weights must be none for features of {config.features}, got '{section.weights}'")
        names = (field.name for field in dataclasses.fields(config) if field.name != "vggt")
        return VideoTracker.from_vggt(vggt, **{name: getattr(config, name) for name in names})

    def _config(self, section: ModelSection, vggt: VGGTConfig) -> VideoTrackerConfig:
        presets = {"tiny": VideoTrackerConfig.tiny, "nano": VideoTrackerConfig.nano}
        preset = presets.get(section.preset, VideoTrackerConfig)()
        return replace_fields(dataclasses.replace(preset, vggt=vggt), self.tracker, "task.tracker")

    def rebuild_model(self, numbers: dict[str, Any]) -> VideoTracker:
        """Build the model of `VideoTrackerConfig.to_dict()`."""
        return VideoTracker(VideoTrackerConfig.from_dict(numbers))

    def build_loss(self, section: LossSection) -> VideoLoss:
        """Return the loss of tracks and, with rehearsal, of the VGGT's own tasks."""
        return VideoLoss(self, None if self.rehearsal is None else build_loss(section))

    def prepare(self, batch: SceneBatch, *, training: bool = True) -> PreparedBatch:
        """Return the videos with the views of the queries, drawn from torch's global generator.

        Raises:
            ValueError: For a batch without tracks, or of one view.
        """
        if batch.images.shape[1] < 2:
            raise ValueError(f"data.views must be at least 2 to track through, got {batch.images.shape[1]}")
        if batch.tracks is None:
            raise ValueError("batch must have tracks to train a tracker, got none; is data.num_tracks positive?")
        views, valid = draw_queries(batch.tracks, self.query_first)
        videos = batch._replace(tracks=batch.tracks._replace(valid=valid), query_views=views)
        if self.rehearsal is None or not training:
            return PreparedBatch(videos)
        return PreparedBatch(videos, self.rehearsal.choose(videos, training=training))

    def predict(self, model: nn.Module, batch: PreparedBatch, options: RunOptions = PLAIN) -> VideoOutputs:
        """Track and, with rehearsal, run the VGGT inside."""
        queries = query_points(*_labels_of(batch.scenes))
        bare: Any = getattr(model, "module", model)
        if options.recomputes(bare) and isinstance(bare.features, VGGTFeatures):
            features = _recomputed_features(bare.features, batch.images)
            outputs = VideoOutputs(bare.track(features, queries, backward=False))
        else:
            outputs = VideoOutputs(model(batch.images, queries, backward=False))
        if batch.rehearsal is None:
            return outputs
        scenes = run_vggt(bare.vggt, batch.rehearsal.images, queries_for(model, batch.rehearsal), options)
        return outputs._replace(scenes=scenes)

    def score(self, outputs: VideoOutputs, batch: PreparedBatch) -> dict[str, Tensor]:
        """Return TAP-Vid's scores after the queries, "aj", "delta" and "oa", in 0 … 1."""
        labels, views = _labels_of(batch.scenes)
        height, width = batch.images.shape[-2:]
        tracks = outputs.video.tracks
        predicted, true = (scale_to_raster(xy, (height, width)) for xy in (tracks.coords_px, labels.coords_px))
        seen = is_seen(tracks, self.loss)
        scores = track_scores(predicted, seen, true, labels.visible, views, valid=labels.valid)
        return {"aj": scores.average_jaccard, "delta": scores.average_delta, "oa": scores.occlusion_accuracy}


class VideoLoss:
    """Loss of `VideoTask`, a function of the outputs and the prepared batch.

    Args:
        task: The task, which says which loss of tracks to use.
        original: Loss of the rehearsal; defaults to none.
    """

    # The windows of the tracker are known with its predictions.
    counts_from: ClassVar[CountSource] = "predictions"

    def __init__(self, task: VideoTask, original: MultitaskLoss | None = None) -> None:
        self.task = task
        self.original = original

    def __call__(self, outputs: VideoOutputs, batch: PreparedBatch) -> LossReport:
        """Return the loss, its tasks and its terms."""
        labels, views = _labels_of(batch.scenes)
        scale = self.task.loss_width / batch.images.shape[-1]
        windows = outputs.video.windows
        windows = windows._replace(coords_px=scale * windows.coords_px)
        known = is_near(labels, (batch.images.shape[-2], batch.images.shape[-1]))
        labels = labels._replace(coords_px=scale * labels.coords_px)
        compare = window_loss if self.task.loss == "cotracker2" else confident_window_loss
        with count_scope("video"):
            loss = compare(windows, labels, views, known=known)
        total = self.task.weight * loss.total
        terms = {f"loss_video_{name}": value for name, value in loss._asdict().items()}
        report = LossReport(total, {"video": total}, terms)
        weight = 0.0 if self.task.rehearsal is None else self.task.rehearsal.weight
        return add_rehearsal(report, outputs.scenes, batch.rehearsal, loss=self.original, weight=weight)


def _recomputed_features(features: VGGTFeatures, video: Tensor) -> Tensor:
    """Return what `features(video)` gives, with recomputation of the blocks' activations."""
    encoder, taps = features.vggt.encoder, features.decoder.taps
    clips = video.split(features.encoder_frames or video.shape[1], dim=1)
    return torch.cat([features.pool_maps(encode(encoder, clip, taps, recompute=True)) for clip in clips], dim=1)


def draw_queries(labels: TrackLabels, query_first: float) -> tuple[Tensor, Tensor]:
    """Draw the view of the query of each track, one in which the point is visible.

    Args:
        labels: Tracks, (B, S, N).
        query_first: Probability of the first such view; otherwise any of them, equally likely.

    Returns:
        Views (B, N), and which tracks are valid and visible at all, (B, N).
    """
    visible = labels.visible & labels.valid[:, None]
    first = visible.int().argmax(dim=1)
    # The largest of random numbers in the views that see the point.
    anywhere = torch.where(visible, torch.rand(visible.shape, device=visible.device), -1.0).argmax(dim=1)
    takes_first = torch.rand(first.shape, device=first.device) < query_first
    return torch.where(takes_first, first, anywhere), visible.any(dim=1)


def query_points(labels: TrackLabels, views: Tensor) -> Tensor:
    """Return the queries, (B, N, 3) as (view, x, y), with zeros for tracks that aren't valid."""
    index = views[:, None, :, None].expand(-1, 1, -1, 2)
    coords = labels.coords_px.gather(1, index)[:, 0]
    return select(torch.cat([views[..., None].to(coords), coords], dim=-1), labels.valid[..., None])


def is_near(labels: TrackLabels, image_hw: tuple[int, int]) -> Tensor:
    """Return where true positions are finite and not far outside the image, (B, S, N)."""
    height, width = image_hw
    size = labels.coords_px.new_tensor([width, height])
    near = (labels.coords_px > -_MARGIN * size) & (labels.coords_px < (1 + _MARGIN) * size)
    return near.all(-1)


def is_seen(tracks: Tracks, loss: LossName) -> Tensor:
    """Return what is visible as the tracker that a loss was made for decides it, (B, S, N).

    CoTracker2: visibility above 0.9. CoTracker3: visibility times confidence above 0.6.
    """
    return tracks.visibility > 0.9 if loss == "cotracker2" else tracks.visibility * tracks.confidence > 0.6


def _labels_of(batch: SceneBatch) -> tuple[TrackLabels, Tensor]:
    """Return the tracks and the views of their queries."""
    assert batch.tracks is not None
    assert batch.query_views is not None
    return batch.tracks, batch.query_views
