"""Terms of `MultitaskLoss`: each takes what it compares from predictions and labels, and holds the numbers to do it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from geomtx.checks import check_at_least, check_finite_positive, check_option
from geomtx.geometry.normalization import known_pixels
from geomtx.geometry.pose_encoding import encode_pose
from geomtx.layers.float32 import at_least_float32
from geomtx.losses.aleatoric import aleatoric_loss
from geomtx.losses.bearing import bearing_loss
from geomtx.losses.camera import camera_loss, depth_to_camera_mask
from geomtx.losses.gradient import gradient_loss, normal_loss
from geomtx.losses.reduce import has_enough
from geomtx.losses.track import track_loss
from geomtx.types import Predictions, SceneBatch

__all__ = ["CameraTerm", "CountSource", "DenseTerm", "Term", "TermLoss", "TrackTerm"]


# What the counts that a loss divides by depend on, if it divides by those of the whole batch (`over_batch`).
CountSource = Literal["labels", "predictions"]


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
            kind=self.kind,
            decay=self.decay,
            delta=self.delta,
            sign_invariant=self.sign_invariant,
            weights=self.part_weights,
            clamp=self.clamp,
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
            quantile=self.quantile,
            clamp=self.clamp,
            nan_to_zero=self.nan_to_zero,
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
            gamma=self.gamma,
            alpha=self.alpha,
            clamp=self.clamp,
            legacy_unmasked_log=self.legacy_unmasked_log,
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
            kind=self.kind,
            delta=self.delta,
            threshold_px=self.threshold_px,
            visibility_weight=self.visibility_weight,
            confidence_weight=self.confidence_weight,
            visible_boost=self.visible_boost,
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
