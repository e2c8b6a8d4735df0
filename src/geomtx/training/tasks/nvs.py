"""Training of `VGGTForNVS` (novel view synthesis): some views of a scene go in, others are synthesised."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, Literal, NamedTuple

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
from geomtx.models.nvs.config import NVSConfig
from geomtx.models.nvs.model import VGGTForNVS
from geomtx.models.published import open_weights
from geomtx.models.saved_model import kind_of
from geomtx.parsing import parse_fields
from geomtx.training.config import LossSection, ModelSection
from geomtx.training.prepare import build_loss
from geomtx.training.tasks.rehearsal import PreparedBatch, Rehearsal, add_rehearsal
from geomtx.training.tasks.running import PLAIN, RunOptions, head_precision, recomputed, recomputed_backbone, run_vggt
from geomtx.training.tasks.task import starting_from
from geomtx.training.tasks.vggt import VggtTask, leave_out_heads, leave_out_late_tracks, load_vggt, queries_for
from geomtx.types import Cameras, Predictions, SceneBatch, show_shapes

__all__ = ["NvsLoss", "NvsTask"]

logger = logging.getLogger("geomtx")


@show_shapes
class NvsOutputs(NamedTuple):
    """What `NvsTask.predict` returns.

    Attributes:
        images: Synthesised target views in [0, 1], (B, T, 3, H, W).
        scenes: Predictions of the VGGT inside for the scenes of a rehearsal; None without.
    """

    images: Tensor
    scenes: Predictions | None = None


@dataclasses.dataclass(frozen=True)
class NvsTask:
    """Novel view synthesis in training. See `Task`.

    The first view of a scene is always an input; which others are inputs is drawn anew for every scene and step. A
    scene whose first camera is unknown, and a target of unknown camera, count for nothing.

    Attributes:
        num_inputs: Number of input views.
        num_targets: Largest number of target views a scene; defaults to all other views.
        redraw: Share of the scenes in training whose targets are drawn from all views, with replacement: input views
            are asked for too, by which the model learns to find and copy. LagerNVS uses 0.2.
        unit: Source of the unit of length of the cameras: "depth", the depth of the input views, or where it
            is unknown as for "cameras", 1.35 times the largest distance of an input camera from the first.
        numbers: Fields of `NVSConfig`, except `vggt`, for a model with random weights and for parts that
            `model.weights` don't have.
        perceptual_weights: File of VGG-19's weights, see `PerceptualLoss`; defaults to a loss without it.
        perceptual_weight: Weight of the perceptual loss.
        similarity_weight: Weight of 1 - SSIM, which takes its place without the file.
        chroma_weight: Weight of the error of hue, see `RenderingLoss`.
        rehearsal: Rehearsal of the VGGT inside on its own tasks, by which its heads stay right while its encoder
            learns; defaults to none. Without it, several processes need `vggt.*_head` to be frozen.
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
    rehearsal: Rehearsal | None = None

    def __post_init__(self) -> None:
        check_count("num_inputs", self.num_inputs)
        if self.num_targets is not None:
            check_count("num_targets", self.num_targets)
        check_option("unit", self.unit, ("depth", "cameras"))
        if "vggt" in self.numbers:
            raise ValueError("numbers must leave 'vggt' to the model's preset, numbers or weights, got it too")
        self.model_numbers()
        for name in ("perceptual_weight", "similarity_weight", "chroma_weight"):
            check_at_least(name, getattr(self, name), 0)
        check_range("redraw", self.redraw, 0, 1)

    def model_numbers(self) -> dict[str, Any]:
        """Return the fields of `NVSConfig` that the task sets."""
        return parse_fields(NVSConfig, self.numbers, "numbers")

    def build_model(self, section: ModelSection) -> VGGTForNVS:
        """Build the model in float32: with random weights, those of such a model, or around those of a VGGT."""
        numbers = self.model_numbers()
        if section.weights is None:
            return VGGTForNVS(NVSConfig(vggt=section.model_config(), **numbers))
        with starting_from(section):
            checkpoint = open_weights(section.weights)
            if section.heads is None and kind_of(checkpoint) != "VGGT":
                without = leave_out_heads(checkpoint)
                return VGGTForNVS.from_pretrained(section.weights, dtype=torch.float32, extra_heads=without, **numbers)
            return VGGTForNVS.from_vggt(load_vggt(section), **numbers)

    def rebuild_model(self, numbers: dict[str, Any]) -> VGGTForNVS:
        """Build the model of `NVSConfig.to_dict()`."""
        return VGGTForNVS(NVSConfig.from_dict(numbers))

    def build_loss(self, section: LossSection) -> NvsLoss:
        """Return the loss of the synthesised views and, with rehearsal, of the VGGT's own tasks."""
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
        if self.rehearsal is None:
            return NvsLoss(rendering, self.num_inputs)
        return NvsLoss(rendering, self.num_inputs, build_loss(section), self.rehearsal.weight)

    def prepare(self, batch: SceneBatch, *, training: bool = True) -> PreparedBatch:
        """Return normalised scenes, the input views first, then the targets.

        Raises:
            ValueError: For scenes without cameras, or with no more views than inputs.
        """
        num_scenes, num_views = batch.images.shape[:2]
        if batch.cameras is None:
            raise ValueError("scenes must have cameras to synthesise views of, got none")
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
        scenes = _take_views(leave_out_late_tracks(normalize_scene(batch)[0]), order[:, :most])
        if self.rehearsal is None:
            return PreparedBatch(scenes)
        return PreparedBatch(scenes, self.rehearsal.choose(scenes, training=training))

    def predict(self, model: nn.Module, batch: PreparedBatch, options: RunOptions = PLAIN) -> NvsOutputs:
        """Synthesise the targets and, with rehearsal, run the VGGT inside.

        Known cameras of the inputs are given to a model that takes them.
        """
        scenes = batch.scenes
        cameras = self.relate(scenes)
        inputs = scenes.images[:, : self.num_inputs]
        bare: Any = getattr(model, "module", model)
        known: dict[str, Any] = {}
        if bare.config.known_cameras or bare.config.input_rays:
            mask = None if scenes.camera_mask is None else scenes.camera_mask[:, : self.num_inputs]
            known = {"input_cameras": cameras.inputs, "input_mask": mask}
        if options == PLAIN:
            outputs = NvsOutputs(model(inputs, cameras.targets, **known).images)
        else:
            outputs = NvsOutputs(_synthesise(bare, inputs, cameras.targets, known, options))
        if batch.rehearsal is None:
            return outputs
        queries = queries_for(model, batch.rehearsal)
        return outputs._replace(scenes=run_vggt(bare.vggt, batch.rehearsal.images, queries, options))

    def relate(self, batch: SceneBatch) -> RelativeCameras:
        """Return the cameras of prepared scenes in the frame and the unit that the model is trained with."""
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

    def score(self, outputs: NvsOutputs, batch: PreparedBatch) -> dict[str, Tensor]:
        """Return PSNR and SSIM, means over a scene's targets of known camera, and the scores of the rehearsal."""
        scenes = batch.scenes
        true = scenes.images[:, self.num_inputs :]
        measured = {"psnr": psnr(outputs.images, true)}
        if min(true.shape[-2:]) >= 11:
            measured["ssim"] = gaussian_similarity(outputs.images, true)
        if scenes.camera_mask is not None:
            known = scenes.camera_mask[:, self.num_inputs :]
            measured = {name: torch.where(known, value, torch.nan) for name, value in measured.items()}
        scores = {name: value.nanmean(dim=1) for name, value in measured.items()}
        if outputs.scenes is not None and batch.rehearsal is not None:
            scores |= VggtTask().score(outputs.scenes, batch.rehearsal)
        return scores


class NvsLoss:
    """Loss of `NvsTask`, a function of the predictions and the prepared batch.

    Args:
        rendering: Loss of the synthesised views.
        num_inputs: Number of input views, which come first in the batch.
        original: Loss of the rehearsal; defaults to none.
        weight: Weight of the rehearsal.
    """

    def __init__(
        self, rendering: RenderingLoss, num_inputs: int, original: MultitaskLoss | None = None, weight: float = 1.0
    ) -> None:
        self.rendering = rendering
        self.num_inputs = num_inputs
        self.original = original
        self.weight = weight

    @property
    def counts_from(self) -> CountSource:
        """What the numbers of values depend on that the means are taken over, see `MultitaskLoss`."""
        return "labels" if self.original is None else self.original.counts_from

    def count_labels(self, batch: PreparedBatch) -> None:
        """Collect the counts of a batch, see `MultitaskLoss`."""
        with count_scope("rendering"):
            over_batch(count_pictures(*self._targets(batch)))
        if self.original is not None and batch.rehearsal is not None:
            with count_scope("rehearsal"):
                self.original.count_labels(batch.rehearsal)

    def _targets(self, batch: PreparedBatch) -> tuple[Tensor, Tensor | None]:
        mask = batch.scenes.camera_mask
        return batch.images[:, self.num_inputs :], None if mask is None else mask[:, self.num_inputs :]

    def __call__(self, outputs: NvsOutputs, batch: PreparedBatch) -> LossReport:
        """Return the loss, its tasks and its terms."""
        rendering = self.rendering.to(batch.images.device)
        with count_scope("rendering"):
            pictures = rendering(outputs.images, *self._targets(batch))
        report = LossReport(pictures.total, {"rendering": pictures.total}, dict(pictures.parts))
        return add_rehearsal(report, outputs.scenes, batch.rehearsal, loss=self.original, weight=self.weight)


def _synthesise(
    model: VGGTForNVS, images: Tensor, targets: Cameras, known: dict[str, Any], options: RunOptions
) -> Tensor:
    """Return the images of `model(images, targets, **known)`, run with options."""
    recompute = options.recomputes(model)
    each_view = recomputed_backbone(model.encoder) if recompute else None
    views, attend = model.embed(images, targets, **known, each_view=each_view)
    tokens = model.encoder.collect(views, recomputed(attend) if recompute else attend)
    with head_precision(images.device, options):
        if options.heads_in_float32:
            tokens = tokens._replace(layers={index: layer.float() for index, layer in tokens.layers.items()})
        return model.decode(tokens, targets).images


def _take_views(batch: SceneBatch, order: Tensor) -> SceneBatch:
    """Return the views in the order (B, V) of scenes whose first view, where VGGT's queries are, stays the first."""
    rows = torch.arange(len(order), device=order.device)[:, None]
    taken = tree_map(lambda t: None if t is None else t[rows, order], batch._replace(tracks=None, query_views=None))
    if batch.tracks is None:
        return taken
    coords, visible = (t[rows, order] for t in batch.tracks[:2])
    return taken._replace(tracks=batch.tracks._replace(coords_px=coords, visible=visible))
