"""Feed-forward 3D geometry in PyTorch: independent blocks, and presets that match published weights.

Names are loaded on first use (PEP 562), so that `import geomtx` costs nothing beyond `import torch`.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

__version__ = "0.2.0"

# Public name → module that defines it: the imports of the stub. `tests/test_public_api.py` holds the inventory.
_STUB = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
_HOMES = {name: home for home, name in re.findall(r"^from geomtx\.(\S+) import (\w+) as \w+$", _STUB, re.MULTILINE)}

# The rest of each is one step further: `geomtx.losses.RenderingLoss`.
_PACKAGES = (
    "checkpoint", "data", "encoder", "geometry", "heads", "inference", "layers", "losses", "metrics", "models",
    "report", "scene", "tracking", "training", "types", "views",
)  # fmt: skip

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"geomtx.{name}")
    if name not in _HOMES:
        # With an object of its own, Python adds no second suggestion in a traceback.
        raise AttributeError(f"module 'geomtx' has no attribute {name!r}{_suggest(name)}", name=name, obj=None)
    value = getattr(importlib.import_module(f"geomtx.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def _suggest(name: str) -> str:
    from geomtx.checks import close_matches

    # Python itself looks for names such as __path__.
    return "" if name.startswith("_") else close_matches(name, (*_HOMES, *_PACKAGES))


def __dir__() -> list[str]:
    return __all__
