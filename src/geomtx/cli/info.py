"""`geomtx info`: versions, devices, attention backends and their speed; what a checkpoint holds."""

from __future__ import annotations

import argparse
import platform
from typing import TYPE_CHECKING

from geomtx import __version__
from geomtx.cli.parser import parse_name
from geomtx.cli.weights import check_weights_name

if TYPE_CHECKING:
    import torch

    from geomtx.layers.backends import BackendName

__all__ = ["add_parser"]


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "info",
        help="versions, devices, attention backends; a checkpoint's contents and licence",
        description="Versions, devices, attention backends and their speed; for a checkpoint, what its headers say.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "weights", nargs="?", type=parse_name, metavar="W", help="hub id, folder, or a .safetensors or .pt file"
    )


def run(arguments: argparse.Namespace) -> None:
    """Print facts in two columns; what is wrong with the weights is found before the machine is measured."""
    weights = arguments.weights
    if weights is not None:
        check_weights_name(weights)
    of_weights = [] if weights is None else _describe_weights(weights)
    for name, value in _describe_machine() + of_weights:
        print(f"{name:<12}{value}")


def _describe_machine() -> list[tuple[str, str]]:
    import torch

    from geomtx.layers.backends import available_backends

    devices, accelerators = [f"cpu ({torch.get_num_threads()} threads)"], []
    if torch.accelerator.is_available():
        kind = str(torch.accelerator.current_accelerator())
        accelerators = [torch.device(kind, index) for index in range(torch.accelerator.device_count())]
        devices += [f"{device}{_device_name(device.index)}" for device in accelerators]
    installed = available_backends()
    facts = [
        ("geomtx", __version__),
        ("torch", torch.__version__),
        ("python", platform.python_version()),
        ("devices", ", ".join(devices)),
        ("attention", ", ".join(name if there else f"{name} (not installed)" for name, there in installed.items())),
    ]
    names = [name for name, there in installed.items() if there]
    for device in (torch.device("cpu"), *accelerators):
        facts += _describe_attention(device, names)
    return facts


def _describe_attention(device: torch.device, installed: list[BackendName]) -> list[tuple[str, str]]:
    """Return a table of the backends' times, for small sizes on a CPU."""
    import torch

    from geomtx.layers.backends import CANDIDATES, SHAPES, fastest_backend, measure_backends

    on_cpu = device.type == "cpu"
    dtype, num_heads, shapes = (torch.float32, 4, ((1, 128), (1, 512))) if on_cpu else (torch.bfloat16, 16, SHAPES)
    names = [name for name in CANDIDATES if name in installed]
    try:
        tables = [
            measure_backends(
                device, dtype, head_dim=64, num_tokens=tokens, num_heads=num_heads, num_sequences=sequences, names=names
            )
            for sequences, tokens in shapes
        ]
    except RuntimeError as error:
        return [("", f"not measured on {device}: {str(error).splitlines()[0]}")]
    rows = [[f"ms on {device}", *(f"{sequences} x {tokens} tokens" for sequences, tokens in shapes)]]
    problems: dict[str, str] = {}
    for name in names:
        times = [table[name] for table in tables]
        rows.append([name, *("-" if each.milliseconds is None else f"{each.milliseconds:.3f}" for each in times)])
        found = [each.problem for each in times if each.problem is not None]
        if found:
            problems[name] = found[0]
    rows.append(["fastest", *(fastest_backend(table) for table in tables)])
    lines = [f"{first:<18}" + "".join(f"{each:>16}" for each in others) for first, *others in rows]
    lines.append(f"({str(dtype).removeprefix('torch.')}, {num_heads} heads of 64 channels)")
    lines += [f"{name} is not usable here: {problem}" for name, problem in problems.items()]
    return [("", line) for line in lines]


def _device_name(index: int) -> str:
    import torch

    return f" ({torch.cuda.get_device_name(index)})" if torch.cuda.is_available() else ""


def _describe_weights(name: str) -> list[tuple[str, str]]:
    """Return what the checkpoint says; of a name that stands for two of them, what both say."""
    from geomtx.models.published import NESTED_PAIRS

    return [fact for source in NESTED_PAIRS.get(name, (name,)) for fact in _describe_checkpoint(source)]


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
        ("names", summary.naming + (f" under the prefix {summary.prefix!r}" if summary.prefix else "")),
        ("heads", ", ".join(summary.heads) or "none"),
        ("licence", summary.licence or "unknown: ask whoever published the weights"),
    ]
