"""Layers that know nothing of images, views, cameras or processes."""

from geomtx.layers.attention import Attention, CrossAttention, MaskedBiasLinear, key_mask
from geomtx.layers.backends import (
    BackendTime,
    available_backends,
    fastest_backend,
    measure_backends,
    resolve_backend,
)
from geomtx.layers.block import DecoderBlock, TransformerBlock
from geomtx.layers.mlp import MLP, SwiGLU
from geomtx.layers.norms import LayerScale, Modulation
from geomtx.layers.position import aspect_grid, fourier_features, grid_signal, sincos
from geomtx.layers.precision import Float32Conv2d, Float32Linear, at_least_float32
from geomtx.layers.rope import GridRotary, RotaryTable, apply_rotary, grid_positions, rotary_table

__all__ = [
    "MLP",
    "Attention",
    "BackendTime",
    "CrossAttention",
    "DecoderBlock",
    "Float32Conv2d",
    "Float32Linear",
    "GridRotary",
    "LayerScale",
    "MaskedBiasLinear",
    "Modulation",
    "RotaryTable",
    "SwiGLU",
    "TransformerBlock",
    "apply_rotary",
    "aspect_grid",
    "at_least_float32",
    "available_backends",
    "fastest_backend",
    "fourier_features",
    "grid_positions",
    "grid_signal",
    "key_mask",
    "measure_backends",
    "resolve_backend",
    "rotary_table",
    "sincos",
]
