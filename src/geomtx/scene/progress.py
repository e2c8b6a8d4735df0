"""A progress bar over a forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from tqdm import tqdm

from geomtx.models.extra_heads import head_modules

__all__ = ["list_steps", "progress_bar"]


@contextmanager
def progress_bar(steps: Sequence[nn.Module]) -> Iterator[None]:
    """Count modules on stderr as they finish for the first time; nothing is shown without any."""
    if not steps:
        yield
        return
    waiting = set(steps)

    def advance(module: nn.Module, *_: Any) -> None:
        if module in waiting:  # in pieces, a module runs more than once
            waiting.remove(module)
            bar.update(1)

    with tqdm(total=len(waiting), desc="encoder and heads", unit="step", leave=False) as bar:
        hooks = [module.register_forward_hook(advance) for module in waiting]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def list_steps(model: nn.Module, heads: Sequence[str], *, compiled: bool, in_pieces: bool) -> list[nn.Module]:
    """Modules that are all called in a pass: blocks in the encoder's lists, or what is in them, and the heads.

    Args:
        model: The model.
        heads: That run.
        compiled: Whether its blocks are compiled.
        in_pieces: Whether there is a memory plan.
    """
    lists = {name: module for name, module in model.named_modules() if _is_block_list(name, module)}
    if compiled:
        # What is within a block is no call of its own; in pieces, that of a global block is none either.
        called = [blocks for name, blocks in lists.items() if not (in_pieces and name.endswith("global_blocks"))]
        steps = [block for blocks in called for block in blocks]
    else:
        # In pieces, a block's parts are called instead of the block.
        steps = [getattr(block, "mlp", block) for blocks in lists.values() for block in blocks]
    return steps + [part for name, part in head_modules(model).items() if name in heads]


def _is_block_list(name: str, module: nn.Module) -> bool:
    return name.startswith("encoder.") and isinstance(module, nn.ModuleList)
