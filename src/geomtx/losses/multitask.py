"""Weighted sum of the losses of all heads of a model (VGGT, section 3.4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from geomtx.geometry.camera import POSE_DIM
from geomtx.losses.reduce import count_scope, counting, is_counting, over_batch, weigh
from geomtx.losses.terms import CameraTerm, CountSource, DenseTerm, HeadLoss, HeadTerm, Term, TrackTerm
from geomtx.types import DenseMap, Predictions, SceneBatch, TrackIterations, show_shapes

__all__ = ["LossReport", "MultitaskLoss", "compare_part", "count_labels"]

Result = TypeVar("Result")

# Terms that this library trains with by default.
CAMERA = CameraTerm()
DEPTH = DenseTerm("depth")
POINTS = DenseTerm("points", gradient="normal")
TRACKS = TrackTerm()


@show_shapes
class LossReport(NamedTuple):
    """Output of `MultitaskLoss`.

    Attributes:
        total: Sum of `tasks`, a scalar with a graph.
        tasks: Weighted loss of every task, with a graph, from which gradients of tasks can be computed.
        terms: Scalars to log by name, before weights, with a graph; detach them before keeping them.
    """

    total: Tensor
    tasks: dict[str, Tensor]
    terms: dict[str, Tensor]


class MultitaskLoss(nn.Module):
    """Weighted sum of losses between the predictions of a model and normalized ground truth.

    A task takes part if the model predicts it and the batch has labels for it, so that batches with cameras only, or
    models without a head, need no configuration.

    | | default | `paper()` | `released()` |
    |---|---|---|---|
    | camera | weight 5, L1, q equals -q | weight 1, Huber | weight 5, L1, error clamped at 100, scenes with depth |
    | depth | weight 1 | weight 1 | weight 1, clamped at 100, NaN counts as 0, 98 % of the pixels |
    | points | weight 1, normals | weight 1 | off |
    | tracks | weight 0.05 | weight 0.05 | off |
    | unweighted error | yes | no | yes |
    | gradient loss | unweighted | weighted by confidence | unweighted |

    The default is the released loss without the parts that stop the gradient of large errors: no clamp, no replacement
    of NaN by 0, no pixel dropped because of its loss. For labels with outliers, use `DenseTerm("depth",
    quantile=0.98)`.

    Args:
        camera: Term of the cameras. Defaults to `CameraTerm()`; None disables it, as for all terms.
        depth: Term of the depth. Defaults to `DenseTerm("depth")`.
        points: Term of the points. Defaults to `DenseTerm("points", gradient="normal")`.
        tracks: Term of the tracks. Defaults to `TrackTerm()`.
        consistency: Term of cross-view losses, such as `ConsistencyTerm()`. Defaults to none.
        others: Further terms by task name, see `geomtx.losses.Term`. A function from prediction and batch to a scalar,
            under the name of a head that was added to the model, is the loss of that head, see
            `geomtx.losses.HeadTerm`. Defaults to none.

    Source: VGGT (arXiv 2503.11651), section 3.4, and the released training configuration. The paper states neither
    Huber's δ nor α; δ = 0.1 is the choice of this library, α = 0.2 that of the released code.
    """

    def __init__(
        self,
        *,
        camera: Term | None = CAMERA,
        depth: Term | None = DEPTH,
        points: Term | None = POINTS,
        tracks: Term | None = TRACKS,
        consistency: Term | None = None,
        others: Mapping[str, Term | HeadLoss] | None = None,
    ) -> None:
        super().__init__()
        terms = {"camera": camera, "depth": depth, "points": points, "tracks": tracks, "consistency": consistency}
        for name in others or {}:
            if name in terms:
                raise ValueError(f"others must be named differently than {', '.join(terms)}, got {name!r}")
        for name, term in (others or {}).items():
            if not callable(term):
                raise ValueError(f"others must be terms or functions of a prediction and a batch, got {term!r}")
            terms[name] = term if isinstance(term, Term) else HeadTerm(name, term)
        self.tasks = {name: term for name, term in terms.items() if term is not None}

    @property
    def counts_from(self) -> CountSource:
        """Whether the counts that the means divide by depend on labels only or also on predictions."""
        sources = [getattr(term, "counts_from", "labels") for term in self.tasks.values()]
        return "predictions" if "predictions" in sources else "labels"

    def count_labels(self, batch: SceneBatch) -> None:
        """Collect the counts of a batch within `counting`; requires that `counts_from` is "labels".

        The labels serve as predictions, since the predictions don't affect the counts.

        Args:
            batch: Ground truth of a chunk of the batch.
        """
        predictions = _predict_labels(batch)
        for name, term in self.tasks.items():
            with count_scope(name):
                if hasattr(term, "counts_from"):
                    term(predictions, batch)
                else:
                    count_labels(term, batch)

    @classmethod
    def paper(cls, **changes: Any) -> MultitaskLoss:
        """Return the loss of the paper, with means over pixels and views in place of sums.

        Args:
            changes: Arguments of the constructor that replace those of the paper.
        """
        # With these weights the means over 3, 4 and 2 components add up to the sum over all nine.
        terms: dict[str, Term | None] = {
            "camera": CameraTerm(weight=1.0, kind="huber", sign_invariant=False, part_weights=(3.0, 4.0, 2.0)),
            "depth": DenseTerm("depth", regression=False, gradient_confidence=True),
            "points": DenseTerm("points", regression=False, gradient_confidence=True),
        }
        return cls(**(terms | changes))

    @classmethod
    def released(cls, **changes: Any) -> MultitaskLoss:
        """Return the loss of the released fine-tuning code, including its defects.

        Args:
            changes: Arguments of the constructor that replace the released ones.
        """
        terms: dict[str, Term | None] = {
            "camera": CameraTerm(sign_invariant=False, clamp=100.0, min_depth_pixels=100),
            "depth": DenseTerm("depth", quantile=0.98, clamp=100.0, nan_to_zero=True, min_pixels=100),
            "points": None,
            "tracks": None,
        }
        return cls(**(terms | changes))

    def forward(self, predictions: Predictions, batch: SceneBatch) -> LossReport:
        """Compute the loss.

        Args:
            predictions: Predictions of a model in training mode.
            batch: Ground truth, normalized by `normalize_scene`, on the same device, with images of the same size.

        Returns:
            Total, tasks and terms; within `counting`, the contribution of a chunk to each.

        Raises:
            ValueError: If no task has both a prediction and labels, or for shapes that don't match.
        """
        tasks, terms = {}, {}
        with torch.autocast(batch.images.device.type, enabled=False):
            for name, term in self.tasks.items():
                with count_scope(name):
                    loss = compare_part(term, predictions, batch)
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
        """Return the terms, one on each line."""
        return "\n".join(f"{name}: {term}" for name, term in self.tasks.items())


def compare_part(compare: Callable[[Any, Any], Result], predictions: Any, batch: Any) -> Result:
    """Compute a loss or a term; within `counting`, return the contribution of a chunk to that of the whole batch.

    A user's loss without `counts_from` is weighted by the result of its method `num_values(batch)`, if it has one, or
    by the number of scenes.

    Args:
        compare: Loss or term, a function from predictions and batch to its result.
        predictions: Predictions for the chunk.
        batch: Ground truth of the chunk.

    Returns:
        The result, with weighted tensors.
    """
    if hasattr(compare, "counts_from") or not is_counting():
        return compare(predictions, batch)
    count = _count(compare, batch)
    whole = over_batch(count)
    with counting(None):
        result = compare(predictions, batch)
    return tree_map(lambda value: weigh(value, count, whole) if isinstance(value, Tensor) else value, result)


def count_labels(compare: Any, batch: Any) -> None:
    """Collect the counts of a loss or term within `counting`, without predictions."""
    if hasattr(compare, "count_labels"):
        compare.count_labels(batch)
    else:
        over_batch(_count(compare, batch))


def _count(compare: Any, batch: Any) -> Tensor:
    """Return the number of values by which chunks of a user's loss or term are weighted, a scalar."""
    count = compare.num_values(batch) if hasattr(compare, "num_values") else len(batch.images)
    return torch.as_tensor(count, device=batch.images.device)


def _predict_labels(batch: SceneBatch) -> Predictions:
    """Return predictions equal to the labels, for counts that depend on labels only."""
    pixels = batch.images[:, :, 0]
    depth, points = (
        None if values is None else DenseMap(values, torch.ones_like(pixels)) for values in (batch.depth, batch.points)
    )
    poses = None if batch.cameras is None else pixels.new_zeros(1, *pixels.shape[:2], POSE_DIM)
    iterations = None
    if batch.tracks is not None:
        coords = batch.tracks.coords_px
        logits = torch.zeros_like(coords[..., 0])
        iterations = TrackIterations(coords[None], logits, logits)
    return Predictions(pose_encodings=poses, depth=depth, points=points, track_iterations=iterations)
