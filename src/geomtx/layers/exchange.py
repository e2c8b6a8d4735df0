"""Attention over tokens that several processes hold, each some of them (context parallelism); without gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from geomtx.layers.backends import AttentionBackend

__all__ = ["SharedAttention", "Shares"]


class Shares(NamedTuple):
    """How a sequence is dealt out to the processes of a group: contiguous pieces, in the order of their ranks.

    Attributes:
        sizes: Of every process's piece.
        rank: Of this process in the group.
        group: None = all processes.
    """

    sizes: tuple[int, ...]
    rank: int
    group: dist.ProcessGroup | None = None

    @property
    def start(self) -> int:
        """Where this process's piece begins."""
        return sum(self.sizes[: self.rank])

    @property
    def here(self) -> slice:
        """This process's piece."""
        return slice(self.start, self.start + self.sizes[self.rank])

    def times(self, count: int) -> Shares:
        """The same shares where each entry is `count` entries: of tokens, where these are of views."""
        return self._replace(sizes=tuple(size * count for size in self.sizes))

    def gather(self, piece: Tensor, *, dim: int, device: torch.device | None = None) -> Tensor:
        """All pieces side by side, in every process.

        Args:
            piece: This process's, its own size along `dim` and the same size elsewhere along all other axes.
            dim: Of the pieces.
            device: Which they travel by, one after another; None = that of `piece`.

        Returns:
            The whole, on the device of `piece`.
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


class SharedAttention:
    """An attention backend for queries, keys and values that are dealt out: every query attends to all keys.

    Where the number of processes divides that of the heads, each gets all tokens of some heads, attends, and gives them
    back (DeepSpeed-Ulysses, Jacobs et al. 2023); elsewhere keys and values of all tokens go to every process. Nothing
    but rounding differs from attention in one process.

    Args:
        attend: The backend within a process.
        shares: Of the tokens.
        mask: Of the keys of all tokens, (B, 1, 1, N); that of a call, which is of this process's tokens, isn't read.
    """

    def __init__(self, attend: AttentionBackend, shares: Shares, mask: Tensor | None = None) -> None:
        self.attend = attend
        self.shares = shares
        self.mask = mask
        self.__name__ = attend.__name__

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, H, n, D) each, of this process's n tokens; or keys and values of all N, from `gather_keys`."""
        if k.shape[2] == sum(self.shares.sizes):
            return self.attend(q, k, v, self.mask)
        if q.shape[1] % len(self.shares.sizes):
            k, v = self.shares.gather(torch.stack([k, v]), dim=3).unbind()
            return self.attend(q, k, v, self.mask)
        q, k, v = self._tokens_of_heads(q, k, v)
        return self._heads_of_tokens(self.attend(q, k, v, self.mask))

    def gather_keys(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens, (B, N, H, D), from this process's, (B, n, H, D)."""
        return self.shares.gather(keys, dim=1), self.shares.gather(values, dim=1)

    def _tokens_of_heads(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """(B, H, n, D) → (B, H / processes, N, D)."""
        sizes = self.shares.sizes
        blocks = [t.unflatten(1, (len(sizes), -1)).permute(1, 3, 0, 2, 4) for t in tensors]
        received = self._exchange(torch.stack(blocks, dim=2).flatten(0, 1), (self._size,) * len(sizes), sizes)
        return tuple(t.permute(1, 2, 0, 3) for t in received.unbind(1))

    def _heads_of_tokens(self, x: Tensor) -> Tensor:
        """(B, H / processes, N, D) → (B, H, n, D)."""
        sizes = self.shares.sizes
        received = self._exchange(x.permute(2, 0, 1, 3).contiguous(), sizes, (self._size,) * len(sizes))
        return received.unflatten(0, (len(sizes), -1)).permute(2, 0, 3, 1, 4).flatten(1, 2)

    @property
    def _size(self) -> int:
        return self.shares.sizes[self.shares.rank]

    def _exchange(self, rows: Tensor, send: tuple[int, ...], receive: tuple[int, ...]) -> Tensor:
        """Send so many rows to each process, receive so many from each."""
        received = rows.new_empty(sum(receive), *rows.shape[1:])
        dist.all_to_all_single(received, rows, list(receive), list(send), group=self.shares.group)
        return received
