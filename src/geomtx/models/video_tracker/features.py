"""Feature maps of a video from VGGT's encoder, for tracking."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geomtx.checks import check_floating, check_shape
from geomtx.heads.dpt import DPTDecoder
from geomtx.models.vggt.model import VGGT
from geomtx.models.vggt.parts import build_track_decoder
from geomtx.types import Float, Tokens

__all__ = ["VGGTFeatures"]


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
