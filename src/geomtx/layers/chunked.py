"""Blocks on more tokens than their activations have room for; in place, without gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geomtx.checks import check_positive
from geomtx.layers.attention import KeySubset
from geomtx.layers.block import TransformerBlock
from geomtx.layers.exchange import SharedAttention
from geomtx.layers.rope import RotaryTable
from geomtx.types import Bool, Float

__all__ = ["run_batch_in_chunks", "run_in_chunks"]


def run_in_chunks(
    block: TransformerBlock,
    x: Float[Tensor, "batch n c"],
    chunk: int,
    *,
    rope: RotaryTable | None = None,
    mask: Bool[Tensor, "#batch #heads #n m"] | None = None,
    keys: KeySubset | None = None,
) -> None:
    """What `block(x)` gives, written over `x`; without gradients.

    Keys and values of all tokens that are keys are held, 2 C numbers each; queries, attention and MLP are worked on for
    `chunk` tokens at a time. Every query still attends to every key: nothing but rounding changes.

    Args:
        block: In evaluation or training mode; both are the same.
        x: (batch, N, C), contiguous; changed in place.
        chunk: Tokens of each entry of the batch at a time.
        rope: Table of the N tokens.
        mask: As in `Attention`.
        keys: As in `Attention`.

    Raises:
        ValueError: If `chunk` is not positive.
        RuntimeError: Where gradients are recorded.
    """
    _check(chunk)
    projected, values = _project_keys(block, x, chunk, rope, keys)
    if isinstance(block.attention.attend, SharedAttention):
        # Not a chunk at a time: processes may have different numbers of them.
        projected, values = block.attention.attend.gather_keys(projected, values)
        mask = block.attention.attend.mask
    for part in _parts(x.shape[1], chunk):
        of_part = mask[:, :, part] if mask is not None and mask.shape[-2] > 1 else mask
        x[:, part] = block.attend_to(x[:, part], projected, values, rope=_rows(rope, part), mask=of_part)


def _project_keys(
    block: TransformerBlock, x: Tensor, chunk: int, rope: RotaryTable | None, subset: KeySubset | None
) -> tuple[Tensor, Tensor]:
    """Keys and values, (batch, M, H, D) each, of so many tokens at a time."""
    num_keys = x.shape[1] if subset is None else subset.tokens.shape[1]
    shape = (x.shape[0], num_keys, block.attention.num_heads, block.attention.head_dim)
    keys = values = None
    for part in _parts(num_keys, chunk):
        chosen = None if subset is None else subset.rows(part)
        source, table = (x[:, part], _rows(rope, part)) if chosen is None else (chosen.take(x), chosen.rope)
        new_keys, new_values = block.project_keys(source, rope=table)
        if keys is None or values is None:
            keys, values = new_keys.new_empty(shape), new_values.new_empty(shape)
        keys[:, part], values[:, part] = new_keys, new_values
    assert keys is not None, "there is at least one token"
    assert values is not None
    return keys, values


def _parts(length: int, chunk: int) -> list[slice]:
    return [slice(start, start + chunk) for start in range(0, length, chunk)]


def _rows(rope: RotaryTable | None, part: slice) -> RotaryTable | None:
    return None if rope is None else rope.rows(part)


def run_batch_in_chunks(
    block: nn.Module,
    x: Float[Tensor, "batch n c"],
    chunk: int,
    *,
    rope: RotaryTable | None = None,
    mask: Bool[Tensor, "batch #heads #n n"] | None = None,
) -> None:
    """What `block(x)` gives, written over `x`, for some entries of the batch at a time; without gradients.

    Args:
        block: Called as `block(x, rope=, mask=)`; entries of a batch don't see each other.
        x: (batch, N, C); changed in place.
        chunk: Entries at a time.
        rope: Table of the N tokens.
        mask: Of every entry.

    Raises:
        ValueError: If `chunk` is not positive.
        RuntimeError: Where gradients are recorded.
    """
    _check(chunk)
    for start in range(0, x.shape[0], chunk):
        part = slice(start, start + chunk)
        x[part] = block(x[part], rope=rope, mask=None if mask is None else mask[part])


def _check(chunk: int) -> None:
    check_positive("chunk", chunk)
    if torch.is_grad_enabled():
        raise RuntimeError("chunks are worked on in place, which gradients can't follow; use torch.no_grad()")
