"""Terms of `MultitaskLoss`: each selects predictions and labels and holds the options and weight of a loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from geomtx.checks import check_at_least, check_finite_positive, check_option
from geomtx.geometry.camera import encode_pose
from geomtx.geometry.projection import unproject
from geomtx.geometry.scene_frame import known_pixels
from geomtx.layers.precision import at_least_float32
from geomtx.losses.aleatoric import ConfidenceWeighting, Outliers, aleatoric_loss
from geomtx.losses.bearing import bearing_loss
from geomtx.losses.camera import camera_loss, depth_to_camera_mask
from geomtx.losses.consistency.depth import depth_consistency_loss
from geomtx.losses.consistency.epipolar import epipolar_loss
from geomtx.losses.consistency.photometric import photometric_loss
from geomtx.losses.consistency.track_points import track_point_loss
from geomtx.losses.consistency.warp import ViewPairs, choose_cameras, draw_pairs
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

# Whether the counts by which a loss divides (`over_batch`) depend on labels only or also on predictions.
CountSource = Literal["labels", "predictions"]


HeadLoss = Callable[[Any, SceneBatch], Tensor | None]
"""Function from the prediction of a head and the labels to a scalar loss, or to None if labels are missing."""


@show_shapes
class TermLoss(NamedTuple):
    """Output of a term.

    Attributes:
        total: Loss before the weight of the term, a scalar.
        parts: Scalars to log by name, with a graph.
    """

    total: Tensor
    parts: dict[str, Tensor]


@runtime_checkable
class Term(Protocol):
    """Interface of a loss with a weight. Implement it to add a loss of your own to `MultitaskLoss`.

    With gradient accumulation or several processes, a term is computed on chunks of the batch, which are weighted by
    their share of the scenes. A term that is a mean over other values may have a method `num_values(batch)` that
    returns their number, an integer or a scalar tensor, by which chunks are then weighted.
    """

    @property
    def weight(self) -> float:
        """Weight of this term in the total loss."""

    def __call__(self, predictions: Predictions, batch: SceneBatch) -> TermLoss | None:
        """Compute the loss; return None if the predictions or labels that it compares are missing."""


@dataclass(frozen=True)
class CameraTerm:
    """Term with the `camera_loss` of the pose encodings.

    Attributes:
        weight: Weight of this term in the total loss. Defaults to 5.
        kind: "l1", "l2" or "huber", see `camera_loss`. Defaults to "l1".
        decay: Weight of a refinement relative to the next one, positive. Defaults to 0.6.
        delta: Difference at which "huber" turns from squared to linear, positive. Defaults to 0.1.
        sign_invariant: Whether a quaternion is compared with the nearer of q and -q. Defaults to True.
        part_weights: Weights of translation, rotation and field of view. Default to (1, 1, 0.5).
        clamp: Largest translation error that counts, positive. Defaults to no limit.
        min_depth_pixels: Number of known pixels that the first view of a scene must exceed for its cameras to count;
            100 in the released code. Defaults to None: all known cameras count.
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
        """Compute the loss; log `loss_camera` and its parts `loss_T`, `loss_R` and `loss_FL` (field of view)."""
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
        names = ("loss_camera", "loss_T", "loss_R", "loss_FL")
        return TermLoss(loss.total, dict(zip(names, loss, strict=True)))

    def _mask(self, batch: SceneBatch) -> Tensor | None:
        """Return which cameras count, (B, S) bool, or None for all."""
        if self.min_depth_pixels is None or (batch.mask is None and batch.depth is None):
            return batch.camera_mask
        has_depth = depth_to_camera_mask(known_pixels(batch), min_pixels=self.min_depth_pixels)
        return has_depth if batch.camera_mask is None else has_depth & batch.camera_mask


@dataclass(frozen=True)
class DenseTerm:
    """Term with the sum of `aleatoric_loss` and of a gradient or normal loss, of depth or of points.

    Attributes:
        task: Prediction to compare, "depth" or "points".
        weight: Weight of this term in the total loss. Defaults to 1.
        gamma: Weight γ of the error, see `aleatoric_loss`. Defaults to 1.
        alpha: Weight α of the logarithm of the confidence, see `aleatoric_loss`. Defaults to 0.2.
        quantile: Quantile in (0, 1] from which on the largest values are dropped, see `Outliers`. Defaults to none.
        clamp: Ceiling of the errors and of their gradients, positive, see `Outliers`. Defaults to no limit.
        nan_to_zero: Whether NaN and infinity count as 0, see `Outliers`. Defaults to False.
        regression: Whether the unweighted error is added. Defaults to True.
        gradient: "gradient" for `gradient_loss`, "normal" for `normal_loss` (points only), None for neither. Defaults
            to "gradient".
        gradient_confidence: Whether the gradient or normal loss is weighted by confidence too. Defaults to False.
        legacy_unmasked_log: Whether the logarithm also counts at masked pixels, see `ConfidenceWeighting`. Defaults to
            False.
        bearing: Weight of `bearing_loss` (points only), for training from random weights. Defaults to 0.
        min_pixels: Number of known pixels in the batch below which the loss is 0; 100 in the released code. Defaults to
            1.
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
        """Compute the loss; for depth, log `loss_depth`, `loss_conf_depth`, `loss_reg_depth` and `loss_grad_depth`.

        The names for points end in `_point`. With `bearing`, `loss_bearing` is logged before its weight.
        """
        if self.task == "depth":
            name, prediction, target = "depth", predictions.depth, batch.depth
        else:
            name, prediction, target = "point", predictions.points, batch.points
        if prediction is None or target is None:
            return None
        value, confidence = prediction
        mask = known_pixels(batch)
        # A comparison on the device, since a branch would wait for it.
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
        """Return the gradient or normal loss."""
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
    """Term with the `track_loss` of all refinements.

    Attributes:
        weight: Weight of this term in the total loss. Defaults to 0.05.
        decay: Weight of a refinement relative to the next one, positive. Defaults to 0.8.
        kind: "l1" or "huber", see `track_loss`. Defaults to "l1".
        delta: Error at which "huber" turns from squared to linear, pixels, positive. Defaults to 10.
        threshold_px: Error below which a prediction is correct, pixels, positive. Defaults to 3.
        visibility_weight: Weight of the visibility loss. Defaults to 1.
        confidence_weight: Weight of the confidence loss. Defaults to 1.
        visible_boost: Extra weight of visible points, see `TrackWeights`. Defaults to None: only visible points count.
        min_points: Number of positions in the batch below which the position loss is 0, positive. Defaults to 3.
    """

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
        """Compute the loss; log `loss_track`, `loss_position`, `loss_visibility` and `loss_confidence`."""
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
        names = ("loss_track", "loss_position", "loss_visibility", "loss_confidence")
        return TermLoss(loss.total, dict(zip(names, loss, strict=True)))


def _check_positive(term: Term, *names: str) -> None:
    """Check that numbers are finite and positive, where they are not None."""
    for name in names:
        value = getattr(term, name)
        if value is not None:
            check_finite_positive(name, value)


@dataclass(frozen=True)
class ConsistencyTerm:
    """Term with the losses on agreement between predictions of different views; a weight of 0 disables a loss.

    Every view is compared with a few other views, drawn at every call from torch's generator. A loss is left out if
    predictions or labels that it needs are missing. Colour augmentation of the images breaks the photometric loss.

    Attributes:
        weight: Weight of this term in the total loss. Defaults to 1.
        photometric: Weight of `photometric_loss` on predicted depth and cameras. Defaults to 0.1.
        epipolar: Weight of `epipolar_loss` on predicted cameras and true tracks. Defaults to 0.01.
        depth: Weight of `depth_consistency_loss` on predicted depth and cameras. Defaults to 0.1.
        track_points: Weight of `track_point_loss` on predicted points, or on unprojected depth without a point head.
            Defaults to 5.
        num_sources: Number of other views that each view is compared with. Defaults to 2.
        geometry: Cameras to use: "pred", predicted; "mixed", predicted poses and true intrinsics; "gt", true. Defaults
            to "pred".
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
        """Compute the losses and log them before weights.

        The names are `loss_photometric`, `loss_epipolar`, `loss_depth_consistency` and `loss_track_points`.
        """
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
        """Return the cameras that `geometry` selects, or None if they are missing."""
        if self.geometry == "gt":
            return batch.cameras
        if self.geometry == "pred" or predictions.cameras is None or batch.cameras is None:
            return predictions.cameras if self.geometry == "pred" else None
        return choose_cameras(predictions.cameras, batch.cameras, geometry=self.geometry)

    def _camera_mask(self, batch: SceneBatch) -> Tensor | None:
        """Return which cameras are known, (B, S) bool, or None for all: predicted ones always are."""
        return None if self.geometry == "pred" else batch.camera_mask

    def _of_depth(
        self, predictions: Predictions, batch: SceneBatch, cameras: Cameras | None, pairs: ViewPairs
    ) -> dict[str, tuple[float, Tensor]]:
        """Return weights and values of the losses on predicted depth by name."""
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
        """Return weights and values of the losses on tracks by name."""
        parts: dict[str, tuple[float, Tensor]] = {}
        if batch.tracks is None:
            return parts
        # With true cameras and true tracks there is no gradient.
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
    """Return the number of scenes in a batch."""
    return len(batch.images)


@dataclass(frozen=True)
class HeadTerm:
    """Term with a user's loss on the prediction of an added head, see `VGGT.add_head`.

    Attributes:
        head: Name of the head, the key of its prediction in `Predictions.extra`.
        loss: Function from prediction and labels to a scalar, or to None if labels are missing.
        weight: Weight of this term in the total loss. Defaults to 1.
        num_values: Function from labels to the number of values that `loss` averages, an integer or a scalar tensor, by
            which chunks of a batch are weighted with gradient accumulation or several processes. Defaults to the number
            of scenes.
    """

    head: str
    loss: HeadLoss
    weight: float = 1.0
    num_values: Callable[[SceneBatch], Tensor | int] = count_scenes

    def __post_init__(self) -> None:
        check_at_least("weight", self.weight, 0)

    def __call__(self, predictions: Predictions, batch: SceneBatch) -> TermLoss | None:
        """Compute the loss and log it as `loss_` with the name of the head."""
        if predictions.extra is None or self.head not in predictions.extra:
            return None
        loss = self.loss(predictions.extra[self.head], batch)
        if loss is None:
            return None
        if loss.ndim:
            raise ValueError(f"loss of {self.head!r} must be a scalar, got shape {tuple(loss.shape)}")
        return TermLoss(loss, {f"loss_{self.head}": loss})
