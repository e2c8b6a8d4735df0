"""Low-rank adaptation of linear layers (LoRA, Hu et al. 2021, section 4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from geomtx.checks import check_count, check_finite_positive, check_shape, close_matches, match_names
from geomtx.layers.precision import at_least_float32
from geomtx.types import Float

__all__ = [
    "LowRank",
    "adapted_layers",
    "add_lora",
    "load_lora_state",
    "lora_state",
    "merge_lora",
    "merged_state",
    "remove_lora",
]

_BASE, _FACTORS = "parametrizations.weight.original", "parametrizations.weight.0."


class LowRank(nn.Module):
    """Parametrisation of a weight: weight + (alpha / rank) · up · down, rounded to the weight's precision.

    Args:
        weight: Weight of the adapted layer, (C_out, C_in), from which sizes and device are taken.
        rank: Number of columns of `up` and of rows of `down`.
        alpha: Factor of the product, before the division by `rank`.
    """

    def __init__(self, weight: Float[Tensor, "c_out c_in"], rank: int, alpha: float) -> None:
        super().__init__()
        self.rank = rank
        self.alpha = alpha
        self.base_was_trained = weight.requires_grad
        # The factors are never in half precision, in which small steps of an optimiser would be lost.
        numbers = at_least_float32(weight.detach())
        self.down = nn.Parameter(torch.empty_like(numbers[:1]).repeat(rank, 1))
        self.up = nn.Parameter(torch.zeros_like(numbers[:, :1]).repeat(1, rank))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as the identity: `down` is drawn from a normal distribution of variance 1 / C_in, `up` is zero."""
        nn.init.normal_(self.down, std=self.down.shape[1] ** -0.5)
        nn.init.zeros_(self.up)

    def forward(self, weight: Float[Tensor, "c_out c_in"]) -> Float[Tensor, "c_out c_in"]:
        """Return the adapted weight, (C_out, C_in), in the precision of the frozen one, also under autocast."""
        # The meta device has no autocast.
        with nullcontext() if weight.is_meta else torch.autocast(weight.device.type, enabled=False):
            base = at_least_float32(weight)
            update = at_least_float32(self.up) @ at_least_float32(self.down)
            return (base + (self.alpha / self.rank) * update.to(base.dtype)).to(weight.dtype)

    def extra_repr(self) -> str:
        """Return rank and alpha, for `repr`."""
        return f"rank={self.rank}, alpha={self.alpha:g}"


def add_lora(model: nn.Module, patterns: Iterable[str], *, rank: int = 8, alpha: float | None = None) -> list[str]:
    """Add low-rank adapters to linear layers: products of two thin matrices, trained while the weights are frozen.

    Until the new parameters are trained, the model computes what it did before. Whatever reads a layer's `weight` gets
    the adapted one, in every way of running the model. All other parameters, biases included, stay trainable or frozen
    as they were; so call `geomtx.freeze` first where only the adapters shall be trained. With adapters, names in the
    state dict change: "….weight" becomes "….parametrizations.weight.original".

    Args:
        model: Model, changed in place.
        patterns: Patterns of module names, such as "encoder.*.attention.qkv" or "*.mlp.*"; modules that match and
            aren't linear layers stay as they are.
        rank: Rank of the products, at least 1.
        alpha: Numerator of the products' factor alpha / rank; defaults to `rank`, a factor of 1.

    Returns:
        Names of the adapted layers.

    Raises:
        ValueError: If there is no pattern, one matches no linear layer, a layer is adapted, parametrised or quantised
            already, or rank or alpha is out of range. The model is then unchanged.
    """
    check_count("rank", rank)
    alpha = float(rank) if alpha is None else alpha
    check_finite_positive("alpha", alpha)
    modules = {name: module for name, module in model.named_modules() if name and ".parametrizations." not in name}
    layers: dict[str, nn.Linear] = {}
    patterns = patterns if isinstance(patterns, str) else tuple(patterns)
    if not patterns:
        raise ValueError("patterns must name linear layers, got none")
    for pattern, names in match_names(patterns, modules, what="patterns").items():
        found = {name: module for name in names if isinstance(module := modules[name], nn.Linear)}
        if not found:
            kinds = ", ".join(sorted({type(modules[name]).__name__ for name in names}))
            raise ValueError(f"patterns must match linear layers, got {pattern!r}, which matches only {kinds}")
        layers |= found
    for name, layer in layers.items():
        _check_can_adapt(name, layer)
    for layer in layers.values():
        _adapt(layer, rank, alpha)
    return list(layers)


def _check_can_adapt(name: str, layer: nn.Linear) -> None:
    if parametrize.is_parametrized(layer, "weight"):
        kind = "has an adapter" if _adapter_of(layer) is not None else "has a parametrisation"
        raise ValueError(f"{name} must be a plain linear layer to be adapted, got one that {kind} already")
    weight = layer.weight
    if type(weight) is not nn.Parameter or not weight.is_floating_point():
        kind = type(weight).__name__ if type(weight) is not nn.Parameter else str(weight.dtype)
        raise ValueError(f"{name} must have a floating point parameter to be adapted, got {kind}; quantise afterwards")


def _adapt(layer: nn.Linear, rank: int, alpha: float) -> None:
    adapter = LowRank(layer.weight, rank, alpha)
    layer.weight.requires_grad_(False)
    parametrize.register_parametrization(layer, "weight", adapter)


def _adapter_of(module: nn.Linear) -> LowRank | None:
    adapter = _parametrizations(module)[0] if parametrize.is_parametrized(module, "weight") else None
    return adapter if isinstance(adapter, LowRank) else None


def _parametrizations(layer: nn.Linear) -> parametrize.ParametrizationList:
    assert isinstance(layer.parametrizations, nn.ModuleDict)
    found = layer.parametrizations["weight"]
    assert isinstance(found, parametrize.ParametrizationList)
    return found


def adapted_layers(model: nn.Module) -> dict[str, tuple[nn.Linear, LowRank]]:
    """Return every layer that `add_lora` adapted, with its adapter, by the layer's name."""
    return {
        name: (module, adapter)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and (adapter := _adapter_of(module)) is not None
    }


def merge_lora(model: nn.Module) -> list[str]:
    """Add the adapters' products to the weights and remove the adapters: plain layers with the same results.

    Args:
        model: Model, changed in place; weights are trained again where they were before `add_lora`.

    Returns:
        Names of the layers that had adapters; empty where there were none.
    """
    layers = adapted_layers(model)
    for name, (layer, _) in layers.items():
        _replace_by_plain(model, name, layer.weight.detach())
    return list(layers)


def remove_lora(model: nn.Module) -> list[str]:
    """Remove the adapters: the model is what it was before `add_lora`.

    Args:
        model: Model, changed in place; weights are trained again where they were before `add_lora`.

    Returns:
        Names of the layers that had adapters; empty where there were none.
    """
    layers = adapted_layers(model)
    for name, (layer, _) in layers.items():
        _replace_by_plain(model, name, _parametrizations(layer).original.detach())
    return list(layers)


def _replace_by_plain(model: nn.Module, name: str, weight: Tensor) -> None:
    """Replace an adapted layer by a plain layer with the given weight.

    `parametrize.remove_parametrizations` can't be used: it removes `weight` from the class that copies of a layer
    share.
    """
    parent, _, leaf = name.rpartition(".")
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    adapter, own = _adapter_of(layer), _parametrizations(layer).original
    assert adapter is not None
    assert isinstance(own, nn.Parameter)
    kind = type(layer).__bases__[0]  # the class that torch's parametrization derived from
    with torch.device("meta"):
        plain = kind(layer.in_features, layer.out_features)
    with torch.no_grad():
        own.copy_(weight)
    plain.weight = own.requires_grad_(adapter.base_was_trained)
    plain.bias = layer.bias
    for buffer, value in layer.named_buffers(recurse=False):
        setattr(plain, buffer, value)
    plain.train(layer.training)
    setattr(model.get_submodule(parent), leaf, plain)


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the adapters' parameters, detached: "LAYER.down" (rank, C_in) and "LAYER.up" (C_out, rank)."""
    return {
        f"{name}.{factor}": getattr(adapter, factor).detach()
        for name, (_, adapter) in adapted_layers(model).items()
        for factor in ("down", "up")
    }


def load_lora_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy parameters of adapters into a model that has the same adapters.

    Args:
        model: Model with adapters, see `add_lora`.
        state: Parameters by name, as `lora_state` returns them.

    Raises:
        ValueError: If names or shapes are not those of the model's adapters. The model is then unchanged.
    """
    own = lora_state(model)
    for name in state:
        if name not in own:
            raise ValueError(f"state must be of the model's adapters, got {name!r}{close_matches(name, own)}")
    for name, tensor in own.items():
        if name not in state:
            raise ValueError(f"state must have all of the model's adapters, got none of {name!r}")
        check_shape(name, state[name], tensor.shape)
    for name, tensor in own.items():
        tensor.copy_(state[name])


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """Return `model.state_dict()` as it would be after `merge_lora`; the model is unchanged."""
    state = model.state_dict()
    weights: dict[nn.Module, Tensor] = {}  # a layer with several names has one weight
    for name, layer in model.named_modules(remove_duplicate=False):
        if not isinstance(layer, nn.Linear) or _adapter_of(layer) is None:
            continue
        for leaf in (_BASE, *(_FACTORS + factor for factor in ("down", "up"))):
            del state[f"{name}.{leaf}"]
        if layer not in weights:
            weights[layer] = layer.weight.detach()
        state[f"{name}.weight"] = weights[layer]
    return state
