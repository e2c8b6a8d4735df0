"""Point tracking in video on VGGT's features (VGGT, section 4.4, after CoTracker)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from geomtx.checks import check_count, check_floating, check_images, check_shape
from geomtx.heads.dpt import DPTDecoder
from geomtx.models.published import open_weights
from geomtx.models.saved_model import HeadSource, load_around_vggt, parse_stored, save_around_vggt
from geomtx.models.vggt.config import check_numbers
from geomtx.models.vggt.model import VGGT
from geomtx.models.vggt.parts import build_track_decoder
from geomtx.models.video_tracker.config import VideoTrackerConfig
from geomtx.tracking.image_features import ImageFeatures
from geomtx.tracking.queries import batch_queries, check_queries, local_queries, support_queries, take_queries
from geomtx.tracking.video import WindowTracker
from geomtx.types import Float, Tokens, VideoTracks

__all__ = [
    "VGGTFeatures",
    "VideoTracker",
]


class VGGTFeatures(nn.Module):
    """VGGT's encoder on clips of a video, a decoder like that of its tracks, and an average over neighbouring pixels.

    Args:
        vggt: The VGGT; only its encoder is used here, and all of it stays usable.
        stride: Number of pixels of the image for a pixel of the maps, a multiple of the decoder's 2.
        encoder_frames: Number of frames that the encoder sees at a time; 0 for all.
    """

    def __init__(self, vggt: VGGT, *, stride: int, encoder_frames: int = 0) -> None:
        super().__init__()
        self.vggt = vggt
        # A decoder of its own, so that training it doesn't change the tracks of the VGGT inside.
        self.decoder: DPTDecoder = build_track_decoder(vggt.config)
        assert self.decoder.stride is not None, "the tracker's maps have one"
        self.pool = stride // self.decoder.stride
        self.encoder_frames = encoder_frames

    def forward(self, video: Float[Tensor, "b s 3 h w"]) -> Float[Tensor, "b s c h2 w2"]:
        """Return feature maps (B, S, C, H / stride, W / stride), rounded down, of frames (B, S, 3, H, W) in [0, 1].

        Raises:
            ValueError: For another shape, and for integers.
        """
        check_shape("video", video, ("B", "S", 3, "H", "W"))
        check_floating("video", video)
        pieces = video.split(self.encoder_frames or video.shape[1], dim=1)
        return torch.cat([self._extract(piece) for piece in pieces], dim=1)

    def _extract(self, images: Tensor) -> Tensor:
        return self.pool_maps(self.vggt.encoder(images, taps=self.decoder.taps))

    def pool_maps(self, tokens: Tokens) -> Float[Tensor, "b s c h2 w2"]:
        """Return the feature maps of a clip from the encoder's tokens."""
        maps = self.decoder.decode(tokens)
        return nn.functional.avg_pool2d(maps.flatten(0, 1), self.pool).unflatten(0, maps.shape[:2])


class VideoTracker(nn.Module):
    """Feature maps of a video, and a tracker with windows on them.

    Args:
        config: All numbers.
        features: Another source of feature maps, video (B, S, 3, H, W) → (B, S, C, H / stride, W / stride) with
            C = `config.vggt.track_features`; defaults to those of `config.features`.

    Attributes:
        features: Module that makes the feature maps; its `vggt`, if it has one, is a whole VGGT.
        tracker: Module that follows points through the feature maps.

    Raises:
        ValueError: For `features` that are no module.
    """

    def __init__(self, config: VideoTrackerConfig, *, features: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        dim = config.vggt.track_features
        if features is not None and not isinstance(features, nn.Module):
            raise ValueError(f"features must be a torch.nn.Module, got {features!r}")
        if features is None and config.features == "vggt":
            features = VGGTFeatures(VGGT(config.vggt), stride=config.stride, encoder_frames=config.encoder_frames)
        elif features is None:
            features = ImageFeatures(dim, width=config.image_width, stride=config.stride)
        self.features: nn.Module = features
        self.tracker = WindowTracker(
            dim,
            num_levels=config.levels,
            radius=config.radius,
            num_iterations=config.iterations,
            test_iterations=config.test_iterations,
            window=config.window,
            window_stride=config.window_stride,
            hidden_dim=config.dim,
            num_heads=config.num_heads,
            depth=config.depth,
            num_virtual=config.num_virtual,
            stride=config.stride,
            backend=config.vggt.attention,
        )

    @property
    def vggt(self) -> VGGT:
        """The VGGT inside, usable as ever: `model.vggt(images)`.

        Raises:
            ValueError: If the features come from elsewhere.
        """
        # From the table of modules: an AttributeError here would be taken for one of `vggt` itself.
        found = self.features._modules.get("vggt")
        if not isinstance(found, VGGT):
            raise ValueError(f"features must be a VGGT's for the model to have one, got {type(self.features).__name__}")
        return found

    def forward(
        self,
        video: Float[Tensor, "*batch s 3 h w"],
        query_points: Tensor,
        *,
        backward: bool = True,
        support_grid: int = 0,
        local_grid: int = 0,
        num_iterations: int | None = None,
    ) -> VideoTracks:
        """Track points through a video; differentiable.

        Args:
            video: Frames in [0, 1], (B, S, 3, H, W), or (S, 3, H, W) for one video, at least two frames; sides are
                multiples of the patch size.
            query_points: Points to track, (B, N, 3) as (frame, x, y) in pixels; without the B axis for one video.
            backward: Whether to track to the frames before a query too, by running through the video from its end.
            support_grid: Also track a grid of this many points a side over the image, in the queries' frames (support
                points, CoTracker); 0 for none.
            local_grid: Also track a grid of this many points a side around each query, 50 pixels wide; 0 for none.
            num_iterations: Number of refinements in each window; defaults to the configuration's for the model's mode,
                training or evaluation.

        Returns:
            Tracks (B, S, N, …), always with the B axis, and the windows of the pass forwards in time. CoTracker2 takes
            a point for visible where its visibility is above 0.9, CoTracker3 where visibility · confidence is above
            0.6.

        Raises:
            ValueError: For wrong shapes, a single frame, a video too small for the pyramid, features of another stride,
                and queries outside the video, also on an accelerator, which is waited for.
        """
        check_images("video", video)
        video = video[None] if video.ndim == 4 else video
        query_points = batch_queries(query_points, video.shape[0], 3)
        if video.shape[1] < 2:
            raise ValueError(f"video must have at least 2 frames to track in, got {video.shape[1]}")
        if min(video.shape[-2:]) < self.tracker.min_image_side:
            raise ValueError(
                f"video must have at least {self.tracker.min_image_side} pixels a side, got {tuple(video.shape[-2:])}"
            )
        image_hw = (video.shape[-2], video.shape[-1])
        check_queries(query_points, video.shape[1], image_hw, view="frame", on_any_device=True)
        return self.track(
            self._make_features(video),
            query_points,
            backward=backward,
            support_grid=support_grid,
            local_grid=local_grid,
            num_iterations=num_iterations,
        )

    def _make_features(self, video: Tensor) -> Tensor:
        """Maps of the stride that positions are counted with; ValueError for those of another."""
        features: Tensor = self.features(video)
        check_shape("features", features, (*video.shape[:2], self.config.vggt.track_features, "H", "W"))
        stride, got, pixels = self.config.stride, tuple(features.shape[-2:]), tuple(video.shape[-2:])
        if any(abs(side * stride - size) >= stride for side, size in zip(got, pixels, strict=True)):
            raise ValueError(f"features must have stride {stride} for a video of {pixels} pixels, got maps of {got}")
        return features

    def track(
        self,
        features: Float[Tensor, "b s c h w"],
        query_points: Tensor,
        *,
        backward: bool = True,
        support_grid: int = 0,
        local_grid: int = 0,
        num_iterations: int | None = None,
    ) -> VideoTracks:
        """Track on feature maps that were made before, by `model.features(video)`; see `forward`.

        Maps round the size of a video down, so queries beyond its border by less than `config.stride` pixels pass.
        """
        check_shape("features", features, ("B", "S", self.config.vggt.track_features, "H", "W"))
        query_points = batch_queries(query_points, features.shape[0], 3)
        check_count("support_grid", support_grid, 0)
        check_count("local_grid", local_grid, 0)
        stride = self.config.stride
        image_hw = (features.shape[-2] * stride, features.shape[-1] * stride)
        check_queries(query_points, features.shape[1], image_hw, view="frame", slack_px=stride - 1, on_any_device=True)

        support = [support_queries(query_points, image_hw, support_grid)] if support_grid else []
        support += [local_queries(query_points, image_hw, local_grid)] if local_grid else []
        together = torch.cat([query_points, *(points.to(query_points.dtype) for points in support)], dim=1)
        result = self.tracker(features, together, backward=backward, num_iterations=num_iterations)
        return take_queries(result, query_points.shape[1]) if support else result

    @classmethod
    def from_vggt(
        cls,
        source: VGGT | str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **numbers: Any,
    ) -> VideoTracker:
        """A new tracker, with random weights, on a VGGT that is there.

        Args:
            source: The model, which becomes part of this one; or what `VGGT.from_pretrained` takes.
            device: Device of the model; defaults to that of `source`, or to the CPU.
            dtype: Precision of all parameters; defaults to that of `source`.
            numbers: Values of `VideoTrackerConfig`, except `vggt`.

        Returns:
            The tracker, in evaluation mode, what is new in the precision of the VGGT's encoder; its decoder begins as
            that of the VGGT's head of tracks, if it has one.

        Raises:
            ValueError: For numbers that aren't the configuration's, features that aren't the VGGT's, and as
                `VGGT.from_pretrained`.
        """
        check_numbers("number", numbers, VideoTrackerConfig, without="vggt")
        if numbers.get("features", "vggt") != "vggt":
            raise ValueError(f"features must be 'vggt' for a tracker on a VGGT, got {numbers['features']!r}")
        vggt = source if isinstance(source, VGGT) else VGGT.from_pretrained(source, device=device, dtype=dtype)
        like = next(vggt.parameters())
        config = VideoTrackerConfig(vggt=vggt.config, **numbers)
        features = VGGTFeatures(vggt, stride=config.stride, encoder_frames=config.encoder_frames)
        if vggt.track_head is not None:
            features.decoder.load_state_dict(vggt.track_head.decoder.state_dict())
        model = cls(config, features=features)
        vggt.to(device=device or like.device, dtype=dtype)
        for part in (features.decoder, model.tracker):
            part.to(device=device or like.device, dtype=dtype or like.dtype)
        return model.eval()

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        features: nn.Module | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        extra_heads: Mapping[str, HeadSource] | None = None,
    ) -> VideoTracker:
        """Load weights that `save_pretrained` wrote, strictly; in evaluation mode.

        Args:
            source: A folder, a .safetensors file or a hub id.
            features: The source of feature maps, where the saved model had one of another kind than the
                configuration's; its weights are loaded too. A VGGT of its has no added heads yet.
            device: Device of the model; defaults to the CPU.
            dtype: Precision of all parameters; defaults to that of the files.
            extra_heads: Added heads of the VGGT inside, as for `VGGT.from_pretrained`.

        Raises:
            ValueError: For weights of another model, and of one whose `features` or added heads have to be given.
            FileNotFoundError: If the source is no file and not to be had from the hub.
        """
        checkpoint = open_weights(source)
        config = cls.read_config(source)

        def build() -> VideoTracker:
            model = cls(config, features=features)
            own = dict(model.named_parameters())
            stored = checkpoint.unwrapped(own.__contains__).shapes.keys()
            if features is None and stored.isdisjoint(name for name in own if name.startswith("features.")):
                raise ValueError(
                    f"features must be given for '{checkpoint.source}', whose feature maps came from a module of its "
                    "own, got None; from_pretrained(…, features=module)"
                )
            return model

        return load_around_vggt(checkpoint, "VideoTracker", build, extra_heads, device=device, dtype=dtype)

    @staticmethod
    def read_config(source: str | os.PathLike[str]) -> VideoTrackerConfig:
        """The configuration of weights, without loading them; arguments and errors as in `from_pretrained`."""
        return parse_stored(open_weights(source), "VideoTracker", VideoTrackerConfig.from_dict)

    def save_pretrained(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write `model.safetensors` and `config.json` into a folder, with heads added to the VGGT inside.

        Returns:
            The folder; nothing is left half-written.

        Raises:
            ValueError: For a quantised model, whose own numbers are lost.
        """
        return save_around_vggt(self, "VideoTracker", self.config.to_dict(), folder, overwrite=overwrite)
