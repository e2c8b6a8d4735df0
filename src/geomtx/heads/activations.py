"""What turns the last layer's numbers into predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

__all__ = ["ValueActivation", "activate_confidence", "value_activation"]

ValueActivation = Literal["linear", "exp", "signed_expm1"]


def signed_expm1(x: Tensor) -> Tensor:
    """sign(x) · (exp|x| - 1): linear around zero, exponential far from it."""
    return x.sign() * x.abs().expm1()


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "exp": torch.exp,
    "signed_expm1": signed_expm1,
}


def value_activation(name: ValueActivation) -> Callable[[Tensor], Tensor]:
    """The function of a name: "linear", "exp" (depth) or "signed_expm1" (points)."""
    return _ACTIVATIONS[name]


def activate_confidence(x: Tensor) -> Tensor:
    """1 + exp(x): above 1, without bound."""
    return 1 + x.exp()
