"""What quantised weights cost and save: `benchmarks/quantise.py [WEIGHTS] [--kind int8] [--keep PATTERN …] …`.

Against the same model with its own weights:

- bytes of the weights;
- on random images, where nothing is averaged away, `benchmarks/differences.py`: median and largest over scenes;
- for nano, on held-out rooms (as in `nano.py`): AUC@30 and depth within 25 %, of both models on the same rooms.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch

from common import write_result
from differences import compare_predictions
from geomtx import VGGT, quantize_model
from geomtx.inference.plan import weight_bytes
from geomtx.training.config_file import load_config
from geomtx.training.data import build_source
from nano import evaluate_model, render

MEASURES = ("auc_30", "rra_15", "rta_15", "depth_abs_rel", "depth_delta")


def main() -> None:
    arguments = parse_arguments()
    dtype = getattr(torch, arguments.dtype)
    heads = ("camera", "depth")
    model = VGGT.from_pretrained(arguments.weights, heads=heads, device=arguments.device, dtype=dtype)
    quantised = quantize_model(copy.deepcopy(model), arguments.kind, keep=arguments.keep)
    results: dict[str, Any] = {
        "weight_bytes": {"own": weight_bytes(model), arguments.kind: weight_bytes(quantised)},
        "random_images": compare_random(model, quantised, arguments),
    }
    if arguments.scenes:
        results["rooms"] = compare_rooms({"own": model, arguments.kind: quantised}, arguments)
    settings = {name: value for name, value in vars(arguments).items() if name not in ("output", "weights")}
    settings["weights"] = arguments.weights if arguments.weights == "nano" else Path(arguments.weights).name
    name = f"quantise_{settings['weights']}_{arguments.dtype}_{arguments.kind}"
    write_result(name, settings, results, folder=arguments.output)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="?", default="nano", help="as for VGGT.from_pretrained")
    parser.add_argument("--kind", default="int8", choices=("int8", "fp8"))
    parser.add_argument("--keep", nargs="*", default=[], help="patterns of layers that are not quantised")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--size", type=int, nargs=2, default=[48, 64], metavar=("H", "W"), help="of the random images")
    parser.add_argument("--random", type=int, default=16, help="scenes of random images")
    parser.add_argument("--scenes", type=int, default=48, help="held-out rooms; 0 for weights other than nano")
    parser.add_argument("--output", type=Path, help="folder of the result")
    return parser.parse_args()


@torch.inference_mode()
def compare_random(model: VGGT, quantised: VGGT, arguments: argparse.Namespace) -> dict[str, Any]:
    """[median, largest] over scenes."""
    generator = torch.Generator().manual_seed(0)
    columns: dict[str, list[float]] = {}
    for _ in range(arguments.random):
        images = torch.rand(1, arguments.views, 3, *arguments.size, generator=generator).to(arguments.device)
        for name, value in compare_predictions(quantised(images), model(images)).items():
            columns.setdefault(name, []).append(value)
    return {name: [round(torch.tensor(v).median().item(), 6), round(max(v), 6)] for name, v in columns.items()}


def compare_rooms(models: dict[str, VGGT], arguments: argparse.Namespace) -> dict[str, Any]:
    """[mean, standard error] of both on the same rooms."""
    section = load_config("nano").data
    patch_size = models["own"].config.patch_size
    draw = build_source(section, patch_size=patch_size, held_out=True)
    rooms = render(draw, section, arguments.views, arguments.scenes, arguments.device)
    rooms = [room._replace(points=None, tracks=None) for room in rooms]
    found = {name: evaluate_model(model, rooms) for name, model in models.items()}
    return {name: {measure: numbers[measure] for measure in MEASURES} for name, numbers in found.items()}


if __name__ == "__main__":
    main()
