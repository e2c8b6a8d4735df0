"""All losses of a model in one (VGGT, section 3.4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from geomtx.geometry.pose_encoding import POSE_DIM
from geomtx.losses.reduce import count_scope, counting, is_counting, over_batch, weigh
from geomtx.losses.terms import CameraTerm, CountSource, DenseTerm, HeadLoss, HeadTerm, Term, TrackTerm
from geomtx.types import DenseMap, Predictions, SceneBatch, TrackIterations, show_shapes

__all__ = ["LossReport", "MultitaskLoss", "compare_part", "count_labels"]

Result = TypeVar("Result")

# What the library trains with.
CAMERA = CameraTerm()
DEPTH = DenseTerm("depth")
POINTS = DenseTerm("points", gradient="normal")
TRACKS = TrackTerm()


@show_shapes
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
        others: Any further terms by task name, see `geomtx.losses.Term`. A function (prediction, batch) → scalar, under
            the name of a head that was added to the model, is the loss of that head, see `geomtx.losses.HeadTerm`.

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
        others: Mapping[str, Term | HeadLoss] | None = None,
    ) -> None:
        super().__init__()
        terms = {"camera": camera, "depth": depth, "points": points, "tracks": tracks, "consistency": consistency}
        for name in others or {}:
            if name in terms:
                raise ValueError(f"others must be named differently than {', '.join(terms)}, got {name!r}")
        for name, term in (others or {}).items():
            if not callable(term):
                raise ValueError(
                    f"others must be terms or functions of prediction and batch, got {term!r} for {name!r}"
                )
            terms[name] = term if isinstance(term, Term) else HeadTerm(name, term)
        self.tasks = {name: term for name, term in terms.items() if term is not None}

    @property
    def counts_from(self) -> CountSource:
        """What the numbers of values depend on that the means of the terms are taken over."""
        sources = [getattr(term, "counts_from", "labels") for term in self.tasks.values()]
        return "predictions" if "predictions" in sources else "labels"

    def count_labels(self, batch: SceneBatch) -> None:
        """Collect the counts of a batch within `counting`, where `counts_from` is "labels".

        The labels take the place of the predictions: what is predicted makes no difference to what is counted.
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
            The sum, and what it is made of; within `counting`, a chunk's part of each.

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
        """The terms, one a line."""
        return "\n".join(f"{name}: {term}" for name, term in self.tasks.items())


def compare_part(compare: Callable[[Any, Any], Result], predictions: Any, batch: Any) -> Result:
    """Run a loss or a term; within `counting`, return a chunk's part of the result for the whole batch.

    A loss without `counts_from`, one of the user's, is weighted by its method `num_values(batch)`, if it has one, else
    by the number of scenes.
    """
    if hasattr(compare, "counts_from") or not is_counting():
        return compare(predictions, batch)
    count = _count(compare, batch)
    whole = over_batch(count)
    with counting(None):
        result = compare(predictions, batch)
    return tree_map(lambda value: weigh(value, count, whole) if isinstance(value, Tensor) else value, result)


def count_labels(compare: Any, batch: Any) -> None:
    """Collect the counts of a loss, or of a user's loss or term, within `counting`, without predictions."""
    if hasattr(compare, "count_labels"):
        compare.count_labels(batch)
    else:
        over_batch(_count(compare, batch))


def _count(compare: Any, batch: Any) -> Tensor:
    """By how many values parts of a user's loss or term are weighted, a scalar."""
    count = compare.num_values(batch) if hasattr(compare, "num_values") else len(batch.images)
    return torch.as_tensor(count, device=batch.images.device)


def _predict_labels(batch: SceneBatch) -> Predictions:
    """Predictions that stand in for a model's where only the labels matter."""
    pixels = batch.images[:, :, 0]
    maps = {
        name: None if values is None else DenseMap(values, torch.ones_like(pixels))
        for name, values in (("depth", batch.depth), ("points", batch.points))
    }
    poses = None if batch.cameras is None else pixels.new_zeros(1, *pixels.shape[:2], POSE_DIM)
    iterations = None
    if batch.tracks is not None:
        coords = batch.tracks.coords_px
        logits = torch.zeros_like(coords[..., 0])
        iterations = TrackIterations(coords[None], logits, logits)
    return Predictions(pose_encodings=poses, track_iterations=iterations, **maps)
