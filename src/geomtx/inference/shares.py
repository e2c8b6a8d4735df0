"""How views and tokens of a scene are shared by several processes, and how they are exchanged; without gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor

from geomtx.layers.backends import AttentionBackend

__all__ = ["Shares", "count_processes", "deal_out", "exchange_heads"]


class Shares(NamedTuple):
    """How a sequence is shared by the processes of a group: contiguous pieces, in the order of their ranks.

    Attributes:
        sizes: Number of entries of every process.
        rank: Rank of this process in the group.
        group: The process group; None for all processes.
    """

    sizes: tuple[int, ...]
    rank: int
    group: dist.ProcessGroup | None = None

    @property
    def start(self) -> int:
        """Index of this process's first entry."""
        return sum(self.sizes[: self.rank])

    @property
    def here(self) -> slice:
        """This process's entries."""
        return slice(self.start, self.start + self.sizes[self.rank])

    def times(self, count: int) -> Shares:
        """Return the shares of a sequence that has `count` entries for each of these, for instance tokens of views."""
        return self._replace(sizes=tuple(size * count for size in self.sizes))

    def gather(self, piece: Tensor, *, dim: int, device: torch.device | None = None) -> Tensor:
        """Concatenate the pieces of all processes, in every process.

        Args:
            piece: This process's entries along `dim`; all other axes are the same in all processes.
            dim: Axis of the entries.
            device: Device that pieces are sent from and received on, one after another; defaults to that of `piece`.

        Returns:
            All entries, on the device of `piece`.
        """
        shape = list(piece.shape)
        shape[dim] = sum(self.sizes)
        whole = piece.new_empty(shape)
        for rank, part in enumerate(whole.split(self.sizes, dim=dim)):
            # Broadcasts, because not every backend gathers pieces of different sizes.
            sent = torch.empty(part.shape, dtype=part.dtype, device=device or part.device)
            if rank == self.rank:
                sent.copy_(piece)
            dist.broadcast(sent, rank if self.group is None else dist.get_global_rank(self.group, rank), self.group)
            part.copy_(sent)
        return whole


def deal_out(num_views: int, group: dist.ProcessGroup | None = None) -> Shares:
    """Share the views of a scene in contiguous pieces whose sizes differ by one at most, the larger ones first.

    Args:
        num_views: Number of views S.
        group: The process group; defaults to all processes.

    Returns:
        The shares; `shares.here` is the slice of this process.

    Raises:
        ValueError: For fewer views than processes, or a group without this process.
        RuntimeError: Without a process group.
    """
    num = count_processes(group)
    if num_views < num:
        raise ValueError(f"number of views must be at least that of processes, {num}, got {num_views}")
    sizes = tuple(num_views // num + (i < num_views % num) for i in range(num))
    return Shares(sizes, dist.get_rank(group), group)


def count_processes(group: dist.ProcessGroup | None = None) -> int:
    """Return the number of processes of a group, by default of all; errors as `deal_out`."""
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError("torch.distributed has no process group; call init_process_group first")
    if dist.get_rank(group) < 0:
        raise ValueError("group must have this process in it, got one without")
    return dist.get_world_size(group)


def exchange_heads(
    core: AttentionBackend, shares: Shares, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Attend over the tokens of all processes by exchanging heads (DeepSpeed-Ulysses, Jacobs et al. 2023).

    Each process receives all tokens of some heads, attends, and sends them back.

    Args:
        core: The attention backend within a process.
        shares: Division of the tokens among processes.
        q: Queries of this process's n tokens, (B, H, n, D); H must be a multiple of the number of processes.
        k: Keys of the same tokens.
        v: Values of the same tokens.
        mask: Mask of the keys of all N tokens, (B, 1, 1, N).
    """
    num, own = len(shares.sizes), shares.sizes[shares.rank]

    def exchange(rows: Tensor, send: tuple[int, ...], receive: tuple[int, ...]) -> Tensor:
        received = rows.new_empty(sum(receive), *rows.shape[1:])
        dist.all_to_all_single(received, rows, list(receive), list(send), group=shares.group)
        return received

    # Rows are (process, token); a row holds the heads of q, k and v that go to that process.
    rows = [rearrange(each, "b (p h) n d -> p n b h d", p=num) for each in (q, k, v)]
    received = exchange(torch.stack(rows, dim=2).flatten(0, 1), (own,) * num, shares.sizes)
    q, k, v = rearrange(received, "n k b h d -> k b h n d").unbind()
    out = rearrange(core(q, k, v, mask), "b h n d -> n b h d").contiguous()
    return rearrange(exchange(out, shares.sizes, (own,) * num), "(p n) b h d -> b (p h) n d", p=num)
