"""Made-up weights of VGGT-1B with published names, for machines without the real ones: `weights.py FILE`.

The values come from the rule of the golden tensors, so that nothing over- or underflows and every run has the same.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

import geomtx
from geomtx.models.vggt.keys import VGGT_KEYS

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from golden_files import weight_by_rule


def make_weights(path: Path) -> None:
    """Write all 1,797 tensors, 5 GB."""
    with torch.device("meta"):
        model = geomtx.VGGT(geomtx.VGGTConfig())
    names = {VGGT_KEYS.to_published(name): tuple(p.shape) for name, p in model.named_parameters()}
    part = path.with_suffix(".part")  # what is there is whole
    save_file({name: torch.from_numpy(weight_by_rule(name, shape)) for name, shape in names.items()}, part)
    part.rename(path)


if __name__ == "__main__":
    make_weights(Path(sys.argv[1]))
