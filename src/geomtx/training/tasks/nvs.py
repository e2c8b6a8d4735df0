"""Training of `VGGTForNVS`: some views of a scene go in, the others' pictures shall come out."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from geomtx.checks import check_at_least, check_count, check_option, check_range
from geomtx.geometry.scene_frame import RelativeCameras, known_pixels, normalize_scene, relate_cameras
from geomtx.losses.multitask import LossReport, MultitaskLoss
from geomtx.losses.perceptual import PERCEPTUAL_TAPS, PerceptualLoss
from geomtx.losses.reduce import count_scope, over_batch
from geomtx.losses.rendering import RenderingLoss, count_pictures, gaussian_similarity
from geomtx.losses.terms import CountSource
from geomtx.metrics.image import psnr, read_vgg
from geomtx.models.nvs import NVSConfig, NVSPrediction, VGGTForNVS
from geomtx.models.published import open_weights
from geomtx.models.saved_model import kind_of
from geomtx.models.vggt.config import check_numbers
from geomtx.training.config import LossSection, ModelSection
from geomtx.training.prepare import build_loss
from geomtx.training.tasks.vggt import VggtTask, leave_out_heads, leave_out_late_tracks, load_vggt, queries_for
from geomtx.types import Cameras, SceneBatch

__all__ = ["NvsLoss", "NvsTask"]

logger = logging.getLogger("geomtx")


@dataclasses.dataclass(frozen=True)
class NvsTask:
    """Options of novel view synthesis in training. See `Task`.

    The first view of a scene is always an input; which others are is drawn anew for every scene and step. A scene of an
    unknown first camera, and a target of unknown camera, count for nothing.

    Attributes:
        num_inputs: Views that go in.
        num_targets: Most pictures to make a scene; None = of all other views.
        redraw: Share of the scenes in training whose targets are drawn from all views, with replacement: those that go
            in are asked for too, by which the model learns to find and copy. 0.2 in LagerNVS.
        unit: What the cameras' unit of length is taken from: "depth", of the input views, where it is known, else as
            for "cameras": 1.35 times the largest distance of an input camera from the first.
        numbers: Of `NVSConfig` for the parts that `model.weights` don't have, or for random weights; not `vggt`.
        perceptual_weights: File of VGG-19's weights, see `PerceptualLoss`; None = the loss without.
        perceptual_weight: Of that part.
        similarity_weight: Of 1 - SSIM, which takes its place without the file.
        chroma_weight: Of the error of hue, see `RenderingLoss`.
        rehearsal: Weight of the original tasks' loss (section `loss`), on a plain pass of the VGGT inside over all
            views, as often as they were drawn: what keeps its heads right while its encoder learns. 0 = no such pass;
            then, with several processes, `vggt.*_head` have to be frozen.
        rehearsal_share: Share of a batch's scenes in that pass in training, at least one.
    """

    num_inputs: int = 4
    num_targets: int | None = None
    redraw: float = 0.0
    unit: Literal["depth", "cameras"] = "depth"
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)
    perceptual_weights: str | None = None
    perceptual_weight: float = 0.5
    similarity_weight: float = 0.2
    chroma_weight: float = 0.0
    rehearsal: float = 0.0
    rehearsal_share: float = 1.0

    def __post_init__(self) -> None:
        check_count("num_inputs", self.num_inputs)
        if self.num_targets is not None:
            check_count("num_targets", self.num_targets)
        check_option("unit", self.unit, ("depth", "cameras"))
        check_numbers("numbers", self.numbers, NVSConfig, without="vggt")
        for name in ("perceptual_weight", "similarity_weight", "chroma_weight", "rehearsal"):
            check_at_least(name, getattr(self, name), 0)
        for name in ("redraw", "rehearsal_share"):
            check_range(name, getattr(self, name), 0, 1)

    def build_model(self, section: ModelSection) -> VGGTForNVS:
        """With random weights, with those of a model of this kind, or around those of a VGGT; in float32."""
        if section.weights is None:
            return VGGTForNVS(NVSConfig(vggt=section.model_config(), **self.numbers))
        checkpoint = open_weights(section.weights)
        if section.heads is None and kind_of(checkpoint) != "VGGT":
            without = leave_out_heads(checkpoint)
            return VGGTForNVS.from_pretrained(section.weights, dtype=torch.float32, extra_heads=without, **self.numbers)
        return VGGTForNVS.from_vggt(load_vggt(section), **self.numbers)

    def rebuild_model(self, numbers: dict[str, Any]) -> VGGTForNVS:
        """The model of `NVSConfig.to_dict`."""
        return VGGTForNVS(NVSConfig.from_dict(numbers))

    def build_loss(self, section: LossSection) -> NvsLoss:
        """Of the pictures and, with rehearsal, of the original tasks."""
        perceptual = None
        if self.perceptual_weights is not None:
            perceptual = PerceptualLoss(read_vgg(self.perceptual_weights, 19, PERCEPTUAL_TAPS))
        else:
            logger.warning(
                "No task.perceptual_weights: the loss of pictures is MSE + %g (1 - SSIM), without a perceptual part.",
                self.similarity_weight,
            )
        rendering = RenderingLoss(
            perceptual,
            perceptual_weight=self.perceptual_weight,
            similarity_weight=self.similarity_weight,
            chroma_weight=self.chroma_weight,
        )
        return NvsLoss(rendering, build_loss(section) if self.rehearsal else None, self.num_inputs, self.rehearsal)

    def prepare(self, batch: SceneBatch, *, training: bool = True) -> SceneBatch:
        """Normalised, the views that go in first, then those to make.

        Raises:
            ValueError: For scenes without cameras, or with no more views than go in.
        """
        num_scenes, num_views = batch.images.shape[:2]
        if batch.cameras is None:
            raise ValueError("scenes must have cameras to make pictures of, got none")
        if num_views <= self.num_inputs:
            raise ValueError(f"data.views must be above task.num_inputs, {self.num_inputs}, got {num_views}")
        most = num_views if self.num_targets is None else self.num_inputs + self.num_targets
        device = batch.images.device
        others = 1 + torch.rand(num_scenes, num_views - 1, device=device).argsort(dim=1)
        order = torch.cat([torch.zeros_like(others[:, :1]), others], dim=1)
        if training and self.redraw:
            redrawn = torch.rand(num_scenes, 1, device=device) < self.redraw
            views = torch.randint(num_views, (num_scenes, num_views - self.num_inputs), device=device)
            targets = torch.where(redrawn, views, order[:, self.num_inputs :])
            order = torch.cat([order[:, : self.num_inputs], targets], dim=1)
        return _take_views(leave_out_late_tracks(normalize_scene(batch)[0]), order[:, :most])

    def predict(self, model: nn.Module, batch: SceneBatch) -> NVSPrediction:
        """Make the targets' pictures and, with rehearsal, run the VGGT inside on some scenes, out of training on all.

        Known cameras of the inputs go in where the model takes them.
        """
        cameras = self.relate(batch)
        bare: Any = getattr(model, "module", model)
        known: dict[str, Any] = {}
        if bare.config.known_cameras or bare.config.input_rays:
            mask = None if batch.camera_mask is None else batch.camera_mask[:, : self.num_inputs]
            known = {"input_cameras": cameras.inputs, "input_mask": mask}
        if self.rehearsal:
            count = len(batch.images)
            scenes = max(1, math.ceil(self.rehearsal_share * count)) if model.training else count
            known["scene_images"] = batch.images[:scenes]
            queries = queries_for(model, batch)
            known["query_points"] = None if queries is None else queries[:scenes]
        return model(batch.images[:, : self.num_inputs], cameras.targets, **known)

    def relate(self, batch: SceneBatch) -> RelativeCameras:
        """Cameras of a prepared batch in the frame and the unit that the model is trained with."""
        assert batch.cameras is not None
        first = self.num_inputs
        inputs, targets = (Cameras(*(t[:, part] for t in batch.cameras)) for part in (slice(first), slice(first, None)))
        by_cameras = relate_cameras(inputs, targets)
        if self.unit == "cameras" or (batch.depth is None and batch.points is None):
            return by_cameras
        seen = tree_map(lambda t: None if t is None else t[:, :first], batch._replace(tracks=None))
        seen, by_depth = normalize_scene(seen)
        known = known_pixels(seen).flatten(1).any(1)
        return relate_cameras(inputs, targets, scale=torch.where(known, by_depth, by_cameras.scale))

    def score(self, outputs: NVSPrediction, batch: SceneBatch) -> dict[str, Tensor]:
        """PSNR and SSIM, means over a scene's targets of known camera; and, with rehearsal, the VGGT's scores."""
        true = batch.images[:, self.num_inputs :]
        measured = {"psnr": psnr(outputs.images, true)}
        if min(true.shape[-2:]) >= 11:
            measured["ssim"] = gaussian_similarity(outputs.images, true)
        if batch.camera_mask is not None:
            known = batch.camera_mask[:, self.num_inputs :]
            measured = {name: torch.where(known, value, torch.nan) for name, value in measured.items()}
        scores = {name: value.nanmean(dim=1) for name, value in measured.items()}
        if outputs.scenes is not None:
            part, missing = _first_scenes(batch, outputs.scenes)
            for name, value in VggtTask().score(outputs.scenes, part).items():
                scores[name] = torch.cat([value, value.new_full((missing,), torch.nan)])
        return scores


class NvsLoss:
    """Callable: (`NVSPrediction`, prepared batch) → `LossReport`.

    Args:
        rendering: Compares pictures.
        scenes: Compares what the VGGT inside says; None = it isn't asked.
        num_inputs: Views of the batch that went in.
        rehearsal: Weight of `scenes`.
    """

    def __init__(
        self, rendering: RenderingLoss, scenes: MultitaskLoss | None, num_inputs: int, rehearsal: float
    ) -> None:
        self.rendering = rendering
        self.scenes = scenes
        self.num_inputs = num_inputs
        self.rehearsal = rehearsal

    @property
    def counts_from(self) -> CountSource:
        """See `MultitaskLoss`; which scenes are rehearsed is seen in the outputs."""
        return "labels" if self.scenes is None else "predictions"

    def count_labels(self, batch: SceneBatch) -> None:
        """See `MultitaskLoss`."""
        with count_scope("rendering"):
            over_batch(count_pictures(*self._targets(batch)))

    def _targets(self, batch: SceneBatch) -> tuple[Tensor, Tensor | None]:
        mask = None if batch.camera_mask is None else batch.camera_mask[:, self.num_inputs :]
        return batch.images[:, self.num_inputs :], mask

    def __call__(self, outputs: NVSPrediction, batch: SceneBatch) -> LossReport:
        """Compare."""
        rendering = self.rendering.to(batch.images.device)
        with count_scope("rendering"):
            pictures = rendering(outputs.images, *self._targets(batch))
        report = LossReport(pictures.total, {"rendering": pictures.total}, dict(pictures.parts))
        if self.scenes is None or outputs.scenes is None:
            return report
        with count_scope("rehearsal"):
            scenes = self.scenes(outputs.scenes, _first_scenes(batch, outputs.scenes)[0])
        tasks = {name: self.rehearsal * task for name, task in scenes.tasks.items()}
        total = report.total + self.rehearsal * scenes.total
        return LossReport(total, report.tasks | tasks, report.terms | scenes.terms)


def _take_views(batch: SceneBatch, order: Tensor) -> SceneBatch:
    """Views in the order (B, V), of scenes whose first stays the first: there, VGGT's queries are."""
    rows = torch.arange(len(order), device=order.device)[:, None]
    taken = tree_map(lambda t: None if t is None else t[rows, order], batch._replace(tracks=None, query_views=None))
    if batch.tracks is None:
        return taken
    coords, visible = (t[rows, order] for t in batch.tracks[:2])
    return taken._replace(tracks=batch.tracks._replace(coords_px=coords, visible=visible))


def _first_scenes(batch: SceneBatch, predictions: Any) -> tuple[SceneBatch, int]:
    """The scenes that predictions are of, and how many more there are."""
    found = [value for value in (predictions.depth, predictions.points, predictions.cameras) if value is not None]
    count = found[0][0].shape[0] if found else len(predictions.tracks.coords_px)
    return tree_map(lambda t: None if t is None else t[:count], batch), len(batch.images) - count
