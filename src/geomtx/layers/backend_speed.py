"""Times of the attention backends on a device, for `geomtx info` and benchmarks; these functions wait for it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.layers.backends import BackendName, resolve_backend

__all__ = ["CANDIDATES", "SHAPES", "BackendTime", "fastest_backend", "measure_backends"]

CANDIDATES: tuple[BackendName, ...] = ("sdpa", "sdpa_flash", "sdpa_cudnn", "sdpa_efficient", "xformers", "flash3")
"""Backends to compare: not "math", which stores all scores, and not "flex", which compiles for many seconds."""
SHAPES: tuple[tuple[int, int], ...] = ((8, 1024), (1, 8192))
"""Numbers of sequences and of tokens: about eight views by themselves, and together as a scene."""

_ROUNDS, _CALLS = 3, 4
_GAIN = 0.95  # of the time of "sdpa": what is not clearly faster may be slower the next time
_ROUNDING = 8.0  # in units of the precision


class BackendTime(NamedTuple):
    """Time of one call, or why there is none."""

    milliseconds: float | None
    problem: str | None


@torch.no_grad()
def measure_backends(
    device: torch.device,
    dtype: torch.dtype,
    *,
    head_dim: int,
    num_tokens: int,
    num_heads: int = 16,
    num_sequences: int = 1,
    names: Sequence[BackendName] = CANDIDATES,
) -> dict[BackendName, BackendTime]:
    """Time self-attention, forward and without a mask, with each backend.

    Args:
        device: Where to run.
        dtype: Of queries, keys and values, which are parts of one tensor, as in `Attention`.
        head_dim: D.
        num_tokens: N.
        num_heads: H.
        num_sequences: B.
        names: Of the backends.

    Returns:
        For each name the least time of a call; a problem instead where the backend isn't installed, fails with such
        tensors, or gives another result than "sdpa", more than rounding apart.
    """
    generator = torch.Generator(device).manual_seed(0)  # the caller's random numbers stay as they are
    shape = (num_sequences, num_tokens, 3, num_heads, head_dim)
    packed = torch.randn(shape, generator=generator, device=device, dtype=dtype)
    q, k, v = packed.transpose(1, 3).unbind(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns of every kernel that refuses
        return {name: _measure(name, q, k, v) for name in names}


def fastest_backend(times: dict[BackendName, BackendTime]) -> BackendName:
    """The fastest of what was measured; "sdpa" unless another is clearly faster."""
    # Where "sdpa" has no time, nothing is known to be faster.
    sdpa = times.get("sdpa")
    reference = 0.0 if sdpa is None else sdpa.milliseconds or 0.0
    known = [(each.milliseconds, name) for name, each in times.items() if each.milliseconds is not None]
    least, best = min(known, default=(0.0, "sdpa"))
    return best if least < _GAIN * reference else "sdpa"


def _measure(name: BackendName, q: Tensor, k: Tensor, v: Tensor) -> BackendTime:
    try:
        attend = resolve_backend(name)
        out = attend(q, k, v, None)
        expected = resolve_backend("sdpa")(q, k, v, None)
        error = (out.float() - expected.float()).square().mean().sqrt()
        if not error <= _ROUNDING * torch.finfo(q.dtype).eps * expected.float().square().mean().sqrt():
            return BackendTime(None, "differs from sdpa")
        return BackendTime(_milliseconds(lambda: attend(q, k, v, None), q.device), None)
    except Exception as error:  # what other packages raise is theirs to choose
        return BackendTime(None, (str(error).splitlines() or [type(error).__name__])[0])


def _milliseconds(run: Callable[[], object], device: torch.device) -> float:
    """The least of some rounds; several calls each, so that short ones are longer than the wait."""
    rounds = []
    for _ in range(_ROUNDS):
        _wait(device)
        start = time.perf_counter()
        for _ in range(_CALLS):
            run()
        _wait(device)
        rounds.append((time.perf_counter() - start) / _CALLS)
    return 1e3 * min(rounds)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
