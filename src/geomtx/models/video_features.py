"""Feature maps of a video from VGGT's encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geomtx.checks import check_floating, check_shape
from geomtx.heads.dpt import DPTDecoder
from geomtx.models.vggt import VGGT
from geomtx.models.vggt_parts import build_track_decoder
from geomtx.types import Float

__all__ = ["VGGTFeatures"]


class VGGTFeatures(nn.Module):
    """VGGT's encoder over a clip, a decoder as that of its tracks, and an average over neighbouring pixels.

    Args:
        vggt: All of it stays usable; only its encoder is used here.
        stride: Pixels of the image a pixel of the maps, a multiple of the decoder's 2.
        encoder_frames: Frames that the encoder sees at a time; 0 = all.
    """

    def __init__(self, vggt: VGGT, *, stride: int, encoder_frames: int = 0) -> None:
        super().__init__()
        self.vggt = vggt
        # Its own: what tracking in video makes of it must not change the tracks of the VGGT inside.
        self.decoder: DPTDecoder = build_track_decoder(vggt.config)
        self.pool = stride // self.decoder.stride
        self.encoder_frames = encoder_frames

    def forward(self, video: Float[Tensor, "b s 3 h w"]) -> Float[Tensor, "b s c h2 w2"]:
        """Images (B, S, 3, H, W) in [0, 1] → (B, S, C, H / stride, W / stride), rounded down.

        Raises:
            ValueError: For another shape, and for bytes.
        """
        check_shape("video", video, ("B", "S", 3, "H", "W"))
        check_floating("video", video)
        pieces = video.split(self.encoder_frames or video.shape[1], dim=1)
        return torch.cat([self._extract(piece) for piece in pieces], dim=1)

    def _extract(self, images: Tensor) -> Tensor:
        tokens = self.vggt.encoder(images, taps=self.decoder.taps)
        (maps,) = self.decoder.decode(tokens, lambda maps: (nn.functional.avg_pool2d(maps, self.pool),))
        return maps
