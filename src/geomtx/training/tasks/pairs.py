"""Training of `DUSt3R`, with MonST3R's weights too, and of `MASt3R`: points of two views in the first one's camera."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from geomtx.checks import check_at_least, check_count, check_finite_positive
from geomtx.data.matches import PixelMatches, match_pixels
from geomtx.geometry.scene_frame import known_pixels, normalize_scene
from geomtx.inference.pair_maps import PairPrediction
from geomtx.losses.matching import MatchingSettings, matching_loss, matching_precision
from geomtx.losses.multitask import LossReport
from geomtx.losses.pair_points import PairErrors, PairPointSettings, pair_confidence_loss, pair_point_errors
from geomtx.losses.reduce import count_scope, over_batch, select
from geomtx.losses.terms import CountSource
from geomtx.models.dust3r import CroCo, DUSt3R, MASt3R
from geomtx.models.published import open_weights
from geomtx.models.saved_model import kind_of
from geomtx.parsing import replace_fields
from geomtx.training.config import LossSection, ModelSection
from geomtx.training.tasks.task import starting_from
from geomtx.types import SceneBatch, show_shapes

__all__ = ["DUSt3RTask", "MASt3RTask", "PairBatch", "PairLoss", "check_no_losses", "check_pair", "config_of_section"]


@show_shapes
class PairBatch(NamedTuple):
    """What `DUSt3RTask` prepares.

    Attributes:
        scenes: Scenes of two views, with points in the first one's camera, in the scenes' own unit.
        matches: Pixels of the two views that match; None for a model without descriptors.
    """

    scenes: SceneBatch
    matches: PixelMatches | None = None

    @property
    def images(self) -> Tensor:
        """Images of the scenes, (B, 2, 3, H, W)."""
        return self.scenes.images


@dataclasses.dataclass(frozen=True)
class DUSt3RTask:
    """Points of both views of a pair, weighted by confidence. See `geomtx.training.tasks.task.Task`.

    Scenes have two views with cameras and depth, or points. Weights to start from are those of a `DUSt3R`, or of a
    `CroCo`, as `DUSt3R.from_croco` takes them.

    Attributes:
        points: How points are compared: fields of `geomtx.losses.PairPointSettings`, its normalisations.
        metric: Whether the scenes' lengths are in metres, which the model then learns; otherwise scale is free.
        alpha: Weight of the logarithm of the confidence, see `geomtx.losses.pair_confidence_loss`.
    """

    points: PairPointSettings = dataclasses.field(default_factory=PairPointSettings)
    metric: bool = False
    alpha: float = 0.2

    num_views: ClassVar[int] = 2
    model_type: ClassVar[type[DUSt3R]] = DUSt3R

    def __post_init__(self) -> None:
        check_finite_positive("alpha", self.alpha)
        if self.points.max_metric_scale is not None:
            check_finite_positive("points.max_metric_scale", self.points.max_metric_scale)

    def build_model(self, section: ModelSection) -> DUSt3R:
        """Build the model in float32: with random weights, its own, or with those of a model that it may begin with."""
        if section.weights is None:
            return self.model_type(config_of_section(self.model_type.config_type, section))
        with starting_from(section):
            kind = kind_of(open_weights(section.weights))
            if kind == "CroCo":
                config = _fit_to_croco(config_of_section(self.model_type.config_type, section), section.weights)
                return self.model_type.from_croco(section.weights, config, dtype=torch.float32)
            if kind == "DUSt3R" and self.model_type is MASt3R:
                return _add_descriptors(section)
            if section.numbers:
                raise ValueError(f"model.numbers must be empty for weights of a {kind}, got {section.numbers}")
            return self.model_type.from_pretrained(section.weights, dtype=torch.float32)

    def rebuild_model(self, numbers: dict[str, Any]) -> DUSt3R:
        """Build the model of its configuration's `to_dict()`."""
        return self.model_type(self.model_type.config_type.from_dict(numbers))

    def build_loss(self, section: LossSection) -> PairLoss:
        """Return the loss, which the section `task` describes.

        Raises:
            ValueError: If the section `loss`, which is of other models, isn't left at its defaults.
        """
        check_no_losses(section)
        return PairLoss(self)

    def prepare(self, batch: SceneBatch, *, training: bool = True) -> PairBatch:
        """Return scenes in the frame of their first camera, in their own unit.

        Raises:
            ValueError: For scenes of another number of views, or without what points are known from.
        """
        check_pair(batch)
        if batch.cameras is None or (batch.depth is None and batch.points is None):
            raise ValueError("scenes must have cameras, and depth or points, to train on pairs, got some without")
        return PairBatch(normalize_scene(batch, by_points=False)[0]._replace(tracks=None, query_views=None))

    def predict(self, model: nn.Module, batch: PairBatch) -> PairPrediction:
        """Predict for the pairs."""
        return model(batch.images[:, 0], batch.images[:, 1])

    def compare(
        self, outputs: PairPrediction, batch: PairBatch, settings: PairPointSettings | None = None
    ) -> PairErrors:
        """Return the errors of the points, compared as the task says, or by other settings.

        Args:
            outputs: Predictions.
            batch: Prepared batch.
            settings: Settings in place of the task's.
        """
        points, known = batch.scenes.points, known_pixels(batch.scenes)
        assert points is not None
        metric = torch.full_like(known[:, 0, 0, 0], self.metric)
        return pair_point_errors(
            (outputs.first.points.value, outputs.second.points.value),
            (points[:, 0], points[:, 1]),
            (known[:, 0], known[:, 1]),
            self.points if settings is None else settings,
            metric=metric,
        )

    def score(self, outputs: PairPrediction, batch: PairBatch) -> dict[str, Tensor]:
        """Return "point_error", the mean distance of predicted from true points, and that of the second views alone.

        Both clouds of a scene, of two views each, are divided by their mean distance from the first camera.
        """
        first, second, masks = dataclasses.replace(self, metric=False).compare(outputs, batch, PairPointSettings())
        both = (torch.cat([each.flatten(1) for each in pair], dim=1) for pair in ((first, second), masks))
        return {"point_error": _scene_means(*both), "point_error_second": _scene_means(second, masks[1])}


@dataclasses.dataclass(frozen=True)
class MASt3RTask(DUSt3RTask):
    """Points, and descriptors by which pixels are matched. See `DUSt3RTask`.

    The weights to start from may also be those of a `DUSt3R`; the heads of descriptors are then random.

    Attributes:
        num_matches: Largest number of matching pixels of a pair, which are drawn from the known geometry; as many
            further pixels match none.
        matching: How descriptors are compared: fields of `geomtx.losses.MatchingSettings`.
        matching_weight: Weight of the loss of descriptors.
    """

    num_matches: int = 4096
    matching: MatchingSettings = dataclasses.field(default_factory=MatchingSettings)
    matching_weight: float = 0.075

    model_type: ClassVar[type[DUSt3R]] = MASt3R

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("num_matches", self.num_matches)
        check_finite_positive("matching.temperature", self.matching.temperature)
        check_at_least("matching_weight", self.matching_weight, 0)

    def prepare(self, batch: SceneBatch, *, training: bool = True) -> PairBatch:
        """Return scenes as `DUSt3RTask.prepare`, with matching pixels."""
        prepared = super().prepare(batch, training=training)
        scenes = prepared.scenes
        assert scenes.points is not None
        assert scenes.cameras is not None
        matches = match_pixels(scenes.points, scenes.cameras, known_pixels(scenes), num_matches=self.num_matches)
        return prepared._replace(matches=matches)

    def score(self, outputs: PairPrediction, batch: PairBatch) -> dict[str, Tensor]:
        """Return the scores of points, and "match_precision", see `geomtx.losses.matching_precision`."""
        return super().score(outputs, batch) | {"match_precision": self._precision(outputs, batch)}

    def _precision(self, outputs: PairPrediction, batch: PairBatch) -> Tensor:
        assert batch.matches is not None
        views = []
        for view in outputs:
            assert view.descriptors is not None
            views.append(view.descriptors.value)
        scenes = zip(*views, *batch.matches, strict=True)
        found = [matching_precision(a[None], b[None], (p[None], q[None]), valid[None]) for a, b, p, q, valid in scenes]
        return torch.where(batch.matches.valid.any(1), torch.stack(found), torch.nan)


class PairLoss:
    """Loss of `DUSt3RTask` and `MASt3RTask`, a function of the predictions and the prepared batch.

    Args:
        task: The task, which says how points and descriptors are compared.
    """

    counts_from: ClassVar[CountSource] = "labels"

    def __init__(self, task: DUSt3RTask) -> None:
        self.task = task

    def count_labels(self, batch: PairBatch) -> None:
        """Collect the counts of a batch, see `MultitaskLoss`."""
        first, second = known_pixels(batch.scenes).unbind(1)
        with count_scope("points"):
            for mask in (first, second, first, second):  # of the loss, then of the errors
                over_batch(mask.sum())
        if batch.matches is not None:
            with count_scope("matching"):
                over_batch(batch.matches.valid.sum())

    def __call__(self, outputs: PairPrediction, batch: PairBatch) -> LossReport:
        """Return the loss, its tasks and its terms."""
        errors = self.task.compare(outputs, batch)
        confidence = (outputs.first.points.confidence, outputs.second.points.confidence)
        with count_scope("points"):
            points = pair_confidence_loss(errors, confidence, alpha=self.task.alpha)
            first, second = errors.means()
        terms = {"loss_points": points, "error_first": first, "error_second": second}
        report = LossReport(points, {"points": points}, terms)
        if batch.matches is None or not isinstance(self.task, MASt3RTask):
            return report
        assert outputs.first.descriptors is not None
        assert outputs.second.descriptors is not None
        pixels, valid = batch.matches[:2], batch.matches.valid
        with count_scope("matching"):
            matching = matching_loss(
                outputs.first.descriptors, outputs.second.descriptors, pixels, valid, self.task.matching
            )
        weighted = self.task.matching_weight * matching
        return LossReport(
            points + weighted, {"points": points, "matching": weighted}, {**terms, "loss_matching": matching}
        )


def config_of_section(kind: Any, section: ModelSection) -> Any:
    """Return the configuration of a model with random weights or heads.

    Args:
        kind: Class of the configuration, with a constructor `tiny`.
        section: Section of the configuration; without a preset, numbers are those of the largest published model.

    Raises:
        ValueError: For another preset than "tiny", and numbers that the configuration doesn't take.
    """
    presets: dict[str, Callable[[], Any]] = {ModelSection().preset: kind, "tiny": kind.tiny}
    if section.preset not in presets:
        raise ValueError(
            f"model.preset must be 'tiny' where model.kind is '{section.kind}', or be left out, got '{section.preset}'"
        )
    return replace_fields(presets[section.preset](), section.numbers, "model.numbers")


def check_no_losses(section: LossSection) -> None:
    """Require that the section `loss` is left at its defaults, for models whose losses the section `task` describes.

    Raises:
        ValueError: If it isn't.
    """
    if section != LossSection():
        raise ValueError(f"loss must be left out for models of pairs, whose losses 'task' describes, got {section}")


def check_pair(batch: SceneBatch) -> None:
    """Require scenes of two views.

    Raises:
        ValueError: For another number of views.
    """
    if batch.images.shape[1] != 2:
        raise ValueError(f"scenes must have 2 views to train a model of pairs, got {batch.images.shape[1]}")


def _fit_to_croco(config: Any, source: str) -> Any:
    """Return the configuration with the encoder and the decoder of a CroCo's weights."""
    found = CroCo.read_config(source)
    shared = found.to_dict().keys() & config.to_dict().keys() - {"image_size", "attention"}
    # Without rotary positions, those of CroCo v1, `from_croco` refuses it.
    numbers = {name: value for name in shared if (value := getattr(found, name)) is not None}
    return dataclasses.replace(config, **numbers)


def _add_descriptors(section: ModelSection) -> MASt3R:
    """Build a MASt3R with the weights of a DUSt3R and random heads of descriptors."""
    assert section.weights is not None
    start = DUSt3R.from_pretrained(section.weights, dtype=torch.float32)
    config = replace_fields(MASt3R.config_type(**vars(start.config)), section.numbers, "model.numbers")
    model = MASt3R(config)
    missing, _ = model.load_state_dict(start.state_dict(), strict=False)
    assert all(".descriptors." in name for name in missing)
    return model


def _scene_means(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of what counts of each scene, (B,); NaN where nothing does."""
    values, mask = values.flatten(1), mask.flatten(1)
    return select(values, mask).sum(1) / mask.sum(1)
