"""Points and cameras as a GLB file: binary glTF 2.0, which browsers, Blender and other viewers open.

Source: Khronos, glTF 2.0 specification (ISO/IEC 12113:2022), and the extension KHR_materials_unlit.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geomtx import __version__
from geomtx.files import user_path
from geomtx.scene.content import SceneContent
from geomtx.scene.files.frusta import camera_centers, frustum_corners
from geomtx.scene.points import NoPointsError, PointCloud, sample_indices

__all__ = ["MOST_POINTS", "gltf_from_world", "write_glb"]

MOST_POINTS = 1_000_000
"""Number of points that a GLB file has at most: more make viewers slow."""

_FRUSTUM = 0.03  # depth of a frustum in diagonals of the scene
_GENERATOR = f"geomtx {__version__}"  # `geomtx.files.is_own` knows the file by it
_FLOAT, _UINT = 5126, 5125
_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963
_POINTS, _LINES = 0, 1
_JSON_CHUNK, _BINARY_CHUNK = 0x4E4F534A, 0x004E4942
# Apex 0, corners 1 to 4 from the upper left clockwise, and the tip 5 of a roof above the upper edge, which shows up.
_EDGES = np.array([[0, 1], [0, 2], [0, 3], [0, 4], [1, 2], [2, 3], [3, 4], [4, 1], [1, 5], [5, 2]])


def write_glb(path: str | Path, scene: SceneContent, cloud: PointCloud, *, max_points: int = MOST_POINTS) -> None:
    """Write points and camera frusta as two meshes, without lights: viewers show the colours of the photos as they are.

    Axes are glTF's, x right, y up, and z backward for the first camera, which is upright at the origin and looks along
    -z; the unit is the scene's. `extras` of the glTF scene have `gltf_from_world`, the 4x4 matrix row by row that
    brings points of the scene's world into the file's frame, so that both can be related, with the units, the notice
    and the names of the views. Points and frusta have vertex colours, linear as glTF has them, in float32.

    The frusta are lines, 3 % deep of the diagonal between the 5th and the 95th percentile of the points, and in colours
    from red for the first to violet for the last view. Cameras that are not finite have none; neither has a scene
    without cameras, whose world is taken for the first camera's frame.

    Args:
        path: Path of the file, which is overwritten if it exists.
        scene: Scene whose cameras are drawn.
        cloud: Points of the scene, see `Scene.points`.
        max_points: Largest number of points, chosen at random but the same in every call; defaults to a million.

    Raises:
        NoPointsError: If there are no finite points, a ValueError.
        ValueError: If `max_points` is below 1.
    """
    if max_points < 1:
        raise ValueError(f"max_points must be at least 1, got {max_points}")
    chosen = sample_indices(len(cloud.xyz), max_points)
    matrix = gltf_from_world(scene)
    with np.errstate(over="ignore", invalid="ignore"):
        xyz = _move(cloud.xyz[chosen].double().numpy(), matrix).astype(np.float32)
    finite = np.isfinite(xyz).all(axis=1)
    if not finite.any():
        raise NoPointsError("no finite points: a GLB file can't hold the cloud")
    xyz, rgb = xyz[finite], cloud.rgb[chosen].numpy()[finite] / 255
    buffer = _Buffer()
    meshes = [_mesh(buffer, "points", _POINTS, xyz, rgb)]
    frusta = _frusta(scene, matrix, xyz)
    if frusta is not None:
        meshes.append(_mesh(buffer, "cameras", _LINES, *frusta))
    _write_chunks(user_path(path), _describe(scene, matrix, meshes, buffer), bytes(buffer.data))


def gltf_from_world(scene: SceneContent) -> np.ndarray:
    """Return the rigid transform (4, 4) in float64 from the scene's world to the frame of its GLB file.

    That is the frame of the first camera that is finite, turned by half a turn about its x axis: glTF's y axis points
    up. Without such a camera it is the world, turned.

    Args:
        scene: Any scene.
    """
    matrix = np.eye(4)
    cameras = scene.predictions.cameras
    if cameras is not None:
        poses = cameras.cam_from_world.double()
        finite = poses.isfinite().flatten(1).all(dim=1)
        if finite.any():
            matrix[:3] = poses[finite.nonzero()[0, 0]].numpy()
    return np.diag([1.0, -1.0, -1.0, 1.0]) @ matrix


class _Buffer:
    """The binary part of the file, with a view and an accessor for every array in it."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def add(self, values: np.ndarray, *, bounds: bool = False) -> int:
        """Append a float32 array (N, 3) or a uint32 array (N,); returns the index of its accessor."""
        is_index = values.dtype == np.uint32
        # All numbers have four bytes, so that every array begins at a multiple of four, as glTF demands.
        view = {"buffer": 0, "byteOffset": len(self.data), "byteLength": values.nbytes}
        self.views.append({**view, "target": _ELEMENT_ARRAY_BUFFER if is_index else _ARRAY_BUFFER})
        accessor: dict[str, Any] = {
            "bufferView": len(self.views) - 1,
            "componentType": _UINT if is_index else _FLOAT,
            "count": len(values),
            "type": "SCALAR" if is_index else "VEC3",
        }
        if bounds:
            accessor |= {"min": values.min(axis=0).tolist(), "max": values.max(axis=0).tolist()}
        self.accessors.append(accessor)
        self.data += values.astype(values.dtype.newbyteorder("<")).tobytes()
        return len(self.accessors) - 1


def _mesh(
    buffer: _Buffer, name: str, mode: int, xyz: np.ndarray, srgb: np.ndarray, edges: np.ndarray | None = None
) -> dict[str, Any]:
    attributes = {"POSITION": buffer.add(xyz, bounds=True), "COLOR_0": buffer.add(_to_linear(srgb))}
    primitive: dict[str, Any] = {"attributes": attributes, "material": 0, "mode": mode}
    if edges is not None:
        primitive["indices"] = buffer.add(edges.astype(np.uint32).ravel())
    return {"name": name, "primitives": [primitive]}


def _to_linear(srgb: np.ndarray) -> np.ndarray:
    """Return linear colours in float32 of sRGB colours in 0 … 1 (IEC 61966-2-1)."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4).astype(np.float32)


def _frusta(
    scene: SceneContent, matrix: np.ndarray, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return corners (6·S, 3) in the file's frame, their colours and the pairs of corners that are joined."""
    cameras = scene.cameras
    if cameras is None:
        return None
    finite = torch.stack([part.isfinite().flatten(1).all(1) for part in cameras]).all(0).nonzero()[:, 0]
    if len(finite) == 0:
        return None
    poses, intrinsics = (part[finite].double().numpy() for part in cameras)
    low, high = np.percentile(points.astype(np.float64), [5, 95], axis=0)
    diagonal = float(np.linalg.norm(high - low)) or float(np.linalg.norm(points[0])) or 1.0
    sizes = [scene.transforms[index].original_hw for index in finite.tolist()]
    apex = camera_centers(poses)[:, None]
    corners = frustum_corners(poses, intrinsics, sizes, _FRUSTUM * diagonal)
    top, bottom = corners[:, :2].mean(axis=1), corners[:, 2:].mean(axis=1)
    tip = (top + 0.2 * (top - bottom))[:, None]
    with np.errstate(over="ignore", invalid="ignore"):
        xyz = _move(np.concatenate([apex, corners, tip], axis=1), matrix).astype(np.float32)
    shown = np.isfinite(xyz).all(axis=(1, 2))
    if not shown.any():
        return None
    colors = np.array([_view_color(index, len(scene)) for index in finite.tolist()])[shown].repeat(6, axis=0)
    edges = np.arange(int(shown.sum()))[:, None, None] * 6 + _EDGES
    return xyz[shown].reshape(-1, 3), colors, edges


def _view_color(index: int, num_views: int) -> tuple[float, float, float]:
    import colorsys

    return colorsys.hsv_to_rgb(0.8 * index / max(num_views - 1, 1), 0.9, 0.95)


def _move(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def _describe(scene: SceneContent, matrix: np.ndarray, meshes: list[dict[str, Any]], buffer: _Buffer) -> dict[str, Any]:
    extras = {
        "gltf_from_world": matrix.tolist(),
        "units": scene.units,
        **({"notice": scene.notice} if scene.notice else {}),
        "views": list(scene.names),
    }
    return {
        "asset": {"version": "2.0", "generator": _GENERATOR},
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0,
        "scenes": [{"name": "scene", "nodes": list(range(len(meshes))), "extras": extras}],
        "nodes": [{"name": mesh["name"], "mesh": index} for index, mesh in enumerate(meshes)],
        "meshes": meshes,
        "materials": [
            {
                "name": "colours of the vertices",
                # For viewers that don't know the extension.
                "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0},
                "extensions": {"KHR_materials_unlit": {}},
            }
        ],
        "accessors": buffer.accessors,
        "bufferViews": buffer.views,
        "buffers": [{"byteLength": len(buffer.data)}],
    }


def _write_chunks(path: Path, content: dict[str, Any], binary: bytes) -> None:
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    length = 12 + 8 + len(text) + 8 + len(binary)
    with path.open("wb") as file:
        file.write(struct.pack("<4sII", b"glTF", 2, length))
        file.write(struct.pack("<II", len(text), _JSON_CHUNK) + text)
        file.write(struct.pack("<II", len(binary), _BINARY_CHUNK) + binary)
