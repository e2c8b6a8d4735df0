"""How parameters are fitted to pairs: by steps of Adam, and alike whatever the code around is run with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

__all__ = ["Progress", "descend", "fits_parameters"]

P = ParamSpec("P")
R = TypeVar("R")

Progress = Callable[[float], None]
"""Called with the share of the work that is done since the last call."""


def fits_parameters(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that it records gradients and computes in its own precision.

    So it can be called where models are run, within `torch.no_grad`, `torch.inference_mode` and `torch.autocast`.

    Args:
        function: Function that fits parameters.
    """

    @functools.wraps(function)
    def fit(*args: P.args, **kwargs: P.kwargs) -> R:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            accelerator = torch.accelerator.current_accelerator()
            for device in ("cpu", *(() if accelerator is None else (accelerator.type,))):
                stack.enter_context(torch.autocast(device, enabled=False))
            return function(*args, **kwargs)

    return fit


def descend(
    parameters: Sequence[Tensor],
    loss: Callable[[int], Tensor],
    rates: Iterable[float],
    *,
    hold: Callable[[], None] = lambda: None,
    tidy: Callable[[], None] = lambda: None,
    progress: Progress = lambda share: None,
) -> list[Tensor]:
    """Make steps of Adam with the published betas, 0.9 and 0.9, and return the loss before each step.

    Args:
        parameters: Tensors that are changed in place.
        loss: Function of the number of a step that returns the loss of the parameters, ().
        rates: Learning rate of each step.
        hold: Called before each step; it sets gradients of what must stay to 0.
        tidy: Called after each step, without gradients.
        progress: Called after each step.
    """
    optimizer = torch.optim.Adam(parameters, betas=(0.9, 0.9))
    rates, losses = list(rates), []
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        value = loss(step)
        value.backward()
        hold()
        optimizer.step()
        with torch.no_grad():
            tidy()
        losses.append(value.detach())
        progress(1 / len(rates))
    return losses
