"""`geomtx info`: versions, devices and attention backends; what a checkpoint holds."""

from __future__ import annotations

import argparse
import platform

from geomtx import __version__
from geomtx.cli.parser import parse_name

__all__ = ["add_parser"]


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "info",
        help="versions, devices, attention backends; a checkpoint's contents and licence",
        description="Versions, devices and attention backends; for a checkpoint, what its headers say.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "weights", nargs="?", type=parse_name, metavar="W", help="hub id, folder, or a .safetensors or .pt file"
    )


def run(arguments: argparse.Namespace) -> None:
    """Print facts in two columns."""
    facts = _describe_machine() + ([] if arguments.weights is None else _describe_checkpoint(arguments.weights))
    for name, value in facts:
        print(f"{name:<12}{value}")


def _describe_machine() -> list[tuple[str, str]]:
    import torch

    from geomtx.layers.backends import available_backends

    devices = [f"cpu ({torch.get_num_threads()} threads)"]
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        devices += [f"{kind}:{index}{_device_name(index)}" for index in range(torch.accelerator.device_count())]
    backends = [name if usable else f"{name} (not installed)" for name, usable in available_backends().items()]
    return [
        ("geomtx", __version__),
        ("torch", torch.__version__),
        ("python", platform.python_version()),
        ("devices", ", ".join(devices)),
        ("attention", ", ".join(backends)),
    ]


def _device_name(index: int) -> str:
    import torch

    return f" ({torch.cuda.get_device_name(index)})" if torch.cuda.is_available() else ""


def _describe_checkpoint(source: str) -> list[tuple[str, str]]:
    from geomtx.cli.checkpoint_summary import summarize_checkpoint

    summary = summarize_checkpoint(source)
    dtypes = [
        name if len(summary.dtypes) == 1 else f"{name} ({count} tensors)" for name, count in summary.dtypes.items()
    ]
    return [
        ("checkpoint", source),
        ("tensors", str(summary.num_tensors)),
        ("parameters", f"{summary.num_parameters:,}"),
        ("dtype", ", ".join(dtypes)),
        ("names", summary.naming),
        ("heads", ", ".join(summary.heads) or "none"),
        ("licence", summary.licence or "unknown: ask whoever published the weights"),
    ]
