"""Training of `CroCo`: hidden patches of an image from the others and another view, before points are learned."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from geomtx.checks import check_range
from geomtx.encoder.patches import grid_of
from geomtx.losses.completion import completion_loss
from geomtx.losses.multitask import LossReport
from geomtx.models.dust3r import CroCo, CroCoConfig
from geomtx.models.dust3r.croco import draw_hidden
from geomtx.models.dust3r.pretrained import normalize_pair_images
from geomtx.training.config import LossSection, ModelSection
from geomtx.training.tasks.pairs import check_no_losses, check_pair, config_of_section
from geomtx.training.tasks.task import starting_from
from geomtx.types import Bool, Float, SceneBatch, show_shapes

__all__ = ["CompletionLoss", "CompletionOutputs", "CroCoTask"]


@show_shapes
class CompletionOutputs(NamedTuple):
    """What `CroCoTask.predict` returns.

    Attributes:
        patches: Predicted patches of the first images, (B, P, 3 · patch²).
        hidden: Mask of the patches that the model didn't see, drawn anew for every step, (B, P) bool.
    """

    patches: Float[Tensor, "b p v"]
    hidden: Bool[Tensor, "b p"]


@dataclasses.dataclass(frozen=True)
class CroCoTask:
    """The first of two views of a scene is completed. See `geomtx.training.tasks.task.Task`.

    Cameras and depth are not needed. A rotary CroCo that was trained in this way is what `DUSt3RTask` may start from.

    Attributes:
        ratio: Share of the patches that are hidden, 0 … 1, as many in each image.
        normalize: Whether a patch is compared with the true one less its mean and divided by its standard deviation.
    """

    ratio: float = 0.9
    normalize: bool = True

    num_views: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_range("ratio", self.ratio, 0, 1)

    def build_model(self, section: ModelSection) -> CroCo:
        """Build the model in float32, with random weights or with those of `section.weights`."""
        if section.weights is None:
            return CroCo(config_of_section(CroCoConfig, section))
        with starting_from(section):
            if section.numbers:
                raise ValueError(f"model.numbers must be empty for weights of a CroCo, got {section.numbers}")
            return CroCo.from_pretrained(section.weights, dtype=torch.float32)

    def rebuild_model(self, numbers: dict[str, Any]) -> CroCo:
        """Build the model of `CroCoConfig.to_dict()`."""
        return CroCo(CroCoConfig.from_dict(numbers))

    def build_loss(self, section: LossSection) -> CompletionLoss:
        """Return the loss; the section `loss` is of other models and has to be left at its defaults."""
        check_no_losses(section)
        return CompletionLoss(normalize=self.normalize)

    def prepare(self, batch: SceneBatch, *, training: bool = True) -> SceneBatch:
        """Return the images alone.

        Raises:
            ValueError: For scenes of another number of views than two.
        """
        check_pair(batch)
        return SceneBatch(batch.images)

    def predict(self, model: nn.Module, batch: SceneBatch) -> CompletionOutputs:
        """Hide patches, which torch's global generator draws, and complete the images."""
        first, second = batch.images.unbind(1)
        bare: Any = getattr(model, "module", model)
        rows, columns = grid_of((first.shape[-2], first.shape[-1]), bare.config.patch_size)
        hidden = draw_hidden(len(first), rows * columns, ratio=self.ratio).to(first.device)
        return CompletionOutputs(model(first, second, hidden), hidden)

    def score(self, outputs: CompletionOutputs, batch: SceneBatch) -> dict[str, Tensor]:
        """Return no scores: the loss itself says how well images are completed."""
        return {}


class CompletionLoss:
    """Loss of `CroCoTask`, a function of the outputs and the prepared batch.

    In a batch as many patches are hidden in each image, so that a batch in chunks is weighted by their scenes.

    Args:
        normalize: Whether patches are normalised, see `geomtx.losses.completion_loss`.
    """

    def __init__(self, *, normalize: bool = True) -> None:
        self.normalize = normalize

    def __call__(self, outputs: CompletionOutputs, batch: SceneBatch) -> LossReport:
        """Return the loss, its tasks and its terms."""
        images = normalize_pair_images(batch.images[:, 0])
        loss = completion_loss(outputs.patches, images, outputs.hidden, normalize=self.normalize)
        return LossReport(loss, {"completion": loss}, {"loss_completion": loss})
