"""Terms of `MultitaskLoss`: each selects what it compares from predictions and labels, and holds its options and
its weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from geomtx.checks import check_at_least, check_finite_positive, check_option
from geomtx.geometry.pose_encoding import encode_pose
from geomtx.geometry.projection import unproject
from geomtx.geometry.scene_frame import known_pixels
from geomtx.layers.precision import at_least_float32
from geomtx.losses.aleatoric import ConfidenceWeighting, Outliers, aleatoric_loss
from geomtx.losses.bearing import bearing_loss
from geomtx.losses.camera import camera_loss, depth_to_camera_mask
from geomtx.losses.consistency.depth import depth_consistency_loss
from geomtx.losses.consistency.epipolar import epipolar_loss
from geomtx.losses.consistency.pairs import ViewPairs, choose_cameras, draw_pairs
from geomtx.losses.consistency.photometric import photometric_loss
from geomtx.losses.consistency.track_points import track_point_loss
from geomtx.losses.gradient import gradient_loss, normal_loss
from geomtx.losses.penalty import Penalty
from geomtx.losses.reduce import has_enough
from geomtx.losses.track import TrackWeights, track_loss
from geomtx.types import Cameras, Predictions, SceneBatch, show_shapes

__all__ = [
    "CameraTerm",
    "ConsistencyTerm",
    "CountSource",
    "DenseTerm",
    "HeadLoss",
    "HeadTerm",
    "Term",
    "TermLoss",
    "TrackTerm",
]

# What the counts that a loss divides by depend on, if it divides by those of the whole batch (`over_batch`).
CountSource = Literal["labels", "predictions"]


HeadLoss = Callable[[Any, SceneBatch], Tensor | None]
"""(what a head predicts, labels) → a scalar, or None where the labels that it compares are not there."""


@show_shapes
class TermLoss(NamedTuple):
    """What a term gives.

    Attributes:
        total: A scalar, before the term's weight.
        parts: What to log, by name; scalars with a graph.
    """

    total: Tensor
    parts: dict[str, Tensor]


@runtime_checkable
class Term(Protocol):
    """A loss with a weight; write your own to give `MultitaskLoss` another one.

    With accumulation or several processes, a term is computed on parts of the batch, which are weighted by their share
    of the scenes. If it is the mean over something else, give the term a method `num_values(batch)` with the number of
    values that it is the mean of, an integer or a scalar tensor: parts are then weighted by that.
    """

    @property
    def weight(self) -> float:
        """Of the term in the sum of all."""

    def __call__(self, predictions: Predictions, batch: SceneBatch) -> TermLoss | None:
        """The loss; None if the predictions or the labels it compares are not there."""


@dataclass(frozen=True)
class CameraTerm:
    """`camera_loss` of the pose encodings.

    Attributes:
        weight: Of the term.
        part_weights: Of translation, rotation and field of view.
        min_depth_pixels: None = all known cameras count. A number = only cameras of scenes whose first view has more
            known pixels than that, as published (100).

    The others are arguments of `camera_loss`.
    """

    counts_from: ClassVar[CountSource] = "labels"

    weight: float = 5.0
    kind: Literal["l1", "l2", "huber"] = "l1"
    decay: float = 0.6
    delta: float = 0.1
    sign_invariant: bool = True
    part_weights: tuple[float, float, float] = (1.0, 1.0, 0.5)
    clamp: float | None = None
    min_depth_pixels: int | None = None

    def __post_init__(self) -> None:
        check_option("kind", self.kind, ("l1", "l2", "huber"))
        check_at_least("weight", self.weight, 0)
        if len(self.part_weights) != 3:
            raise ValueError(f"part_weights must be three, got {self.part_weights}")
        for weight in self.part_weights:
            check_at_least("part_weights", weight, 0)
        _check_positive(self, "decay", "delta", "clamp")
        if self.min_depth_pixels is not None:
            check_at_least("min_depth_pixels", self.min_depth_pixels, 0)

    def __call__(self, predictions: Predictions, batch: SceneBatch) -> TermLoss | None:
        """Logs `loss_camera`, `loss_T`, `loss_R`, `loss_FL`: all, translation, rotation, field of view."""
        if predictions.pose_encodings is None or batch.cameras is None:
            return None
        height, width = batch.images.shape[-2:]
        cam_from_world, intrinsics = map(at_least_float32, batch.cameras)
        loss = camera_loss(
            predictions.pose_encodings,
            encode_pose(cam_from_world, intrinsics, (height, width)),
            self._mask(batch),
            kind=Penalty(self.kind, self.delta, self.clamp),
            decay=self.decay,
            sign_invariant=self.sign_invariant,
            weights=self.part_weights,
        )
        parts = {
            "loss_camera": loss.total,
            "loss_T": loss.translation,
            "loss_R": loss.rotation,
            "loss_FL": loss.fov,
        }
        return TermLoss(loss.total, parts)

    def _mask(self, batch: SceneBatch) -> Tensor | None:
        if self.min_depth_pixels is None or (batch.mask is None and batch.depth is None):
            return batch.camera_mask
        has_depth = depth_to_camera_mask(known_pixels(batch), min_pixels=self.min_depth_pixels)
        return has_depth if batch.camera_mask is None else has_depth & batch.camera_mask


@dataclass(frozen=True)
class DenseTerm:
    """`aleatoric_loss` and a gradient or normal term of depth or points, added up.

    Attributes:
        task: What is compared.
        weight: Of the term.
        gamma: See `aleatoric_loss`.
        alpha: See `aleatoric_loss`.
        quantile: See `aleatoric_loss`.
        clamp: See `aleatoric_loss` and `gradient_loss`.
        nan_to_zero: See `aleatoric_loss`.
        regression: Add the plain error.
        gradient: "gradient" = `gradient_loss`, "normal" = `normal_loss` (points only), None = neither.
        gradient_confidence: Weight that term by confidence too.
        legacy_unmasked_log: See `gradient_loss`.
        bearing: Weight of `bearing_loss` (points only), for models without pretrained parts; 0 = without.
        min_pixels: With fewer known pixels in the batch, all is zero. Published: 100.
    """

    counts_from: ClassVar[CountSource] = "labels"

    task: Literal["depth", "points"]
    weight: float = 1.0
    gamma: float = 1.0
    alpha: float = 0.2
    quantile: float | None = None
    clamp: float | None = None
    nan_to_zero: bool = False
    regression: bool = True
    gradient: Literal["gradient", "normal"] | None = "gradient"
    gradient_confidence: bool = False
    legacy_unmasked_log: bool = False
    bearing: float = 0.0
    min_pixels: int = 1

    def __post_init__(self) -> None:
        check_option("task", self.task, ("depth", "points"))
        if self.bearing and self.task != "points":
            raise ValueError(f"bearing must be 0 for the task 'depth', which has no directions, got {self.bearing}")
        normals = ("normal",) if self.task == "points" else ()
        check_option("gradient", self.gradient, ("gradient", *normals, None))
        for name in ("weight", "gamma", "alpha", "bearing", "min_pixels"):
            check_at_least(name, getattr(self, name), 0)
        if self.quantile is not None and not 0 < self.quantile <= 1:
            raise ValueError(f"quantile must be in (0, 1], got {self.quantile}")
        _check_positive(self, "clamp")

    def __call__(self, predictions: Predictions, batch: SceneBatch) -> TermLoss | None:
        """Logs, for depth, `loss_depth` and its addends `loss_conf_depth`, `loss_reg_depth`, `loss_grad_depth`.

        With a `bearing`, `loss_bearing` too, before its weight.
        """
        if self.task == "depth":
            name, prediction, target = "depth", predictions.depth, batch.depth
        else:
            name, prediction, target = "point", predictions.points, batch.points
        if prediction is None or target is None:
            return None
        value, confidence = prediction
        mask = known_pixels(batch)
        # One comparison on the device instead of a branch, which would wait for it.
        mask = mask & has_enough(mask.sum(), self.min_pixels)
        pair = aleatoric_loss(
            value,
            confidence,
            target,
            mask,
            gamma=self.gamma,
            alpha=self.alpha,
            outliers=Outliers(self.quantile, self.clamp, self.nan_to_zero),
        )
        parts = {f"loss_conf_{name}": pair.confidence}
        if self.regression:
            parts[f"loss_reg_{name}"] = pair.regression
        if self.gradient is not None:
            parts[f"loss_grad_{name}"] = self._gradient(value, target, mask, confidence)
        total = torch.stack(list(parts.values())).sum()
        if self.bearing:
            parts["loss_bearing"] = bearing_loss(value, target, mask)
            total = total + self.bearing * parts["loss_bearing"]
        return TermLoss(total, {f"loss_{name}": total, **parts})

    def _gradient(self, value: Tensor, target: Tensor, mask: Tensor, confidence: Tensor) -> Tensor:
        weighting = confidence if self.gradient_confidence else None
        if self.gradient == "normal":
            return normal_loss(value, target, mask, weighting, gamma=self.gamma, alpha=self.alpha)
        return gradient_loss(
            value,
            target,
            mask,
            weighting,
            weighting=ConfidenceWeighting(self.gamma, self.alpha, self.legacy_unmasked_log),
            clamp=self.clamp,
        )


@dataclass(frozen=True)
class TrackTerm:
    """`track_loss` of all refinements; the attributes but `weight` are its arguments."""

    counts_from: ClassVar[CountSource] = "labels"

    weight: float = 0.05
    decay: float = 0.8
    kind: Literal["l1", "huber"] = "l1"
    delta: float = 10.0
    threshold_px: float = 3.0
    visibility_weight: float = 1.0
    confidence_weight: float = 1.0
    visible_boost: float | None = None
    min_points: int = 3

    def __post_init__(self) -> None:
        check_option("kind", self.kind, ("l1", "huber"))
        for name in ("weight", "visibility_weight", "confidence_weight"):
            check_at_least(name, getattr(self, name), 0)
        if self.visible_boost is not None:
            check_at_least("visible_boost", self.visible_boost, 0)
        _check_positive(self, "decay", "delta", "threshold_px", "min_points")

    def __call__(self, predictions: Predictions, batch: SceneBatch) -> TermLoss | None:
        """Logs `loss_track` and its addends before weights: `loss_position`, `loss_visibility`, `loss_confidence`."""
        if predictions.track_iterations is None or batch.tracks is None:
            return None
        loss = track_loss(
            predictions.track_iterations,
            batch.tracks,
            decay=self.decay,
            kind=Penalty(self.kind, self.delta),
            threshold_px=self.threshold_px,
            weights=TrackWeights(self.visibility_weight, self.confidence_weight, self.visible_boost),
            min_points=self.min_points,
        )
        parts = {
            "loss_track": loss.total,
            "loss_position": loss.position,
            "loss_visibility": loss.visibility,
            "loss_confidence": loss.confidence,
        }
        return TermLoss(loss.total, parts)


def _check_positive(term: Term, *names: str) -> None:
    """None is no number."""
    for name in names:
        value = getattr(term, name)
        if value is not None:
            check_finite_positive(name, value)


@dataclass(frozen=True)
class ConsistencyTerm:
    """Predictions of different views agree with each other; a weight of 0 turns a part off.

    Every view is compared with a few others, drawn anew at each call from torch's generator. What a part needs and
    isn't there leaves it out. The images are compared as they are in the batch: give them before any change of colour.

    Attributes:
        weight: Of the term.
        photometric: Weight of `photometric_loss`, of predicted depth and cameras.
        epipolar: Weight of `epipolar_loss`, of predicted cameras and true tracks.
        depth: Weight of `depth_consistency_loss`, of predicted depth and cameras.
        track_points: Weight of `track_point_loss`, of predicted points (without a point head: of unprojected depth)
            and true ones.
        num_sources: Views that each is compared with.
        geometry: Whose cameras: "pred", predicted; "mixed", predicted poses and true intrinsics; "gt", true.
    """

    counts_from: ClassVar[CountSource] = "predictions"

    weight: float = 1.0
    photometric: float = 0.1
    epipolar: float = 0.01
    depth: float = 0.1
    track_points: float = 5.0
    num_sources: int = 2
    geometry: Literal["pred", "mixed", "gt"] = "pred"

    def __post_init__(self) -> None:
        check_option("geometry", self.geometry, ("pred", "mixed", "gt"))

    def __call__(self, predictions: Predictions, batch: SceneBatch) -> TermLoss | None:
        """Logs `loss_photometric`, `loss_epipolar`, `loss_depth_consistency`, `loss_track_points`, before weights."""
        cameras = self._cameras(predictions, batch)
        pairs = draw_pairs(batch.images.shape[1], self.num_sources)
        parts = {
            **self._of_depth(predictions, batch, cameras, pairs),
            **self._of_tracks(predictions, batch, cameras, pairs),
        }
        if not parts:
            return None
        total = torch.stack([weight * loss for weight, loss in parts.values()]).sum()
        return TermLoss(total, {name: loss for name, (_, loss) in parts.items()})

    def _cameras(self, predictions: Predictions, batch: SceneBatch) -> Cameras | None:
        if self.geometry == "gt":
            return batch.cameras
        if self.geometry == "pred" or predictions.cameras is None or batch.cameras is None:
            return predictions.cameras if self.geometry == "pred" else None
        return choose_cameras(predictions.cameras, batch.cameras, geometry=self.geometry)

    def _camera_mask(self, batch: SceneBatch) -> Tensor | None:
        """Predicted cameras are always known."""
        return None if self.geometry == "pred" else batch.camera_mask

    def _of_depth(
        self, predictions: Predictions, batch: SceneBatch, cameras: Cameras | None, pairs: ViewPairs
    ) -> dict[str, tuple[float, Tensor]]:
        parts: dict[str, tuple[float, Tensor]] = {}
        if predictions.depth is None or cameras is None:
            return parts
        depth, mask, camera_mask = predictions.depth.value, batch.mask, self._camera_mask(batch)
        if self.photometric:
            loss = photometric_loss(batch.images, depth, cameras, pairs, mask=mask, camera_mask=camera_mask)
            parts["loss_photometric"] = self.photometric, loss
        if self.depth:
            loss = depth_consistency_loss(depth, cameras, pairs, mask=mask, camera_mask=camera_mask)
            parts["loss_depth_consistency"] = self.depth, loss
        return parts

    def _of_tracks(
        self, predictions: Predictions, batch: SceneBatch, cameras: Cameras | None, pairs: ViewPairs
    ) -> dict[str, tuple[float, Tensor]]:
        parts: dict[str, tuple[float, Tensor]] = {}
        if batch.tracks is None:
            return parts
        # True cameras have nothing to learn of true tracks.
        if self.epipolar and cameras is not None and self.geometry != "gt":
            coords, visible, valid = batch.tracks
            visible = visible & valid[:, None]
            mask = self._camera_mask(batch)
            loss = epipolar_loss(coords, cameras, pairs, visible=visible, camera_mask=mask)
            parts["loss_epipolar"] = self.epipolar, loss
        if self.track_points and batch.points is not None:
            points = None if predictions.points is None else predictions.points.value
            if points is None and predictions.depth is not None and cameras is not None:
                points = unproject(predictions.depth.value, cameras.intrinsics, cameras.cam_from_world)
            if points is not None:
                loss = track_point_loss(points, batch.points, batch.tracks, batch.mask)
                parts["loss_track_points"] = self.track_points, loss
        return parts


def count_scenes(batch: SceneBatch) -> int:
    """Number of scenes in a batch."""
    return len(batch.images)


@dataclass(frozen=True)
class HeadTerm:
    """A function of what a head predicts and of what is known, see `VGGT.add_head`.

    Attributes:
        head: Its name in `Predictions.extra`.
        loss: (prediction, labels) → a scalar; or None, where the labels that it compares are not there.
        weight: Of the term.
        num_values: labels → the number of values that `loss` is the mean of, an integer or a scalar tensor, by which
            parts of a batch are weighted with accumulation or several processes; defaults to the number of scenes.
    """

    head: str
    loss: HeadLoss
    weight: float = 1.0
    num_values: Callable[[SceneBatch], Tensor | int] = count_scenes

    def __post_init__(self) -> None:
        check_at_least("weight", self.weight, 0)

    def __call__(self, predictions: Predictions, batch: SceneBatch) -> TermLoss | None:
        """Logs `loss_HEAD`."""
        if predictions.extra is None or self.head not in predictions.extra:
            return None
        loss = self.loss(predictions.extra[self.head], batch)
        if loss is None:
            return None
        if loss.ndim:
            raise ValueError(f"loss of {self.head!r} must be a scalar, got shape {tuple(loss.shape)}")
        return TermLoss(loss, {f"loss_{self.head}": loss})
