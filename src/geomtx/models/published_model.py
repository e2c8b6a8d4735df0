"""What models with published weights have in common: they are written under geomtx's names or the published ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import nn

from geomtx.checkpoint.files import save_model
from geomtx.checkpoint.key_table import KeyTable
from geomtx.models.saved_model import check_can_save

__all__ = ["PublishedModel", "StoredForm"]


class StoredForm(NamedTuple):
    """Names and configurations under which a model is stored.

    Attributes:
        keys: Table of the names of its parameters, published ↔ geomtx.
        config: Configuration beside weights with geomtx's names.
        published_config: Configuration beside weights with published names.
    """

    keys: KeyTable
    config: dict[str, Any]
    published_config: dict[str, Any]


class PublishedModel(nn.Module):
    """Base of models with published weights; a subclass has `stored_form`."""

    def stored_form(self) -> StoredForm:
        """Return the names and configurations under which the model is stored."""
        raise NotImplementedError

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        names: Literal["geomtx", "published"] = "geomtx",
        overwrite: bool = False,
    ) -> Path:
        """Write `model.safetensors` and `config.json` into a folder.

        Args:
            folder: Folder to write into, which is made if it does not exist; nothing is left half-written.
            names: Names of the tensors; files with "published" ones load in the published code.
            overwrite: Whether files of these names that geomtx did not write may be replaced.

        Returns:
            The folder.

        Raises:
            ValueError: For a quantised model, whose own numbers are lost.
            FileExistsError: If there are files of these names that geomtx did not write, and `overwrite` is False.
        """
        check_can_save(self)
        keys, config, published = self.stored_form()
        return save_model(
            self, folder, keys, config=config, published_config=published, names=names, overwrite=overwrite
        )
