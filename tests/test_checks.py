import dataclasses
import functools
import inspect
import math
import pickle

import numpy as np
import pytest
import torch

import geomtx
from geomtx.checks import (
    check_divisible,
    check_floating,
    check_images,
    check_mask,
    check_name,
    check_option,
    check_positive,
    check_shape,
    close_matches,
    match_names,
)


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((2, 3), ("N", 3)),
        ((2, 3), (2, 3)),
        ((3, 4), ("...", 3, 4)),
        ((7, 3, 4), ("...", 3, 4)),
        ((7, 0, 2, 3, 4), ("...", "N", 4)),
        ((5,), ("...", "N")),
        ((0, 3), ("N", 3)),
    ],
)
def test_shapes_that_fit(shape, wanted):
    check_shape("x", torch.zeros(shape), wanted)
    check_shape("x", torch.zeros(shape), ("A", "B", "C", "D", "E", "F", "G"), wanted)


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((2, 4), ("N", 3)),
        ((2, 2), ("N", 3)),
        ((2, 3, 1), ("N", 3)),
        ((3,), ("N", 3)),
        ((4,), ("...", 3, 4)),
        ((4, 3), ("...", 3, 4)),
        ((), ("...", "N")),
        ((), ("N",)),
    ],
)
def test_shapes_that_do_not(shape, wanted):
    with pytest.raises(ValueError, match=r"^x must have shape \("):
        check_shape("x", torch.zeros(shape), wanted)


def test_all_shapes_that_would_do_are_named():
    with pytest.raises(ValueError, match=r"^query must have shape \(2, N, 2\) or \(\.\.\., 3\), got \(2, 5, 4\)$"):
        check_shape("query", torch.zeros(2, 5, 4), (2, "N", 2), ("...", 3))


def test_options():
    check_option("mode", "b", ("a", "b"))
    check_option("tap", 2, range(3))
    with pytest.raises(ValueError, match=r"^mode must be one of 'a', 'b', got 'c'$"):
        check_option("mode", "c", ("a", "b"))
    with pytest.raises(ValueError, match=r"^mode must be one of 1, 2, got None$"):
        check_option("mode", None, iter([1, 2]))


def test_positive():
    check_positive("count", 1)
    check_positive("factor", 1e-9)
    for value in (0, -1, math.nan):
        with pytest.raises(ValueError, match=rf"^count must be positive, got {value}$"):
            check_positive("count", value)


def test_divisible():
    check_divisible("width", 28, 14)
    check_divisible("width", 0, 14)
    for value, divisor in ((29, 14), (4, 0), (10.5, 4)):
        with pytest.raises(ValueError, match=rf"^width must be a multiple of {divisor}, got {value}$"):
            check_divisible("width", value, divisor)


def test_floating():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        check_floating("images", torch.zeros(1, dtype=dtype))
    for dtype in (torch.uint8, torch.int64, torch.bool, torch.complex64):
        with pytest.raises(ValueError, match=rf"^images must be floating point, got {dtype}$"):
            check_floating("images", torch.zeros(1, dtype=dtype))


def test_masks_are_bool():
    check_mask("mask", torch.ones(2, 3) > 0, ("B", "S"))
    with pytest.raises(ValueError, match=r"^mask must have shape \(B, S\), got \(2,\)$"):
        check_mask("mask", torch.ones(2) > 0, ("B", "S"))
    for dtype in (torch.uint8, torch.int64, torch.float32):
        with pytest.raises(ValueError, match=rf"^mask must be bool, got {dtype}$"):
            check_mask("mask", torch.ones(2, 3, dtype=dtype), ("B", "S"))


NAMES = ("encoder", "encoder.blocks.0", "encoder.blocks.1", "head")


def test_a_star_stands_for_dots_too():
    assert match_names(["enc*.1", "h[a-e]ad"], NAMES, what="freeze") == {
        "enc*.1": ["encoder.blocks.1"],
        "h[a-e]ad": ["head"],
    }


def test_patterns_that_match_nothing():
    with pytest.raises(ValueError, match=r"^freeze must match a name of the model, got 'haed'; did you mean 'head'\?$"):
        match_names(["head", "haed"], NAMES, what="freeze")
    with pytest.raises(ValueError, match=r"^freeze must match a name of the model, got '\*zzz\*'$"):
        match_names(["*zzz*"], NAMES, what="freeze")


def test_a_string_is_no_sequence_of_patterns():
    with pytest.raises(ValueError, match=r"^freeze must be a sequence of patterns, got 'head'$"):
        match_names("head", NAMES, what="freeze")


def test_names_that_are_alike():
    assert close_matches("encodr", NAMES) == "; did you mean 'encoder'?"
    assert close_matches("zzz", NAMES) == ""


def test_names_within_a_part():
    assert close_matches("blocks.1", NAMES) == "; did you mean 'encoder.blocks.1'?"
    names = ["model.vggt.encoder.0.qkv", "vggt.encoder.0.qkv", "vggt.encoder.1.qkv"]
    assert close_matches("encoder.*.qkv", names) == "; did you mean 'vggt.encoder.*.qkv'?"


@pytest.mark.parametrize(("value", "kind"), [(np.zeros((2, 3)), "numpy.ndarray"), ([1.0], "list"), (None, "NoneType")])
def test_what_is_no_tensor_is_named(value: object, kind: str) -> None:
    with pytest.raises(ValueError, match=rf"^x must be a tensor, got {kind}$"):
        check_shape("x", value, ("N", 3))


def test_images() -> None:
    check_images("images", torch.rand(2, 3, 4, 4))
    check_images("images", torch.rand(1, 2, 3, 4, 4).half())
    with pytest.raises(ValueError, match=r"^images must be floating point, got torch.uint8$"):
        check_images("images", torch.zeros(2, 3, 4, 4, dtype=torch.uint8))


def test_names_that_are_spelt_alike_are_suggested() -> None:
    check_name("head", "depth", ("camera", "depth"))
    with pytest.raises(
        ValueError, match=r"^head must be one of 'camera', 'depth', got 'dept'; did you mean 'depth'\?$"
    ):
        check_name("head", "dept", ("camera", "depth"))
    with pytest.raises(ValueError, match=r"^head must be one of 'camera', got 'sky'$"):
        check_name("head", "sky", ("camera",))


@pytest.mark.parametrize("config", [geomtx.VGGTConfig, geomtx.NVSConfig, geomtx.VideoTrackerConfig])
def test_keywords_of_configurations_are_suggested(config: type) -> None:
    name = dataclasses.fields(config)[0].name
    message = rf"^{config.__name__} has no field '{name}z'; did you mean '{name}'"
    for make in (config, functools.partial(dataclasses.replace, config())):
        with pytest.raises(TypeError, match=message):
            make(**{f"{name}z": 1})
    assert next(iter(inspect.signature(config).parameters)) == name
    assert pickle.loads(pickle.dumps(config())) == config()
