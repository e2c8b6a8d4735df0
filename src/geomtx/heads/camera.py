"""Heads that predict cameras from camera tokens, and one by iterated refinement (VGGT, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from geomtx.checks import check_positive
from geomtx.geometry.camera import POSE_DIM, activate_pose, decode_pose
from geomtx.heads.special_tokens import SpecialTokenHead
from geomtx.layers.attention import key_mask
from geomtx.layers.backends import BackendName
from geomtx.layers.block import Attend, TransformerBlock
from geomtx.layers.mlp import MLP
from geomtx.layers.norms import Modulation
from geomtx.layers.precision import Float32Linear, at_least_float32
from geomtx.types import Bool, CameraPrediction, Float, Tokens

__all__ = ["CameraHead", "CameraTokenHead"]


class CameraTokenHead(SpecialTokenHead):
    """Base of heads that predict cameras from the camera tokens of one layer.

    A subclass has `camera_tokens`, which works on each view by itself, and `predict`, which gets those of all views.

    Args:
        dim: Number of channels C of the tokens.
        layer: Index of the encoder's layer to read; defaults to the last one that was kept.
    """

    def select(self, tokens: Tokens) -> Float[Tensor, "b s c"]:
        """Return the result of `camera_tokens`, see `SpecialTokenHead`.

        Args:
            tokens: Tokens of an encoder that kept the head's layer.
        """
        return self.camera_tokens(tokens)

    def camera_tokens(self, tokens: Tokens) -> Float[Tensor, "b s c"]:
        """Return the camera token of every view, (B, S, C): all that the head reads.

        Args:
            tokens: Tokens of an encoder that kept the head's layer.
        """
        return super().select(tokens)

    def predict(
        self,
        camera_tokens: Float[Tensor, "b s c"],
        image_hw: tuple[int, int],
        view_mask: Bool[Tensor, "b s"] | None = None,
    ) -> CameraPrediction:
        """Predict cameras from what `camera_tokens` returns for all views of the scenes.

        Args:
            camera_tokens: Camera tokens, (B, S, C).
            image_hw: Height and width of the images in pixels.
            view_mask: Mask of the valid views, (B, S) bool; defaults to all.

        Returns:
            Cameras (B, S, 3, 4) and (B, S, 3, 3) in pixels of the encoder's images, and the pose encodings of all
            iterations, (I, B, S, 9), in float32 or better.
        """
        raise NotImplementedError


class CameraHead(CameraTokenHead):
    """Predict every view's camera from its camera token.

    Each iteration modulates the tokens by the pose encoding so far, lets the views attend to each other, and adds a
    correction to the encoding. The gradient is cut between iterations.

    Args:
        dim: Number of channels C of the encoder's output.
        depth: Number of blocks of the trunk.
        num_heads: Number of attention heads of each block.
        num_iterations: Number of refinements.
        mlp_ratio: Number of hidden channels of the blocks' MLPs, divided by `dim`.
        layer_scale: Initial factor of the blocks' residual branches.
        layer: Index of the encoder's layer to read; defaults to the last one that was kept.
        backend: Name of the attention backend, see `geomtx.layers.backends`.
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
        super().__init__(dim, layer=layer)
        check_positive("num_iterations", num_iterations)
        self.depth = depth
        self.num_heads = num_heads
        self.num_iterations = num_iterations
        self.mlp_ratio = mlp_ratio
        self.layer_scale = layer_scale
        self.backend = backend
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
        """Start from a camera at the origin without rotation and with a field of view of one radian.

        From random biases, half of all fields of view would start below zero, where the rectifier has no gradient.
        """
        step = 1 / self.num_iterations
        with torch.no_grad():
            self.pose_mlp.contract.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, step, step, step]))

    def camera_tokens(self, tokens: Tokens) -> Float[Tensor, "b s c"]:
        """Return the normalised camera token of every view, (B, S, C): all that the head reads.

        Args:
            tokens: Tokens of an encoder that kept the head's layer.
        """
        return self.token_norm(super().camera_tokens(tokens))

    def predict(
        self,
        camera_tokens: Float[Tensor, "b s c"],
        image_hw: tuple[int, int],
        view_mask: Bool[Tensor, "b s"] | None = None,
        *,
        attend: Attend | None = None,
    ) -> CameraPrediction:
        """Predict cameras from the normalised camera tokens of all views of the scenes.

        Args:
            camera_tokens: Result of `camera_tokens`, (B, S, C).
            image_hw: Height and width of the images in pixels.
            view_mask: Mask of the valid views, (B, S) bool; defaults to all.
            attend: Function that runs a block of the trunk, see `refine`; defaults to attention over all views at
                once.
        """
        if attend is None:
            attend = _AttendToViews(None if view_mask is None else key_mask(view_mask))
        encodings = self.refine(camera_tokens, attend)
        with torch.autocast(encodings.device.type, enabled=False):
            return CameraPrediction(decode_pose(encodings[-1], image_hw), encodings)

    def refine(self, camera_tokens: Float[Tensor, "b s c"], attend: Attend) -> Float[Tensor, "i b s 9"]:
        """Return the pose encodings of all iterations.

        Args:
            camera_tokens: Normalised camera tokens, (B, S, C).
            attend: Function that runs a block of the trunk: (number, block, tokens (B, S, C)) → tokens. A
                block's number is iteration · depth + its index in the trunk.
        """
        encodings = []
        pose = None
        for iteration in range(self.num_iterations):
            previous = self.initial_pose.expand(*camera_tokens.shape[:2], -1) if pose is None else pose.detach()
            condition = self.pose_embedding(previous).to(camera_tokens.dtype)
            x = camera_tokens + self.modulation(camera_tokens, condition)
            for index, block in enumerate(self.trunk):
                x = attend(iteration * self.depth + index, block, x)
            delta = at_least_float32(self.pose_mlp(self.trunk_norm(x)))
            pose = delta if pose is None else pose.detach() + delta
            encodings.append(activate_pose(pose))
        return torch.stack(encodings)


@dataclass(eq=False)
class _AttendToViews:
    """Run a block on all views of a scene at once."""

    mask: Tensor | None

    def __call__(self, number: int, block: Callable[..., Tensor], x: Tensor) -> Tensor:
        return block(x, mask=self.mask)
