"""Seeds of scenes: those that are trained on and those that are held out have none in common, by construction."""

from __future__ import annotations

import hashlib

__all__ = ["FIRST_HELD_OUT_SEED", "held_out_seed", "is_held_out", "training_seed"]

FIRST_HELD_OUT_SEED = 2**31
"""Training draws seeds below, validation and benchmarks count up from here."""
# Not any higher: torch's generator of the CPU reads no more than the lower 32 bits of a seed.


def training_seed(stream: int, step: int, index: int) -> int:
    """Seed of a scene to train on, in 0 … 2³¹ - 1.

    Args:
        stream: Seed of the run.
        step: Of the run.
        index: Of the scene among those of the step, over all processes.
    """
    digest = hashlib.blake2b(f"{stream} {step} {index}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % FIRST_HELD_OUT_SEED


def held_out_seed(index: int) -> int:
    """Seed of a scene that is never trained on, 2³¹ + `index`.

    Raises:
        ValueError: For an index outside 0 … 2³¹ - 1.
    """
    if not 0 <= index < FIRST_HELD_OUT_SEED:
        raise ValueError(f"index must be in 0 … {FIRST_HELD_OUT_SEED - 1}, got {index}")
    return FIRST_HELD_OUT_SEED + index


def is_held_out(seed: int) -> bool:
    """Is `seed` one that training never draws?"""
    return seed >= FIRST_HELD_OUT_SEED
