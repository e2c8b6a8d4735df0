"""A forward pass in parts: tapped layers are projected for the heads as soon as they are computed, and then dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from geomtx.heads.dpt import DPTDecoder
from geomtx.heads.head import EachView, head_dtype, runs_in_parts
from geomtx.inference.chunks import empty_on, map_chunks, wait_for_copies
from geomtx.inference.plan import MemoryPlan
from geomtx.types import ProjectedTokens, Tokens

__all__ = ["LayerReader", "embed_in_chunks", "heads_in_chunks", "move_aside"]


class LayerReader:
    """Keeps of every tapped layer what some heads will read: special tokens, projected patches, or the layer itself.

    Args:
        heads: Name → head that will read.
        taps: Layers that a head of another class reads, whole.
        plan: Device where projections wait, and number of views that are projected at a time.
        join: Function from a layer's outputs for some tokens, and the number of special ones among them, to the tokens
            of the layer, see `AlternatingEncoder.join`.
    """

    def __init__(
        self,
        heads: Mapping[str, nn.Module],
        taps: tuple[int, ...],
        plan: MemoryPlan,
        join: Callable[[Sequence[Tensor], int], Tensor],
    ) -> None:
        self.plan = plan
        self.join = join
        known: dict[str, Any] = {name: head for name, head in heads.items() if runs_in_parts(head)}
        self.decoders: dict[str, DPTDecoder] = {
            name: head.decoder for name, head in known.items() if head.reads == "projections"
        }
        special = {name: head for name, head in known.items() if head.reads == "special"}
        self.special_layers = {name: head.layers_read(taps)[0] for name, head in special.items()}
        # Layers of which all special tokens are kept, and not the camera tokens alone.
        self.all_special = {self.special_layers[name] for name, head in special.items() if head.reads_all}
        self.in_parts = {name for name, head in known.items() if head.reads == "layers"}
        self.whole = taps if heads.keys() - self.decoders.keys() - special.keys() else ()
        self.special_tokens: dict[int, Tensor] = {}
        self.layers: dict[int, Tensor] = {}
        self.maps: dict[str, dict[int, Tensor]] = {name: {} for name in self.decoders}

    @property
    def taps(self) -> tuple[int, ...]:
        """The layers that the heads read."""
        decoded = {tap for decoder in self.decoders.values() for tap in decoder.taps}
        return tuple(sorted(decoded | {*self.special_layers.values(), *self.whole}))

    def read_all(self, tokens: Tokens, layers: Iterator[tuple[int, list[Tensor]]]) -> None:
        """Read layers as they are reached.

        Args:
            tokens: The tokens of the pass, without layers.
            layers: Index and block outputs of every tapped layer; outputs but the last may be on another device, and
                all hold only until the next layer is asked for.
        """
        self.tokens = tokens

        def read(item: tuple[int, list[Tensor]]) -> None:
            self._read(*item)

        # A loop's variable would hold a layer while the next is computed.
        for _ in map(read, layers):
            pass

    def _read(self, index: int, outputs: list[Tensor]) -> None:
        # The host reads what is cut out of pinned memory at once.
        self.device = outputs[-1].device
        wait_for_copies(outputs[:-1], self.device)
        if index in self.special_layers.values():
            count = self._num_kept(index)
            self.special_tokens[index] = self.join([each[:, :, :count].to(self.device) for each in outputs], count)
        if index in self.whole:
            self.layers[index] = self._keep_whole(outputs)
        # A decoder may read a layer more than once.
        levels = [(h, i) for h, decoder in self.decoders.items() for i, tap in enumerate(decoder.taps) if tap == index]
        if levels:
            self._project(outputs, levels)

    def _keep_whole(self, outputs: list[Tensor]) -> Tensor:
        """Return the tokens of a layer, joined some views at a time, where the plan says that they wait."""
        num_scenes, num_views = outputs[0].shape[:2]

        def join(part: slice) -> Tensor:
            here = [each[:, part].to(self.device, non_blocking=True) for each in outputs]
            return self.join(here, self.tokens.num_special)

        chunk = None if self.plan.view_chunk is None else max(1, self.plan.view_chunk // num_scenes)
        return map_chunks(join, num_views, chunk, dim=1, device=_device(self.plan.tap_device))

    def _project(self, outputs: list[Tensor], levels: list[tuple[str, int]]) -> None:
        """Project the patches of a layer for every decoder that reads it, some views at a time."""
        tokens, mask = self.tokens, self.tokens.patch_mask()
        views = outputs[0].shape[:2]
        patches = [each[:, :, tokens.num_special :].flatten(0, 1) for each in outputs]

        def project(part: slice) -> dict[tuple[str, int], Tensor]:
            x = self.join([each[part].to(self.device, non_blocking=True) for each in patches], 0)
            of_part = None if mask is None else mask[part]
            return {
                (name, level): self.decoders[name].project_tap(
                    level, x.to(head_dtype(self.decoders[name]) or x.dtype), tokens.grid_hw, tokens.image_hw, of_part
                )
                for name, level in levels
            }

        num_views = views[0] * views[1]
        projected = map_chunks(project, num_views, self.plan.view_chunk, device=_device(self.plan.tap_device))
        for (name, level), maps in projected.items():
            self.maps[name][level] = maps
        self.views = (views[0], views[1])

    def _num_kept(self, index: int) -> int:
        """Return how many special tokens of a view are kept of a layer."""
        return self.tokens.num_special if index in self.all_special else 1

    def read(self, head: str) -> Tokens | ProjectedTokens:
        """Return what a head reads. Projections are let go here, so they can be read once."""
        tokens = self.tokens
        if head in self.special_layers:
            index = self.special_layers[head]
            count = self._num_kept(index)
            mask = None if tokens.mask is None else tokens.mask[:, :, :count]
            return Tokens({index: self.special_tokens[index]}, count, tokens.image_hw, tokens.grid_hw, mask)
        if head not in self.decoders:
            wait_for_copies(self.layers.values(), self.device)
            tokens = tokens._replace(layers=dict(self.layers))
            return tokens if head in self.in_parts else tokens.to(self.device)
        maps = self.maps.pop(head)
        mask = None if tokens.mask is None else tokens.mask[:, :, :1]
        return ProjectedTokens(tuple(maps[level] for level in sorted(maps)), self.views, tokens.image_hw, mask)


def embed_in_chunks(device: torch.device, dtype: torch.dtype, view_chunk: int) -> Callable[..., Tensor]:
    """Return how an encoder's backbone is run on some views at a time, which come to the device as they are needed.

    Args:
        device: Device of the model.
        dtype: Precision of the model.
        view_chunk: Number of views at a time.
    """

    def each_view(function: Callable[..., Tensor], images: Tensor, mask: Tensor | None) -> Tensor:
        def embed(part: slice) -> Tensor:
            # In this order half as many bytes are copied where the model is in half precision.
            here = images[part].to(dtype).to(device, non_blocking=True)
            return function(here, None if mask is None else mask[part])

        return map_chunks(embed, len(images), view_chunk)

    return each_view


def heads_in_chunks(device: torch.device, plan: MemoryPlan) -> EachView:
    """Return how functions of single views, which heads are made of, are run on some views at a time.

    Args:
        device: Device of the model.
        plan: Number of views at a time, and where the results are put together.
    """

    def each_view(function: Callable[[Any], Any], tokens: Tokens | ProjectedTokens) -> Any:
        num_scenes, num_views = tokens.views
        chunk = None if plan.view_chunk is None else max(1, plan.view_chunk // num_scenes)
        result = map_chunks(
            lambda part: function(tokens.take_views(part).to(device)),
            num_views,
            chunk,
            dim=1,
            device=_device(plan.output_device),
        )
        wait_for_copies(tree_leaves(result), device)
        return result

    return each_view


def move_aside(plan: MemoryPlan) -> Callable[[Tensor], Tensor]:
    """Return what copies a block's output, over which the next block writes, to where the plan says it waits."""
    device = _device(plan.part_device)
    return lambda x: empty_on(device, x).copy_(x, non_blocking=True)


def _device(name: str | None) -> torch.device | None:
    return None if name is None else torch.device(name)
