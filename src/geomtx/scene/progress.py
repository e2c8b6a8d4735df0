"""A progress bar over a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(*, shown: bool) -> Iterator[Callable[[float], None] | None]:
    """Show a progress bar on stderr while the block runs; yields a function that takes the share that is done."""
    if not shown:
        yield None
        return
    bar_format = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"
    with tqdm(total=1.0, desc="encoder and heads", bar_format=bar_format, leave=False) as bar:
        yield lambda share: bar.update(min(share, bar.total - bar.n))
