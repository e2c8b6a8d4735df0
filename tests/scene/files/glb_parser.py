"""A strict reader of GLB files, written from the specification of glTF 2.0; it shares nothing with the writer."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

_TYPES = {5126: ("<f4", 4), 5125: ("<u4", 4)}
_SIZES = {"SCALAR": 1, "VEC3": 3}


def parse_glb(path: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The JSON, and the values of each accessor."""
    data = path.read_bytes()
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON"
    assert size % 4 == 0
    content = json.loads(data[20 : 20 + size].decode("utf-8"))
    assert data[20 + size - 3 : 20 + size].strip(b" ").endswith((b"}", b""))
    start = 20 + size
    binary_size, kind = struct.unpack_from("<I4s", data, start)
    assert kind == b"BIN\0"
    assert binary_size % 4 == 0
    assert start + 8 + binary_size == len(data)
    binary = data[start + 8 :]
    assert content["asset"]["version"] == "2.0"
    (buffer,) = content["buffers"]
    assert 0 <= binary_size - buffer["byteLength"] <= 3
    values = [_read(accessor, content["bufferViews"], binary) for accessor in content["accessors"]]
    for mesh in content["meshes"]:
        for primitive in mesh["primitives"]:
            _check_primitive(primitive, content, values)
    nodes = content["scenes"][content["scene"]]["nodes"]
    assert sorted(nodes) == list(range(len(content["nodes"])))
    assert sorted(node["mesh"] for node in content["nodes"]) == list(range(len(content["meshes"])))
    for extension in content["extensionsUsed"]:
        assert any(extension in material["extensions"] for material in content["materials"])
    return content, values


def _read(accessor: dict[str, Any], views: list[dict[str, Any]], binary: bytes) -> np.ndarray:
    view = views[accessor["bufferView"]]
    dtype, width = _TYPES[accessor["componentType"]]
    size = _SIZES[accessor["type"]]
    start = view["byteOffset"] + accessor.get("byteOffset", 0)
    assert start % width == 0
    assert view["byteOffset"] + view["byteLength"] <= len(binary)
    assert accessor["count"] >= 1
    assert accessor["count"] * size * width <= view["byteLength"]
    values = np.frombuffer(binary, dtype, accessor["count"] * size, start).reshape(-1, size)
    for name, function in (("min", np.min), ("max", np.max)):
        if name in accessor:
            np.testing.assert_array_equal(np.float32(accessor[name]), function(values, axis=0))
    return values


def _check_primitive(primitive: dict[str, Any], content: dict[str, Any], values: list[np.ndarray]) -> None:
    position = primitive["attributes"]["POSITION"]
    assert {"min", "max"} <= content["accessors"][position].keys()
    count = len(values[position])
    for index in primitive["attributes"].values():
        assert len(values[index]) == count
        assert np.isfinite(values[index]).all()
        assert content["bufferViews"][content["accessors"][index]["bufferView"]]["target"] == 34962
    if "indices" in primitive:
        indices = values[primitive["indices"]]
        assert content["accessors"][primitive["indices"]]["type"] == "SCALAR"
        assert content["bufferViews"][content["accessors"][primitive["indices"]]["bufferView"]]["target"] == 34963
        assert indices.max() < count
        assert primitive["mode"] != 1 or len(indices) % 2 == 0
    assert 0 <= primitive["material"] < len(content["materials"])
