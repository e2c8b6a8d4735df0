"""How a scene was made, in words for its report and its files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from geomtx.views import Views

__all__ = ["describe_run", "name_folder"]


def describe_run(model: nn.Module, views: Views, **options: Any) -> dict[str, str]:
    """Return name → value of what a scene depends on; nothing that changes from run to run.

    Args:
        model: The model that ran.
        views: Its views, which name the folder of the photos.
        options: Further names and values that matter to the result; those that are None are left out.
    """
    folder = name_folder(views)
    kind, parameters = type(model).__name__, sum(parameter.numel() for parameter in model.parameters())
    dtype = next(model.parameters()).dtype
    named = {name: value for name, value in options.items() if value is not None}
    return {
        **({"photos": folder} if folder else {}),
        "model": f"{kind}, {_count(parameters)} parameters, {_plain(dtype)}",
        **{name: _plain(value) for name, value in named.items()},
    }


def name_folder(views: Views) -> str:
    """Return the name of the innermost folder that holds all photos; "" where they came from no files."""
    parents = [str(path.absolute().parent) for path in views.paths if path is not None]
    return Path(os.path.commonpath(parents)).name if parents else ""


def _count(number: int) -> str:
    return next(
        (f"{number / size:.1f} {letter}" for size, letter in ((1e9, "G"), (1e6, "M")) if number >= size), str(number)
    )


def _plain(value: object) -> str:
    return str(value).removeprefix("torch.")
