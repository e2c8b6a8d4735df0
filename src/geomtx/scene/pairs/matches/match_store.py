"""Matches of pairs, found as their predictions come: descriptors are large, and are let go batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from geomtx.files import PathLike, user_path
from geomtx.inference.pair_maps import PairMaps
from geomtx.inference.pairs import PairBatch, PairStore
from geomtx.scene.pairs.matches.alignment import PairMatches
from geomtx.scene.pairs.matches.pair_matching import match_descriptors_of
from geomtx.scene.pairs.pair_folder import replace_file
from geomtx.tracking.matching import Matches, join_passes
from geomtx.types import Int

__all__ = ["MatchStore"]


class MatchStore:
    """Keeps the matches of pairs, and hands on their maps to another store.

    Args:
        maps: Store of the maps.
        folder: Folder in which matches are kept too, so that a run goes on with them; defaults to memory.
        masks: Pixels of each image that take part, S tensors (H, W) bool; defaults to all.
    """

    def __init__(self, maps: PairStore, folder: PathLike | None = None, masks: Sequence[Tensor] | None = None) -> None:
        self.maps, self.masks = maps, masks
        self.folder = None if folder is None else user_path(folder)
        self._passes: dict[int, Matches] = {}

    def stored(self) -> set[int]:
        """Return the indices of the pairs whose maps and matches are there."""
        return {index for index in self.maps.stored() if index in self._passes or self._is_file(index)}

    def write(self, batch: PairBatch) -> None:
        """Match the pixels of a batch, and keep matches and maps."""
        for row, index in enumerate(batch.indices):
            found = match_descriptors_of(batch.prediction, row)
            self._passes[index] = found
            if self.folder is not None:
                tensors = {name: each.contiguous() for name, each in found._asdict().items()}
                replace_file(self._path(index), lambda path, tensors=tensors: save_file(tensors, path))
        # Last: a pair whose maps are there has its matches.
        self.maps.write(batch)

    def read(self, pairs: Int[Tensor, "e 2"]) -> PairMaps:
        """Return the maps of all pairs."""
        return self.maps.read(pairs)

    def matches(self, pairs: Int[Tensor, "e 2"]) -> PairMatches:
        """Return the matches of all pairs, those of a pair and of its reverse together.

        Args:
            pairs: Pairs of the scene, (E, 2).
        """
        passes: dict[tuple[int, int], list[Matches]] = {}
        for index, (first, second) in enumerate(pairs.tolist()):
            found = self._passes[index] if index in self._passes else Matches(**load_file(self._path(index)))
            if (second, first) in passes:
                passes[second, first].append(Matches(found.coords2_px, found.coords1_px, found.confidence))
            else:
                passes.setdefault((first, second), []).append(found)
        joined = [self._inside(pair, join_passes(each)) for pair, each in passes.items()]
        return PairMatches(torch.tensor(list(passes), dtype=torch.long), tuple(joined))

    def _inside(self, pair: tuple[int, int], matches: Matches) -> Matches:
        """Return the matches of which both pixels take part."""
        if self.masks is None:
            return matches
        kept = torch.ones(len(matches.confidence), dtype=torch.bool)
        for image, coords in zip(pair, matches[:2], strict=True):
            kept &= self.masks[image][coords[:, 1], coords[:, 0]]
        return Matches(*(each[kept] for each in matches))

    def _is_file(self, index: int) -> bool:
        return self.folder is not None and self._path(index).is_file()

    def _path(self, index: int) -> Path:
        assert self.folder is not None
        return self.folder / f"matches-{index:07d}.safetensors"
