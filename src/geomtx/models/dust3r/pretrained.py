"""What DUSt3R, MASt3R and CroCo have in common: they are loaded and stored in the same way."""

from __future__ import annotations

import os
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from geomtx.checkpoint.files import Checkpoint, load_weights
from geomtx.checkpoint.key_table import KeyTable
from geomtx.checks import check_floating, check_shape
from geomtx.encoder.patch_transformer import PatchTransformer
from geomtx.encoder.patches import normalize_images
from geomtx.inference.quantize import QuantizedType, quantize_model
from geomtx.models.config import ModelConfig
from geomtx.models.dust3r.keys import config_of, repeated_names
from geomtx.models.published import state_licence
from geomtx.models.published_model import PublishedModel, StoredForm
from geomtx.models.saved_model import describe_model, open_as, parse_stored, published_name, stored_kind
from geomtx.types import Bool, Float, Tokens

__all__ = ["PretrainedPairModel", "normalize_pair_images"]

Model = TypeVar("Model", bound="PretrainedPairModel")


class PretrainedPairModel(PublishedModel):
    """Base of models with an `encoder` of single images; a subclass has the class's attributes.

    Args:
        config: Configuration of the model.

    Raises:
        ValueError: For a configuration of another class.
    """

    kind: ClassVar[str]
    keys: ClassVar[KeyTable]
    config_type: ClassVar[Any]
    encoder: PatchTransformer

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if type(config) is not self.config_type:
            raise ValueError(f"config must be a {self.config_type.__name__}, got {type(config).__name__}")
        self.config: Any = config

    def encode(self, images: Float[Tensor, "n 3 h w"], hidden: Bool[Tensor, "n p"] | None = None) -> Tokens:
        """Encode every image by itself; an image in several pairs needs it once.

        Args:
            images: Images in [0, 1], (N, 3, H, W); sides are multiples of the patch size.
            hidden: Mask of the patches that are left out, see `PatchTransformer`; defaults to none.

        Returns:
            `Tokens` with N scenes of one view.

        Raises:
            ValueError: For images of another shape or type, and as `PatchTransformer`.
        """
        check_shape("images", images, ("N", 3, "H", "W"))
        check_floating("images", images)
        return self.encoder(normalize_pair_images(images), hidden)

    @classmethod
    def from_pretrained(
        cls: type[Model],
        source: str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        config: Any = None,
        quantize: QuantizedType | None = None,
    ) -> Model:
        """Load weights, strictly; in evaluation mode.

        Args:
            source: A hub id ("naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt"); a folder (`model.safetensors`, with or
                without `config.json`); or a file, also a published .pth; with published or geomtx names.
            device: Device of the parameters; defaults to the CPU.
            dtype: Dtype of all parameters; defaults to that in the file.
            config: Configuration that overrides the one found beside or within the weights, or told by their sizes.
            quantize: Format of the blocks' weights, "int8" or "fp8", see `geomtx.quantize_model`; defaults to none.

        Raises:
            ValueError: For missing, unexpected or misshapen tensors (the first ten are listed), a broken file, weights
                of another family or of no published size; and as `geomtx.quantize_model`.
            ImportError: For quantised weights without torchao.
            FileNotFoundError: If the source is no file and not to be had from the hub.
        """
        checkpoint = cls._open(source)
        build = partial(cls, cls._config_of(checkpoint) if config is None else config)
        ignored = repeated_names(checkpoint.shapes)
        model = load_weights(checkpoint, build, cls.keys, device=device, dtype=dtype, ignored=ignored)
        state_licence(checkpoint.source)
        return model if quantize is None else quantize_model(model, quantize)

    @classmethod
    def read_config(cls, source: str | os.PathLike[str]) -> Any:
        """Return the configuration of weights, without loading them; arguments and errors as in `from_pretrained`."""
        return cls._config_of(cls._open(source))

    def stored_form(self) -> StoredForm:
        """Return the names and configurations under which the model is stored."""
        published = {"img_size": [self.config.image_size] * 2}
        return StoredForm(self.keys, describe_model(self.kind, self.config.to_dict()), published)

    @classmethod
    def _open(cls, source: str | os.PathLike[str]) -> Checkpoint:
        return open_as(source, cls.kind, cls.keys.__contains__)

    @classmethod
    def _config_of(cls, checkpoint: Checkpoint) -> Any:
        """Return the stored configuration, else what the sizes of published tensors tell."""
        if published_name(checkpoint) is None or stored_kind(checkpoint) != cls.kind:
            return parse_stored(checkpoint, cls.kind, cls.config_type.from_dict)
        size = (checkpoint.config or {}).get("img_size")
        return config_of(checkpoint.shapes, checkpoint.source, max(size) if isinstance(size, list) else None)


def normalize_pair_images(images: Float[Tensor, "*batch 3 h w"]) -> Float[Tensor, "*batch 3 h w"]:
    """Return images in [0, 1] as these models take them, in [-1, 1], (..., 3, H, W)."""
    return normalize_images(images, mean=(0.5,) * 3, std=(0.5,) * 3)
