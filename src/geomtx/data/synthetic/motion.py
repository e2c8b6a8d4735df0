"""How things in rooms move: solids on smooth paths of their own, and the camera that films them.

A path is a sum of two slow waves an axis, so it is smooth, stays within its amplitude, and has no end. All paths are
worked out for `MOST_FRAMES` frames, whatever the length of the video: a short one is the beginning of a long one.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from geomtx.data.synthetic.rooms import CAMERA_MARGIN, Dice, look_at, turn_about
from geomtx.data.synthetic.solids import Solids, clearance
from geomtx.data.synthetic.textures import Textures
from geomtx.geometry.camera import invert_rigid

__all__ = ["MOST_FRAMES", "MotionStyle", "carry_solids", "carry_textures", "move_camera", "move_solids"]

MOST_FRAMES = 64

_SWAYS = (1.0, 1.0, 1.0, 0.5, 0.0)  # amplitudes tried for the camera's path; with the last it stands still
_FREE = 0.3  # metres between the camera and what stands in the room


@dataclasses.dataclass(frozen=True)
class MotionStyle:
    """How videos of rooms move: shares, and ranges that numbers are drawn from, uniformly.

    Attributes:
        moving: Share of the solids that move. A few of them stand still nevertheless, since the camera is in their way.
        flying: Share of the moving solids that leave the floor and turn about any axis; the others slide on the floor,
            or at the height where they float, and turn about the vertical.
        travel: How far a solid moves to each side of its path's middle, metres.
        turn: How far it turns to each side, degrees.
        period: Of all paths, frames for a swing to and fro.
        sway: How far the camera moves to each side, metres; less where it has no room.
        aim: How far beside a point in the room the camera looks, relative to the distance of the point.
        roll: Largest rotation of the camera about its axis, beside the one that it has in the room, degrees.

    Raises:
        ValueError: For a number out of its range.
    """

    moving: float = 0.6
    flying: float = 0.5
    travel: tuple[float, float] = (0.2, 1.0)
    turn: tuple[float, float] = (20.0, 150.0)
    period: tuple[float, float] = (20.0, 60.0)
    sway: tuple[float, float] = (0.1, 0.6)
    aim: float = 0.12
    roll: float = 4.0

    @classmethod
    def still(cls) -> MotionStyle:
        """Nothing moves, neither camera nor solids."""
        return cls(moving=0.0, sway=(0.0, 0.0), aim=0.0, roll=0.0)

    def __post_init__(self) -> None:
        for name in ("moving", "flying"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in 0 … 1, got {getattr(self, name)}")
        for name in ("travel", "turn", "period", "sway"):
            value = tuple(getattr(self, name))
            object.__setattr__(self, name, value)
            if len(value) != 2 or not 0 <= value[0] <= value[1] < math.inf:
                raise ValueError(f"{name} must be (least, most), neither negative, got {value}")
        if self.period[0] < 4:
            raise ValueError(f"period must be at least 4 frames, for neighbours to be near, got {self.period}")
        for name in ("aim", "roll"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")


def move_camera(dice: Dice, solids: Solids, cam_from_world: Tensor, style: MotionStyle) -> Tensor:
    """A smooth path around a camera.

    Args:
        dice: Of B scenes.
        solids: Where they rest; the path keeps clear of them if one of a few tried does.
        cam_from_world: (B, 3, 4), where the camera is without motion.
        style: Of the motion.

    Returns:
        (B, MOST_FRAMES, 3, 4).
    """
    eye, forward = invert_rigid(cam_from_world)[..., 3], cam_from_world[:, 2, :3]
    size = solids.room_high - solids.room_low
    distance = 0.5 * torch.minimum(size[:, 0], size[:, 2])[:, None]
    pivot = (eye + distance * forward)[:, None]
    count = len(_SWAYS)
    # Far less than the distance, so that the camera never gets to where it looks at.
    reach = torch.minimum(dice.between(*style.sway, 1), 0.25 * distance)[..., None]
    reach = reach * dice.between(0.3, 1.0, count, 3) * torch.tensor(_SWAYS).to(eye)[:, None]
    low, high = (solids.room_low + CAMERA_MARGIN)[:, None], (solids.room_high - CAMERA_MARGIN)[:, None]
    eyes = _paths(eye[:, None], reach, low, high, _swing(dice, style, count, 3))
    room = clearance(solids, eyes.flatten(1, 2)).unflatten(1, eyes.shape[1:3]).amin(1)
    rank = torch.where(room > _FREE, 1e3 - torch.arange(count, device=room.device), room)
    chosen = rank.argmax(dim=-1)[:, None, None, None].expand(-1, MOST_FRAMES, 1, 3)
    eyes = eyes.gather(2, chosen)[:, :, 0]
    targets = pivot + style.aim * distance[:, None] * _swing(dice, style, 3)
    rolls = style.roll * math.pi / 180 * _swing(dice, style)
    rest = cam_from_world[:, None, :, :3]
    upright = look_at(eye, pivot[:, 0], torch.zeros_like(eye[:, 0]))[:, None, :, :3]
    rotation = turn_about(rolls, 2) @ rest @ upright.mT @ look_at(eyes, targets, torch.zeros_like(rolls))[..., :3]
    return torch.cat([rotation, -(rotation @ eyes[..., None])], dim=-1)


def move_solids(dice: Dice, solids: Solids, eyes: Tensor, style: MotionStyle) -> tuple[Solids, Tensor]:
    """Smooth rigid motions of some of the solids, within the room and clear of the camera.

    Args:
        dice: Of B scenes.
        solids: As they are placed.
        eyes: (B, MOST_FRAMES, 3), where the camera is.
        style: Of the motion.

    Returns:
        The solids at rest, the moving ones no larger than what can move in the room, and `world_from_rest`
        (B, MOST_FRAMES, K, 3, 4), how each of them has moved in each frame; the identity for what stands still.
    """
    count = solids.exists.shape[1]
    moves, flies = dice.roll(count) < style.moving, dice.roll(count) < style.flying
    half = (solids.room_high - solids.room_low) / 2
    ground = torch.minimum(half[:, 0], half[:, 2])[:, None]
    space = 0.7 * torch.where(flies, torch.minimum(ground, half[:, 1:2]), ground)
    scale = (space / solids.reach).clamp(max=1)
    shrunk = _shrink(solids, scale)
    travel = dice.between(*style.travel, count, 1) * dice.between(0.3, 1.0, count, 3)
    low, high = (
        solids.room_low[:, None] + shrunk.reach[..., None],
        solids.room_high[:, None] - shrunk.reach[..., None],
    )
    level = shrunk.centers[..., 1:2]
    upright = torch.tensor([False, True, False], device=flies.device) & ~flies[..., None]
    low, high = torch.where(upright, level, low), torch.where(upright, level, high)
    centers = _paths(shrunk.centers, travel, low, high, _swing(dice, style, count, 3))
    angle = dice.between(*style.turn, count)[:, None] * (math.pi / 180) * _swing(dice, style, count)
    tilt = dice.between(0, math.pi, count) * flies
    axis = (turn_about(dice.between(0, 2 * math.pi, count), 1) @ turn_about(tilt, 0))[:, None]
    rotation = axis @ turn_about(angle, 1) @ axis.mT
    gap = (centers - eyes[:, :, None]).norm(dim=-1) - shrunk.reach[:, None]
    moves = moves & (gap.amin(1) > CAMERA_MARGIN)
    solids = _shrink(solids, torch.where(moves, scale, 1.0))
    world_from_rest = torch.cat([rotation, centers[..., None] - rotation @ shrunk.centers[:, None, :, :, None]], dim=-1)
    identity = torch.eye(3, 4).to(world_from_rest)
    return solids, torch.where(moves[:, None, :, None, None], world_from_rest, identity)


def carry_solids(solids: Solids, world_from_rest: Tensor) -> Solids:
    """Solids of B scenes after motions (B, S, K, 3, 4), each frame a scene of its own: B·S scenes."""
    rotation, shift = world_from_rest[..., :3], world_from_rest[..., 3]
    normals = solids.normals[:, None] @ rotation.mT
    offsets = solids.offsets[:, None] + (normals @ shift[..., None])[..., 0]
    centers = (rotation @ solids.centers[:, None, :, :, None])[..., 0] + shift
    num_frames = world_from_rest.shape[1]
    still = (t.repeat_interleave(num_frames, dim=0) for t in solids[4:])
    moved = (rotation @ solids.quadrics[:, None] @ rotation.mT, centers, normals, offsets)
    return Solids(*(t.flatten(0, 1) for t in moved), *still)


def carry_textures(textures: Textures, world_from_rest: Tensor) -> Textures:
    """Textures of B scenes moved along with their surfaces, by motions (B, S, U, 3, 4): B·S scenes.

    A wave w·x + φ at the point carried back, Rᵀ(x - t), is the wave (R w)·x + φ - (R w)·t.
    """
    rotation, shift = world_from_rest[..., :3], world_from_rest[..., 3]
    waves = textures.waves[:, None] @ rotation.mT
    phases = textures.phases[:, None] - (waves @ shift[..., None])[..., 0]
    still = (t.repeat_interleave(world_from_rest.shape[1], dim=0) for t in textures[2:])
    return Textures(waves.flatten(0, 1), phases.flatten(0, 1), *still)


def _swing(dice: Dice, style: MotionStyle, *shape: int) -> Tensor:
    """Smooth functions of the frame, (B, MOST_FRAMES, *shape) in [-1, 1]."""
    period, phase, detail = dice.between(*style.period, *shape), dice.roll(*shape), dice.roll(*shape)
    frames = torch.arange(MOST_FRAMES, device=period.device, dtype=period.dtype)
    turns = frames.view(1, -1, *(1 for _ in shape)) / period[:, None]
    slow, fast = turns + phase[:, None], 2.3 * turns + detail[:, None]
    return 0.8 * (2 * math.pi * slow).sin() + 0.2 * (2 * math.pi * fast).sin()


def _paths(start: Tensor, reach: Tensor, low: Tensor, high: Tensor, swing: Tensor) -> Tensor:
    """Paths (B, T, K, 3) through a box, about (B, K, 3) where the box leaves room to swing by `reach` there."""
    reach = torch.minimum(reach, (high - low) / 2)
    middle = torch.minimum(torch.maximum(start, low + reach), high - reach)
    return middle[:, None] + reach[:, None] * swing


def _shrink(solids: Solids, scale: Tensor) -> Solids:
    """Solids `scale` (B, K) times as large, standing where they stood."""
    foot = solids.centers * torch.tensor([1, 0, 1]).to(solids.centers)
    at_foot = (solids.normals @ foot[..., None])[..., 0]
    return solids._replace(
        quadrics=solids.quadrics / scale[..., None, None].square(),
        centers=foot + scale[..., None] * (solids.centers - foot),
        offsets=at_foot + scale[..., None] * (solids.offsets - at_foot),
        reach=scale * solids.reach,
    )
