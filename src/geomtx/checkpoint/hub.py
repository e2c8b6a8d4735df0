"""Files of repositories on the Hugging Face hub, from its cache where there is no network."""

from __future__ import annotations

import re
from pathlib import Path

from geomtx.checkpoint.tensor_file import PICKLE_SUFFIXES

__all__ = ["download", "hub_error"]


def download(repo: str) -> Path:
    """Folder of a hub repository, or one of its files: downloaded, or from the cache when offline.

    Args:
        repo: Hub id, or hub id and the name of a file with weights.

    Raises:
        FileNotFoundError: If `repo` is no hub id, or the hub doesn't have it or can't be reached.
    """
    parts = repo.rsplit("/", 1)
    if re.fullmatch(r"[\w.-]+/[\w.-]+/[\w.-]+", repo) and parts[1].endswith((".safetensors", *PICKLE_SUFFIXES)):
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(parts[0], parts[1]))
        except Exception as error:
            raise hub_error(repo, error) from error
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo) or repo.endswith((".safetensors", *PICKLE_SUFFIXES)):
        raise FileNotFoundError(f"weights must be a file, a folder or a hub id like 'facebook/VGGT-1B', got '{repo}'")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo, allow_patterns=["*.safetensors", "*.json"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(repo, allow_patterns=[*(f"*{s}" for s in PICKLE_SUFFIXES), "*.json"]))
    except Exception as error:  # the hub's client lets many kinds through, its transport's included
        raise hub_error(repo, error) from error
    return folder


def hub_error(repo: str, error: Exception) -> FileNotFoundError:
    """Say in one line what the hub's client said, and how to go on without it."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return FileNotFoundError(
        f"'{repo}' is no local path, and the hub gave: {reason}; without a network, download its model.safetensors and "
        "config.json elsewhere and pass their folder"
    )
