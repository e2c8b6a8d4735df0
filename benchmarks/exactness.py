"""How far each mode is from the plain forward pass in float32 on the same weights: `exactness.py [WEIGHTS] …`.

Without weights, those of nano, on rendered rooms that it was never trained on. Of the differences
(`benchmarks/differences.py`) the worst scene counts. Identical means bit by bit.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch

import geomtx
from common import write_result
from differences import compare_predictions
from geomtx.data.synthetic.render import HELD_OUT_SCENES, held_out_seed
from geomtx.inference import LEAN_PLAN, MemoryPlan, predict
from geomtx.training.config_file import load_config
from geomtx.training.data import build_source

# Largest differences of a mode that is called exact.
GATES = {"rotation_deg": 0.02, "translation": 1e-3, "depth": 2e-3}
SCENES = HELD_OUT_SCENES["exactness"]
MODES: dict[str, dict[str, Any]] = {
    "dense heads a view at a time": {"plan": MemoryPlan(1, output_device=None)},
    "in pieces": {"plan": MemoryPlan(2, 256)},
    "leanest plan": {"plan": LEAN_PLAN},
    "math attention": {"attention": "math"},
    "bfloat16": {"dtype": torch.bfloat16},
    "bfloat16, leanest plan": {"dtype": torch.bfloat16, "plan": LEAN_PLAN},
    "float16": {"dtype": torch.float16},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="?", default="nano")
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="of noise instead of rooms")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("--output", type=Path, help="folder of the result")
    arguments = parser.parse_args()
    model = geomtx.VGGT.from_pretrained(arguments.weights, heads=("camera", "depth"), device=arguments.device)
    model.eval()
    images = draw_images(arguments.scenes, arguments.views, arguments.size).to(arguments.device)
    with torch.inference_mode():
        plain = [model(scene) for scene in images]
        results = {name: compare(plain, run_mode(model, images, **MODES[name])) for name in arguments.modes}
    for name, found in results.items():
        print(f"{name:32}", found)
    settings = {
        "weights": "nano" if arguments.weights == "nano" else f"{model.config.dim} wide, filled with random numbers",
        "images": list(images.shape),
        "rooms": arguments.size is None,
        "device": torch.device(arguments.device).type,
        "gates": GATES,
    }
    name = f"exactness_{settings['device']}_{'nano' if arguments.weights == 'nano' else '1b'}"
    write_result(name, settings, results, folder=arguments.output, show=False)


def draw_images(num_scenes: int, num_views: int, size: tuple[int, int] | None) -> torch.Tensor:
    """Rooms of nano's recipe, or noise of another size: (scenes, views, 3, H, W)."""
    if size is not None:
        return torch.rand(num_scenes, num_views, 3, *size, generator=torch.Generator().manual_seed(0))
    data = load_config("nano").data
    draw = build_source(data, patch_size=geomtx.VGGTConfig.nano().patch_size, held_out=True)
    return draw([held_out_seed(index) for index in SCENES[:num_scenes]], num_views, data.image_hw).images


def run_mode(
    model: geomtx.VGGT,
    images: torch.Tensor,
    *,
    attention: str | None = None,
    dtype: torch.dtype | None = None,
    **how: Any,
) -> list[geomtx.Predictions]:
    """The same weights in another precision or with another attention."""
    if attention is not None or dtype is not None:
        config = model.config if attention is None else dataclasses.replace(model.config, attention=attention)
        with torch.device("meta"):
            other = geomtx.VGGT(config)
        other.load_state_dict(model.state_dict(), assign=True)
        model = other.to(dtype or torch.float32).eval()
    return [predict(model, scene.to(next(model.parameters()).dtype), **how) for scene in images]


def compare(plain: list[geomtx.Predictions], found: list[geomtx.Predictions]) -> dict[str, Any]:
    scenes = [compare_predictions(b, a) for a, b in zip(plain, found, strict=True)]
    differences = {name: max(scene[name] for scene in scenes) for name in GATES}
    identical = all(
        torch.equal(getattr(a, head)[i], getattr(b, head)[i])
        for a, b in zip(plain, found, strict=True)
        for head in ("cameras", "depth")
        for i in range(2)
    )
    return {
        **{key: float(f"{value:.3g}") for key, value in differences.items()},
        "identical": identical,
        "within_gates": all(differences[key] <= gate for key, gate in GATES.items()),
    }


if __name__ == "__main__":
    main()
