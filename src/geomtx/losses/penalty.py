"""How a difference between a prediction and its target becomes an error: L1, L2 or Huber, with or without a ceiling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from geomtx.checks import check_option, check_positive

__all__ = ["Penalty", "PenaltyKind"]

PenaltyKind = Literal["l1", "l2", "huber"]


@dataclass(frozen=True)
class Penalty:
    """Penalty function of a regression loss.

    Attributes:
        kind: "l1", the absolute difference; "l2", the Euclidean norm over the components; "huber", squared for small
            differences and linear for large ones (Huber 1964). Defaults to "l1".
        delta: Difference at which "huber" turns from squared to linear, positive, in the unit of the differences;
            defaults to the value that the loss documents.
        clamp: Largest error that counts, positive. Larger errors have no gradient. Defaults to no limit.

    Raises:
        ValueError: For an unknown kind, or a delta or clamp that is not positive.
    """

    kind: PenaltyKind = "l1"
    delta: float | None = None
    clamp: float | None = None

    def __post_init__(self) -> None:
        check_option("kind", self.kind, ("l1", "l2", "huber"))
        for name, value in (("delta", self.delta), ("clamp", self.clamp)):
            if value is not None:
                check_positive(name, value)

    @classmethod
    def of(cls, kind: PenaltyKind | Penalty) -> Penalty:
        """Return the penalty of a name; a penalty is returned as it is."""
        return kind if isinstance(kind, Penalty) else cls(kind)

    def error(self, difference: Tensor, delta: float) -> Tensor:
        """Return the errors of differences.

        Args:
            difference: Differences, (…, C).
            delta: Value of `delta` where the penalty has none of its own.

        Returns:
            Errors, (…, C), or (…, 1) for "l2".
        """
        if self.kind == "l2":
            error = torch.linalg.vector_norm(difference, dim=-1, keepdim=True)
        elif self.kind == "huber":
            delta = delta if self.delta is None else self.delta
            error = F.huber_loss(difference, torch.zeros_like(difference), reduction="none", delta=delta)
        else:
            error = difference.abs()
        return error if self.clamp is None else error.clamp(max=self.clamp)
