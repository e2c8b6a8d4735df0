"""Head that predicts each view's camera from its camera token in one pass (Depth Anything 3, Lin et al. 2025)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geomtx.geometry.camera import fov_to_intrinsics, invert_rigid
from geomtx.geometry.rotation import quat_to_matrix
from geomtx.heads.camera import CameraTokenHead
from geomtx.layers.precision import Float32Linear, float32_island
from geomtx.types import Bool, CameraPrediction, Cameras, Float

__all__ = ["CameraMLP"]

_MIN_TAN = 1e-6


class CameraMLP(CameraTokenHead):
    """Predict every view's camera from its camera token by two linear layers with ReLU and three linear outputs.

    The outputs are the camera's centre, the rotation from the camera to the world as a quaternion, and the field of
    view.

    Args:
        dim: Number of channels C of the tokens.
        layer: Index of the encoder's layer to read; defaults to the last one that was kept.
    """

    def __init__(self, dim: int, *, layer: int | None = None) -> None:
        super().__init__(dim, layer=layer)
        self.hidden = nn.ModuleList([nn.Linear(dim, dim), nn.Linear(dim, dim)])
        self.center = Float32Linear(dim, 3)
        self.quat = Float32Linear(dim, 4)
        self.fov = Float32Linear(dim, 2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start from cameras near the origin without rotation and with a field of view of one radian."""
        with torch.no_grad():
            self.center.bias.zero_()
            self.quat.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 1.0]))
            self.fov.bias.fill_(1.0)

    def predict(
        self,
        camera_tokens: Float[Tensor, "b s c"],
        image_hw: tuple[int, int],
        view_mask: Bool[Tensor, "b s"] | None = None,
    ) -> CameraPrediction:
        """Predict cameras from camera tokens.

        Args:
            camera_tokens: Camera tokens, (B, S, C).
            image_hw: Height and width of the images in pixels.
            view_mask: Mask of the valid views; it has no influence, as each view is predicted by itself.

        Returns:
            Cameras, and their pose encodings, (1, B, S, 9).
        """
        return _to_cameras(self.encode(camera_tokens), image_hw)

    def encode(self, camera_tokens: Float[Tensor, "b s c"]) -> Float[Tensor, "b s 9"]:
        """Return centre (3), quaternion xyzw (4) of any length, and vertical and horizontal field of view (2).

        Unlike the pose encodings of other heads they describe the transform from the camera to the world.

        Args:
            camera_tokens: Camera tokens, (B, S, C).
        """
        x = camera_tokens
        for layer in self.hidden:
            x = layer(x).relu()
        return torch.cat([self.center(x), self.quat(x), self.fov(x).relu()], dim=-1)


@float32_island
def _to_cameras(encoding: Float[Tensor, "b s 9"], image_hw: tuple[int, int]) -> CameraPrediction:
    center, quat, fov = encoding.split([3, 4, 2], dim=-1)
    cam_from_world = invert_rigid(torch.cat([quat_to_matrix(quat), center[..., None]], dim=-1))
    inverse = torch.cat([-quat[..., :3], quat[..., 3:]], dim=-1)
    encodings = torch.cat([cam_from_world[..., 3], inverse, fov], dim=-1)[None]
    return CameraPrediction(Cameras(cam_from_world, fov_to_intrinsics(fov, image_hw, min_tan=_MIN_TAN)), encodings)
