"""How a run of a model is shown while it goes on, and recorded in the scene that it makes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from geomtx.views import Views

__all__ = ["describe_run", "name_folder", "progress_bar"]


@contextmanager
def progress_bar(*, shown: bool, title: str = "encoder and heads") -> Iterator[Callable[[float], None] | None]:
    """Show a progress bar on stderr while the block runs; yields a function that takes the share that is done.

    Args:
        shown: Whether it is shown; otherwise None is yielded.
        title: Name of what is done, before the bar.
    """
    if not shown:
        yield None
        return
    bar_format = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"
    with tqdm(total=1.0, desc=title, bar_format=bar_format, leave=False) as bar:
        yield lambda share: bar.update(min(share, bar.total - bar.n))


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
