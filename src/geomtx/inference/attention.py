"""How blocks that mix views are run: the tables that an encoder's loop asks, other than its own plain one.

Three choices combine freely: how many tokens are worked on at a time, which tokens are keys, and which processes hold
them. All but the choice of keys give the plain table's result up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from geomtx.encoder.alternating import AlternatingEncoder
from geomtx.encoder.scopes import AcrossViews, AmongSpecial, AttentionTable, Scope, WithinViews
from geomtx.inference.chunks import chunk_slices, map_chunks
from geomtx.inference.keys import GlobalApproximation, KeySubset, choose_keys
from geomtx.inference.plan import MemoryPlan
from geomtx.inference.shares import Shares, exchange_heads
from geomtx.layers.attention import key_mask
from geomtx.layers.block import Attend, TransformerBlock
from geomtx.layers.rope import RotaryTable
from geomtx.types import EmbeddedViews

__all__ = ["ViewsInChunks", "attention_table", "check_blocks"]


@dataclass(eq=False)
class ViewsInChunks:
    """Run a block on some views at a time, each by itself; the output is written over the input.

    Attributes:
        plain: The same on all views at once.
        view_chunk: Number of views at a time.
    """

    plain: WithinViews
    view_chunk: int

    def __call__(self, number: int, block: Any, x: Tensor) -> Tensor:
        """Return `x`, (B, S, P, C), with the block's output in it."""
        views = x.view(-1, *x.shape[2:])
        rope, mask = self.plain.rope, self.plain.mask
        for part in chunk_slices(len(views), self.view_chunk):
            views[part] = block(views[part], rope=rope, mask=None if mask is None else mask[part])
        return x


@dataclass(eq=False)
class KeysFirst:
    """Run a block on all tokens of a scene in two steps: keys and values of all keys, then the tokens that attend.

    Attributes:
        rope: Rotary table of this process's S·P tokens, or their poses, see `PoseTable`; None for none.
        mask: Attention mask of the M keys of all processes, broadcastable to (B, 1, S·P, M); None for none.
        keys: Subset of this process's tokens that are keys; None for all.
        shares: Number of keys of every process; None in one process.
        token_chunk: Number of tokens at a time, whose output is written over the input; None for all at once, into a
            tensor of its own.
    """

    rope: Any
    mask: Tensor | None
    keys: KeySubset | None = None
    shares: Shares | None = None
    token_chunk: int | None = None

    def __call__(self, number: int, block: Any, x: Tensor) -> Tensor:
        """Return the tokens (B, S, P, C) after the block."""
        tokens = x.flatten(1, 2) if self.token_chunk is None else x.view(x.shape[0], -1, x.shape[-1])
        keys, values = self._project_keys(block, tokens)
        if self.shares is not None:
            keys, values = self.shares.gather(keys, dim=1), self.shares.gather(values, dim=1)
        if self.token_chunk is None:
            return block.attend_to(tokens, keys, values, rope=self.rope, mask=self.mask).view_as(x)
        for part in chunk_slices(tokens.shape[1], self.token_chunk):
            mask = self.mask if self.mask is None or self.mask.shape[-2] == 1 else self.mask[:, :, part]
            tokens[:, part] = block.attend_to(tokens[:, part], keys, values, rope=_rows(self.rope, part), mask=mask)
        return x

    def _project_keys(self, block: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return this process's keys and values, (B, m, heads, D) each."""

        def project(part: slice) -> tuple[Tensor, Tensor]:
            if self.keys is None:
                return block.project_keys(tokens[:, part], rope=_rows(self.rope, part))
            chosen = self.keys.rows(part)
            return block.project_keys(chosen.take(tokens), rope=chosen.rope)

        num_keys = tokens.shape[1] if self.keys is None else self.keys.tokens.shape[1]
        return map_chunks(project, num_keys, self.token_chunk, dim=1)


@dataclass(eq=False)
class HeadsExchanged:
    """Run a block on the tokens of all processes, which exchange heads within its attention.

    Attributes:
        rope: Rotary table of this process's S·P tokens; None for none.
        mask: Attention mask of the tokens of all processes, (B, 1, 1, N); None for none.
        shares: Number of tokens of every process.
    """

    rope: RotaryTable | None
    mask: Tensor | None
    shares: Shares

    def __call__(self, number: int, block: Any, x: Tensor) -> Tensor:
        """Return the tokens (B, S, P, C) of this process after the block."""
        if block.attention.num_heads % len(self.shares.sizes):
            return KeysFirst(self.rope, self.mask, shares=self.shares)(number, block, x)
        core = partial(exchange_heads, block.attention.backend, self.shares)
        return block(x.flatten(1, 2), rope=self.rope, mask=self.mask, core=core).view_as(x)


@dataclass(eq=False)
class LocalFirst:
    """Run the first blocks on every view by itself, all others across views.

    Attributes:
        num_local: Number of blocks that run on every view by itself.
        within: Way of running these blocks.
        across: Way of running all others.
    """

    num_local: int
    within: Attend
    across: Attend

    def __call__(self, number: int, block: Any, x: Tensor) -> Tensor:
        """Return the tokens (B, S, P, C) after the block."""
        return (self.within if number < self.num_local else self.across)(number, block, x)


def attention_table(
    encoder: AlternatingEncoder,
    views: EmbeddedViews,
    plan: MemoryPlan,
    approximation: GlobalApproximation,
    shares: Shares | None = None,
) -> AttentionTable:
    """Return how blocks of each scope are run.

    Args:
        encoder: The encoder, for which `check_blocks` has passed.
        views: Embedded views of this process.
        plan: Numbers of views and tokens that are worked on at a time.
        approximation: Keys that global attention leaves out.
        shares: Division of the views among processes; defaults to one process with all views.
    """
    table: dict[Scope, Attend] = encoder.attention(views)
    within, across = table["frame"], table["global"]
    assert isinstance(within, WithinViews), "the encoder's own table is plain"
    assert isinstance(across, AcrossViews), "the encoder's own table is plain"
    if plan.token_chunk is not None:
        assert plan.view_chunk is not None, "check_plan has passed"
        table["frame"] = ViewsInChunks(within, plan.view_chunk)
        if "cross" in table:
            cross = table["cross"]
            assert isinstance(cross, AcrossViews), "the encoder's own table is plain"
            table["cross"] = KeysFirst(cross.rope, cross.mask, token_chunk=plan.token_chunk)
    poses = table.get("pose")
    if isinstance(poses, AcrossViews) and (plan.token_chunk is not None or shares is not None):
        of_tokens = None if shares is None else shares.times(views.x.shape[2])
        active = poses.rope.active
        if of_tokens is not None:
            active = of_tokens.gather(active.to(torch.uint8), dim=1).bool()
        table["pose"] = KeysFirst(poses.rope, key_mask(active), None, of_tokens, plan.token_chunk)
    of_view = None if across.rope is None else across.rope.rows(slice(0, views.x.shape[2]))
    keys = choose_keys(views, approximation, of_view, shares)
    table["global"] = _run_across(across, views.mask, shares and shares.times(views.x.shape[2]), plan, keys)
    if "register" in table:
        # Special tokens are keys in every approximation, so that theirs stays whole.
        among = table["register"]
        assert isinstance(among, AmongSpecial), "the encoder's own table is plain"
        assert isinstance(among.across, AcrossViews), "the encoder's own table is plain"
        mask = None if views.mask is None else views.mask[:, :, : among.num_special]
        special = _run_across(among.across, mask, shares and shares.times(among.num_special), plan)
        table["register"] = AmongSpecial(among.num_special, special, in_place=plan.token_chunk is not None)
    if approximation.num_local_layers:
        local: Attend = WithinViews(of_view, within.mask)
        if plan.token_chunk is not None:
            assert plan.view_chunk is not None, "check_plan has passed"
            local = ViewsInChunks(WithinViews(of_view, within.mask), plan.view_chunk)
        table["global"] = LocalFirst(approximation.num_local_layers, local, table["global"])
    return table


def _run_across(
    plain: AcrossViews, valid: Tensor | None, shares: Shares | None, plan: MemoryPlan, keys: KeySubset | None = None
) -> Attend:
    """Return how a block on tokens of all views is run.

    Args:
        plain: The same on all tokens at once, all of them keys, in one process.
        valid: Mask of this process's valid tokens, (B, S, P); None for all.
        shares: Division of the tokens among processes; None for one process.
        plan: Number of tokens that are worked on at a time.
        keys: Tokens that are keys; None for all.
    """
    shares = shares if keys is None else keys.shares
    mask = plain.mask if keys is None and shares is None else _key_mask(valid, keys, shares)
    if keys is not None or plan.token_chunk is not None:
        return KeysFirst(plain.rope, mask, keys, shares, plan.token_chunk)
    return plain if shares is None else HeadsExchanged(plain.rope, mask, shares)


def _key_mask(valid: Tensor | None, keys: KeySubset | None, shares: Shares | None) -> Tensor | None:
    """Return the attention mask of the keys of all processes; None where all are valid."""
    valid = None if valid is None else valid.flatten(1)
    if keys is not None:
        valid = None if valid is None else valid.gather(1, keys.tokens)
        if keys.valid is not None:
            valid = keys.valid if valid is None else keys.valid & valid
    if valid is None:
        return None
    if shares is not None:
        valid = shares.gather(valid.to(torch.uint8), dim=1).bool()
    return key_mask(valid)


def check_blocks(blocks: Iterable[nn.Module], reason: str) -> None:
    """Require blocks whose keys and values can be computed first.

    Args:
        blocks: Blocks of an encoder.
        reason: Purpose of the requirement, for the error.

    Raises:
        ValueError: For a block that is no `TransformerBlock`.
    """
    for block in blocks:
        if not isinstance(block, TransformerBlock):
            raise ValueError(f"blocks must be TransformerBlock for {reason}, got {type(block).__name__}")


def _rows(rope: Any, part: slice) -> Any:
    return None if rope is None else rope.rows(part)
