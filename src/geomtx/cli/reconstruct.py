"""`geomtx reconstruct`: photos to cameras, depth, a point cloud and pictures."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from typing import TYPE_CHECKING

from geomtx.cli import long_sequences
from geomtx.cli.device import choose_device
from geomtx.cli.output import NANO_WEIGHTS, RANDOM_WEIGHTS, Stages, write_scene
from geomtx.cli.parser import add_output, parse_name
from geomtx.cli.processes import device_of_process, is_first_process, joined_processes, num_processes
from geomtx.files import check_writable, list_inputs, staged_folder, user_path

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from geomtx.models.vggt import VGGT, VGGTConfig
    from geomtx.models.vggt.config import HeadName

__all__ = ["add_parser"]

_HEADS: tuple[HeadName, ...] = ("camera", "depth", "points", "tracks")
_DTYPES = ("float32", "bfloat16", "float16")


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "reconstruct",
        help="photos to cameras, depth, a point cloud and pictures",
        description="Write scene.safetensors, cameras.json, points.ply and report.png; with --query, tracks.json too. "
        "All lengths are up to scale, in the first photo's camera frame.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "photos", nargs="+", type=parse_name, metavar="PHOTOS",
        help="a folder, or several files; the first is the reference",
    )  # fmt: skip
    add_output(parser, "folder for the results")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--weights", type=parse_name, metavar="W", help="hub id, folder, a .safetensors or .pt file, or nano"
    )
    weights.add_argument("--preset", choices=("tiny",), help="a model with random weights instead, to try things out")
    parser.add_argument("--random-seed", type=int, default=0, metavar="N", help="of the random weights (0)")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, mps, … (the accelerator if there is one)")
    parser.add_argument("--dtype", choices=_DTYPES, help="of the weights (as stored)")
    parser.add_argument(
        "--heads",
        type=_parse_heads,
        metavar="HEADS",
        help="of camera, depth, points and tracks, with commas (all that the weights have; tracks only with --query)",
    )
    parser.add_argument(
        "--query", type=_parse_query, action="append", metavar="VIEW,X,Y",
        help="track the point at x, y of a photo (view counts from 0); repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--mode", choices=("fit", "crop", "pad", "square"), default="fit", help="photos to images (fit)"
    )
    parser.add_argument(
        "--size", type=_parse_count, metavar="N",
        help="longer side of the images, a multiple of the model's patch (what the model is made for)",
    )  # fmt: skip
    parser.add_argument(
        "--percentile", type=float, default=20.0, metavar="P", help="points left out, least sure first (20)"
    )
    parser.add_argument("--max-points", type=_parse_count, metavar="N", help="at most so many points")
    parser.add_argument("--view-chunk", type=_parse_chunk, default="auto", metavar="N", help="photos decoded at once")
    parser.add_argument(
        "--memory", type=_parse_memory, default="auto", metavar="M",
        help="of the device to use: auto (what is free), low (as little as can be), or a size: 8GiB = 8 x 2^30 bytes, "
        "8GB = 8 x 10^9 (auto)",
    )  # fmt: skip
    parser.add_argument(
        "--quantize", choices=("int8", "fp8"), help="store the blocks' weights so, for less memory (extra quant)"
    )
    parser.add_argument("--compile", action="store_true", help="compile the model first; for large scenes")
    parser.add_argument(
        "--maps",
        choices=("network", "original"),
        default="network",
        help="depth maps to keep: in the model's pixels, or in those of the photos, too (network)",
    )
    long_sequences.add_options(parser, _parse_count)


def run(arguments: argparse.Namespace) -> None:
    """Check everything that is quick to check, then do the work, then write; of several processes the first writes."""
    _check_arguments(arguments)
    from geomtx.scene import reconstruct
    from geomtx.scene.files import SCENE_FILES
    from geomtx.scene.finite import require_finite
    from geomtx.scene.query import queries_to_model
    from geomtx.views import load_views
    from geomtx.views.loading import default_size, list_photos

    first = is_first_process()
    paths = list_photos(arguments.photos[0] if len(arguments.photos) == 1 else arguments.photos)
    if first:
        inputs = [*paths, *list_inputs(arguments.weights)]
        check_writable(arguments.output, SCENE_FILES, overwrite=arguments.overwrite, inputs=inputs)
    device = device_of_process(choose_device(arguments.device))
    stages = Stages(5, show=first)
    with stages.stage("find weights"):
        config = _read_config(arguments)
    with stages.stage("load photos"):
        size = arguments.size or default_size(config.patch_size, config.image_size)
        views = load_views(paths, mode=arguments.mode, size=size, patch_size=config.patch_size)
        if arguments.query:
            queries_to_model(_as_tensor(arguments.query), views.transforms, views.names)
    with stages.stage("load weights"):
        model = _load_model(arguments, config, device)
    with stages.stage("encode and run heads"), joined_processes(device):
        scene = reconstruct(
            model,
            views,
            query_points=arguments.query,
            view_chunk=arguments.view_chunk,
            memory=arguments.memory,
            compile=arguments.compile,
            progress=first and sys.stderr.isatty(),
            parallel=num_processes() > 1,
            **long_sequences.read_options(arguments),
        )
    if not first:
        return
    require_finite(scene, _advise(model))
    made = {"weights": _name_weights(arguments), **scene.provenance, "mode": arguments.mode}
    scene = dataclasses.replace(scene, provenance=made)
    if arguments.preset or arguments.weights == "nano":
        scene = dataclasses.replace(scene, notice=RANDOM_WEIGHTS if arguments.preset else NANO_WEIGHTS)
    with stages.stage("write"), staged_folder(arguments.output, SCENE_FILES, overwrite=arguments.overwrite) as folder:
        summary = write_scene(
            scene, folder, percentile=arguments.percentile, max_points=arguments.max_points, maps=arguments.maps
        )
    seconds = stages.finish()
    if scene.notice:
        print(f"geomtx: warning: {scene.notice}", file=sys.stderr)
    print(f"wrote {arguments.output}: {summary}, {seconds:.1f} s")


def _check_arguments(arguments: argparse.Namespace) -> None:
    from geomtx.scene.points import check_percentile

    if arguments.weights is None and arguments.preset is None:
        raise ValueError(
            "no weights: pass --weights with a hub id such as facebook/VGGT-1B, a folder or a file; "
            "or --weights nano, small and for rendered rooms, or --preset tiny for random weights"
        )
    check_percentile(arguments.percentile)
    long_sequences.check_options(arguments)
    photos, output = user_path(arguments.photos[0]), arguments.output
    if photos.is_dir() and output.exists() and photos.samefile(output):
        raise ValueError(f"--output must not be the folder of the photos: report.png would be one, got '{output}'")
    if arguments.heads and "tracks" in arguments.heads and not arguments.query:
        raise ValueError("--heads tracks needs points to track, pass --query VIEW,X,Y")


def _advise(model: VGGT) -> str:
    """What to do about predictions that are not finite."""
    import torch

    dtype = next(model.parameters()).dtype
    half = dtype in (torch.float16, torch.bfloat16)
    return f"{dtype} may be too coarse, try --dtype float32" if half else "the weights may be damaged"


def _read_config(arguments: argparse.Namespace) -> VGGTConfig:
    from geomtx.models.vggt import VGGT, VGGTConfig

    return VGGTConfig.tiny() if arguments.preset else VGGT.read_config(arguments.weights)


def _load_model(arguments: argparse.Namespace, config: VGGTConfig, device: torch.device) -> VGGT:
    """The model with the heads that are needed, and no others."""
    import torch

    from geomtx.inference.quantize import quantize_model
    from geomtx.models.vggt import VGGT

    heads = _choose_heads(arguments, config.heads)
    dtype = None if arguments.dtype is None else getattr(torch, arguments.dtype)
    if arguments.preset is None:
        return VGGT.from_pretrained(
            arguments.weights, heads=heads, device=device, dtype=dtype, quantize=arguments.quantize
        )
    model = random_model(dataclasses.replace(config, heads=heads), arguments.random_seed).to(device=device, dtype=dtype)
    return model if arguments.quantize is None else quantize_model(model, arguments.quantize)


def _name_weights(arguments: argparse.Namespace) -> str:
    """What the report calls the weights: a hub id as it is, a folder or file without the way to it."""
    if arguments.preset:
        return f"random, {arguments.preset}, seed {arguments.random_seed}"
    path = user_path(arguments.weights)
    return path.absolute().name if path.exists() else arguments.weights


def _choose_heads(arguments: argparse.Namespace, available: tuple[HeadName, ...]) -> tuple[HeadName, ...]:
    """Those asked for, or all there are; tracks where there is something to track."""
    heads = available if arguments.heads is None else arguments.heads
    wanted: list[HeadName] = [head for head in heads if head != "tracks"]
    return (*wanted, "tracks") if arguments.query else tuple(wanted)


def random_model(config: VGGTConfig, seed: int) -> VGGT:
    """A model with random weights, the same for the same seed."""
    import torch

    from geomtx.models.vggt import VGGT

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return VGGT(config).eval()


def _as_tensor(queries: list[tuple[float, ...]]) -> Tensor:
    import torch

    return torch.tensor(queries)


def _parse_heads(text: str) -> tuple[str, ...]:
    heads = tuple(part.strip() for part in text.split(","))
    for head in heads:
        if head not in _HEADS:
            raise argparse.ArgumentTypeError(f"must be of {', '.join(_HEADS)}, separated by commas, got '{head}'")
    return tuple(dict.fromkeys(heads))


def _parse_query(text: str) -> tuple[float, float, float]:
    try:
        view, x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be VIEW,X,Y, three numbers, got '{text}'") from None
    return view, x, y


def _parse_count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got '{text}'")
    return int(text)


def _parse_memory(text: str) -> str | int:
    if text in ("auto", "low"):
        return text
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([MG])(i?)B", text, re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"must be auto, low or a size such as 8GiB or 500MB, got {text!r}")
    number, letter, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** {"m": 2, "g": 3}[letter.lower()])


def _parse_chunk(text: str) -> int | str:
    return text if text == "auto" else _parse_count(text)
