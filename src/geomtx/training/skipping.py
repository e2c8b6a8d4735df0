"""Steps that change no weight: why, how many, and the end of a run that has nothing else any more."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

__all__ = ["SkipReason", "SkippedSteps", "explain_skip"]

logger = logging.getLogger("geomtx")


class SkipReason(NamedTuple):
    """Why a step was skipped.

    Attributes:
        what: Is said in the warning.
        rule: That was broken, for the error.
        details: Names and numbers.
    """

    what: str
    rule: str
    details: str


def explain_skip(scalars: Mapping[str, Tensor], problem: str | None, limits: Mapping[str, float]) -> SkipReason:
    """The reason for a step that was not applied.

    Args:
        scalars: Of its `StepReport`.
        problem: Of its batch, if it has one.
        limits: Name of a scalar → more than this is too much.
    """
    if problem is not None:
        return SkipReason("its batch is no scene", "batches must be scenes", problem)
    large = [f"{name} {float(scalars[name]):.3g}" for name, limit in limits.items() if scalars[name] > limit]
    bad = [name for name, value in scalars.items() if not value.isfinite()]
    if large and not bad:
        rule = "norms of the gradient must be at most optimiser.skip_above times those of optimiser.clip"
        return SkipReason("these norms are too large", rule, ", ".join(large))
    rule = "loss and gradient must be finite"
    return SkipReason("these are not finite", rule, ", ".join(bad) or "another process's")


class SkippedSteps:
    """Counts them.

    Args:
        most: That may follow each other; one more ends the run.

    Attributes:
        total: In all.
        in_a_row: Up to now.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.total = self.in_a_row = 0

    def add(self, step: int, reason: SkipReason) -> None:
        """Say that a step was skipped, the first being 1.

        Raises:
            ValueError: If it is one too many.
        """
        self.total += 1
        self.in_a_row += 1
        logger.warning("Step %d was skipped, as %s: %s.", step, reason.what, reason.details)
        if self.in_a_row > self.most:
            got = f"got {self.in_a_row} steps in a row that are not, up to step {step} ({reason.details})"
            raise ValueError(f"{reason.rule}, {got}; the last checkpoint is kept")
