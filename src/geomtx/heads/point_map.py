"""Points, confidence and camera of each view, in the view's own camera (Pi3, Wang et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import repeat
from torch import Tensor, nn

from geomtx.geometry.camera import fit_intrinsics, invert_rigid, transform_points
from geomtx.geometry.rotation import nearest_rotation
from geomtx.heads.dense import activate_confidence
from geomtx.heads.head import Head, HeadFootprint, Parts
from geomtx.heads.token_decoder import TokenDecoder
from geomtx.layers.precision import Float32Linear, float32_island
from geomtx.types import Cameras, DenseMap, Float, Tokens

__all__ = ["PointMapHead", "PooledCamera", "TokenMap"]

_SHORTEST = 1e-12  # length of a row that is divided by
_RAW_DIM = 3  # channels of x/z, y/z and log z
_RESULT_DIM = 10  # numbers for a pixel: depth, points in two frames, and a confidence for each


class TokenMap(nn.Module):
    """A map of the images' size from tokens: a transformer on each view by itself, and a decoder of its patches.

    Args:
        trunk: Transformer on the tokens.
        out: Module from patch tokens to maps, called as `out(patches, grid_hw, image_hw)`, for instance `PixelShuffle`
            or `Upsampler`.
    """

    def __init__(self, trunk: TokenDecoder, out: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.out: Any = out

    def forward(self, tokens: Tokens) -> Float[Tensor, "n c h w"]:
        """Return the maps of all views, (B·S, C, H, W).

        Args:
            tokens: Tokens of an encoder that kept the trunk's layer.
        """
        patches = self.trunk(tokens)[:, tokens.num_special :]
        mask = tokens.patch_mask()
        if mask is not None:
            patches = patches.masked_fill(~mask[..., None], 0.0)
        return self.out(patches, tokens.grid_hw, tokens.image_hw)


class ResidualLayers(nn.ModuleList):
    """x + f(x), where f is three linear layers with ReLU after each.

    Args:
        dim: Number of channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(nn.Linear(dim, dim) for _ in range(3))

    def forward(self, x: Float[Tensor, "*batch c"]) -> Float[Tensor, "*batch c"]:
        """Transform every token by itself, (..., dim) → (..., dim)."""
        branch = x
        for layer in self:
            branch = layer(branch).relu()
        return x + branch


class PooledCamera(nn.Module):
    """Predict every view's pose from the mean of its patches.

    A transformer, residual blocks of three linear layers with ReLU on each patch, the mean over the patches, and two
    linear layers with ReLU lead to a centre and to nine numbers, whose nearest rotation is taken.

    Args:
        trunk: Transformer on the tokens.
        num_units: Number of residual blocks.
    """

    def __init__(self, trunk: TokenDecoder, *, num_units: int = 2) -> None:
        super().__init__()
        dim = trunk.out_dim
        self.trunk = trunk
        self.units = nn.ModuleList(ResidualLayers(dim) for _ in range(num_units))
        self.hidden = nn.ModuleList(nn.Linear(dim, dim) for _ in range(2))
        self.center = Float32Linear(dim, 3)
        self.rotation = Float32Linear(dim, 9)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start from cameras near the origin, almost without rotation."""
        with torch.no_grad():
            self.center.bias.zero_()
            # The identity, without torch.eye: on the meta device that imports as much as torch._dynamo.
            self.rotation.bias.zero_()[::4] = 1

    def forward(self, tokens: Tokens) -> Float[Tensor, "n 3 4"]:
        """Return `world_from_cam` of all views, (B·S, 3, 4), in float32 or better; the world is the same in a scene.

        Args:
            tokens: Tokens of an encoder that kept the trunk's layer.
        """
        x = self.trunk(tokens)[:, tokens.num_special :]
        for unit in self.units:
            x = unit(x)
        mask = tokens.patch_mask()
        x = x.mean(1) if mask is None else mean_of_valid(x, mask)
        for layer in self.hidden:
            x = layer(x).relu()
        return rigid_of_rows(self.center(x), self.rotation(x).unflatten(-1, (3, 3)))


@float32_island
def mean_of_valid(x: Float[Tensor, "n p c"], mask: Tensor) -> Float[Tensor, "n c"]:
    """Return the mean over the valid tokens of each view, zero where there are none; `mask` is (N, P) bool."""
    return torch.where(mask[..., None], x, 0.0).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


@float32_island
def rigid_of_rows(center: Float[Tensor, "*batch 3"], rows: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 4"]:
    """Return the rigid transforms [R | t] with the rotation nearest to rows that are brought to unit length.

    Args:
        center: Translations t, (..., 3).
        rows: Rows of any length, (..., 3, 3).
    """
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp(min=_SHORTEST)
    return torch.cat([nearest_rotation(rows / length), center[..., None]], dim=-1)


class PointMapHead(Head):
    """Predict the points that each view's pixels see, in the view's own camera, their confidence, and the pose.

    All else follows: depth is the points' z, the intrinsics are fitted to the points, and the pose brings these to the
    world. The world is any frame that the views of a scene share.

    Args:
        points: Module with x/z, y/z and log z of the points, (B·S, 3, H, W).
        confidence: Module with the logit of the probability that a point is right, (B·S, 1, H, W).
        camera: Module with `world_from_cam` of the views, (B·S, 3, 4); None for a head of depth alone.
        max_log_depth: Largest log z; larger ones are taken for it. Defaults to none.
    """

    def __init__(
        self, points: TokenMap, confidence: TokenMap, camera: PooledCamera | None, *, max_log_depth: float | None = None
    ) -> None:
        super().__init__()
        self.points = points
        self.confidence = confidence
        self.camera = camera
        self.max_log_depth = max_log_depth

    def forward(
        self, tokens: Tokens, maps: Sequence[str] = ("camera", "depth", "points"), scale: Tensor | None = None
    ) -> dict[str, Any]:
        """Predict for every view by itself.

        Args:
            tokens: Tokens of an encoder that kept the layer that is read.
            maps: Names of what to compute: "camera", "depth" and "points".
            scale: Factors that lengths of scenes are multiplied by, (B,); defaults to 1.

        Returns:
            Field of `Predictions` → value, in float32 or better: "cameras"; "depth" (B, S, H, W); "points" in the world
            and "points_cam" in each view's camera, (B, S, H, W, 3).

        Raises:
            ValueError: If the layer wasn't kept or has another number of channels.
        """
        views = tokens.views
        raw = self.points(tokens).movedim(1, -1).unflatten(0, views)  # (B, S, H, W, 3)
        found: dict[str, Any] = {}
        pose = None
        if self.camera is not None and set(maps) & {"camera", "points"}:
            pose = scale_translation(self.camera(tokens).unflatten(0, views), scale)
        if pose is not None and "camera" in maps:
            intrinsics = fit_intrinsics(raw[..., :2], _pixel_mask(tokens))
            found["cameras"] = Cameras(invert_rigid(pose), intrinsics)
        if set(maps) & {"depth", "points"}:
            points = self.locate(raw, scale)
            confidence = activate_confidence(self.confidence(tokens)[:, 0]).unflatten(0, views)
            if "depth" in maps:
                found["depth"] = DenseMap(points[..., 2], confidence)
            if pose is not None and "points" in maps:
                found["points_cam"] = DenseMap(points, confidence)
                world = transform_points(pose, points.flatten(-3, -2)).view_as(points)
                found["points"] = DenseMap(world, confidence)
        return found

    def run_in_parts(self, tokens: Any, parts: Parts, query_points: Tensor | None = None, **options: Any) -> Any:
        """Return what `forward` returns; cameras are of the views of all processes."""
        found = parts.each_view(lambda part: self(part, **options), tokens)
        if "cameras" in found:
            found["cameras"] = Cameras(*map(parts.gather, found["cameras"]))
        return found

    def footprint(self, patch_size: int) -> HeadFootprint:
        """Return the memory that the head takes.

        Args:
            patch_size: Side of a patch in pixels.
        """
        trunk = self.points.trunk
        # Raw and located points are held in float32 while the last transformer runs.
        peak = max(trunk.peak_numbers / patch_size**2 + 4 * _RAW_DIM, self.points.out.peak_numbers, 4 * _RESULT_DIM)
        return HeadFootprint((trunk.in_dim,), peak, 0, _RESULT_DIM)

    @float32_island
    def locate(self, raw: Float[Tensor, "b s h w 3"], scale: Tensor | None = None) -> Float[Tensor, "b s h w 3"]:
        """Return the points of x/z, y/z and log z in the views' cameras, times `scale`, (B,)."""
        log_z = raw[..., 2:]
        if self.max_log_depth is not None:
            log_z = log_z.clamp(max=self.max_log_depth)
        z = log_z.exp()
        z = z if scale is None else z * scale[:, None, None, None, None]
        return torch.cat([raw[..., :2] * z, z], dim=-1)


@float32_island
def scale_translation(pose: Float[Tensor, "b s 3 4"], scale: Tensor | None) -> Float[Tensor, "b s 3 4"]:
    """Return poses whose translations are multiplied by a factor of the scene, (B,); as they are for None."""
    if scale is None:
        return pose
    return torch.cat([pose[..., :3], pose[..., 3:] * scale[:, None, None, None]], dim=-1)


def _pixel_mask(tokens: Tokens) -> Tensor | None:
    """Return the mask of the pixels of valid patches, (B, S, H, W); None for all."""
    if tokens.mask is None:
        return None
    rows, columns = tokens.grid_hw
    sizes = {"h": tokens.image_hw[0] // rows, "w": tokens.image_hw[1] // columns}
    return repeat(tokens.mask[:, :, tokens.num_special :], "b s (r q) -> b s (r h) (q w)", r=rows, **sizes)
