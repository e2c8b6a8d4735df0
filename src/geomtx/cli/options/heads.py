"""The option of `geomtx reconstruct` that says which predictions are made, and what the other options need of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from geomtx.checks import check_name
from geomtx.cli.options import formats, known_cameras, long_sequences, masks, refinement
from geomtx.cli.parser import parse_list
from geomtx.files import user_path

__all__ = ["add_option", "check_names", "check_needed", "choose_heads"]

# Of any family that a scene can hold; what a model has is checked when its weights are found.
_KNOWN = ("camera", "depth", "points", "tracks", "sky", "metric")


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add the option to the command."""
    parser.add_argument(
        "--heads", type=parse_list, metavar="HEADS",
        help=f"predictions to make: {', '.join(_KNOWN)} and added heads, separated by commas (all that the weights "
        "have; tracks only with --query)",
    )  # fmt: skip


def check_names(arguments: argparse.Namespace) -> None:
    """Require names of heads that some weights have, before torch is imported.

    Raises:
        ValueError: Otherwise.
    """
    wanted = arguments.heads or ()
    # Weights of one's own may have heads that were added.
    if arguments.weights is None or not user_path(arguments.weights).exists():
        for head in wanted:
            check_name("head", head, _KNOWN)
    if "tracks" in wanted and not arguments.query:
        raise ValueError("--heads tracks needs points to track, pass --query VIEW,X,Y")


def check_needed(arguments: argparse.Namespace, model: Any, names: Sequence[str]) -> None:
    """Require the heads that options need, of a model without values, also where no heads were named.

    Args:
        arguments: Arguments of the command.
        model: The model.
        names: Names of the photos.

    Raises:
        ValueError: Otherwise.
    """
    refinement.check_heads(arguments, model.heads)
    resolved = argparse.Namespace(**{**vars(arguments), "heads": choose_heads(arguments, model)})
    for check in (long_sequences.check_options, known_cameras.check_options, refinement.check_options):
        check(resolved)
    masks.check_options(resolved, names)
    formats.check_heads(resolved)


def choose_heads(arguments: argparse.Namespace, model: Any) -> tuple[str, ...]:
    """Return the heads that were asked for, or all that a scene can hold; tracks where there is something to track.

    Args:
        arguments: Arguments of the command.
        model: The model.

    Raises:
        ValueError: For heads that the model doesn't have, and for points to track without a head of tracks.
    """
    from geomtx.scene.reconstruction import heads_of_scenes

    available = heads_of_scenes(model)
    if arguments.query and "tracks" not in available:
        raise ValueError(f"--query must be left out for a model without tracks, got one with {', '.join(available)}")
    heads = available if arguments.heads is None else arguments.heads
    for head in heads:
        check_name("head", head, available)
    wanted = [head for head in heads if head != "tracks"]
    return (*wanted, "tracks") if arguments.query else tuple(wanted)
