"""Depth Anything 3 in metres: a model of many views, and one of single views that measures its depth."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from geomtx.checkpoint.files import Checkpoint, SkippedInitialisation, load_weights
from geomtx.encoder.patches import mask_pixels
from geomtx.inference.quantize import QuantizedType, quantize_model
from geomtx.models.config import ModelConfig
from geomtx.models.da3.config import DepthAnything3Config
from geomtx.models.da3.keys import config_of, is_nested_name, nested_keys, nested_parts, published_nested_config
from geomtx.models.da3.metric import scale_to_metres
from geomtx.models.da3.model import DepthAnything3
from geomtx.models.published import NESTED_PAIRS, state_licence
from geomtx.models.published_model import PublishedModel, StoredForm
from geomtx.models.saved_model import HeadSource, choose_heads, describe_model, open_as, parse_stored, published_name
from geomtx.models.vggt.config import check_heads
from geomtx.types import Bool, Cameras, Float, Predictions

__all__ = ["NestedDepthAnything3", "NestedDepthAnything3Config", "Network"]

_HEADS = ("camera", "depth", "sky")


@dataclasses.dataclass(frozen=True)
class NestedDepthAnything3Config(ModelConfig):
    """Configuration of a `NestedDepthAnything3`.

    Attributes:
        any_view: Configuration of the model of many views, with the heads "camera" and "depth".
        metric: Configuration of the model of single views, with `metric` and the heads "depth" and "sky".
    """

    any_view: DepthAnything3Config = dataclasses.field(default_factory=DepthAnything3Config.small)
    metric: DepthAnything3Config = dataclasses.field(default_factory=DepthAnything3Config.metric_large)

    def __post_init__(self) -> None:
        if self.any_view.first_global is None or not {"camera", "depth"} <= set(self.any_view.heads or ()):
            raise ValueError(
                "any_view must be a model of many views with the heads camera and depth: metres need its focal length, "
                f"got the heads {', '.join(self.any_view.heads or ())}"
            )
        if not self.metric.metric or not {"depth", "sky"} <= set(self.metric.heads or ()):
            raise ValueError(f"metric must be a metric model with the heads depth and sky, got {self.metric}")
        if self.metric.patch_size != self.any_view.patch_size:
            raise ValueError(f"patch_size must be the same in both models, got {self.metric.patch_size} in metric")

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.any_view.patch_size

    @property
    def image_size(self) -> int:
        """Longer side in pixels of the images that the model is made for."""
        return self.any_view.image_size

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of what the model predicts."""
        return _HEADS

    @classmethod
    def tiny(cls) -> NestedDepthAnything3Config:
        """Return a configuration small enough for tests."""
        single = {"first_global": None, "metric": True, "depth": 2, "taps": (0, 0, 1, 1)}
        many = {"depth": 6, "taps": (3, 3, 5, 5)}
        return cls(DepthAnything3Config.tiny(**many), DepthAnything3Config.tiny(**single))


class Network(NamedTuple):
    """A network of a model that has several, and how it is run.

    Attributes:
        model: The network.
        heads: Names of its heads that run.
        takes_cameras: Whether it gets known cameras.
    """

    model: DepthAnything3
    heads: tuple[str, ...]
    takes_cameras: bool


class NestedDepthAnything3(PublishedModel):
    """Cameras and depth of a scene in metres: the depth of one network gives the scale of another one's scene.

    Args:
        config: Configuration of both networks.
    """

    def __init__(self, config: NestedDepthAnything3Config) -> None:
        super().__init__()
        self.config = config
        self.any_view = DepthAnything3(config.any_view)
        self.metric = DepthAnything3(config.metric)
        self._chosen: tuple[str, ...] = _HEADS

    @classmethod
    def from_models(cls, any_view: DepthAnything3, metric: DepthAnything3) -> NestedDepthAnything3:
        """Return a model of two that are there.

        Args:
            any_view: Model of many views, for instance with the weights DA3-BASE.
            metric: Metric model of single views, with the weights DA3METRIC-LARGE.

        Raises:
            ValueError: If they lack a head, or the second is no metric model.
        """
        with torch.device("meta"), SkippedInitialisation():
            model = cls(NestedDepthAnything3Config(any_view.config, metric.config))
        model.any_view, model.metric = any_view, metric
        return model.eval()

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of what the model predicts, added heads too."""
        return (*self._chosen, *self.extra_heads)

    @property
    def extra_heads(self) -> nn.ModuleDict:
        """Added heads, which are of the network of many views."""
        return self.any_view.extra_heads

    def add_head(self, name: str, head: nn.Module) -> None:
        """Add a head of your own to the network of many views, see `DepthAnything3.add_head`.

        Args:
            name: Name of the head, an identifier.
            head: Module called as `head(tokens)`; what it gives is not brought to metres.

        Raises:
            ValueError: As `DepthAnything3.add_head`.
        """
        self.any_view.add_head(name, head)

    def remove_head(self, name: str) -> nn.Module:
        """Take an added head off, and return it, see `DepthAnything3.remove_head`."""
        return self.any_view.remove_head(name)

    @property
    def encoder(self) -> nn.Module:
        """Encoder of the network of many views."""
        return self.any_view.encoder

    @property
    def takes_cameras(self) -> bool:
        """Whether `forward` takes known cameras of all views."""
        return self.any_view.takes_cameras

    @property
    def networks(self) -> dict[str, Network]:
        """Name → network, in the order in which they are run."""
        return {
            "any_view": Network(self.any_view, ("camera", "depth", *self.extra_heads), takes_cameras=True),
            "metric": Network(self.metric, ("depth", "sky"), takes_cameras=False),
        }

    def forward(
        self,
        images: Float[Tensor, "*batch s 3 h w"],
        query_points: Tensor | None = None,
        patch_mask: Bool[Tensor, "*batch s rows columns"] | None = None,
        *,
        heads: tuple[str, ...] | None = None,
        cameras: Cameras | None = None,
    ) -> Predictions:
        """Predict.

        Args:
            images: Images in [0, 1], (B, S, 3, H, W), or (S, 3, H, W) for one scene.
            query_points: None, as the model tracks no points.
            patch_mask: Mask of the valid patches, see `DepthAnything3.forward`.
            heads: Names of what is returned, of "camera", "depth", "sky" and added heads; defaults to all. Both
                networks run in any case.
            cameras: Known cameras, see `DepthAnything3.forward`.

        Returns:
            `Predictions` in metres, with the factor (B,) that brought each scene to them as `metric_scale`.

        Raises:
            ValueError: As `DepthAnything3.forward`.
        """
        found = {
            name: network.model(
                images,
                query_points,
                patch_mask,
                heads=network.heads,
                **({"cameras": cameras} if network.takes_cameras else {}),
            )
            for name, network in self.networks.items()
        }
        return self.merge(found, heads, patch_mask)

    def merge(
        self,
        found: dict[str, Predictions],
        heads: tuple[str, ...] | None = None,
        patch_mask: Bool[Tensor, "*batch s rows columns"] | None = None,
    ) -> Predictions:
        """Return the scene in metres of what the networks predict.

        Args:
            found: Name of a network → its predictions, see `networks`.
            heads: Names of what is returned; defaults to all.
            patch_mask: Mask of the valid patches, as the networks had it; others don't count for the scale.

        Raises:
            ValueError: For another head.
        """
        heads = self.heads if heads is None else heads
        check_heads(heads, self.heads)
        scene, metric = found["any_view"], found["metric"]
        assert scene.depth is not None, "a head that runs"
        assert scene.cameras is not None, "a head that runs"
        assert metric.depth is not None, "a head that runs"
        assert metric.sky is not None, "a head that runs"
        valid = None
        if patch_mask is not None:
            valid = mask_pixels(patch_mask.to(metric.sky.device), (metric.sky.shape[-2], metric.sky.shape[-1]))
            valid = valid.expand_as(metric.sky)  # also without the B axis
        extra = {name: value for name, value in (scene.extra or {}).items() if name in heads}
        metres = scale_to_metres(scene.depth, scene.cameras, metric.depth.value, metric.sky, valid)
        return Predictions(
            cameras=metres.cameras if "camera" in heads else None,
            depth=metres.depth if "depth" in heads else None,
            sky=metric.sky if "sky" in heads else None,
            metric_scale=metres.scale,
            extra=extra or None,
        )

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        heads: tuple[str, ...] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        config: NestedDepthAnything3Config | None = None,
        quantize: QuantizedType | None = None,
        extra_heads: Mapping[str, HeadSource] | None = None,
    ) -> NestedDepthAnything3:
        """Load weights, strictly; in evaluation mode.

        Args:
            source: "da3nested-small-large" or "da3nested-base-large", which stand for two published weights under
                Apache-2.0; a hub id ("depth-anything/DA3NESTED-GIANT-LARGE-1.1"), a folder or a file of both networks.
            heads: Names of what will be predicted, of "camera", "depth", "sky" and added heads; both networks are
                loaded in any case.
            device: Device of the parameters; defaults to the CPU.
            dtype: Dtype of all parameters; defaults to that in the file.
            config: Overrides the configuration found beside or within the weights, or told by their sizes.
            quantize: Format of the blocks' weights, see `geomtx.quantize_model`; defaults to none.
            extra_heads: The added heads that the weights are for, see `DepthAnything3.from_pretrained`.

        Raises:
            ValueError: For missing, unexpected or misshapen tensors (the first ten are listed), a broken file, and
                weights of another family.
            FileNotFoundError: If the source is no file and not to be had from the hub.
        """
        if str(source) in NESTED_PAIRS:
            check_heads(heads or (), _HEADS)
            if config is not None or extra_heads is not None:
                raise ValueError(f"config and extra_heads must be None for '{source}', two published weights, got one")
            parts = (
                DepthAnything3.from_pretrained(each, device=device, dtype=dtype) for each in NESTED_PAIRS[str(source)]
            )
            return cls.from_models(*parts)._finish(heads, quantize)
        checkpoint = _open(source)
        numbers = _config_of_checkpoint(checkpoint) if config is None else config
        added, left_out = choose_heads(checkpoint, extra_heads, numbers.any_view, inside="any_view", asked=heads)
        check_heads(heads or (), (*_HEADS, *added))
        with torch.device("meta"), SkippedInitialisation():
            empty = cls(numbers)
        empty.extra_heads.update(added)
        model = load_weights(
            checkpoint,
            lambda: empty,
            nested_keys(numbers.any_view, numbers.metric),
            device=device,
            dtype=dtype,
            ignored=("da3.gs_head.", "model.da3.gs_head.", *left_out),
            parts=("any_view", "metric", *(f"any_view.extra_heads.{name}" for name in added)),
        )
        state_licence(checkpoint.source)
        return model._finish(heads, quantize)

    def _finish(self, heads: tuple[str, ...] | None, quantize: QuantizedType | None) -> NestedDepthAnything3:
        """Return the model, which predicts some heads alone, with weights in another format."""
        self._chosen = tuple(head for head in _HEADS if heads is None or head in heads)
        return self if quantize is None else quantize_model(self, quantize)

    @staticmethod
    def read_config(source: str | os.PathLike[str]) -> NestedDepthAnything3Config:
        """The configuration of weights, without loading them; arguments and errors as in `from_pretrained`."""
        if str(source) in NESTED_PAIRS:
            return NestedDepthAnything3Config(*map(DepthAnything3.read_config, NESTED_PAIRS[str(source)]))
        return _config_of_checkpoint(_open(source))

    def stored_form(self) -> StoredForm:
        """Return the names and configurations under which the model is stored."""
        config = self.config
        ours = describe_model("NestedDepthAnything3", config.to_dict(), self.extra_heads)
        keys = nested_keys(config.any_view, config.metric)
        return StoredForm(keys, ours, published_nested_config(config.any_view))


def _open(source: str | os.PathLike[str]) -> Checkpoint:
    return open_as(source, "NestedDepthAnything3", is_nested_name)


def _config_of_checkpoint(checkpoint: Checkpoint) -> NestedDepthAnything3Config:
    if published_name(checkpoint) is None:
        return parse_stored(checkpoint, "NestedDepthAnything3", NestedDepthAnything3Config.from_dict)
    any_view, metric = nested_parts(checkpoint.shapes)
    return NestedDepthAnything3Config(
        config_of(any_view, "", checkpoint.source), config_of(metric, "da3metric-large", checkpoint.source)
    )
