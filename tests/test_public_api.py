import importlib
import inspect
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

import geomtx

# Every public name and what it is. A change here is a change for users: it belongs into the CHANGELOG.
INVENTORY = {
    "AlternatingEncoder": "module",
    "Attention": "module",
    "CameraHead": "module",
    "Cameras": "named tuple",
    "CroCo": "module",
    "CroCoConfig": "class",
    "DPTDecoder": "module",
    "DUSt3R": "module",
    "DUSt3RConfig": "class",
    "DenseHead": "module",
    "DenseMap": "named tuple",
    "DepthAnything3": "module",
    "DepthAnything3Config": "class",
    "FeatureExtractor": "module",
    "KnownGeometry": "named tuple",
    "MASt3R": "module",
    "MASt3RConfig": "class",
    "MultitaskLoss": "module",
    "NVSConfig": "class",
    "NestedDepthAnything3": "module",
    "NestedDepthAnything3Config": "class",
    "Pi3": "module",
    "Pi3Config": "class",
    "Predictions": "named tuple",
    "Scene": "class",
    "SceneBatch": "named tuple",
    "Tokens": "named tuple",
    "TrackHead": "module",
    "TrackLabels": "named tuple",
    "Tracker": "module",
    "Tracks": "named tuple",
    "TransformerBlock": "module",
    "VGGT": "module",
    "VGGTConfig": "class",
    "VGGTForNVS": "module",
    "VGGTOmega": "module",
    "VGGTOmegaConfig": "class",
    "VideoTracker": "module",
    "VideoTrackerConfig": "class",
    "VideoTracks": "named tuple",
    "Views": "class",
    "VisionTransformer": "module",
    "__version__": "string",
    "add_lora": "function",
    "aleatoric_loss": "function",
    "align": "function",
    "camera_loss": "function",
    "decode_pose": "function",
    "encode_pose": "function",
    "fit_similarity": "function",
    "freeze": "function",
    "gradient_loss": "function",
    "invert_rigid": "function",
    "list_models": "function",
    "load_lora": "function",
    "load_model": "function",
    "load_views": "function",
    "merge_lora": "function",
    "normal_loss": "function",
    "normalize_scene": "function",
    "parameter_groups": "function",
    "plucker_rays": "function",
    "predict_parallel": "function",
    "project": "function",
    "quantize_model": "function",
    "reconstruct": "function",
    "refine": "function",
    "remove_lora": "function",
    "save_lora": "function",
    "track_loss": "function",
    "unfreeze": "function",
    "unproject": "function",
}
NAMES = sorted(INVENTORY.keys() - {"__version__"})

# The parameters of what the README and the docs call; keyword-only ones after the star.
SIGNATURES = {
    "VGGT": "(config)",
    "VGGT.forward": "(self, images, query_points, patch_mask, *, heads)",
    "VGGT.from_pretrained": "(source, *, heads, device, dtype, config, quantize, extra_heads)",
    "DepthAnything3": "(config)",
    "DepthAnything3.forward": "(self, images, query_points, patch_mask, *, heads, cameras)",
    "DepthAnything3.from_pretrained": "(source, *, heads, device, dtype, config, quantize, extra_heads)",
    "DepthAnything3.save_pretrained": "(self, folder, *, names, overwrite)",
    "DepthAnything3Config.tiny": "(**changes)",
    "NestedDepthAnything3": "(config)",
    "NestedDepthAnything3.from_models": "(any_view, metric)",
    "NestedDepthAnything3.forward": "(self, images, query_points, patch_mask, *, heads, cameras)",
    "NestedDepthAnything3.from_pretrained": "(source, *, heads, device, dtype, config, quantize, extra_heads)",
    "DUSt3R": "(config)",
    "DUSt3R.forward": "(self, first, second, transposed)",
    "DUSt3R.encode": "(self, images, hidden)",
    "DUSt3R.decode": "(self, first, second)",
    "DUSt3R.from_pretrained": "(source, *, device, dtype, config, quantize)",
    "DUSt3R.from_croco": "(source, config, *, device, dtype)",
    "CroCo.forward": "(self, first, second, hidden)",
    "VGGTOmega": "(config)",
    "VGGTOmega.forward": "(self, images, query_points, patch_mask, *, heads)",
    "VGGTOmega.scene_embedding": "(self, images, patch_mask, **options)",
    "VGGTOmega.from_pretrained": "(source, *, heads, device, dtype, config, quantize, extra_heads)",
    "VGGTOmegaConfig.tiny": "(**changes)",
    "VGGT.add_head": "(self, name, head)",
    "VGGT.remove_head": "(self, name)",
    "VGGT.save_pretrained": "(self, folder, *, names, overwrite)",
    "predict_parallel": "(model, images, query_points, patch_mask, *, heads, group, gather, **options)",
    "VGGTConfig.tiny": "(**changes)",
    "CameraHead.forward": "(self, tokens)",
    "DenseHead.forward": "(self, tokens)",
    "AlternatingEncoder.forward": "(self, images, *, patch_mask, taps, camera_shift, patch_shift, poses)",
    "VGGTForNVS": "(config, vggt)",
    "VGGTForNVS.forward": "(self, images, target_cameras, *, input_cameras, input_mask)",
    "VGGTForNVS.from_vggt": "(source, *, device, dtype, **numbers)",
    "VGGTForNVS.from_pretrained": "(source, *, device, dtype, extra_heads, **numbers)",
    "VGGTForNVS.save_pretrained": "(self, folder, *, overwrite)",
    "plucker_rays": "(cam_from_world, intrinsics, image_hw, *, pixel_center, order)",
    "TrackHead.forward": "(self, tokens, query_points)",
    "TrackHead.track": "(self, features, query_points, *, view_mask)",
    "VideoTracker": "(config, *, features)",
    "VideoTracker.forward": "(self, video, query_points, *, backward, support_grid, local_grid, num_iterations)",
    "VideoTracker.from_pretrained": "(source, *, features, device, dtype, extra_heads)",
    "VideoTracker.from_vggt": "(source, *, device, dtype, **numbers)",
    "VideoTracker.save_pretrained": "(self, folder, *, overwrite)",
    "quantize_model": "(model, kind, *, keep)",
    "FeatureExtractor": "(model, layers, *, frozen)",
    "FeatureExtractor.forward": "(self, images, *, patch_mask)",
    "freeze": "(model, patterns)",
    "unfreeze": "(model, patterns)",
    "add_lora": "(model, patterns, *, rank, alpha)",
    "save_lora": "(model, file, *, overwrite)",
    "list_models": "(pattern)",
    "load_lora": "(model, file)",
    "load_model": "(source, *, device, dtype, heads)",
    "encode_pose": "(cam_from_world, intrinsics, image_hw)",
    "decode_pose": "(encoding, image_hw)",
    "unproject": "(depth, intrinsics, cam_from_world, *, pixel_center)",
    "project": "(points_world, intrinsics, cam_from_world)",
    "invert_rigid": "(transform)",
    "camera_loss": "(pose_encodings, target, mask, *, kind, decay, sign_invariant, weights, reduction)",
    "track_loss": "(iterations, labels, *, decay, kind, threshold_px, weights, min_points, reduction)",
    "normalize_scene": "(batch, *, by_points)",
    "parameter_groups": "(model, *, lr, factors, weight_decay, decays, decay_vectors)",
    "aleatoric_loss": "(value, confidence, target, mask, *, gamma, alpha, outliers, reduction)",
    "MultitaskLoss": "(*, camera, depth, points, tracks, consistency, others)",
    "MultitaskLoss.forward": "(self, predictions, batch)",
    "fit_similarity": "(source, target, weights)",
    "refine": "(scene, observations, *, solver, loss, focal, fixed_views, strict)",
}
FIELDS = {
    "Cameras": ("cam_from_world", "intrinsics"),
    "DenseMap": ("value", "confidence"),
    "Predictions": (
        *("cameras", "pose_encodings", "depth", "points", "tracks", "track_iterations", "extra"),
        *("rays", "sky", "scene_embedding", "points_cam", "metric_scale"),
    ),
    "SceneBatch": ("images", "cameras", "camera_mask", "depth", "points", "mask", "tracks", "query_views"),
    "Tokens": ("layers", "num_special", "image_hw", "grid_hw", "mask"),
    "TrackLabels": ("coords_px", "visible", "valid"),
    "Tracks": ("coords_px", "visibility", "confidence"),
    "VideoTracks": ("tracks", "windows"),
}


def kind_of(value: object) -> str:
    if isinstance(value, str):
        return "string"
    if not inspect.isclass(value):
        return "function" if callable(value) else type(value).__name__
    if issubclass(value, nn.Module):
        return "module"
    return "named tuple" if issubclass(value, tuple) else "class"


def test_inventory():
    assert {name: kind_of(getattr(geomtx, name)) for name in geomtx.__all__} == INVENTORY
    assert dir(geomtx) == sorted(geomtx.__all__)


def test_every_public_name_is_on_a_page_of_the_api():
    """The first page lists it, and the page of models has those that `geomtx.models` exports."""
    index = (Path(__file__).parents[1] / "docs" / "api" / "index.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"`{name}`" not in index] == []
    models = importlib.import_module("geomtx.models").__all__
    families = {name for name in NAMES if getattr(geomtx, name).__module__.count(".") == 3}
    families = {name for name in families if getattr(geomtx, name).__module__.startswith("geomtx.models.")}
    assert families - set(models) == set()


def test_every_public_name_has_a_docstring():
    """One of its own, not the one that is generated."""
    docs = {name: getattr(geomtx, name).__doc__ or "" for name in NAMES}
    assert [name for name, doc in docs.items() if len(doc.split("\n")[0]) <= 10 or doc.startswith(f"{name}(")] == []


def test_public_methods_have_docstrings():
    methods = {
        f"{name}.{method}": getattr(value, method).__doc__
        for name, value in ((name, getattr(geomtx, name)) for name in NAMES)
        if inspect.isclass(value)
        for method in vars(value)
        if not method.startswith("_") and inspect.isfunction(getattr(value, method, None))
    }
    assert len(methods) > 20
    assert [method for method, doc in methods.items() if not doc] == []


def annotated(value: object) -> Iterator[object]:
    """A function, or a class with its public methods and properties."""
    if inspect.isclass(value):
        yield value
        for name, member in vars(value).items():
            member = getattr(member, "__func__", getattr(member, "fget", member))
            if (not name.startswith("_") or name in ("__init__", "__call__")) and inspect.isfunction(member):
                yield member
    elif inspect.isfunction(value):
        yield value


def modules_to_read() -> list[str]:
    """All packages, and every file of those that compute."""
    root = Path(geomtx.__file__).parent
    paths = [path.relative_to(root) for path in root.rglob("*.py")]
    # The others name types of packages that are only imported where they are needed.
    whole = {"data", "encoder", "geometry", "heads", "layers", "losses", "metrics", "scene", "tracking", "views"}
    chosen = [path for path in paths if path.stem == "__init__" or path.parts[0] in whole or path.stem == "types"]
    return sorted(".".join(("geomtx", *path.with_suffix("").parts)).removesuffix(".__init__") for path in chosen)


@pytest.mark.parametrize("module", modules_to_read())
def test_type_hints_of_public_names_can_be_read(module):
    """Documentation tools and checkers of types at run time read them: every name in them must be there."""
    home = importlib.import_module(module)
    for name in getattr(home, "__all__", ()):
        for value in annotated(getattr(home, name)):
            typing.get_type_hints(value)


@pytest.mark.parametrize("path", SIGNATURES)
def test_signatures(path):
    value = geomtx
    for name in path.split("."):
        value = getattr(value, name)
    parts, starred = [], False
    for parameter in inspect.signature(value).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            parts.append("*")
            starred = True
        parts.append(f"**{parameter.name}" if parameter.kind is parameter.VAR_KEYWORD else parameter.name)
    assert f"({', '.join(parts)})" == SIGNATURES[path]


@pytest.mark.parametrize("name", FIELDS)
def test_fields_of_values(name):
    assert getattr(geomtx, name)._fields == FIELDS[name]


def test_each_module_and_package_loads_by_itself():
    """In a process where nothing else of geomtx has been loaded, and without an import of its own."""
    code = """
import sys, geomtx
def forget():
    for module in [m for m in sys.modules if m.startswith("geomtx.")]:
        del sys.modules[module]
    for other in (*geomtx._HOMES, *geomtx._PACKAGES, "checks", "files", "parsing"):
        vars(geomtx).pop(other, None)
for name in {home: name for name, home in geomtx._HOMES.items()}.values():
    forget()
    assert getattr(geomtx, name) is vars(geomtx)[name], name
for name in geomtx._PACKAGES:
    forget()
    package = getattr(geomtx, name)
    assert getattr(package, package.__all__[0]), name
from geomtx import *
assert all(vars(geomtx)[name].__module__.startswith("geomtx.") for name in geomtx._HOMES)
print(VGGT.__name__, len(geomtx.__all__))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["VGGT", str(len(INVENTORY))]


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match=r"^module 'geomtx' has no attribute 'VGGTT'; did you mean 'VGGT'"):
        geomtx.VGGTT  # noqa: B018
    assert not hasattr(geomtx, "anything")


def test_the_page_of_blocks_shows_every_module():
    """But for a family of models, which may be shown on its own page."""
    docs = Path(__file__).parents[1] / "docs"
    code = (docs / "recipes" / "blocks.md").read_text(encoding="utf-8")
    families = "".join(page.read_text(encoding="utf-8") for page in (docs / "models").glob("*.md"))
    models = {name for name in importlib.import_module("geomtx.models").__all__ if f"geomtx.{name}(" in families}
    shown = models | {name for name in NAMES if f"geomtx.{name}(" in code}
    assert {name for name, kind in INVENTORY.items() if kind == "module"} - shown == set()
    for home in ("encoder", "heads", "layers", "losses", "tracking"):
        package = importlib.import_module(f"geomtx.{home}")
        kinds = {name: getattr(package, name) for name in package.__all__}
        modules = {name for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, nn.Module)}
        assert [name for name in sorted(modules) if f".{name}(" not in code] == []


def test_version_is_written_once():
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert 'dynamic = ["version"]' in project
    assert '[tool.hatch.version]\npath = "src/geomtx/__init__.py"' in project
    assert re.fullmatch(r"\d+\.\d+\.\d+", geomtx.__version__)


def test_a_misspelt_package_is_suggested():
    with pytest.raises(AttributeError, match=r"did you mean 'losses'\?$"):
        geomtx.loses  # noqa: B018
    assert not hasattr(geomtx, "__path_")
