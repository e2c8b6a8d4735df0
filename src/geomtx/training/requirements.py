"""Packages of the extra `train`, which inference does without."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["import_extra"]


def import_extra(module: str) -> Any:
    """Import a module of the extra.

    Raises:
        ImportError: In one line that says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or module).partition(".")[0]
        raise ImportError(f"training needs {missing}, which is not installed: pip install geomtx[train]") from error
