"""Made-up weights with published names, in place of the real ones: `weights.py FILE`, `weights.py FOLDER NAME`.

A file is of VGGT-1B. A folder has the weights of the model with that name on the hub and its published configuration.
The values come from the rule of the golden tensors, so that nothing over- or underflows and every run has the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import geomtx
from geomtx.encoder import ImageNormalization
from geomtx.models.published_model import PublishedModel
from geomtx.models.vggt.keys import VGGT_KEYS

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from golden_files import fill_by_rule, weight_by_rule

MODELS: dict[str, Callable[[], Any]] = {
    "facebook/VGGT-1B": lambda: geomtx.VGGT(geomtx.VGGTConfig()),
    "depth-anything/DA3-SMALL": lambda: geomtx.DepthAnything3(geomtx.DepthAnything3Config.small()),
    "depth-anything/DA3-BASE": lambda: geomtx.DepthAnything3(geomtx.DepthAnything3Config.base()),
    "naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt": lambda: geomtx.DUSt3R(geomtx.DUSt3RConfig()),
    "naver/MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric": lambda: geomtx.MASt3R(geomtx.MASt3RConfig()),
    "yyfz233/Pi3": lambda: geomtx.Pi3(geomtx.Pi3Config.pi3()),
    "yyfz233/Pi3X": lambda: geomtx.Pi3(geomtx.Pi3Config.pi3x()),
}
"""Name on the hub → function that builds the model."""


def make_weights(path: Path) -> None:
    """Write all 1,797 tensors of VGGT-1B, 5 GB."""
    with torch.device("meta"):
        model = geomtx.VGGT(geomtx.VGGTConfig())
    names = {VGGT_KEYS.to_published(name): tuple(p.shape) for name, p in model.named_parameters()}
    part = path.with_suffix(".part")  # what is there is whole
    save_file({name: torch.from_numpy(weight_by_rule(name, shape)) for name, shape in names.items()}, part)
    part.rename(path)


def make_folder(folder: Path, name: str) -> None:
    """Write the weights of a model and its configuration, as on the hub."""
    with torch.device("meta"):
        model: PublishedModel = MODELS[name]()
    fill_by_rule(model, model.stored_form().keys)
    encoder: Any = model.get_submodule("encoder")
    if isinstance(getattr(encoder, "normalize", None), ImageNormalization):
        encoder.normalize = ImageNormalization()  # with values
    model.save_pretrained(folder, names="published")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        make_folder(Path(sys.argv[1]), sys.argv[2])
    else:
        make_weights(Path(sys.argv[1]))
