"""The errors that `geomtx demo` prints and writes: of a reconstruction, and of the best constant guess."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from geomtx.metrics.constant_guess import fit_constant_guess
from geomtx.metrics.evaluate import evaluate_predictions
from geomtx.metrics.pose import pairwise_pose_errors
from geomtx.scene import Scene
from geomtx.scene.files.json_file import write_json
from geomtx.types import Cameras, DenseMap, Predictions, SceneBatch, Tracks

__all__ = ["Errors", "compare_with_guess", "describe_errors", "format_errors", "write_errors"]


class _Measure(NamedTuple):
    """One row of the table."""

    name: str
    title: str
    unit: str
    better: str
    factor: float = 1.0
    digits: int = 1


_MEASURES = (
    _Measure("auc_30", "pose AUC@30", "%", "higher", 100),
    _Measure("rotation_deg", "rotation error, median of pairs", "degrees", "lower"),
    _Measure("translation_deg", "translation direction error, median", "degrees", "lower"),
    _Measure("depth_abs_rel", "depth AbsRel", "%", "lower", 100),
    _Measure("depth_delta", "depth δ < 1.25", "%", "higher", 100),
    _Measure("unprojected_overall", "points from depth, Chamfer distance", "scene units", "lower", 1, 3),
    _Measure("head_overall", "points of the head, Chamfer distance", "scene units", "lower", 1, 3),
    _Measure("track_delta", "tracks δ_avg, 1 to 16 px", "%", "higher", 100),
)


class Errors(NamedTuple):
    """By name; NaN where the model or the guess has none, infinity where what it has is no number.

    Shares are in 0 … 1, angles in degrees.
    """

    model: dict[str, float]
    guess: dict[str, float]


def compare_with_guess(scene: Scene, truth: SceneBatch, others: Iterable[SceneBatch]) -> Errors:
    """Measure a scene, and the guess that `others` lead to.

    Args:
        scene: Scene that was reconstructed.
        truth: One scene, in pixels of the model's images.
        others: Scenes in images of the same size.
    """
    guess = fit_constant_guess(others).predict(truth)
    return Errors(_measure(_as_batch(scene.predictions), truth), _measure(guess, truth))


def _measure(predictions: Predictions, truth: SceneBatch) -> dict[str, float]:
    found = {name: float(values[0]) for name, values in evaluate_predictions(predictions, truth)._asdict().items()}
    if predictions.cameras is not None and truth.cameras is not None:
        pairs = pairwise_pose_errors(predictions.cameras.cam_from_world, truth.cameras.cam_from_world)
        for name, angles in (("rotation_deg", pairs.rotation_deg), ("translation_deg", pairs.translation_deg)):
            median = float(angles.quantile(0.5))
            # A failed pose counts as an angle that there is not.
            found[name] = median if median <= 180 else math.inf
    return {measure.name: found.get(measure.name, math.nan) for measure in _MEASURES}


def _as_batch(predictions: Predictions) -> Predictions:
    """With a batch axis; of the results, not what only losses need."""
    cameras, _, depth, points, tracks, *_ = predictions
    return Predictions(
        cameras=None if cameras is None else Cameras(*(part[None] for part in cameras)),
        depth=None if depth is None else DenseMap(*(part[None] for part in depth)),
        points=None if points is None else DenseMap(*(part[None] for part in points)),
        tracks=None if tracks is None else Tracks(*(part[None] for part in tracks)),
    )


def format_errors(errors: Errors, name: str) -> str:
    """A table of text; `name` heads the model's column."""
    name = name if len(name) <= 12 else f"{name[:11]}…"
    lines = [f"{'':37}{name:>12}  {'constant guess':>14}  {'':13}better"]
    for measure in _MEASURES:
        numbers = [_format(side[measure.name], measure) for side in errors]
        lines.append(f"{measure.title:37}{numbers[0]:>12}  {numbers[1]:>14}  {measure.unit:13}{measure.better}")
    return "\n".join(lines)


def _format(value: float, measure: _Measure) -> str:
    if not math.isfinite(value):
        return "-" if math.isnan(value) else "failed"
    return f"{measure.factor * value:.{measure.digits}f}"


def describe_errors(errors: Errors) -> list[str]:
    """The model's errors of poses and depth, for a heading."""
    known = [measure for measure in _MEASURES if not math.isnan(errors.model[measure.name])]
    titles = {"auc_30": "poses AUC@30", "depth_abs_rel": "depth AbsRel"}
    return [
        f"{titles[measure.name]} {_format(errors.model[measure.name], measure)} {measure.unit}"
        for measure in known
        if measure.name in titles
    ]


def write_errors(path: Path, errors: Errors, *, scene: int, weights: str) -> None:
    """The same numbers as JSON, null where there is none or it failed."""

    def plain(side: dict[str, float]) -> dict[str, float | None]:
        return {name: float(f"{value:.6g}") if math.isfinite(value) else None for name, value in side.items()}

    content = {
        "format": "geomtx.errors",
        "version": 1,
        "scene": scene,
        "weights": weights,
        "model": plain(errors.model),
        "guess": plain(errors.guess),
    }
    write_json(path, content)
