"""Point maps of pairs in a folder: they outlive the process that made them, and need no memory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from geomtx.checks import check_option
from geomtx.files import PathLike, user_path
from geomtx.inference.pair_maps import PairMaps
from geomtx.inference.pairs import PairBatch, split_maps
from geomtx.types import Int

__all__ = ["PairFolder", "replace_file"]

_INDEX = "pairs.json"
_FIELDS = ("points1", "points2", "confidence1", "confidence2")
_PRECISIONS = {"float16": torch.float16, "float32": torch.float32}
_SAMPLE = 256  # numbers of each parameter that tell one model from another


class PairFolder:
    """Keeps the maps of pairs as files, one a batch, which are mapped into memory where they are read.

    A run that was killed goes on from there: `run_pairs` with a `PairFolder` of the same folder, images, pairs and
    model runs the pairs that are missing.

    Args:
        folder: Folder of the files, which is made if it does not exist.
        model: Model that predicts the maps.
        images: Images that it sees, S tensors (3, H, W).
        pairs: Pairs of the scene, (E, 2).
        dtype: Type of the numbers, "float16" or "float32", see `geomtx.inference.PairMemory`.

    Raises:
        ValueError: If the folder has maps of another model, other images or pairs, or of another type.
        OSError: If the folder can't be written.
    """

    def __init__(
        self,
        folder: PathLike,
        model: nn.Module,
        images: Sequence[Tensor] | Tensor,
        pairs: Int[Tensor, "e 2"],
        *,
        dtype: str = "float16",
    ) -> None:
        check_option("dtype", dtype, tuple(_PRECISIONS))
        self.folder = user_path(folder)
        self.dtype = _PRECISIONS[dtype]
        what = {
            "model": _digest_model(model),
            "images": _digest(list(images)),
            "pairs": _digest([pairs]),
            "dtype": dtype,
        }
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"folder of pairs must be a folder, got the file '{self.folder}'")
        self.folder.mkdir(parents=True, exist_ok=True)
        index = self.folder / _INDEX
        if index.exists():
            try:
                found = json.loads(index.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(
                    f"'{index}' must be whole, got a damaged one ({error}); take another folder"
                ) from error
            self._check_same(found, what)
        else:
            replace_file(index, lambda path: path.write_text(json.dumps(what, indent=2) + "\n", encoding="utf-8"))

    def stored(self) -> set[int]:
        """Return the indices of the pairs whose maps are there, whole."""
        return set(self._places())

    def write(self, batch: PairBatch) -> None:
        """Keep the maps of a batch in a file of their own, all or none."""
        tensors = {
            f"{index}.{field}": each
            for index, maps in split_maps(batch, self.dtype)
            for field, each in zip(_FIELDS, maps, strict=True)
        }
        name = f"pairs-{batch.indices[0]:07d}.safetensors"
        replace_file(self.folder / name, lambda path: save_file(tensors, path))

    def read(self, pairs: Int[Tensor, "e 2"]) -> PairMaps:
        """Return the maps of all pairs; they show the files, of which the system holds in memory what fits.

        Args:
            pairs: Pairs of the scene, (E, 2).

        Raises:
            ValueError: If maps of a pair are missing.
        """
        places = self._places()
        missing = [index for index in range(len(pairs)) if index not in places]
        if missing:
            raise ValueError(f"folder must have the maps of all {len(pairs)} pairs, got none of {len(missing)}")
        maps: dict[int, list[Tensor]] = {}
        for path in sorted(set(places.values())):
            with safe_open(path, framework="pt") as file:
                for index in (index for index, place in places.items() if place == path):
                    maps[index] = [file.get_tensor(f"{index}.{field}") for field in _FIELDS]
        fields = zip(*(maps[index] for index in range(len(pairs))), strict=True)
        return PairMaps(pairs, *fields)

    def _places(self) -> dict[int, Path]:
        """Return index of a pair → file that has its maps."""
        places: dict[int, Path] = {}
        for path in sorted(self.folder.glob("pairs-*.safetensors")):
            try:
                with safe_open(path, framework="pt") as file:
                    found = {int(name.partition(".")[0]) for name in file.keys()}  # noqa: SIM118, no mapping
            except SafetensorError as error:
                raise ValueError(
                    f"'{path}' is no whole file of maps ({error}); remove it, and its pairs run again"
                ) from error
            places |= dict.fromkeys(found, path)
        return places

    def _check_same(self, found: Any, wanted: dict[str, str]) -> None:
        for name, value in wanted.items():
            if not isinstance(found, dict) or found.get(name) != value:
                raise ValueError(
                    f"folder must be of the same {name}, got '{self.folder}' of others; take another folder"
                )


def replace_file(path: Path, write: Any) -> None:
    """Write a file under another name, which then takes its place: a process that is killed leaves no half of it.

    Args:
        path: Path of the file.
        write: Function that writes a file of a path.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _digest(tensors: Sequence[Tensor]) -> str:
    """Return a text that differs for tensors of other shapes, types or numbers."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _digest_model(model: nn.Module) -> str:
    """Return a text that differs for models of other classes, configurations, parts or weights.

    Of each parameter, some numbers from all over it tell.
    """
    flat = [parameter.detach().flatten() for parameter in model.parameters()]
    samples = [each[:: max(1, len(each) // _SAMPLE)] for each in flat]
    names = " ".join(name for name, _ in model.named_parameters())
    what = f"{type(model).__name__} {getattr(model, 'config', None)} {names} {_digest(samples)}"
    return hashlib.sha256(what.encode()).hexdigest()
