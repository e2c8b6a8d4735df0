"""`geomtx reconstruct`: photos or a video to cameras, depth, a point cloud and pictures."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geomtx.cli.device import (
    check_device_name,
    choose_device,
    device_of_process,
    is_first_process,
    joined_processes,
    num_processes,
)
from geomtx.cli.options import formats, heads, known_cameras, long_sequences, masks, pairs, refinement, video
from geomtx.cli.output import NANO_WEIGHTS, RANDOM_WEIGHTS, Stages, describe_saved
from geomtx.cli.parser import add_output, parse_count, parse_name, parse_query
from geomtx.cli.weights import check_image_side, check_weights_name, embedded_weights
from geomtx.files import check_writable, list_inputs, read_metadata, staged_folder, user_path
from geomtx.views.listing import name_files

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from geomtx.models.vggt import VGGT, VGGTConfig
    from geomtx.scene import KnownCameras, Scene
    from geomtx.scene.files.export import SaveOptions
    from geomtx.views import Views

__all__ = ["add_parser", "add_weights", "check_weights", "choose_output", "name_weights", "random_model"]

_MODES = ("fit", "crop", "pad", "square", "area", "center", "center_square", "balanced", "max_size")
_BOUND_MODES = tuple(f"{side}_bound_{way}" for side in ("upper", "lower") for way in ("resize", "crop"))
_DTYPES = ("float32", "bfloat16", "float16")


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "reconstruct",
        help="photos or a video to cameras, depth, a point cloud and pictures",
        description="Write scene.safetensors, cameras.json, report.html to open in a browser, report.png and "
        "the formats asked for, points.ply without --formats; with --query, tracks.json too. Lengths are up to "
        "scale, in the first photo's camera frame, unless --cameras or --distance say otherwise.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "photos", nargs="+", type=parse_name, metavar="PHOTOS",
        help="a folder of photos, several files, or a video; the first photo is the reference",
    )  # fmt: skip
    add_output(parser, "folder for the results", rule="NAME-geomtx here, for a folder or a video NAME")
    _add_model_options(parser)
    heads.add_option(parser)
    parser.add_argument(
        "--query", type=parse_query, action="append", metavar="VIEW,X,Y",
        help="track the point at pixel x, y of a photo, counted from 0; can be given again",
    )  # fmt: skip
    parser.add_argument(
        "--mode", choices=(*_MODES, *_BOUND_MODES), metavar="MODE",
        help=f"how photos become images: whole, cropped, padded to a square, all in the shape of the first with --size "
        f"pixels, cut about the centre, or to 2:1 at most: {', '.join(_MODES)}; or as Depth Anything 3's authors do: "
        f"{', '.join(_BOUND_MODES)} (what the model is made for, or fit)",
    )  # fmt: skip
    parser.add_argument(
        "--cut", action="store_true",
        help="cut images that come out in different sizes to the smallest height and width instead of padding them",
    )  # fmt: skip
    parser.add_argument(
        "--size", type=parse_count, metavar="N",
        help="longer side of the images in pixels, a multiple of the model's patch (what the model is made for); with "
        "--mode area their number of pixels",
    )  # fmt: skip
    parser.add_argument(
        "--maps", choices=("network", "original"), default="network",
        help="depth maps to keep: in the model's pixels, or in those of the photos, too (network)",
    )  # fmt: skip
    video.add_options(parser, "2, at least 8 and at most 32 in all")
    known_cameras.add_options(parser)
    masks.add_options(parser)
    long_sequences.add_options(parser)
    pairs.add_options(parser)
    refinement.add_options(parser)
    formats.add_options(parser)


def add_weights(parser: argparse.ArgumentParser, what: str = "") -> None:
    """Add the options that say which model runs; `what` describes the weights beside where they are."""
    weights = parser.add_mutually_exclusive_group()
    place = "hub id, folder, a .safetensors or .pt file, or nano"
    weights.add_argument("--weights", type=parse_name, metavar="W", help=f"{what}; {place}" if what else place)
    weights.add_argument(
        "--preset", type=_parse_preset, choices=("tiny",), help="a model with random weights instead, to try things out"
    )
    parser.add_argument("--random-seed", type=int, default=0, metavar="N", help="seed of the random weights (0)")


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which model runs, and how."""
    add_weights(parser)
    parser.add_argument("--device", metavar="D", help="cpu, cuda, mps, … (the accelerator if there is one)")
    parser.add_argument("--dtype", choices=_DTYPES, help="precision of the weights (as stored)")
    parser.add_argument(
        "--view-chunk", type=_parse_chunk, default="auto", metavar="N", help="number of photos decoded at once (auto)"
    )
    parser.add_argument(
        "--memory", type=_parse_memory, default="auto", metavar="M",
        help="memory of the device to use: auto (what is free), low (as little as can be), or a size: 8GiB = 8 x 2^30 "
        "bytes, 8GB = 8 x 10^9 (auto)",
    )  # fmt: skip
    parser.add_argument(
        "--quantize", choices=("int8", "fp8"),
        help="store the weights of the transformer blocks in 8 bits, for less memory (needs the extra quant)",
    )  # fmt: skip
    parser.add_argument("--compile", action="store_true", help="compile the model first, which pays for large scenes")


def run(arguments: argparse.Namespace) -> None:
    """Check everything that is quick to check, then do the work, then write; of several processes the first writes."""
    # Before torch is imported, which takes seconds: a mistake in the arguments is found at once.
    video.check_options(arguments)
    source = None if arguments.output else _find_source(arguments.photos)
    arguments.output = arguments.output or choose_output(arguments.photos, "geomtx", overwrite=arguments.overwrite)
    _check_arguments(arguments)
    if is_first_process():  # before a video is read
        check_writable(arguments.output)
    with video.photo_files(arguments) as photos:
        _reconstruct(arguments, photos, source)


def _reconstruct(arguments: argparse.Namespace, photos: video.PhotoFiles, source: Path | None) -> None:
    """Reconstruct a scene from photos and write it.

    Args:
        arguments: Arguments of the command, checked.
        photos: Files of the photos.
        source: Place of the photos that the results are recognised by, where the folder for them was chosen by it.
    """
    output, overwrite, names = arguments.output, arguments.overwrite, name_files(photos.paths)
    masks.check_options(arguments, names)
    from geomtx.scene.checks import require_usable
    from geomtx.scene.files.save import owned_files, write_files

    first = is_first_process()
    what = formats.read_options(arguments)
    owned = (*owned_files(output, names, what), *video.own_frames(output, photos.paths), *photos.names)
    if first:
        inputs = [*photos.inputs, *list_inputs(arguments.weights, arguments.cameras, arguments.masks, arguments.moving)]
        check_writable(output, owned, overwrite=overwrite, inputs=inputs)
    device = device_of_process(choose_device(arguments.device))
    stages = Stages(5 + arguments.refine, show=first)
    with stages.stage("find the weights"):
        empty = _empty_model(arguments)
        pairs.check_options(arguments, empty)
        if not pairs.sees_pairs(empty):
            heads.check_needed(arguments, empty, names)
    with stages.stage("load the photos"):
        views = _load_views(arguments, photos.paths, empty.config, what)
        known = known_cameras.read_known_cameras(arguments, views, empty)
        given = known if known_cameras.is_model_input(arguments, known, empty) else None
        _check_memory(arguments, empty, views, device, given)
    with stages.stage("load the weights"):
        model = _load_model(arguments, empty, device)
    with stages.stage("reconstruct"), joined_processes(device):
        scene = _run_model(arguments, model, views, given)
    if not first:
        return
    require_usable(scene, _advise(model))
    scene, fits = known_cameras.align_scene(arguments, scene, known, was_input=given is not None)
    if arguments.refine:
        with stages.stage("refine"):
            fixed = known_cameras.find_fixed_views(arguments, known)
            scene = refinement.refine_scene(arguments, model, scene, fixed)
    scene = _describe_origin(arguments, masks.apply_filter(arguments, scene), views, photos, source)
    with stages.stage("write the results"), staged_folder(output, owned, overwrite=overwrite) as folder:
        saved = write_files(photos.move(scene, folder), folder, what, home=output)
    seconds = stages.finish()
    if scene.notice:
        print(f"geomtx: warning: {scene.notice}", file=sys.stderr)
    refinement.warn(arguments, scene)
    frames = "" if photos.plan is None else f"{video.FRAMES}, "
    if scene.moving is not None:
        share = float(scene.moving[scene.masks].double().mean())
        fits = [*fits, f"moving by itself: {100 * share:.2g} % of the pixels"]
    summary = f"wrote {output}: {frames}{describe_saved(scene, saved)}, {seconds:.1f} s"
    print("\n".join([summary, *fits, *saved.notes]))


def _load_views(arguments: argparse.Namespace, paths: Sequence[Path], config: VGGTConfig, what: SaveOptions) -> Views:
    """Load the photos with their masks, and check what depends on their sizes."""
    from geomtx.scene.checks import queries_to_model
    from geomtx.scene.files.save import check_sizes
    from geomtx.views import load_views

    views = load_views(paths, mode=arguments.mode, size=arguments.size, model=config, cut=arguments.cut)
    views = masks.apply_masks(arguments, views)
    if arguments.query:
        queries_to_model(_as_tensor(arguments.query), views.transforms, views.names)
    check_sizes(what, [transform.original_hw for transform in views.transforms])
    return views


def _run_model(arguments: argparse.Namespace, model: VGGT, views: Views, cameras: KnownCameras | None) -> Scene:
    from geomtx.scene import reconstruct

    progress = is_first_process() and sys.stderr.isatty()
    if pairs.sees_pairs(model):
        tracker = pairs.load_tracker(arguments, next(model.parameters()).device)
        options = pairs.read_options(arguments) | long_sequences.read_options(arguments)
        return reconstruct(model, views, cameras=cameras, progress=progress, motion=tracker, **options)
    return reconstruct(
        model,
        views,
        query_points=arguments.query,
        cameras=cameras,
        view_chunk=arguments.view_chunk,
        memory=arguments.memory,
        compile=arguments.compile,
        progress=progress,
        parallel=num_processes() > 1,
        **known_cameras.read_options(arguments),
        **long_sequences.read_options(arguments),
    )


def _describe_origin(
    arguments: argparse.Namespace, scene: Scene, views: Views, photos: video.PhotoFiles, source: Path | None
) -> Scene:
    """Return the scene with a record of what it was made of, and with the notice of weights that know little."""
    made = {"weights": name_weights(arguments), **scene.provenance}
    if views.preparation is not None:
        made["mode"] = views.preparation.mode
    if photos.plan is not None:
        made |= photos.describe()
    if source is not None:
        made["source"] = _digest(source)
    notice = RANDOM_WEIGHTS if arguments.preset else NANO_WEIGHTS if arguments.weights == "nano" else scene.notice
    return dataclasses.replace(scene, provenance=made, notice=notice)


def choose_output(photos: Sequence[str], kind: str, *, overwrite: bool) -> Path:
    """Return `NAME-KIND` in the current folder for photos NAME; beside the folder of the photos if that is here.

    Where that folder has something else in it than results of the same photos, it is `NAME-geomtx-2`, and so on.
    """
    source = _find_source(photos)
    name = f"{source.name if source.is_dir() else source.stem}-{kind}"
    inside = len(photos) == 1 and source.resolve() in (Path.cwd(), *Path.cwd().parents)
    first = source.resolve().parent / name if inside else Path(name)
    numbered = (first.with_name(f"{name}-{number}") for number in itertools.count(2))
    if overwrite or _may_hold(first, source):
        return first
    output = next(folder for folder in numbered if _may_hold(folder, source))
    if is_first_process():
        print(f"geomtx: '{first}' holds something else, the results go to '{output}'", file=sys.stderr)
    return output


def _find_source(photos: Sequence[str]) -> Path:
    """Return the folder of photos or the only photo; of several photos, the folder of the first."""
    paths = [user_path(each).absolute() for each in photos]
    return paths[0] if len(paths) == 1 else paths[0].parent


def _may_hold(folder: Path, source: Path) -> bool:
    """Whether a folder is free or empty, or has results that were made of the same photos without --output."""
    if not os.path.lexists(folder):
        return True
    try:
        if not any(folder.iterdir()):
            return True
        made = json.loads(read_metadata(folder / "scene.safetensors").get("provenance", "{}"))
        return bool(made.get("source") == _digest(source))
    except (OSError, ValueError, AttributeError):
        return False


def _digest(source: Path) -> str:
    """Return what the place of photos is recognised by; scenes are given to others, so they don't hold its path."""
    return hashlib.sha256(os.fsencode(source.resolve())).hexdigest()[:16]


def _check_arguments(arguments: argparse.Namespace) -> None:
    """Require arguments that make sense by themselves and together; imports no torch."""
    heads.check_names(arguments)
    long_sequences.check_options(arguments)
    known_cameras.check_options(arguments)
    refinement.check_options(arguments)
    photos, output = user_path(arguments.photos[0]), arguments.output
    if photos.is_dir() and output.exists() and photos.samefile(output):
        raise ValueError(f"--output must not be the folder of the photos: report.png would be one, got '{output}'")
    check_device_name(arguments.device)
    if arguments.mode in (None, *_MODES) and arguments.mode != "area":
        check_image_side(arguments.size, arguments.weights)
    check_weights(arguments)


def check_weights(arguments: argparse.Namespace) -> None:
    """Require weights that may exist, see `add_weights`.

    Raises:
        ValueError: If none are named.
        FileNotFoundError: If there are none of this name.
    """
    if arguments.weights is not None:
        check_weights_name(arguments.weights)
    elif arguments.preset is None:
        raise ValueError(
            "no weights: pass --weights with a hub id such as facebook/VGGT-1B, a folder or a file; "
            "or --weights nano, small and for rendered rooms, or --preset tiny for random weights"
        )


def _advise(model: VGGT) -> str:
    """Say what to do about predictions that are not finite."""
    import torch

    dtype = next(model.parameters()).dtype
    half = dtype in (torch.float16, torch.bfloat16)
    return f"{dtype} may be too coarse, try --dtype float32" if half else "the weights may be damaged"


def _empty_model(arguments: argparse.Namespace) -> Any:
    """Return the model, of any family that reconstructs scenes, without values."""
    from geomtx.models.registry import empty_model
    from geomtx.models.vggt import VGGT, VGGTConfig

    return VGGT(VGGTConfig.tiny()) if arguments.preset else empty_model(arguments.weights)


def _check_memory(
    arguments: argparse.Namespace, model: VGGT, views: Views, device: torch.device, cameras: KnownCameras | None
) -> None:
    """Refuse photos that can't fit into memory before the weights are loaded, which may take minutes."""
    from geomtx.scene.checks import check_scene_memory

    if num_processes() > 1:
        return
    if pairs.sees_pairs(model):
        pairs.check_scene(arguments, model, views, device, cameras)
        return
    check_scene_memory(
        model,
        views.image_hw,
        heads.choose_heads(arguments, model),
        device,
        num_views=len(views),
        at_once=min(len(views), arguments.window or len(views)),
        element_size=4 if arguments.dtype == "float32" else 2,  # what is stored is not known yet
    )


def _load_model(arguments: argparse.Namespace, empty: Any, device: torch.device) -> VGGT:
    """Load or make the model, which is there without values, with the heads that are needed, and no others."""
    import torch

    from geomtx.inference.quantize import quantize_model
    from geomtx.models.registry import load_model

    chosen = None if pairs.sees_pairs(empty) else heads.choose_heads(arguments, empty)
    if chosen and refinement.needs_tracker(arguments) and "tracks" in empty.heads and "tracks" not in chosen:
        chosen = (*chosen, "tracks")
    dtype = None if arguments.dtype is None else getattr(torch, arguments.dtype)
    if arguments.preset is None:
        model: Any = load_model(arguments.weights, heads=chosen, device=device, dtype=dtype)
    else:
        model = random_model(dataclasses.replace(empty.config, heads=chosen), arguments.random_seed)
        model = model.to(device=device, dtype=dtype)
    return model if arguments.quantize is None else quantize_model(model, arguments.quantize)


def name_weights(arguments: argparse.Namespace) -> str:
    """Return what the report calls the weights: a hub id as it is, a folder or a file without its path."""
    if arguments.preset:
        return f"random, {arguments.preset}, seed {arguments.random_seed}"
    path = user_path(arguments.weights)
    return path.absolute().name if path.exists() else arguments.weights


def random_model(config: VGGTConfig, seed: int) -> VGGT:
    """Return a model with random weights, the same for the same seed."""
    import torch

    from geomtx.models.vggt import VGGT

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return VGGT(config).eval()


def _as_tensor(queries: list[tuple[float, ...]]) -> Tensor:
    import torch

    return torch.tensor(queries)


def _parse_preset(text: str) -> str:
    """Return the text as it is, but say so where it is the name of trained weights."""
    if text in embedded_weights():
        raise argparse.ArgumentTypeError(f"must be a model with random weights, got '{text}'; use --weights {text}")
    return text


def _parse_memory(text: str) -> str | int:
    if text in ("auto", "low"):
        return text
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([MG])(i?)B", text, re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"must be auto, low or a size such as 8GiB or 500MB, got {text!r}")
    number, letter, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** {"m": 2, "g": 3}[letter.lower()])


def _parse_chunk(text: str) -> int | str:
    return text if text == "auto" else parse_count(text)
