"""Random rooms: ranges of their properties, their objects, textures, lights and cameras.

A scene is a function of its seed alone. All its random numbers are drawn first, on the CPU, so that a seed gives the
same scene on every device and in every batch; the rest is tensor arithmetic over the batch. World axes are OpenCV's
(x right, y down, z forward), the floor is at y = 0, lengths are in metres.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_at_least, check_range
from geomtx.data.synthetic.solids import NUM_WAVES, Solids, Textures, clearance
from geomtx.geometry.camera import fov_to_intrinsics
from geomtx.types import Cameras, show_shapes

__all__ = [
    "CAMERA_MARGIN",
    "Dice",
    "Lights",
    "RoomStyle",
    "look_at",
    "pick_textures",
    "place_cameras",
    "place_lights",
    "place_solids",
    "turn_about",
]

CAMERA_MARGIN = 0.25
"""Smallest distance of a camera from the sides of the room, in metres."""


@dataclasses.dataclass(frozen=True)
class RoomStyle:
    """Ranges (least, most) from which properties of rooms are drawn uniformly; lengths in metres, angles in degrees.

    Attributes:
        half_width: Half of the room's extent along x and z, above 0.5; defaults to (1.8, 4.5).
        height: Height of the room, above 0.5; defaults to (2.2, 3.6).
        num_solids: Number of solids, up to 16; defaults to (3, 10).
        solid_radius: Half of a solid's extent along each of its axes; defaults to (0.15, 0.7).
        fov: Field of view along the longer side of the pictures, below 170, shared by all cameras of a scene; defaults
            to (45, 85).
        spread: Largest angle of the cameras about the point they look at, to each side of the first camera; defaults to
            (8, 60).
        dolly: Distance of the other cameras from that point relative to the first camera's; defaults to (0.7, 1.3).
        level: Height of the cameras relative to that of the room, up to 1; defaults to (0.3, 0.75).
        aim: Largest offset of the point that a camera looks at from the common one along each axis, relative to the
            camera's distance; defaults to 0.12.
        roll: Largest rotation of a camera about its optical axis; defaults to 6.
        wild: Share of rooms whose walls, floor and ceiling have any colours, in 0 … 1; the others have pale walls, a
            bright ceiling and a darker floor, which are cues for depth in a single picture. Defaults to 0.3.
        shadows: Whether solids cast shadows, which costs a second ray per pixel; defaults to True.

    Raises:
        ValueError: If a number is out of range.
    """

    half_width: tuple[float, float] = (1.8, 4.5)
    height: tuple[float, float] = (2.2, 3.6)
    num_solids: tuple[int, int] = (3, 10)
    solid_radius: tuple[float, float] = (0.15, 0.7)
    fov: tuple[float, float] = (45.0, 85.0)
    spread: tuple[float, float] = (8.0, 60.0)
    dolly: tuple[float, float] = (0.7, 1.3)
    level: tuple[float, float] = (0.3, 0.75)
    aim: float = 0.12
    roll: float = 6.0
    wild: float = 0.3
    shadows: bool = True

    @classmethod
    def nano(cls) -> RoomStyle:
        """Return the style on which the weights `nano` were trained: few solids, similar cameras, no shadows."""
        return cls(
            half_width=(2.5, 3.5),
            height=(2.6, 3.0),
            num_solids=(2, 4),
            solid_radius=(0.4, 0.7),
            fov=(62.0, 68.0),
            spread=(60.0, 60.0),
            dolly=(0.85, 1.15),
            level=(0.5, 0.55),
            aim=0.03,
            roll=1.0,
            wild=0.0,
            shadows=False,
        )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, tuple):
                object.__setattr__(self, field.name, tuple(value))
                if len(value) != 2 or not 0 < value[0] <= value[1] < math.inf:
                    raise ValueError(f"{field.name} must be (least, most), both positive, got {value}")
        if self.num_solids[1] > 16:
            raise ValueError(f"num_solids must be in 1 … 16, got {self.num_solids}")
        for name, most in (("half_width", self.half_width), ("height", self.height)):
            if most[0] <= 2 * CAMERA_MARGIN:
                raise ValueError(f"{name} must be above {2 * CAMERA_MARGIN}, where cameras have room, got {most}")
        if self.level[1] > 1:
            raise ValueError(f"level must be up to 1, the ceiling, got {self.level}")
        for name in ("aim", "roll"):
            check_at_least(name, getattr(self, name), 0)
        check_range("wild", self.wild, 0, 1)
        if self.fov[1] >= 170:
            raise ValueError(f"fov must be below 170 degrees, got {self.fov}")


_CANDIDATES = 8  # random positions of a camera, of which the first free one is taken
_KINDS = 6  # ball, dome, cylinder, box, prism, pyramid
_FACES = 8


@show_shapes
class Lights(NamedTuple):
    """Lights of B scenes: a lamp and ambient light.

    Attributes:
        position: Position of the lamp, (B, 3).
        color: RGB intensity of the lamp, (B, 3).
        ambient: RGB intensity of the ambient light, (B, 3).
        sky: Direction from which more of the ambient light comes; its length is the relative excess, (B, 3).
    """

    position: Tensor
    color: Tensor
    ambient: Tensor
    sky: Tensor


class Dice:
    """Uniform random numbers of B scenes, each from its own seed; `roll` and `between` return them in order."""

    def __init__(self, seeds: Sequence[int], device: torch.device, dtype: torch.dtype, amount: int = 4096) -> None:
        # Drawn in float32 whatever the dtype, so that a seed gives the same scene in float64.
        rows = [torch.rand(amount, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        self._numbers = torch.stack(rows).to(device, dtype)
        self._used = 0

    def roll(self, *shape: int) -> Tensor:
        """Return the next numbers (B, *shape) in [0, 1)."""
        amount = math.prod(shape)
        drawn = self._numbers[:, self._used : self._used + amount]
        assert drawn.shape[1] == amount, "more random numbers than were drawn"
        self._used += amount
        return drawn.reshape(-1, *shape)

    def between(self, low: float, high: float, *shape: int) -> Tensor:
        """Return the next numbers (B, *shape) in [low, high)."""
        return low + (high - low) * self.roll(*shape)


def place_solids(dice: Dice, style: RoomStyle) -> Solids:
    """Draw rooms and the solids in them, of which most stand on the floor and the others float."""
    most = style.num_solids[1]
    half = torch.stack([dice.between(*style.half_width), dice.between(*style.half_width)], dim=-1)
    height = dice.between(*style.height)
    exists = torch.arange(most, device=half.device) < dice.between(style.num_solids[0], most + 1)[:, None].floor()
    radii = dice.between(*style.solid_radius, most, 3)
    # A quarter of the solids is stretched along its vertical axis.
    stretch = torch.where(dice.roll(most) < 0.25, dice.between(1.2, 2.2, most), 1.0)
    radii = torch.stack([radii[..., 0], radii[..., 1] * stretch, radii[..., 2]], dim=-1)
    radii = torch.minimum(radii, 0.45 * height[:, None, None])
    rotation = _random_rotation(dice, most)
    # Half of the extent along the vertical of the world, which puts solids on the floor.
    rise = (rotation[..., 1, :] * radii).norm(dim=-1)
    y = torch.where(dice.roll(most) < 0.7, -rise, -rise - dice.roll(most) * (height[:, None] - 2 * rise).clamp(min=0))
    ground = dice.between(-0.85, 0.85, most, 2) * half[:, None]
    centers = torch.stack([ground[..., 0], y, ground[..., 1]], dim=-1)
    quadrics, normals, offsets = _shape(dice, centers, radii, rotation)
    low = torch.stack([-half[:, 0], -height, -half[:, 1]], dim=-1)
    high = torch.stack([half[:, 0], torch.zeros_like(height), half[:, 1]], dim=-1)
    return Solids(quadrics, centers, normals, offsets, exists, low, high, radii.norm(dim=-1))


def _random_rotation(dice: Dice, count: int) -> Tensor:
    """Draw world-from-solid rotations, (B, count, 3, 3): by any angle about the vertical, and some tilted."""
    yaw = dice.between(0, 2 * math.pi, count)
    tilt = torch.where(dice.roll(count) < 0.3, dice.between(-0.6, 0.6, count), 0.0)
    return turn_about(yaw, 1) @ turn_about(tilt, 0)


def turn_about(angle: Tensor, axis: int) -> Tensor:
    """Return rotations (..., 3, 3) by `angle` (...), in radians, about the coordinate axis number `axis`."""
    import roma

    return roma.rotvec_to_rotmat(angle[..., None] * torch.eye(3).to(angle)[axis])


def _shape(dice: Dice, centers: Tensor, radii: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the kinds of solids; returns the quadrics and half-spaces of solids with the given half-axes `radii`."""
    kind = (dice.roll(centers.shape[1]) * _KINDS).long()
    quadric_axes, planes, plane_offsets = (t.to(centers) for t in _catalogue())
    # x = c + R diag(r) u, so n·u ≤ d becomes (R n/r)·(x - c) ≤ d, and the quadric R diag(q/r²) Rᵀ.
    stretched = rotation * (quadric_axes[kind].sqrt() / radii)[..., None, :]
    quadrics = stretched @ stretched.transpose(-1, -2)
    normals = (planes[kind] / radii[..., None, :]) @ rotation.transpose(-1, -2)
    length = normals.norm(dim=-1, keepdim=True).clamp(min=1e-9)
    normals = normals / length
    offsets = plane_offsets[kind] / length[..., 0] + torch.einsum("bkfc,bkc->bkf", normals, centers)
    return quadrics, normals, torch.where(length[..., 0] > 1e-6, offsets, 1e6)


def _catalogue() -> tuple[Tensor, Tensor, Tensor]:
    """Return all kinds of solids within [-1, 1]³: axes of quadrics (KINDS, 3), normals (KINDS, FACES, 3), offsets."""
    axes = torch.tensor([[1.0, 1, 1], [1, 1, 1], [1, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]])
    planes, offsets = torch.zeros(_KINDS, _FACES, 3), torch.ones(_KINDS, _FACES)
    up, down = torch.tensor([0.0, -1, 0]), torch.tensor([0.0, 1, 0])
    planes[1, 0] = down  # a dome is half a ball with its flat side at the centre
    offsets[1, 0] = 0.0
    planes[2, :2] = torch.stack([up, down])
    planes[3, :6] = torch.cat([torch.eye(3), -torch.eye(3)])
    angle = torch.arange(6) * math.pi / 3
    sides = torch.stack([angle.cos(), torch.zeros(6), angle.sin()], dim=-1)
    planes[4, :6], planes[4, 6:8] = sides, torch.stack([up, down])
    offsets[4, :6] = math.cos(math.pi / 6)
    # Sides of a square pyramid lean from the base at y = 1 to the tip at y = -1.
    planes[5, :4] = torch.tensor([[2.0, -1, 0], [-2, -1, 0], [0, -1, 2], [0, -1, -2]])
    planes[5, 4] = down
    return axes, planes, offsets


def pick_textures(dice: Dice, style: RoomStyle) -> Textures:
    """Draw the textures of the room's six sides and of all solids."""
    num_surfaces = 6 + style.num_solids[1]
    direction = dice.between(-1, 1, num_surfaces, NUM_WAVES, 3)
    direction = direction / direction.norm(dim=-1, keepdim=True).clamp(min=1e-3)
    # Wavelengths from 0.25 m to 2.5 m, uniform in octaves.
    frequency = 2 * math.pi / (0.25 * 2 ** dice.between(0, 3.3, num_surfaces, NUM_WAVES, 1))
    # Most colours are pale: a deviation from grey that is rarely large.
    grey = dice.between(0.25, 0.95, num_surfaces, 1, 1)
    hue = dice.between(-0.5, 0.5, num_surfaces, 1, 3) * dice.roll(num_surfaces, 1, 1)
    base = (grey + hue).clamp(0.05, 0.98)
    other = torch.where(
        dice.roll(num_surfaces, 1, 1) < 0.5, 1 - base, base * dice.between(0.3, 0.8, num_surfaces, 1, 1)
    )
    colors = torch.cat([base, other], dim=-2)
    colors = torch.cat([_color_room(dice, style, colors[:, :6]), colors[:, 6:]], dim=1)
    return Textures(
        waves=direction * frequency,
        phases=dice.between(0, 2 * math.pi, num_surfaces, NUM_WAVES),
        product=(dice.roll(num_surfaces) < 0.4).to(base.dtype),
        sharpness=2 ** dice.between(0, 5, num_surfaces),
        colors=colors,
        grain=dice.between(0, 0.15, num_surfaces),
    )


def _color_room(dice: Dice, style: RoomStyle, wild: Tensor) -> Tensor:
    """Return two colours per side of the room (B, 6, 2, 3): `wild`, or pale walls, a bright ceiling and a dark floor.

    Walls differ from each other, so that a picture shows from where in the room it was taken.
    """
    # Sides are in the order low x, y, z, high x, y, z; the ceiling is low y and the floor high y.
    least, most = torch.tensor([[0.5, 0.85, 0.5, 0.5, 0.2, 0.5], [0.9, 0.98, 0.9, 0.9, 0.45, 0.9]]).to(wild)
    hue = dice.between(-1, 1, 6, 3) * torch.tensor([0.25, 0.03, 0.25, 0.25, 0.15, 0.25]).to(wild)[:, None]
    base = ((least + (most - least) * dice.roll(6))[..., None] + hue).clamp(0.05, 0.98)
    contrast = dice.between(0.02, 0.35, 6, 1) * torch.tensor([1, 0.3, 1, 1, 1.5, 1]).to(wild)[:, None]
    tame = torch.stack([base, base * (1 - contrast)], dim=-2)
    return torch.where((dice.roll(1, 1, 1) < style.wild), wild, tame)


def place_lights(dice: Dice, solids: Solids) -> Lights:
    """Draw a lamp in the upper part of each room, and ambient light."""
    share = torch.cat([dice.between(0.15, 0.85, 1), dice.between(0.05, 0.3, 1), dice.between(0.15, 0.85, 1)], dim=-1)
    position = solids.room_low + share * (solids.room_high - solids.room_low)
    tint = 1 + dice.between(-0.12, 0.12, 3)
    ambient = dice.between(0.35, 0.7, 1)
    sky = torch.stack([dice.between(-0.25, 0.25), dice.between(-0.3, 0.1), dice.between(-0.25, 0.25)], dim=-1)
    return Lights(position, tint * dice.between(0.4, 0.9, 1), ambient * (1 + dice.between(-0.06, 0.06, 3)), sky)


def place_cameras(dice: Dice, solids: Solids, style: RoomStyle, num_views: int, image_hw: tuple[int, int]) -> Cameras:
    """Draw cameras on an arc about a point in the room, whose middle is the first camera.

    View s of a scene does not depend on the number of views.
    """
    low, high = solids.room_low[:, None], solids.room_high[:, None]
    height = high[:, :, 1] - low[:, :, 1]
    focus = (low + high) / 2 + dice.between(-0.22, 0.22, 1, 3) * (high - low)
    focus = torch.stack([focus[..., 0], -height * dice.between(0.12, 0.45, 1), focus[..., 2]], dim=-1)
    spread = dice.between(*style.spread, 1) * (math.pi / 180)
    fov = dice.between(*style.fov) * (math.pi / 180)
    heading = dice.between(0, 2 * math.pi, 1)
    reach = dice.between(0.35, 0.75, 1) * torch.minimum((high - low)[..., 0], (high - low)[..., 2])
    eyes, targets, rolls = [], [], []
    for index in range(num_views):
        aside = 0.0 if index == 0 else 1.0
        # Draw several positions and keep the first that is free, or the freest.
        yaw = heading + aside * spread * dice.between(-1, 1, _CANDIDATES)
        yaw = yaw + (1 - aside) * dice.between(0, 2 * math.pi, _CANDIDATES)
        distance = reach * (1 + aside * (dice.between(*style.dolly, _CANDIDATES) - 1))
        level = -height * dice.between(*style.level, _CANDIDATES)
        eye = torch.stack([focus[..., 0] - distance * yaw.sin(), level, focus[..., 2] - distance * yaw.cos()], dim=-1)
        eye = torch.minimum(torch.maximum(eye, low + CAMERA_MARGIN), high - CAMERA_MARGIN)
        free = torch.minimum(clearance(solids, eye), (eye - focus).norm(dim=-1) - 0.6)
        rank = torch.where(free > 0.3, 1e3 - torch.arange(_CANDIDATES, device=eye.device), free)
        chosen = rank.argmax(dim=-1)[:, None]
        if index == 0:
            heading = yaw.gather(1, chosen)
        eyes.append(eye.gather(1, chosen[..., None].expand(-1, -1, 3))[:, 0])
        targets.append((focus + dice.between(-style.aim, style.aim, 1, 3) * reach[..., None])[:, 0])
        rolls.append(dice.between(-1, 1) * (style.roll * math.pi / 180))
    cam_from_world = look_at(torch.stack(eyes, 1), torch.stack(targets, 1), torch.stack(rolls, 1))
    rows, columns = image_hw
    wide = 2 * torch.atan(torch.tan(fov / 2) * min(image_hw) / max(image_hw))
    both = torch.stack([wide, fov] if columns >= rows else [fov, wide], dim=-1)
    intrinsics = fov_to_intrinsics(both, image_hw)[:, None].expand(-1, num_views, -1, -1)
    return Cameras(cam_from_world, intrinsics.contiguous())


def look_at(eyes: Tensor, targets: Tensor, rolls: Tensor) -> Tensor:
    """Return `cam_from_world` (..., 3, 4) of cameras at `eyes` that look at `targets`, upright except for `rolls`."""
    forward = torch.nn.functional.normalize(targets - eyes, dim=-1)
    down = torch.zeros_like(forward)
    down[..., 1] = 1
    right = torch.nn.functional.normalize(torch.linalg.cross(down, forward), dim=-1)
    upright = torch.stack([right, torch.linalg.cross(forward, right), forward], dim=-2)
    rotation = turn_about(rolls, 2) @ upright
    return torch.cat([rotation, -(rotation @ eyes[..., None])], dim=-1)
