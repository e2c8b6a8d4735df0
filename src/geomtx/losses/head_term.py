"""The loss of a head of your own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from geomtx.checks import check_at_least
from geomtx.losses.term import TermLoss
from geomtx.types import Predictions, SceneBatch

__all__ = ["HeadTerm"]


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
    loss: Callable[[Any, SceneBatch], Tensor | None]
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
