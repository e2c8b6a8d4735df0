"""What a checkpoint holds, from its headers."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from geomtx.checkpoint.key_table import unwrap_names
from geomtx.models.published import find_weights, known_weights
from geomtx.models.registry import FAMILIES
from geomtx.models.saved_model import added_heads

__all__ = ["CheckpointSummary", "summarize_checkpoint"]

# What names of tensors end in that are stored with the parameters and aren't learned.
_TABLES = (".bias_mask", ".periods", ".mean", ".std", "image_mean", "image_std")


class CheckpointSummary(NamedTuple):
    """Facts about a checkpoint.

    Attributes:
        num_tensors: Number of tensors.
        num_parameters: Number of parameters in them.
        dtypes: Name of a dtype → how many tensors have it.
        naming: "published", "geomtx" or "unknown".
        heads: Names of the heads that it has tensors of, added ones last.
        licence: Licence of the weights where it is known.
        prefix: Prefix of all names that is not part of the model, such as "module." of a wrapped model.
    """

    num_tensors: int
    num_parameters: int
    dtypes: dict[str, int]
    naming: str
    heads: tuple[str, ...]
    licence: str | None
    prefix: str = ""


def summarize_checkpoint(source: str) -> CheckpointSummary:
    """Read the headers of a file, a folder or a hub id; downloads no weights.

    Raises:
        ValueError: For a broken file.
        FileNotFoundError: If there is nothing.
    """
    found = str(find_weights(source))
    headers = _read_local(found) if Path(found).exists() else _read_hub(found)
    family = next((family for family in FAMILIES if family.recognises(headers)), FAMILIES[-1])
    unwrapped = unwrap_names(headers, family.is_name)
    known = known_weights(source)
    naming, heads = family.describe(unwrapped.names.values())
    return CheckpointSummary(
        num_tensors=len(headers),
        num_parameters=sum(math.prod(shape) for name, (shape, _) in headers.items() if not name.endswith(_TABLES)),
        dtypes=dict(Counter(dtype for _, dtype in headers.values()).most_common()),
        naming=naming,
        heads=(*heads, *added_heads(headers)),
        licence=None if known is None else known.licence,
        prefix=unwrapped.prefix,
    )


def _read_local(source: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name → shape and dtype."""
    from geomtx.checkpoint.files import open_checkpoint

    files = open_checkpoint(source).files
    return {
        name: (shape, str(file.dtypes[name]).removeprefix("torch."))
        for file in files
        for name, shape in file.shapes.items()
    }


def _read_hub(source: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """From the local cache, else the headers that the hub gives."""
    import huggingface_hub

    from geomtx.checkpoint.hub import hub_error

    try:
        return _read_local(huggingface_hub.snapshot_download(source, local_files_only=True))
    except Exception:  # not in the cache, or not all of it; the hub's client raises many kinds
        pass
    try:
        files = huggingface_hub.get_safetensors_metadata(source).files_metadata.values()
    except Exception as error:
        raise hub_error(source, error) from error
    return {name: (tuple(t.shape), t.dtype) for file in files for name, t in file.tensors.items()}
