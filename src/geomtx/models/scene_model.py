"""What models with one pass over all views and heads by name have in common: checks, heads that are added, loading."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from geomtx.checkpoint.files import Checkpoint, SkippedInitialisation, load_weights
from geomtx.checkpoint.key_table import KeyTable
from geomtx.checks import check_images, check_option
from geomtx.heads.dpt import DPTDecoder
from geomtx.heads.head import EachView, Gather, Head, run_head
from geomtx.heads.track import check_track_images
from geomtx.inference.quantize import QuantizedType, quantize_model
from geomtx.models.published import EMBEDDED, state_licence
from geomtx.models.published_model import PublishedModel
from geomtx.models.saved_model import HeadSource, added_heads, choose_heads
from geomtx.models.vggt.config import HEADS, check_heads
from geomtx.tracking.queries import batch_queries, check_queries
from geomtx.types import Bool, Float, Predictions, ProjectedTokens, Tokens

__all__ = ["RunHead", "SceneModel"]

Model = TypeVar("Model", bound="SceneModel")

RunHead = Callable[..., Any]
"""Function that runs a head on what it reads: run(name, head, **options) → its result."""

_MAX_NAMED = 3  # numbers of a configuration in an error
# Names of the heads of all families, and of a task of `MultitaskLoss` besides.
_TAKEN = (*HEADS, "rays", "sky", "text", "metric", "consistency")


class SceneModel(PublishedModel):
    """Base of models with an encoder and heads by name, to which a user may add heads.

    A subclass has `config` with `heads`, the names of its own heads; `encoder`; `own_heads` and `run_own_heads`; and as
    its last module `extra_heads`, empty, so that a model's first parameter, whose device and precision stand for all,
    is its own. For its weights it has `open_weights`, `config_of`, `keys_of` and `stored_form`.
    """

    config: Any
    encoder: Any
    extra_heads: nn.ModuleDict

    own_frame: bool = False
    """Whether cameras are in a frame of the model's own, from which a scene is moved to its first camera's."""
    without_tracks: str = ""
    """Name of a family that has no head of tracks itself, for the error; "" for one that may have."""

    def own_heads(self) -> dict[str, nn.Module]:
        """Return name → head of the model's own heads; predictions that are computed together have the same one."""
        raise NotImplementedError

    def run_own_heads(self, run: RunHead, heads: tuple[str, ...]) -> dict[str, Any]:
        """Return field of `Predictions` → value, by those of the model's own heads that are among `heads`.

        Args:
            run: Function that runs a head, `run(name, head, **options)`, once a head.
            heads: Names of heads, also of added ones.
        """
        raise NotImplementedError

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads of this model, its own first and then the added ones."""
        return (*self.config.heads, *self.extra_heads)

    @property
    def takes_cameras(self) -> bool:
        """Whether `forward` takes known cameras of all views, `cameras=`."""
        return False

    def head_modules(self) -> dict[str, nn.Module]:
        """Return name → head of all heads, the model's own first."""
        return self.own_heads() | dict(self.extra_heads.items())

    def add_head(self, name: str, head: nn.Module) -> None:
        """Add a head of your own, which reads the tokens that all heads read and gives `Predictions.extra[name]`.

        `save_pretrained` writes its weights with the model's; for a head that is no `DenseHead`, `PixelShuffleHead` or
        `RGBHead`, `from_pretrained` takes `extra_heads={name: module}`.
        Its loss is given where the loss is built, `MultitaskLoss(others={name: …})`.

        Args:
            name: Name of the head, an identifier.
            head: Module called as `head(tokens)`, see `Tokens`, on the encoder's device. A `TrackHead` runs where there
                are query points, and gets them too; a `DenseHead`, `PixelShuffleHead` or `RGBHead` decodes some views
                at a time, and `geomtx.reconstruct` keeps what the first two give. Tokens come in the precision of the
                head's parameters, which may be float32 where the encoder is in bfloat16.

        Raises:
            ValueError: For a name that is taken or no identifier, for what is no module or is part of the model, and
                for a `Head` that reads layers which the encoder doesn't have.
        """
        if not isinstance(name, str) or not name.isidentifier() or hasattr(nn.ModuleDict, name):
            raise ValueError(f"name must be an identifier that torch.nn.ModuleDict doesn't use itself, got {name!r}")
        taken = dict.fromkeys((*_TAKEN, *self.heads))
        if name in taken:
            raise ValueError(f"name must not be one of {', '.join(map(repr, taken))}, got {name!r}")
        if not isinstance(head, nn.Module):
            raise ValueError(f"head must be a torch.nn.Module, got {type(head).__name__}")
        if any(part is head for part in self.modules()):
            raise ValueError(f"head must be no part of the model yet, got one that is, {type(head).__name__}")
        self._check_reads(name, head)
        self.extra_heads[name] = head

    def _check_reads(self, name: str, head: nn.Module) -> None:
        """Require that a head reads what the encoder gives."""
        if not isinstance(head, Head):
            return
        taps = self.encoder.taps
        if head.reads == "projections" and not isinstance(getattr(head, "decoder", None), DPTDecoder):
            raise ValueError(f"head must have a `decoder`, a DPTDecoder, to read projections, got none in {name!r}")
        last = len(self.encoder.order) - 1
        unknown = sorted(set(head.layers_read(taps)) - set(range(last + 1)))
        if unknown:
            got = ", ".join(map(str, unknown))
            raise ValueError(f"head must read layers of the encoder, from 0 to {last}, got {got} in {name!r}")

    def remove_head(self, name: str) -> nn.Module:
        """Take an added head off.

        Returns:
            The head.

        Raises:
            ValueError: If no head was added by this name.
        """
        check_option("name of an added head", name, tuple(self.extra_heads))
        return self.extra_heads.pop(name)

    def forward(
        self,
        images: Float[Tensor, "*batch s 3 h w"],
        query_points: Tensor | None = None,
        patch_mask: Bool[Tensor, "*batch s rows columns"] | None = None,
        *,
        heads: tuple[str, ...] | None = None,
    ) -> Predictions:
        """Predict; differentiable.

        `geomtx.inference.predict` gives the same result, up to rounding, with less memory, on several processes or
        compiled.

        Args:
            images: Images in [0, 1], (B, S, 3, H, W), or (S, 3, H, W) for one scene; sides are multiples of the patch
                size. In models with a reference view, whose camera is the world, that is the first.
            query_points: Points to track, (B, N, 2) as (x, y) in pixels of view 0, or (B, N, 3) as (view, x, y);
                without the B axis for one scene; for models with a head that tracks. Defaults to none, and no tracks.
            patch_mask: Mask of the valid patches, (B, S, H/patch, W/patch) bool; without the B axis for one scene.
                Defaults to all.
            heads: Names of the heads to run; defaults to all that the model has.

        Returns:
            `Predictions`, always with the B axis, in float32 or better; lengths are up to scale.

        Raises:
            ValueError: For wrong shapes, a head that the model doesn't have, images too small for tracks, and query
                points outside their view. Values on an accelerator are not checked, which would make the host wait;
                `geomtx.reconstruct` checks them, and the images' too.
        """
        images, query_points, patch_mask, heads = self.check_inputs(images, query_points, patch_mask, heads)
        tokens = self.encoder(images, patch_mask=patch_mask, taps=self.taps_of(heads))
        return self.run_heads(lambda head: tokens, heads, query_points)

    def run_heads(
        self,
        read: Callable[[str], Tokens | ProjectedTokens],
        heads: tuple[str, ...],
        query_points: Tensor | None = None,
        *,
        each_view: EachView | None = None,
        gather: Gather | None = None,
    ) -> Predictions:
        """Run heads on what an encoder gave.

        Args:
            read: Function from the name of a head to what it reads, called once a head. What one head gives under
                several names is read under the first of them.
            heads: Names of the heads to run.
            query_points: (B, N, 2) or (B, N, 3), for heads that track.
            each_view: Function that applies a function of single views, `each_view(function, tokens)`; defaults to one
                call with all views.
            gather: Brings the views of all processes together along axis 1; defaults to the identity.
        """

        def run(name: str, head: nn.Module, **options: Any) -> Any:
            return run_head(head, read(name), query_points, each_view=each_view, gather=gather, **options)

        fields = self.run_own_heads(run, heads)
        extra = {name: run(name, head) for name, head in self.extra_heads.items() if name in heads}
        return Predictions(**fields, extra=extra or None)

    def taps_of(self, heads: tuple[str, ...]) -> tuple[int, ...]:
        """Return the layers that some heads read: those of their decoders, the camera head's, or else all taps."""
        modules, taps = self.head_modules(), set()
        for name in heads:
            head = modules[name]
            taps |= set(head.layers_read(self.encoder.taps) if isinstance(head, Head) else self.encoder.taps)
        return tuple(sorted(taps)) or self.encoder.taps

    def check_inputs(
        self,
        images: Tensor,
        query_points: Tensor | None,
        patch_mask: Tensor | None,
        heads: tuple[str, ...] | None,
    ) -> tuple[Any, ...]:
        """Return the arguments of `forward` with the B axis, and the names of the heads that run.

        Raises:
            ValueError: As `forward`.
        """
        modules = self.head_modules()
        trackers = [name for name, head in modules.items() if isinstance(head, Head) and head.takes_queries]
        if heads is not None:
            check_heads(heads, self.heads)
            for head in trackers:
                if head in heads and query_points is None:
                    raise ValueError(f"query_points must be given for the head {head!r}, got None")
        if query_points is not None and not trackers and self.without_tracks:
            raise ValueError(f"query_points must be None, as {self.without_tracks} tracks no points, got some")
        heads = self.heads if heads is None else heads
        heads = tuple(head for head in heads if head not in trackers or query_points is not None)
        check_images("images", images)
        images = images[None] if images.ndim == 4 else images
        if patch_mask is not None and patch_mask.ndim == 3:
            patch_mask = patch_mask[None]
        if query_points is not None:
            query_points = batch_queries(query_points, images.shape[0], 2, 3)
            check_queries(query_points, images.shape[1], (images.shape[-2], images.shape[-1]))
            check_track_images(images, [modules[head] for head in heads if head in trackers])
        return images, query_points, patch_mask, heads

    @classmethod
    def open_weights(cls, source: str | os.PathLike[str]) -> Checkpoint:
        """Open weights by name, hub id, folder or file, see `open_as`."""
        raise NotImplementedError

    @classmethod
    def config_of(cls, checkpoint: Checkpoint) -> Any:
        """Return the stored configuration, else that of the published model of the same names and sizes."""
        raise NotImplementedError

    @staticmethod
    def keys_of(config: Any) -> KeyTable:
        """Return the names of the parameters of a model with a configuration, published ↔ geomtx."""
        raise NotImplementedError

    @classmethod
    def passed_over(cls, checkpoint: Checkpoint, config: Any) -> list[str]:
        """Return prefixes of stored names that a model with a configuration has no place for; none by default."""
        return []

    def check_values(self, source: str) -> None:
        """Require values that make sense of what was loaded; nothing by default.

        Args:
            source: Name of the weights, for the error.

        Raises:
            ValueError: Otherwise.
        """

    @classmethod
    def _compare_config(cls, checkpoint: Checkpoint, config: Any) -> str:
        """Return the start of an error message that says in what the weights' own configuration differs, or ""."""
        try:
            own = cls.config_of(checkpoint)
        except ValueError:  # nobody knows which it is
            return ""
        names = [field.name for field in dataclasses.fields(own) if field.name != "heads"]
        other = [f"{name}={getattr(own, name)!r}" for name in names if getattr(own, name) != getattr(config, name)]
        named = ", ".join(other[:_MAX_NAMED])
        return f"weights must be of the variant that config is of, got others, with {named}: " if other else ""

    @classmethod
    def read_config(cls, source: str | os.PathLike[str]) -> Any:
        """Return the configuration of weights, without loading them; arguments and errors as of `from_pretrained`."""
        return cls.config_of(cls.open_weights(source))

    @classmethod
    def from_pretrained(
        cls: type[Model],
        source: str | os.PathLike[str],
        *,
        heads: tuple[str, ...] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        config: Any = None,
        quantize: QuantizedType | None = None,
        extra_heads: Mapping[str, HeadSource] | None = None,
    ) -> Model:
        """Load weights, strictly; in evaluation mode.

        Args:
            source: Name of weights of this class in `geomtx.list_models()`, such as "nano"; a hub id, such as
                "facebook/VGGT-1B"; a folder (`model.safetensors`, sharded or not, with or without `config.json`); or a
                .safetensors, .pt, .pth, .bin or .ckpt file; with published or geomtx names.
            heads: Names of the heads to build and load; defaults to all that the checkpoint has.
            device: Device of the parameters; defaults to the CPU.
            dtype: Dtype of all parameters; defaults to that in the file, for "nano" to float32.
            config: Overrides the configuration found beside or within the weights. Without either it is that of the
                published model with such tensors.
            quantize: Format of the blocks' weights, "int8" or "fp8", see `geomtx.quantize_model`; defaults to none.
            extra_heads: The added heads that the weights are for, by name: a module, which is filled, or a function
                from the configuration to one; None leaves a head out. A `DenseHead` or `RGBHead` need not be given.

        Raises:
            ValueError: For missing, unexpected or misshapen tensors (the first ten are listed), a broken file, a
                pickle with code in it, weights of another family, an added head that has to be given; and as
                `geomtx.quantize_model`.
            ImportError: For quantised weights without torchao.
            FileNotFoundError: If the source is no file and not to be had from the hub.
        """
        checkpoint = cls.open_weights(source)
        if source in EMBEDDED and dtype is None:
            dtype = torch.float32
        config = cls.config_of(checkpoint) if config is None else config
        if heads is not None:
            check_heads(heads, (*config.heads, *added_heads(checkpoint.shapes)))
            config = dataclasses.replace(config, heads=tuple(head for head in heads if head in config.heads))
        added, left_out = choose_heads(checkpoint, extra_heads, config, asked=heads)
        with torch.device("meta"), SkippedInitialisation():
            empty = cls(config)
        own = [name for name, _ in empty.named_children() if name not in ("encoder", "extra_heads")]
        empty.extra_heads.update(added)
        try:
            model = load_weights(
                checkpoint,
                lambda: empty,
                cls.keys_of(config),
                device=device,
                dtype=dtype,
                ignored=(*left_out, *cls.passed_over(checkpoint, config)),
                parts=(*own, *(f"extra_heads.{name}" for name in added)),
            )
        except ValueError as error:
            raise ValueError(f"{cls._compare_config(checkpoint, config)}{error}") from error
        model.check_values(checkpoint.source)
        state_licence(checkpoint.source)
        return model if quantize is None else quantize_model(model, quantize)
