"""DUSt3R (Wang et al. 2024), MonST3R (Zhang et al. 2024) and MASt3R (Leroy et al. 2024): a scene as pairs of images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from geomtx.heads.head import run_head
from geomtx.inference.pair_maps import PairedView, PairModel, PairPrediction
from geomtx.models.dust3r.config import CroCoConfig, DUSt3RConfig, MASt3RConfig
from geomtx.models.dust3r.croco import CroCo
from geomtx.models.dust3r.keys import DUST3R_KEYS
from geomtx.models.dust3r.parts import build_encoder, build_head, build_pair_decoder
from geomtx.models.dust3r.pretrained import PretrainedPairModel
from geomtx.types import DenseMap, Float, Tokens

__all__ = ["DUSt3R", "MASt3R"]

Model = TypeVar("Model", bound="DUSt3R")

_SHARED_WITH_CROCO = ("encoder_dim", "encoder_depth", "encoder_num_heads", "dim", "depth", "num_heads", "patch_size")


class DUSt3R(PretrainedPairModel, PairModel):
    """An encoder of single images, a decoder of two streams, and a head of points for each of the two images.

    Both images' points are in the first one's camera, up to scale; a scene of more images is put together from pairs,
    see `geomtx.inference.run_pairs`. MonST3R, for videos in which things move, is this model with other weights.

    Args:
        config: Configuration of the model; `DUSt3RConfig()` is the largest published one, `.tiny()` one for tests.

    Raises:
        ValueError: For a configuration of another class.
    """

    kind: ClassVar[str] = "DUSt3R"
    keys = DUST3R_KEYS
    config_type = DUSt3RConfig
    unused_parameters = ("mask_token",)
    """Parameters that no prediction depends on; weights may be without them."""

    def __init__(self, config: DUSt3RConfig) -> None:
        super().__init__(config)
        self.encoder = build_encoder(config)
        self.decoder = build_pair_decoder(config)
        self.first_head = build_head(config)
        self.second_head = build_head(config)
        # Published checkpoints have it from CroCo and nothing uses it; without a gradient, so that DDP doesn't wait.
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.dim), requires_grad=False)

    def decode(self, first: Tokens, second: Tokens) -> PairPrediction:
        """Predict for N pairs of encoded images.

        Args:
            first: Tokens of the first images, from `encode`.
            second: Tokens of the second images, whose size may be another one.

        Raises:
            ValueError: If there are not as many first as second images.
        """
        if first.views != second.views:
            raise ValueError(f"second must have {first.views[0]} images, as first, got {second.views[0]}")
        pair = self.decoder(first, second, self.first_head.taps)
        # The heads run in the precision of their weights, also under autocast.
        with torch.autocast(first.layer(0).device.type, enabled=False):
            return PairPrediction(run_head(self.first_head, pair[0], None), run_head(self.second_head, pair[1], None))

    def forward(
        self,
        first: Float[Tensor, "n 3 h w"],
        second: Float[Tensor, "n 3 h2 w2"],
        transposed: tuple[Sequence[bool], Sequence[bool]] | None = None,
    ) -> PairPrediction:
        """Predict for N pairs of images; differentiable.

        Args:
            first: First images in [0, 1], (N, 3, H, W); sides are multiples of the patch size.
            second: Second images, (N, 3, H', W').
            transposed: Masks of the first and second images that are stored with rows and columns exchanged, N bool
                each, so that a batch for training has photos of both orientations. They are seen upright, and their
                predictions are exchanged likewise. Defaults to none.

        Returns:
            Points of both images, in the camera of the first, with confidence; descriptors where the model has them; in
            float32 or better.

        Raises:
            ValueError: For images of another shape or type, or not as many first as second ones.
        """
        if transposed is None:
            return self.decode(self.encode(first), self.encode(second))
        for name, each, which in zip(("first", "second"), (first, second), transposed, strict=True):
            if len(which) != len(each):
                raise ValueError(f"transposed must be of {len(each)} {name} images, got {len(which)}")
        turns = list(zip(*transposed, strict=True))
        order: list[int] = []
        parts = []
        for turn in dict.fromkeys(turns):
            rows = [row for row, other in enumerate(turns) if other == turn]
            images = (
                each[rows].mT if turned else each[rows] for each, turned in zip((first, second), turn, strict=True)
            )
            parts.append([_exchange(view, turned) for view, turned in zip(self(*images), turn, strict=True)])
            order += rows
        back = sorted(range(len(order)), key=order.__getitem__)
        return PairPrediction(*(_cat(views, back) for views in zip(*parts, strict=True)))

    @classmethod
    def from_croco(
        cls: type[Model],
        source: str | os.PathLike[str],
        config: DUSt3RConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Model:
        """Make a model that begins its training with the weights of CroCo v2; its heads are random.

        Both streams of the decoder begin with the weights of CroCo's one.

        Args:
            source: Weights of a CroCo model: hub id, folder or file.
            config: Configuration of the model, with an encoder and a decoder of the sizes of CroCo's.
            device: Device of the parameters; defaults to the CPU.
            dtype: Dtype of all parameters; defaults to that in the file.

        Raises:
            ValueError: For weights of CroCo v1, which has no rotary positions, or of another size; and as
                `CroCo.from_pretrained`.
            FileNotFoundError: If there are no such weights.
        """
        croco = CroCo.from_pretrained(source, dtype=dtype)
        _check_croco(croco.config, config)
        model = cls(config).to(next(croco.parameters()).dtype)
        model.encoder.load_state_dict(croco.encoder.state_dict())
        model.decoder.embed.load_state_dict(croco.decoder.embed.state_dict())
        model.decoder.norm.load_state_dict(croco.decoder.norm.state_dict())
        for blocks in (model.decoder.first_blocks, model.decoder.second_blocks):
            blocks.load_state_dict(croco.decoder.blocks.state_dict())
        with torch.no_grad():
            model.mask_token.copy_(croco.decoder.mask_token)
        return model.to(device or "cpu")


class MASt3R(DUSt3R):
    """A `DUSt3R` whose points are in metres and whose heads give descriptors, by which pixels are matched.

    Args:
        config: Configuration of the model; `MASt3RConfig()` is the published one, `.tiny()` one for tests.

    Raises:
        ValueError: For a configuration of another class.
    """

    kind: ClassVar[str] = "MASt3R"
    config_type = MASt3RConfig
    metric = True
    has_descriptors = True


def _check_croco(found: CroCoConfig, wanted: DUSt3RConfig) -> None:
    for name in (*_SHARED_WITH_CROCO, "rope_base"):
        if getattr(found, name) != getattr(wanted, name):
            raise ValueError(f"{name} must be CroCo's {getattr(found, name)}, got {getattr(wanted, name)}")


def _exchange(view: PairedView, turned: bool) -> PairedView:
    """Return predictions with rows and columns exchanged if an image is turned."""
    return tree_map_only(Tensor, lambda tensor: tensor.transpose(1, 2), view) if turned else view


def _cat(views: Sequence[PairedView], order: list[int]) -> PairedView:
    """Return the predictions of several groups of pairs as one, in an order."""

    def join(maps: Sequence[DenseMap]) -> DenseMap:
        return DenseMap(*(torch.cat(each)[order] for each in zip(*maps, strict=True)))

    descriptors = [view.descriptors for view in views if view.descriptors is not None]
    return PairedView(join([view.points for view in views]), join(descriptors) if descriptors else None)
