"""Time of every attention backend that is installed, on the present device: `attention.py [OUT] [--lengths 893] …`.

Self-attention of one sequence, forward, without a mask. OUT is the folder of the result.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from common import write_result
from geomtx.layers.backends import available_backends, fastest_backend, measure_backends


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, nargs="?", metavar="OUT")
    parser.add_argument("--device", help="default: the accelerator if there is one")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: float32 on a CPU")
    parser.add_argument("--head-dims", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--lengths", type=int, nargs="+", help="tokens; default: 1 to 16 views of 336 x 518")
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--name", help="of the result; default from the settings")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = torch.device(arguments.device or accelerator or "cpu")
    on_cpu = device.type == "cpu"
    dtype = arguments.dtype or ("float32" if on_cpu else "bfloat16")
    lengths = arguments.lengths or [893 * views for views in ((1, 2) if on_cpu else (1, 4, 16))]
    names = [name for name, installed in available_backends().items() if installed]
    settings = {"device": device.type, "dtype": dtype, "heads": arguments.heads, "threads": torch.get_num_threads()}
    results: list[dict[str, Any]] = []
    for head_dim in arguments.head_dims:
        for length in lengths:
            times = measure_backends(
                device,
                getattr(torch, dtype),
                head_dim=head_dim,
                num_tokens=length,
                num_heads=arguments.heads,
                names=names,
            )
            results.append(
                {
                    "head_dim": head_dim,
                    "tokens": length,
                    "fastest": fastest_backend(times),
                    "ms": {name: round(each.milliseconds, 4) for name, each in times.items() if each.milliseconds},
                    "not_usable": {name: each.problem for name, each in times.items() if each.problem},
                }
            )
    write_result(arguments.name or f"attention_{device.type}_{dtype}", settings, results, folder=arguments.output)


if __name__ == "__main__":
    main()
