"""All losses of a model in one (VGGT, section 3.4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from geomtx.losses.term import CameraTerm, DenseTerm, Term, TrackTerm
from geomtx.types import Predictions, SceneBatch

__all__ = ["LossReport", "MultitaskLoss"]

# What the library trains with.
CAMERA = CameraTerm()
DEPTH = DenseTerm("depth")
POINTS = DenseTerm("points", gradient="normal")
TRACKS = TrackTerm()


class LossReport(NamedTuple):
    """Output of `MultitaskLoss`.

    Attributes:
        total: The sum of `tasks`, a scalar with a graph.
        tasks: Task → its loss times its weight, with a graph; for what looks at the gradients of tasks.
        terms: Name to log → scalar before weights, with a graph: `detach()` what is kept.
    """

    total: Tensor
    tasks: dict[str, Tensor]
    terms: dict[str, Tensor]


class MultitaskLoss(nn.Module):
    """Compare a model's predictions with normalized ground truth, task by task.

    A task takes part if the model predicted it and the batch has labels of it, so that batches of cameras only, or
    models without a head, need nothing said.

    | | default | `paper()` | `released()` |
    |---|---|---|---|
    | camera | weight 5, L1, q as -q | weight 1, Huber | weight 5, L1, error clamped at 100, scenes with depth |
    | depth | weight 1 | weight 1 | weight 1, clamped at 100, NaN is 0, 98 % of the pixels |
    | points | weight 1, normals | weight 1 | off |
    | tracks | weight 0.05 | weight 0.05 | off |
    | plain error | yes | no | yes |
    | gradient term | unweighted | weighted by confidence | unweighted |

    The default is the released loss without what keeps errors from being unlearned: no clamp, no NaN taken for 0, no
    pixel dropped for its loss. For labels with outliers, set `DenseTerm("depth", quantile=0.98)`.

    Args:
        camera: Term of the cameras; None = off. So for the next ones.
        depth: Term of the depth.
        points: Term of the points.
        tracks: Term of the tracks.
        consistency: Losses across views, off unless asked for: `ConsistencyTerm()`.
        others: Any further terms by task name, see `geomtx.losses.term.Term`.

    Source: VGGT (arXiv 2503.11651), section 3.4, and the released training configuration. The paper states neither
    Huber's δ nor α; they are this library's (0.1) and the released code's (0.2).
    """

    def __init__(
        self,
        *,
        camera: Term | None = CAMERA,
        depth: Term | None = DEPTH,
        points: Term | None = POINTS,
        tracks: Term | None = TRACKS,
        consistency: Term | None = None,
        others: Mapping[str, Term] | None = None,
    ) -> None:
        super().__init__()
        terms = {"camera": camera, "depth": depth, "points": points, "tracks": tracks, "consistency": consistency}
        for name in others or {}:
            if name in terms:
                raise ValueError(f"others must be named differently than {', '.join(terms)}, got {name!r}")
        self.tasks = {name: term for name, term in {**terms, **(others or {})}.items() if term is not None}

    @classmethod
    def paper(cls, **changes: Any) -> MultitaskLoss:
        """What the paper describes, with means over pixels and views in place of sums.

        Args:
            changes: Arguments of the constructor, in place of the paper's.
        """
        # Means over 3, 4 and 2 components, weighted so, are the sum over all nine.
        terms: dict[str, Term | None] = {
            "camera": CameraTerm(weight=1.0, kind="huber", sign_invariant=False, part_weights=(3.0, 4.0, 2.0)),
            "depth": DenseTerm("depth", regression=False, gradient_confidence=True),
            "points": DenseTerm("points", regression=False, gradient_confidence=True),
        }
        return cls(**(terms | changes))

    @classmethod
    def released(cls, **changes: Any) -> MultitaskLoss:
        """What was published for fine-tuning, defects included.

        Args:
            changes: Arguments of the constructor, in place of the published ones.
        """
        terms: dict[str, Term | None] = {
            "camera": CameraTerm(sign_invariant=False, clamp=100.0, min_depth_pixels=100),
            "depth": DenseTerm("depth", quantile=0.98, clamp=100.0, nan_to_zero=True, min_pixels=100),
            "points": None,
            "tracks": None,
        }
        return cls(**(terms | changes))

    def forward(self, predictions: Predictions, batch: SceneBatch) -> LossReport:
        """Compare.

        Args:
            predictions: Of a model in training.
            batch: Ground truth of `normalize_scene`, on the same device, of images as large as the predictions.

        Returns:
            The sum, and what it is made of.

        Raises:
            ValueError: If no task has both a prediction and labels, or for shapes that don't match.
        """
        tasks, terms = {}, {}
        with torch.autocast(batch.images.device.type, enabled=False):
            for name, term in self.tasks.items():
                loss = term(predictions, batch)
                if loss is not None:
                    tasks[name] = term.weight * loss.total
                    terms.update(loss.parts)
        if not tasks:
            there = [name for name, value in predictions._asdict().items() if value is not None]
            labels = [name for name, value in batch._asdict().items() if value is not None]
            raise ValueError(
                f"predictions must share a task ({', '.join(self.tasks) or 'none is on'}) with the batch, "
                f"got predictions of {', '.join(there) or 'nothing'} for {', '.join(labels)}"
            )
        return LossReport(torch.stack(list(tasks.values())).sum(), tasks, terms)

    def extra_repr(self) -> str:
        """The terms, one a line."""
        return "\n".join(f"{name}: {term}" for name, term in self.tasks.items())
