"""Time and peak memory of VGGT-1B's forward pass: `vggt.py WEIGHTS [--views 4] [--size 280 280] …`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

import geomtx
from common import measure_time, peak_memory_gib, write_result

# The published code on the setting below, on a quiet machine with two cores. Measured separately, not by this script:
# see the machine in the results before you compare.
PUBLISHED_CPU = {"median_s": 24.0, "peak_resident_gib": 5.6}
PUBLISHED_SETTING = {"views": 4, "size": [280, 280], "device": "cpu", "dtype": "float32"}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--size", type=int, nargs=2, default=[280, 280], metavar=("H", "W"))
    parser.add_argument("--heads", default="camera,depth,points")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--view-chunk", type=int, default=1)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--name", help="of the result; default from the settings")
    parser.add_argument("--output", type=Path, help="folder of the result")
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    arguments = parse_arguments()
    heads = tuple(arguments.heads.split(","))
    model = geomtx.VGGT.from_pretrained(
        arguments.weights, heads=heads, device=arguments.device, dtype=getattr(torch, arguments.dtype)
    )
    images = torch.rand(arguments.views, 3, *arguments.size, generator=torch.Generator().manual_seed(0))
    images = images.to(arguments.device)
    timing = measure_time(
        lambda: model(images, view_chunk=arguments.view_chunk), warmup=arguments.warmup, repeats=arguments.repeats
    )
    results: dict[str, Any] = {**timing, **peak_memory_gib(arguments.device)}
    settings = {
        "views": arguments.views,
        "size": arguments.size,
        "heads": heads,
        "device": torch.device(arguments.device).type,
        "dtype": arguments.dtype,
        "view_chunk": arguments.view_chunk,
        "threads": torch.get_num_threads(),
    }
    if all(settings[key] == value for key, value in PUBLISHED_SETTING.items()):
        results["published"] = PUBLISHED_CPU
        results["over_published"] = {key: round(results[key] / value, 3) for key, value in PUBLISHED_CPU.items()}
    height, width = arguments.size
    name = f"vggt_{settings['device']}_{arguments.dtype}_{arguments.views}x{height}x{width}"
    write_result(arguments.name or name, settings, results, folder=arguments.output)


if __name__ == "__main__":
    main()
