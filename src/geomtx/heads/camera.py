"""Cameras from camera tokens, by iterated refinement (VGGT, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geomtx.checks import check_positive, check_shape
from geomtx.geometry.pose_encoding import POSE_DIM, activate_pose, decode_pose
from geomtx.layers.attention import key_mask
from geomtx.layers.backends import BackendName
from geomtx.layers.block import TransformerBlock
from geomtx.layers.float32 import Float32Linear, at_least_float32
from geomtx.layers.mlp import MLP
from geomtx.layers.modulation import Modulation
from geomtx.types import Bool, CameraPrediction, Float, Tokens

__all__ = ["CameraHead"]


class CameraHead(nn.Module):
    """Predict every view's camera from its camera token.

    Each iteration modulates the tokens by the encoding so far, lets the views attend to each other, and adds a
    correction. The gradient is cut between iterations.

    Args:
        dim: Width C of the encoder's output.
        depth: Blocks of the trunk.
        num_heads: Heads of each.
        num_iterations: Refinements.
        mlp_ratio: Of the blocks.
        layer_scale: Initial factor of the blocks' branches.
        layer: Which of the encoder's layers to read; None = the last of those that were kept.
        backend: See `geomtx.layers.backends`.
    """

    def __init__(
        self,
        dim: int = 2048,
        depth: int = 4,
        *,
        num_heads: int = 16,
        num_iterations: int = 4,
        mlp_ratio: float = 4.0,
        layer_scale: float = 0.01,
        layer: int | None = None,
        backend: BackendName = "auto",
    ) -> None:
        super().__init__()
        check_positive("num_iterations", num_iterations)
        self.dim = dim
        self.depth = depth
        self.num_heads = num_heads
        self.num_iterations = num_iterations
        self.mlp_ratio = mlp_ratio
        self.layer_scale = layer_scale
        self.backend = backend
        self.layer = layer
        self.token_norm = nn.LayerNorm(dim)
        self.initial_pose = nn.Parameter(torch.zeros(1, 1, POSE_DIM))
        self.pose_embedding = Float32Linear(POSE_DIM, dim)
        self.modulation = Modulation(dim)
        self.trunk = nn.ModuleList(
            TransformerBlock(dim, num_heads, mlp_ratio=mlp_ratio, layer_scale=layer_scale, backend=backend)
            for _ in range(depth)
        )
        self.trunk_norm = nn.LayerNorm(dim)
        self.pose_mlp = MLP(dim, dim // 2, POSE_DIM, out_type=Float32Linear)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start from a camera at the origin that looks ahead, with a field of view of one radian.

        Without a start, half of all fields of view begin at the rectifier's zero side, where no gradient is.
        """
        start = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
        with torch.no_grad():
            self.pose_mlp.contract.bias.copy_(start / self.num_iterations)

    def forward(self, tokens: Tokens) -> CameraPrediction:
        """Predict.

        Args:
            tokens: Of an encoder; only the camera token of one layer is read.

        Returns:
            Cameras (B, S, 3, 4) and (B, S, 3, 3) in pixels of the encoder's images, and the encodings of all
            iterations, (I, B, S, 9), float32 or better.

        Raises:
            ValueError: If the layer wasn't kept or has another width.
        """
        layer = tokens.layer(max(tokens.layers) if self.layer is None else self.layer)
        check_shape("tokens", layer, ("B", "S", "P", self.token_norm.normalized_shape[0]))
        mask = None if tokens.mask is None else key_mask(tokens.mask[:, :, 0])
        encodings = self.refine(self.token_norm(layer[:, :, 0]), mask)
        with torch.autocast(encodings.device.type, enabled=False):
            return CameraPrediction(decode_pose(encodings[-1], tokens.image_hw), encodings)

    def refine(
        self, camera_tokens: Float[Tensor, "b s c"], mask: Bool[Tensor, "b 1 1 s"] | None = None
    ) -> Float[Tensor, "i b s 9"]:
        """Encodings of all iterations from normed camera tokens."""
        encodings = []
        pose = None
        for _ in range(self.num_iterations):
            previous = self.initial_pose.expand(*camera_tokens.shape[:2], -1) if pose is None else pose.detach()
            condition = self.pose_embedding(previous).to(camera_tokens.dtype)
            x = camera_tokens + self.modulation(camera_tokens, condition)
            for block in self.trunk:
                x = block(x, mask=mask)
            delta = at_least_float32(self.pose_mlp(self.trunk_norm(x)))
            pose = delta if pose is None else pose.detach() + delta
            encodings.append(activate_pose(pose))
        return torch.stack(encodings)
